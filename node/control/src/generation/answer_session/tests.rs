//! One answer whose stages reply, hang, refuse and are lost.

use proptest::prelude::*;

use super::*;
use crate::generation::reply::{Reply, ReportedTokens};
use crate::session::{EndReason, TokenOut};
use crate::test_peers::fresh_peer;

const ID: SessionId = SessionId([1; 16]);
const EPOCH: u64 = 7;

fn peers() -> [PeerId; 3] {
    [fresh_peer(), fresh_peer(), fresh_peer()]
}

/// Stages at these peers, each with one layer.
fn stages_at(peers: &[PeerId]) -> Vec<StageAt> {
    let layers = |index: usize| index as u32..index as u32 + 1;
    peers.iter().enumerate().map(|(index, peer)| StageAt { peer: *peer, layers: layers(index) }).collect()
}

/// The moment this long after the epoch.
fn after(elapsed: Duration) -> Time {
    Time::since_epoch(elapsed)
}

/// Time after which the first token is late: longer than any timeout.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Tokens that the tests' answers may have.
const MAX_NEW_TOKENS: usize = 50;

/// An answer without a route.
fn unrouted(local: PeerId, prompt: Vec<u32>) -> AnswerSession {
    let terms =
        AnswerTerms { max_new_tokens: MAX_NEW_TOKENS, grammar: false, prompt_logprobs: false, patience: PATIENCE };
    AnswerSession::new(local, prompt, terms, Time::ZERO)
}

/// An answer that the first peer coordinates and all of them compute.
fn running(stages: &[PeerId]) -> AnswerSession {
    let mut session = unrouted(stages[0], vec![1, 2, 3]);
    session.opened(ID, EPOCH, &stages_at(stages), Time::ZERO);
    assert!(matches!(session.handle(stages[0], Reply::Accepted, Time::ZERO), Outcome::Accepted));
    session
}

fn tokens(position: usize, ids: impl IntoIterator<Item = u32>) -> Reply {
    let tokens = ids.into_iter().map(|token| TokenOut { token, ..TokenOut::default() }).collect();
    Reply::Tokens(ReportedTokens { position: position as u32, tokens, ..ReportedTokens::default() })
}

fn new_tokens(outcome: Outcome) -> Vec<u32> {
    match outcome {
        Outcome::NewTokens(new) => new.tokens.iter().map(|out| out.token).collect(),
        other => panic!("no new tokens: {other:?}"),
    }
}

/// A first stage could hold a request for two minutes by saying that its chain works on.
#[test]
fn an_answer_whose_first_token_is_late_looks_for_another_route_whatever_the_first_stage_says() {
    let [local, first, last] = peers();
    let patience = Duration::from_secs(5);
    let mut session = unrouted(local, vec![1, 2, 3]);
    session.terms.patience = patience;
    session.opened(ID, EPOCH, &stages_at(&[first, last]), Time::ZERO);
    session.handle(first, Reply::Accepted, Time::ZERO);
    for second in 0..=5 {
        let now = Time::from_secs(second);
        session.handle(first, Reply::Accepted, now);
        assert!(matches!(session.tick(now), Outcome::Nothing), "{second} s");
    }
    let now = after(patience + Duration::from_millis(250));
    let late = session.tick(now);
    let Outcome::Late(exclusions) = &late else { panic!("{late:?}") };
    assert_eq!(*exclusions, Exclusions { peers: vec![first, last], epochs: vec![EPOCH] });
    // Without another route it stays, and asks again.
    assert!(matches!(session.tick(now), Outcome::Nothing));
    assert!(matches!(session.tick(after(patience + Duration::from_secs(2))), Outcome::Late(_)));
    assert_eq!(session.take_suspected(), [], "there is no better chain");
    // With one it moves. Any stage of the chain may be the cause, so all are suspected alike, and none is excluded.
    assert!(matches!(session.moves_on(now), Outcome::Lost { can_sign: false, .. }));
    let suspects = [first, last].map(|peer| (peer, SuspicionReason::Late));
    assert_eq!((session.take_suspected(), session.exclusions(now).peers), (suspects.to_vec(), vec![]));
    // The other chain gets the time that it needs.
    session.opened(ID, EPOCH + 1, &stages_at(&[first, last]), now);
    session.handle(first, Reply::Accepted, now);
    let later = now + patience * 2;
    session.handle(first, Reply::Accepted, later);
    assert!(matches!(session.tick(later), Outcome::Nothing));
}

