//! One answer whose stages reply, hang, refuse and are lost.

use proptest::prelude::*;

use super::*;
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

/// An answer that the first peer coordinates and all of them compute.
fn running(stages: &[PeerId]) -> AnswerSession {
    let mut session = AnswerSession::new(stages[0], vec![1, 2, 3], Time::ZERO);
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
    let mut session = AnswerSession::new(local, vec![1], Time::ZERO);
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

#[test]
fn silent_stages_time_out_and_this_node_alone_never_does() {
    let [local, other, _] = peers();
    let mut session = running(&[local, other]);
    session.handle(other, tokens(3, [10]), Time::ZERO);
    assert!(matches!(session.tick(after(STALL_TIMEOUT)), Outcome::Nothing));
    assert!(matches!(session.tick(after(STALL_TIMEOUT + Duration::from_secs(1))), Outcome::Lost { .. }));
    assert_eq!(session.avoided, [other]);
    let mut alone = running(&[local]);
    assert!(matches!(alone.tick(after(Duration::from_secs(10_000))), Outcome::Nothing));
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
    let mut first = AnswerSession::new(local, vec![1], Time::ZERO);
    first.set_unplaceable(why(), Time::ZERO);
    assert!(matches!(first.tick(after(UNPLACEABLE_TIMEOUT_AT_START)), Outcome::Nothing));
    assert!(matches!(first.tick(after(UNPLACEABLE_TIMEOUT_AT_START + Duration::from_millis(1))), Outcome::Failed(_)));
}

#[test]
fn a_complete_answer_waits_only_for_signatures() {
    let [local, other, _] = peers();
    let mut session = running(&[local, other]);
    session.signing(Time::ZERO);
    assert!(matches!(session.handle(other, tokens(3, [10]), Time::ZERO), Outcome::Nothing));
    let mut lost = AnswerSession::new(local, vec![1], Time::ZERO);
    lost.opened(ID, EPOCH, &stages_at(&[local, other]), Time::ZERO);
    lost.signing(Time::ZERO);
    assert!(matches!(lost.peer_gone(other, "it left", Time::ZERO), Outcome::Unsigned));
    let commit = Reply::Committed { claims: vec![7] };
    assert!(matches!(session.handle(other, commit, Time::ZERO), Outcome::Committed { claims } if claims == [7]));
    assert_eq!(session.phase, Phase::Ended);
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