#[test]
fn a_late_answer_makes_no_suspect_of_its_own_coordinator() {
    let [local, other, _] = peers();
    let mut session = running(&[local, other]);
    assert!(matches!(session.moves_on(Time::from_secs(6)), Outcome::Lost { .. }));
    assert_eq!(session.take_suspected(), [(other, SuspicionReason::Late)]);
}

#[test]
fn an_answer_with_a_token_is_not_late() {
    let [local, other, _] = peers();
    let mut session = unrouted(local, vec![1, 2, 3]);
    session.terms.patience = Duration::from_secs(1);
    session.opened(ID, EPOCH, &stages_at(&[local, other]), Time::ZERO);
    session.handle(local, Reply::Accepted, Time::ZERO);
    session.handle(other, tokens(3, [4]), Time::ZERO);
    assert!(matches!(session.tick(Time::from_secs(3)), Outcome::Nothing));
}

#[test]
fn known_tokens_are_not_emitted_again() {
    let [local, other, _] = peers();
    let mut session = running(&[local, other]);
    assert_eq!(new_tokens(session.handle(other, tokens(3, [10, 11]), Time::ZERO)), [10, 11]);
    assert_eq!(new_tokens(session.handle(other, tokens(4, [11, 12]), Time::ZERO)), [12]);
    assert!(new_tokens(session.handle(other, tokens(3, [10, 11]), Time::ZERO)).is_empty());
    assert_eq!(session.tokens, [1, 2, 3, 10, 11, 12]);
}

#[test]
fn a_gap_in_the_tokens_makes_the_session_fail_over() {
    let [local, other, _] = peers();
    let mut session = running(&[local, other]);
    let outcome = session.handle(other, tokens(4, [11]), Time::ZERO);
    assert!(matches!(outcome, Outcome::Lost { closed: ID, .. }), "{outcome:?}");
    assert_eq!(session.phase, Phase::Unrouted);
}

#[test]
fn the_chain_of_a_lost_stage_is_excluded_for_a_while_and_its_nodes_are_not() {
    let [local, other, stranger] = peers();
    let mut session = running(&[local, other]);
    assert!(matches!(session.peer_gone(stranger, "it left", Time::ZERO), Outcome::Nothing));
    assert!(matches!(session.peer_gone(other, "it left", Time::ZERO), Outcome::Lost { .. }));
    assert_eq!(session.failovers, 1);
    let excluded = session.exclusions(Time::ZERO);
    assert_eq!((excluded.peers.len(), excluded.epochs), (0, vec![EPOCH]));
    assert!(session.exclusions(after(LOST_CHAIN_EXCLUSION)).epochs.is_empty());
}

#[test]
fn a_chain_that_refuses_because_it_failed_is_excluded_for_a_while() {
    let [local, other, _] = peers();
    let refused =
        || Reply::Refused { kind: ErrorKind::Unavailable, message: "a stage is gone".to_owned(), retry_after: None };
    let mut session = unrouted(local, vec![1]);
    for epoch in [EPOCH, EPOCH + 1] {
        session.opened(ID, epoch, &stages_at(&[local, other]), Time::ZERO);
        assert!(matches!(session.handle(local, refused(), Time::ZERO), Outcome::Lost { .. }));
    }
    let excluded = session.exclusions(Time::ZERO);
    // The same nodes may be used under another placement.
    assert_eq!((excluded.peers.len(), excluded.epochs), (0, vec![EPOCH, EPOCH + 1]));
}

#[test]
fn a_peer_that_is_no_stage_cannot_add_tokens() {
    let [local, other, stranger] = peers();
    let mut session = running(&[local, other]);
    assert!(matches!(session.handle(stranger, tokens(3, [10]), Time::ZERO), Outcome::Nothing));
    assert_eq!(session.tokens.len(), 3);
}

/// Seconds of silence after which `session` is lost, from `now` on.
fn lost_after(session: &AnswerSession, now: Time) -> f64 {
    let lost = |millis: &u64| {
        let mut copy = session.clone();
        matches!(copy.tick(now + Duration::from_millis(*millis)), Outcome::Lost { .. })
    };
    (0..10_000_000).step_by(100).find(lost).expect("a silent chain is lost at last") as f64 / 1000.0
}

#[test]
fn stages_are_lost_within_five_seconds_of_when_a_token_was_due() {
    let [local, other, _] = peers();
    let mut fast = running(&[local, other]);
    for at in 0..20usize {
        fast.handle(other, tokens(3 + at, [10]), after(Duration::from_millis(20 * at as u64)));
    }
    assert!((5.0..5.3).contains(&lost_after(&fast, after(Duration::from_millis(380)))));
    // A slow device is not cut off: twice its longest pause is fine.
    let mut slow = running(&[local, other]);
    for at in 0..5usize {
        slow.handle(other, tokens(3 + at, [10]), after(Duration::from_secs(4 * at as u64)));
    }
    assert!(lost_after(&slow, after(Duration::from_secs(16))) > 10.0);
    // It cannot become slower without end.
    let mut slower = running(&[local, other]);
    let mut now = Time::ZERO;
    for at in 0..20usize {
        slower.handle(other, tokens(3 + at, [10]), now);
        now += Duration::from_secs(60);
    }
    assert!(lost_after(&slower, slower.since) <= 25.2);
    let mut alone = running(&[local]);
    assert!(matches!(alone.tick(after(Duration::from_secs(10_000))), Outcome::Nothing));
}

#[test]
fn before_the_first_token_the_chain_must_say_that_it_works_on_and_not_for_ever() {
    let [local, other, _] = peers();
    let session = running(&[other, local]);
    let silence = SILENCE_TIMEOUT.as_secs_f64();
    assert!((silence..silence + 0.2).contains(&lost_after(&session, Time::ZERO)));
    let mut waiting = running(&[local, other]);
    let mut now = Time::ZERO;
    loop {
        now += Duration::from_secs(2);
        assert!(matches!(waiting.handle(local, Reply::Accepted, now), Outcome::Nothing));
        if matches!(waiting.tick(now), Outcome::Lost { .. }) {
            break;
        }
    }
    assert!(now > after(FIRST_TOKEN_TIMEOUT) && now < after(FIRST_TOKEN_TIMEOUT + Duration::from_secs(5)));
    // Once tokens have come, such words count no more.
    let mut running = running(&[local, other]);
    running.handle(other, tokens(3, [10]), after(Duration::from_millis(100)));
    running.handle(local, Reply::Accepted, after(Duration::from_secs(6)));
    assert!(matches!(running.tick(after(Duration::from_secs(6))), Outcome::Lost { .. }));
    assert_eq!(running.avoided, [other]);
    assert_eq!(running.take_suspected(), [(other, SuspicionReason::Stalled)]);
}

#[test]
fn the_first_stage_says_that_the_later_ones_hang_or_report_nonsense() {
    let [local, middle, last] = peers();
    let failed = |kind| Reply::Failed { kind, message: "no report".to_owned() };
    let mut hangs = running(&[local, middle, last]);
    let outcome = hangs.handle(local, failed(ErrorKind::DeadlineExceeded), Time::ZERO);
    assert!(matches!(outcome, Outcome::Lost { .. }), "{outcome:?}");
    // It is unknown which of the two hangs.
    assert_eq!((hangs.exclusions(Time::ZERO).peers, hangs.take_suspected()), (vec![middle, last], vec![]));
    let mut nonsense = running(&[local, middle, last]);
    nonsense.handle(local, failed(ErrorKind::VerificationFailed), Time::ZERO);
    assert_eq!(nonsense.exclusions(Time::ZERO).peers, [last]);
    assert_eq!(nonsense.take_suspected(), [(last, SuspicionReason::BrokeProtocol)]);
    // Another node's first stage may lie: nobody is suspected, and it cannot go on like that.
    let mut remote = running(&[local, middle, last]);
    for failures in 1..=MAX_FAILURES_PER_PEER {
        remote.opened(ID, EPOCH, &stages_at(&[middle, last]), Time::ZERO);
        remote.handle(middle, failed(ErrorKind::VerificationFailed), Time::ZERO);
        assert_eq!(remote.exclusions(Time::ZERO).peers.contains(&middle), failures == MAX_FAILURES_PER_PEER);
    }
    assert!(remote.take_suspected().is_empty());
}

#[test]
fn an_answer_without_a_route_fails_after_the_timeout_and_keeps_its_tokens() {
    let [local, other, _] = peers();
    let mut session = running(&[local, other]);
    session.handle(other, tokens(3, [10]), Time::ZERO);
    session.peer_gone(other, "it left", Time::ZERO);
    assert!(matches!(session.tick(after(ROUTE_TIMEOUT)), Outcome::Nothing));
    let outcome = session.tick(after(ROUTE_TIMEOUT + Duration::from_secs(1)));
    assert!(matches!(&outcome, Outcome::Failed(error) if error.kind() == ErrorKind::Unavailable), "{outcome:?}");
    assert_eq!(session.tokens, [1, 2, 3, 10]);
}

#[test]
fn without_memory_a_request_is_refused_before_its_first_token_and_waits_after_it() {
    let [local, other, _] = peers();
    let full = || Reply::Failed { kind: ErrorKind::Overloaded, message: "no memory".to_owned() };
    let mut first = running(&[local, other]);
    let outcome = first.handle(other, full(), Time::ZERO);
    assert!(matches!(&outcome, Outcome::Failed(error) if error.kind() == ErrorKind::Overloaded), "{outcome:?}");
    // On this node alone, no other answers would release memory.
    let mut alone = running(&[local]);
    alone.begun = true;
    assert!(matches!(alone.handle(local, full(), Time::ZERO), Outcome::Failed(_)));

    let mut session = running(&[local, other]);
    session.handle(other, tokens(3, [10]), Time::ZERO);
    session.begun = true;
    assert!(matches!(session.handle(other, full(), Time::ZERO), Outcome::Lost { closed: ID, .. }));
    assert!(!session.wants_route(after(MEMORY_BACKOFF - Duration::from_millis(1))));
    assert!(session.wants_route(after(MEMORY_BACKOFF)));
    // The chain is not excluded.
    let excluded = session.exclusions(Time::ZERO);
    assert!(excluded.peers.is_empty() && excluded.epochs.is_empty());
    session.opened(ID, EPOCH, &stages_at(&[local, other]), after(MEMORY_BACKOFF));
    let refused = Reply::Refused {
        kind: ErrorKind::Overloaded,
        message: "full".to_owned(),
        retry_after: Some(Duration::from_secs(3)),
    };
    assert!(matches!(session.handle(local, refused, after(MEMORY_BACKOFF)), Outcome::Lost { .. }));
    assert!(
        !session.wants_route(after(MEMORY_BACKOFF + Duration::from_millis(2999)))
            && session.wants_route(after(MEMORY_BACKOFF * 7))
    );
    let mut now = after(MEMORY_BACKOFF * 7);
    for _ in 2..MAX_MEMORY_REFUSALS {
        session.opened(ID, EPOCH, &stages_at(&[local, other]), now);
        assert!(matches!(session.handle(other, full(), now), Outcome::Lost { .. }));
        now += MEMORY_BACKOFF_MAX;
        assert!(session.wants_route(now));
    }
    session.opened(ID, EPOCH, &stages_at(&[local, other]), now);
    let outcome = session.handle(other, full(), now);
    assert!(matches!(&outcome, Outcome::Failed(error) if error.kind() == ErrorKind::Overloaded), "{outcome:?}");
    assert_eq!(session.tokens, [1, 2, 3, 10]);
}

#[test]
fn an_answer_whose_layers_fit_on_no_node_fails_soon_with_the_reason() {
    let [local, other, _] = peers();
    let why = || Some("12 MiB are missing");
    let mut session = running(&[local, other]);
    session.handle(other, tokens(3, [10]), Time::ZERO);
    session.peer_gone(other, "it left", Time::ZERO);
    session.set_unplaceable(why(), Time::ZERO);
    assert!(matches!(session.tick(after(UNPLACEABLE_TIMEOUT)), Outcome::Nothing));
    // A moment in which the layers could be placed restarts the timeout.
    session.set_unplaceable(None, after(UNPLACEABLE_TIMEOUT));
    session.set_unplaceable(why(), after(UNPLACEABLE_TIMEOUT));
    assert!(matches!(session.tick(after(UNPLACEABLE_TIMEOUT * 2)), Outcome::Nothing));
    let outcome = session.tick(after(UNPLACEABLE_TIMEOUT * 2 + Duration::from_millis(1)));
    assert!(
        matches!(&outcome, Outcome::Failed(error) if error.kind() == ErrorKind::Unavailable
            && error.message().contains("no node is left") && error.message().contains("12 MiB")),
        "{outcome:?}"
    );
    assert_eq!(session.tokens, [1, 2, 3, 10]);
    // A pool that has just started gets more time.
    let mut first = unrouted(local, vec![1]);
    first.set_unplaceable(why(), Time::ZERO);
    assert!(matches!(first.tick(after(UNPLACEABLE_TIMEOUT_AT_START)), Outcome::Nothing));
    assert!(matches!(first.tick(after(UNPLACEABLE_TIMEOUT_AT_START + Duration::from_millis(1))), Outcome::Failed(_)));
}

#[test]
fn a_complete_answer_waits_only_for_signatures() {
    let [local, middle, last] = peers();
    let signing = || {
        let mut session = running(&[local, middle, last]);
        session.signing(Time::ZERO);
        session
    };
    let committed = |claims: &[u8]| Reply::Committed { claims: claims.to_vec() };
    let mut session = signing();
    assert!(matches!(session.handle(last, tokens(3, [10]), Time::ZERO), Outcome::Nothing));
    // What earlier stages signed is kept, once for each, in case the last one withholds it.
    assert!(matches!(session.handle(middle, committed(&[1]), Time::ZERO), Outcome::Nothing));
    assert!(matches!(session.handle(middle, committed(&[2]), Time::ZERO), Outcome::Nothing));
    let Outcome::Signed(claims) = session.handle(last, committed(&[7]), Time::ZERO) else { panic!() };
    assert_eq!((claims.whole, claims.parts, claims.refused_by), (Some(vec![7]), vec![(middle, vec![1])], None));
    assert_eq!(session.phase, Phase::Ended);

    let failed = Reply::Failed { kind: ErrorKind::VerificationFailed, message: "no".to_owned() };
    let mut refused = signing();
    refused.handle(middle, committed(&[1]), Time::ZERO);
    let Outcome::Signed(claims) = refused.handle(last, failed, Time::ZERO) else { panic!() };
    assert_eq!((claims.whole, claims.parts.len(), claims.refused_by), (None, 1, Some(last)));
    for outcome in [signing().peer_gone(last, "it left", Time::ZERO), {
        let mut silent = signing();
        assert!(matches!(silent.tick(after(SIGNING_TIMEOUT)), Outcome::Nothing));
        silent.tick(after(SIGNING_TIMEOUT + Duration::from_millis(1)))
    }] {
        assert!(matches!(&outcome, Outcome::Signed(claims) if *claims == SignedClaims::default()), "{outcome:?}");
    }
}

#[test]
fn only_the_last_stage_adds_tokens_and_only_the_first_accepts_and_refuses() {
    let [local, middle, last] = peers();
    let mut session = running(&[local, middle, last]);
    assert!(matches!(session.handle(middle, tokens(3, [66]), Time::ZERO), Outcome::Nothing));
    assert_eq!(session.take_suspected(), [(middle, SuspicionReason::BrokeProtocol)]);
    // This node is never its own suspect.
    assert!(matches!(session.handle(local, tokens(3, [66]), Time::ZERO), Outcome::Nothing));
    assert_eq!(session.tokens, [1, 2, 3]);
    assert_eq!(new_tokens(session.handle(last, tokens(3, [10]), Time::ZERO)), [10]);
    assert!(session.take_suspected().is_empty());

    let mut opening = unrouted(local, vec![1]);
    opening.opened(ID, EPOCH, &stages_at(&[local, middle, last]), Time::ZERO);
    let refused = Reply::Refused { kind: ErrorKind::InvalidInput, message: "no".to_owned(), retry_after: None };
    for reply in [Reply::Accepted, refused] {
        assert!(matches!(opening.handle(last, reply, Time::ZERO), Outcome::Nothing));
    }
    assert!(matches!(opening.phase, Phase::Opening { .. }));
    assert_eq!(opening.take_suspected(), [(last, SuspicionReason::BrokeProtocol)]);
}

/// The last stage of `session`, on `last`, says something that it may not say: nothing of it counts, another chain
/// continues, and the stage is suspected.
fn assert_broken(mut session: AnswerSession, last: PeerId, reply: Reply, reason: SuspicionReason) {
    let before = session.tokens.clone();
    let outcome = session.handle(last, reply, Time::ZERO);
    assert!(matches!(outcome, Outcome::Lost { .. }), "{outcome:?}");
    assert_eq!(session.tokens, before);
    assert_eq!(session.take_suspected(), [(last, reason)]);
    assert_eq!(session.exclusions(Time::ZERO).peers, [last]);
}

#[test]
fn no_more_tokens_are_taken_than_were_asked_for() {
    let [local, last, _] = peers();
    let all = MAX_NEW_TOKENS as u32;
    let mut session = running(&[local, last]);
    assert_eq!(new_tokens(session.handle(last, tokens(3, 0..all), Time::ZERO)).len(), MAX_NEW_TOKENS);
    assert_broken(session, last, tokens(3 + MAX_NEW_TOKENS, [7]), SuspicionReason::BrokeProtocol);
    assert_broken(running(&[local, last]), last, tokens(3, 0..=all), SuspicionReason::BrokeProtocol);
    let far = tokens(u32::MAX as usize, [7]);
    assert_broken(running(&[local, last]), last, far, SuspicionReason::BrokeProtocol);
}

#[test]
fn two_tokens_for_one_position_make_the_session_fail_over() {
    let [local, last, _] = peers();
    let mut session = running(&[local, last]);
    session.handle(last, tokens(3, [10, 11]), Time::ZERO);
    assert_broken(session, last, tokens(4, [12]), SuspicionReason::Contradicted);
    assert_broken(running(&[local, last]), last, tokens(2, [9, 10]), SuspicionReason::Contradicted);
}

#[test]
fn an_answer_ends_only_for_a_reason_that_holds() {
    let [local, last, _] = peers();
    let ended = |count: usize, ended| {
        let Reply::Tokens(reported) = tokens(3, vec![10; count]) else { panic!() };
        Reply::Tokens(ReportedTokens { ended: Some(ended), ..reported })
    };
    let early = ended(MAX_NEW_TOKENS - 1, EndReason::Length);
    assert_broken(running(&[local, last]), last, early, SuspicionReason::BrokeProtocol);
    let no_grammar = ended(1, EndReason::GrammarComplete);
    assert_broken(running(&[local, last]), last, no_grammar.clone(), SuspicionReason::BrokeProtocol);
    let mut whole = running(&[local, last]);
    let outcome = whole.handle(last, ended(MAX_NEW_TOKENS, EndReason::Length), Time::ZERO);
    assert!(matches!(outcome, Outcome::NewTokens(NewTokens { ended: Some(EndReason::Length), .. })), "{outcome:?}");
    let mut with_grammar = running(&[local, last]);
    with_grammar.terms.grammar = true;
    assert!(matches!(with_grammar.handle(last, no_grammar, Time::ZERO), Outcome::NewTokens(_)));
    // What a token means is known to the driver alone.
    let mut stopped = running(&[local, last]);
    assert!(matches!(stopped.handle(last, ended(1, EndReason::Stop), Time::ZERO), Outcome::NewTokens(_)));
    assert!(matches!(stopped.ended_wrongly(Time::ZERO), Outcome::Lost { .. }));
    assert_eq!(stopped.take_suspected(), [(last, SuspicionReason::BrokeProtocol)]);
}

#[test]
fn log_probabilities_of_the_prompt_are_taken_once_each_and_only_if_requested() {
    let [local, last, _] = peers();
    let scored = |of: &[u32]| {
        let prompt = of.iter().map(|token| TokenOut { token: *token, ..TokenOut::default() }).collect();
        Reply::Tokens(ReportedTokens { position: 3, prompt, ..ReportedTokens::default() })
    };
    assert_broken(running(&[local, last]), last, scored(&[1]), SuspicionReason::BrokeProtocol);
    let asked = || {
        let mut session = unrouted(local, vec![1, 2, 3]);
        session.terms.prompt_logprobs = true;
        session.opened(ID, EPOCH, &stages_at(&[local, last]), Time::ZERO);
        session.handle(local, Reply::Accepted, Time::ZERO);
        session
    };
    let mut session = asked();
    for part in [&[1, 2][..], &[3]] {
        let outcome = session.handle(last, scored(part), Time::ZERO);
        assert!(matches!(&outcome, Outcome::NewTokens(new) if new.prompt.len() == part.len()), "{outcome:?}");
    }
    assert_broken(session, last, scored(&[3]), SuspicionReason::BrokeProtocol);
    assert_broken(asked(), last, scored(&[2]), SuspicionReason::BrokeProtocol);
}

#[test]
fn a_stage_that_says_nothing_new_counts_as_silent() {
    let [local, last, _] = peers();
    let mut session = running(&[local, last]);
    session.handle(last, tokens(3, [10]), Time::ZERO);
    let late = after(TOKEN_GRACE + Duration::from_secs(1));
    for again in [tokens(3, [10]), tokens(4, [])] {
        assert!(matches!(session.handle(last, again, late), Outcome::NewTokens(_)));
    }
    assert!(matches!(session.tick(late), Outcome::Lost { .. }));
    assert_eq!(session.take_suspected(), [(last, SuspicionReason::Stalled)]);
}

#[test]
fn a_stage_that_calls_the_request_wrong_is_believed_once_another_node_says_so() {
    let [local, one, two] = peers();
    let wrong = |refused: bool| {
        let (kind, message) = (ErrorKind::InvalidInput, "no such token".to_owned());
        match refused {
            true => Reply::Refused { kind, message, retry_after: None },
            false => Reply::Failed { kind, message },
        }
    };
    let opened = |session: &mut AnswerSession, stages: &[PeerId]| {
        session.opened(ID, EPOCH, &stages_at(stages), Time::ZERO);
    };
    for refused in [true, false] {
        let mut session = unrouted(local, vec![1]);
        for _ in 0..2 {
            // The same node twice is one node.
            opened(&mut session, &[one, local]);
            assert!(matches!(session.handle(one, wrong(refused), Time::ZERO), Outcome::Lost { .. }));
        }
        assert_eq!(session.exclusions(Time::ZERO).peers, [one]);
        assert!(session.take_suspected().is_empty(), "it may be right");
        // This node's own stage is believed, and so is a second node.
        for witness in [local, two] {
            let mut session = unrouted(local, vec![1]);
            opened(&mut session, &[one, local]);
            session.handle(one, wrong(refused), Time::ZERO);
            opened(&mut session, &[witness, local]);
            let outcome = session.handle(witness, wrong(refused), Time::ZERO);
            assert!(matches!(outcome, Outcome::Refused { .. } | Outcome::Failed(_)), "{outcome:?}");
        }
        // Another chain answers: the request was fine.
        opened(&mut session, &[local, two]);
        session.handle(local, Reply::Accepted, Time::ZERO);
        assert_eq!(new_tokens(session.handle(two, tokens(1, [10]), Time::ZERO)), [10]);
        assert_eq!(session.take_suspected(), [(one, SuspicionReason::RefusedWrongly)]);
    }
    // Without another node, the client learns what was said, and by whom.
    let mut alone = unrouted(local, vec![1]);
    opened(&mut alone, &[one]);
    alone.handle(one, wrong(true), Time::ZERO);
    let outcome = alone.tick(after(ROUTE_TIMEOUT + Duration::from_secs(1)));
    assert!(
        matches!(&outcome, Outcome::Failed(error) if error.kind() == ErrorKind::Unavailable
            && error.message().contains("no such token") && error.message().contains(&one.to_string())),
        "{outcome:?}"
    );
}

#[test]
fn a_node_that_fails_sessions_again_and_again_is_avoided() {
    let [local, other, _] = peers();
    let mut session = running(&[local, other]);
    for failures in 1..=MAX_FAILURES_PER_PEER {
        let failed = Reply::Failed { kind: ErrorKind::Internal, message: "a layer gave no number".to_owned() };
        assert!(matches!(session.handle(other, failed, Time::ZERO), Outcome::Lost { .. }));
        assert_eq!(session.exclusions(Time::ZERO).peers.len(), usize::from(failures == MAX_FAILURES_PER_PEER));
        session.opened(ID, EPOCH, &stages_at(&[local, other]), Time::ZERO);
    }
}

proptest! {
    /// Messages in pieces, repeated, from one route and then from another: the answer is the same.
    #[test]
    fn an_answer_is_the_same_however_its_tokens_arrive(
        cuts in proptest::collection::vec((0usize..40, 1usize..6), 1..60),
        moves_at in 0usize..60,
    ) {
        let answer: Vec<u32> = (100..140).collect();
        let [local, one, other] = peers();
        let mut session = running(&[local, one]);
        let (mut from, mut heard) = (one, Vec::new());
        for (at, (back, len)) in cuts.into_iter().enumerate() {
            if at == moves_at {
                let lost = session.peer_gone(one, "it left", Time::ZERO);
                prop_assert!(matches!(lost, Outcome::Lost { .. }), "{:?}", lost);
                session.opened(ID, EPOCH, &stages_at(&[local, other]), Time::ZERO);
                session.handle(local, Reply::Accepted, Time::ZERO);
                from = other;
            }
            let known = session.tokens.len() - 3;
            let first = known.saturating_sub(back);
            let end = (first + len).min(answer.len());
            if first < end {
                let piece = answer[first..end].iter().copied();
                heard.extend(new_tokens(session.handle(from, tokens(3 + first, piece), Time::ZERO)));
            }
        }
        prop_assert_eq!(&session.tokens[3..], &heard[..]);
        prop_assert!(answer.starts_with(&heard));
    }
}
