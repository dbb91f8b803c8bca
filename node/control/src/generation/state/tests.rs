//! One request: which routes it requests, how long it may be refused, what it holds back, and how it ends.

use std::time::Duration;

use pangea_units::{Digest, ErrorKind};

use super::*;
use crate::generation::{Exclusions, ReportedTokens};
use crate::peers::SuspicionReason;
use crate::session::{ChainId, StageAt, TokenOut};
use crate::test_peers::fresh_peer;

const ID: SessionId = SessionId([0; 16]);

/// A request, the peers that may compute it, and the time.
struct World {
    state: GenerationState,
    local: PeerId,
    other: PeerId,
    epoch: u64,
    now: Time,
}

impl World {
    fn new(choices: usize, audit: Option<f64>) -> World {
        World::asked(choices, audit, false)
    }

    fn asked(choices: usize, audit: Option<f64>, prompt_logprobs: bool) -> World {
        let local = fresh_peer();
        let audit = audit.map(|share| AuditPolicy::new(share).unwrap());
        let setup = Setup {
            local,
            prompt: vec![1, 2, 3],
            choices,
            max_new_tokens: 50,
            grammar: false,
            prompt_logprobs,
            patience: Duration::from_secs(5),
            audit,
            one_server: false,
            arrived: Time::ZERO,
        };
        World { state: GenerationState::new(setup), local, other: fresh_peer(), epoch: 0, now: Time::ZERO }
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.state.handle(event, self.now)
    }

    /// Opens answers on a chain of these peers.
    fn open(&mut self, choices: Range<usize>, peers: &[PeerId]) {
        self.epoch += 1;
        let stages = peers
            .iter()
            .enumerate()
            .map(|(index, peer)| StageAt { peer: *peer, layers: index as u32..index as u32 + 1 })
            .collect();
        let chain = ChainId { model: Digest([9; 32]), epoch: self.epoch };
        let actions = self.handle(Event::RouteFound { choices, id: ID, chain, stages });
        assert!(matches!(actions[..], [Action::Open { .. }]), "{actions:?}");
    }

    /// Opens all answers on a chain of these peers, which accepts them.
    fn run(&mut self, peers: &[PeerId]) {
        self.handle(Event::Start);
        let choices = self.state.answers.len();
        self.open(0..choices, peers);
        self.reply(peers[0], 0, Reply::Accepted);
    }

    /// The receipt of the only answer is kept; the draw is the one that audits least.
    fn kept(&mut self) -> Vec<Action> {
        self.handle(Event::ReceiptKept { choice: 0, random: Some(u64::MAX), suspect: false })
    }

    fn audited(&mut self, verdict: Result<Verdict, String>, wrong: Vec<PeerId>) -> Vec<Action> {
        self.handle(Event::Audited { verdict, wrong })
    }

    fn reply(&mut self, from: PeerId, choice: u16, reply: Reply) -> Vec<Action> {
        self.handle(Event::Reply { from, session: ID.choice(choice), reply })
    }

    fn tokens(&mut self, from: PeerId, choice: u16, position: u32, ids: &[u32]) -> Vec<Action> {
        let tokens = ids.iter().map(|token| TokenOut { token: *token, ..TokenOut::default() }).collect();
        self.reply(from, choice, Reply::Tokens(ReportedTokens { position, tokens, ..ReportedTokens::default() }))
    }

    /// Ends the text of the only answer and lets its stages sign.
    fn complete_and_sign(&mut self) -> Vec<Action> {
        self.complete_and_check(None)
    }

    /// Ends the text of the only answer; its stages sign, and their claims have this fault.
    fn complete_and_check(&mut self, fault: Option<ClaimsFault>) -> Vec<Action> {
        let actions = self.handle(Event::AnswerComplete { choice: 0 });
        assert!(matches!(actions[..], [Action::Close { commit: Some(_), .. }]), "{actions:?}");
        let other = self.other;
        let actions = self.reply(other, 0, Reply::Committed { claims: Vec::new() });
        assert!(matches!(actions[..], [Action::CheckClaims { .. }]), "{actions:?}");
        self.handle(Event::ClaimsChecked { choice: 0, segment: self.state.segments(0).len() - 1, fault })
    }
}

fn failures(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Fail(_))).count()
}

fn routes_wanted(actions: &[Action]) -> Vec<(Range<usize>, Exclusions)> {
    let wanted = |action: &Action| match action {
        Action::FindRoute { choices, exclusions } => Some((choices.clone(), exclusions.clone())),
        _ => None,
    };
    actions.iter().filter_map(wanted).collect()
}

fn conclusion(actions: &[Action]) -> Conclusion {
    match actions.last() {
        Some(Action::Done(conclusion)) => conclusion.clone(),
        other => panic!("not concluded: {other:?}"),
    }
}

#[test]
fn a_late_answer_moves_to_a_route_that_exists_and_otherwise_to_this_node_alone() {
    let mut world = World::new(1, None);
    let (local, other) = (world.local, world.other);
    world.run(&[other, local]);
    world.now = Time::from_secs(6);
    let wanted = routes_wanted(&world.handle(Event::Tick { unplaceable: None }));
    let [(choices, exclusions)] = &wanted[..] else { panic!("{wanted:?}") };
    assert_eq!((choices.clone(), &exclusions.peers), (0..1, &vec![other]));
    assert!(matches!(world.handle(Event::NoRoute)[..], [Action::RequestLocal]), "it may be loaded here");
    assert_eq!(world.state.answer(0).failovers(), 0, "the answer stays where it is");
    let (stages, chain) = (vec![StageAt { peer: local, layers: 0..2 }], ChainId { model: Digest([9; 32]), epoch: 0 });
    let id = SessionId([5; 16]);
    let actions = world.handle(Event::RouteFound { choices: 0..1, id, chain, stages });
    let [
        Action::FailOver { .. },
        Action::Forget { session },
        Action::Close { first_stage, .. },
        Action::Open { .. },
        Action::Suspect { peer, reason: SuspicionReason::Late },
    ] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert_eq!(*peer, other);
    assert_eq!((*session, *first_stage, world.state.answer(0).id()), (ID, other, Some(id)));
}

/// After a failed audit the log-probabilities of the prompt were never asked for again, and after a loss before the first token
/// they stayed incomplete.
#[test]
fn the_prompt_is_scored_by_every_session_that_starts_at_it() {
    let mut world = World::asked(2, Some(1.0), true);
    let (local, other, third) = (world.local, world.other, fresh_peer());
    let scored = |world: &World, choice| world.state.segments(choice).iter().map(|at| at.scored).collect::<Vec<_>>();
    world.run(&[local, other]);
    assert_eq!((scored(&world, 0), scored(&world, 1)), (vec![true], vec![false]), "the first answer alone");
    // Lost before the first token: what came of the scores counts for nothing.
    world.handle(Event::PeerGone { peer: other, why: "gone".into() });
    world.epoch += 1;
    for choice in 0..2 {
        let stages = vec![StageAt { peer: local, layers: 0..1 }, StageAt { peer: third, layers: 1..2 }];
        let chain = ChainId { model: Digest([9; 32]), epoch: world.epoch };
        let id = SessionId([7 + choice as u8; 16]);
        let actions = world.handle(Event::RouteFound { choices: choice..choice + 1, id, chain, stages });
        assert!(matches!(actions[..], [Action::Open { from_prompt: true, .. }]), "{actions:?}");
    }
    assert_eq!((scored(&world, 0), scored(&world, 1)), (vec![false, true], vec![false, false]));
    let session = SessionId([7; 16]);
    let tokens = vec![TokenOut { token: 5, ..TokenOut::default() }];
    let first = Reply::Tokens(ReportedTokens { position: 3, tokens, ..ReportedTokens::default() });
    world.handle(Event::Reply { from: local, session, reply: Reply::Accepted });
    world.handle(Event::Reply { from: third, session, reply: first });
    // Lost after it: the answer goes on, and its prompt is scored.
    world.handle(Event::PeerGone { peer: third, why: "gone".into() });
    world.open(0..1, &[local]);
    assert_eq!(scored(&world, 0), [false, true, false]);
}

#[test]
fn all_answers_of_a_new_request_take_one_route_together() {
    let mut world = World::new(3, None);
    let wanted = routes_wanted(&world.handle(Event::Start));
    assert_eq!(wanted, [(0..3, Exclusions::default())]);
}

#[test]
fn a_full_server_sends_the_request_on_and_only_the_last_refusal_reaches_the_client() {
    let mut world = World::new(2, None);
    let (local, other, third) = (world.local, world.other, fresh_peer());
    let full = |seconds| Reply::Refused {
        kind: ErrorKind::Overloaded,
        message: "full".to_owned(),
        retry_after: Some(Duration::from_secs(seconds)),
    };
    world.handle(Event::Start);
    for (at, server) in [local, other].into_iter().enumerate() {
        world.open(0..2, &[server]);
        let wanted = routes_wanted(&world.reply(server, 0, full(at as u64 + 1)));
        let peers = [local, other][..=at].to_vec();
        assert_eq!(wanted, [(0..2, Exclusions { peers, epochs: Vec::new() })], "both answers together");
    }
    let actions = world.handle(Event::NoRoute);
    let [.., Action::Refuse { error, retry_after }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((error.kind(), *retry_after), (ErrorKind::Overloaded, Some(Duration::from_secs(2))));
    assert!(world.state.is_over());
    // A third server takes it.
    let mut world = World::new(1, None);
    world.handle(Event::Start);
    world.open(0..1, &[other]);
    world.reply(other, 0, full(1));
    world.open(0..1, &[third]);
    world.reply(third, 0, Reply::Accepted);
    world.tokens(third, 0, 3, &[7]);
    assert_eq!((world.state.segments(0).len(), world.state.answer(0).failovers()), (1, 0));
    // Once it has begun, the full one may be asked again.
    let wanted = routes_wanted(&world.handle(Event::PeerGone { peer: third, why: "gone".into() }));
    assert_eq!(wanted, [(0..1, Exclusions { peers: Vec::new(), epochs: vec![2] })]);
}

#[test]
fn a_server_that_is_lost_excludes_itself_and_no_other_server() {
    let mut world = World::new(1, None);
    let other = world.other;
    world.handle(Event::Start);
    // Every server answers with a chain of its own, and all of them have the epoch 0.
    let (stages, chain) = (vec![StageAt { peer: other, layers: 0..2 }], ChainId { model: Digest([9; 32]), epoch: 0 });
    world.handle(Event::RouteFound { choices: 0..1, id: ID, chain, stages });
    let wanted = routes_wanted(&world.handle(Event::PeerGone { peer: other, why: "gone".into() }));
    assert_eq!(wanted, [(0..1, Exclusions { peers: vec![other], epochs: Vec::new() })]);
}

#[test]
fn a_request_without_a_route_is_taken_alone_after_a_while() {
    let mut world = World::new(1, None);
    world.handle(Event::Start);
    world.now = Time::since_epoch(PLACEMENT_TIMEOUT);
    assert!(world.handle(Event::NoRoute).is_empty());
    world.now += Duration::from_millis(1);
    assert!(matches!(world.handle(Event::NoRoute)[..], [Action::RequestLocal]));
}

#[test]
fn a_request_to_one_server_fails_where_that_server_cannot_answer() {
    let error = |actions: &[Action]| match actions.last() {
        Some(Action::Fail(error)) => (error.kind(), error.message().to_owned()),
        other => panic!("{other:?}"),
    };
    let to_one_server = || {
        let mut world = World::new(1, Some(1.0));
        world.state.one_server = true;
        world.handle(Event::Start);
        world
    };
    let mut world = to_one_server();
    let (kind, why) = error(&world.handle(Event::NoRoute));
    assert_eq!((kind, why.as_str()), (ErrorKind::Unavailable, "the node that was asked does not answer the model now"));
    assert!(world.state.is_over());
    // Lost after it began: the answer waits for no other node.
    let mut world = to_one_server();
    let other = world.other;
    world.open(0..1, &[other]);
    world.reply(other, 0, Reply::Accepted);
    let lost = world.handle(Event::PeerGone { peer: other, why: "the cable broke".into() });
    assert_eq!(routes_wanted(&lost).len(), 1);
    let (kind, why) = error(&world.handle(Event::NoRoute));
    assert!(kind == ErrorKind::Unavailable && why.contains("the cable broke"), "{why}");
    // Late is not lost: the answer stays where it is.
    let mut world = to_one_server();
    world.open(0..1, &[other]);
    world.reply(other, 0, Reply::Accepted);
    world.now = Time::from_secs(6);
    assert_eq!(routes_wanted(&world.handle(Event::Tick { unplaceable: None })).len(), 1);
    assert!(world.handle(Event::NoRoute).is_empty() && !world.state.is_over());
    // A full server's own words reach whoever asked.
    let mut world = to_one_server();
    world.open(0..1, &[other]);
    let full = Reply::Refused { kind: ErrorKind::Overloaded, message: "full".to_owned(), retry_after: None };
    world.reply(other, 0, full);
    let actions = world.handle(Event::NoRoute);
    assert!(matches!(actions.last(), Some(Action::Refuse { error, .. }) if error.kind() == ErrorKind::Overloaded));
    // A refuted answer is nobody's answer.
    let mut world = to_one_server();
    let other = world.other;
    world.open(0..1, &[other]);
    world.reply(other, 0, Reply::Accepted);
    world.tokens(other, 0, 3, &[10]);
    world.complete_and_sign();
    world.kept();
    world.audited(Ok(Verdict::Audited), vec![other]);
    assert_eq!(error(&world.handle(Event::NoRoute)).0, ErrorKind::VerificationFailed);
}

#[test]
fn a_request_may_be_refused_until_its_first_token_or_the_end_of_the_window() {
    let mut world = World::new(1, None);
    let (local, other) = (world.local, world.other);
    world.handle(Event::Start);
    assert!(world.state.may_be_refused(world.now));
    world.open(0..1, &[local, other]);
    world.reply(local, 0, Reply::Accepted);
    let window = Time::since_epoch(REFUSAL_WINDOW);
    assert!(world.state.may_be_refused(window - Duration::from_millis(1)));
    assert!(!world.state.may_be_refused(window));
    world.tokens(other, 0, 3, &[10]);
    assert!(!world.state.may_be_refused(world.now), "a token has arrived");
    // On this node alone, nothing can refuse the request once it is accepted.
    let mut alone = World::new(1, None);
    alone.run(&[alone.local]);
    assert!(!alone.state.may_be_refused(alone.now));
}

#[test]
fn a_lost_answer_takes_another_chain_and_the_others_stay() {
    let mut world = World::new(2, None);
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.tokens(other, 1, 3, &[10]);
    let gone = Reply::Failed { kind: ErrorKind::Unavailable, message: "it left".to_owned() };
    let actions = world.reply(other, 1, gone);
    assert!(actions.iter().any(|action| matches!(action, Action::FailOver { choice: 1, .. })), "{actions:?}");
    assert_eq!(routes_wanted(&actions), [(1..2, Exclusions { peers: Vec::new(), epochs: vec![1] })]);
    assert_eq!(world.state.segments(1)[0].ended.as_deref(), Some("it left"));
    world.open(1..2, &[local]);
    assert_eq!(world.state.segments(1)[1].chosen_from, 3);
    assert!(world.state.segments(0)[0].ended.is_none());
}

#[test]
fn a_request_of_several_answers_fails_once() {
    let mut world = World::new(3, None);
    let local = world.local;
    world.run(&[local]);
    let full = || Reply::Failed { kind: ErrorKind::Overloaded, message: "no memory".to_owned() };
    let failed: usize = (0..3).map(|choice| failures(&world.reply(local, choice, full()))).sum();
    assert_eq!(failed, 1);
    assert!(world.state.is_over());
}

#[test]
fn a_request_that_ends_closes_every_session_once() {
    let mut world = World::new(2, None);
    let local = world.local;
    world.run(&[local]);
    let closed = |actions: &[Action]| actions.iter().filter(|action| matches!(action, Action::Close { .. })).count();
    assert_eq!(closed(&world.handle(Event::Cancelled)), 2);
    assert_eq!(closed(&world.handle(Event::Cancelled)), 0);
}

#[test]
fn an_answer_of_this_node_alone_is_unsigned_and_its_verdict_is_local() {
    let mut world = World::new(1, Some(1.0));
    let local = world.local;
    world.run(&[local]);
    assert!(!world.state.is_held());
    world.now = Time::from_secs(1);
    world.tokens(local, 0, 3, &[10, 11]);
    world.now = Time::from_secs(3);
    let conclusion = conclusion(&world.handle(Event::AnswerComplete { choice: 0 }));
    assert_eq!(conclusion.verdict, Verdict::Local);
    assert_eq!((conclusion.prompt, conclusion.answer), (Duration::from_secs(1), Duration::from_secs(2)));
    assert_eq!(conclusion.tokens.answer, 2);
}

#[test]
fn an_answer_of_other_nodes_without_an_audit_is_unchecked() {
    let mut world = World::new(1, Some(0.5));
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    assert!(!world.state.is_held());
    world.tokens(other, 0, 3, &[10]);
    let actions = world.complete_and_sign();
    assert!(matches!(actions[..], [Action::Forget { .. }, Action::KeepReceipt { choice: 0 }]), "{actions:?}");
    let actions = world.handle(Event::ReceiptKept { choice: 0, random: Some(u64::MAX), suspect: false });
    assert_eq!(conclusion(&actions).verdict, Verdict::Unchecked);
}

#[test]
fn a_request_waits_for_audits_only_if_every_answer_is_audited() {
    for (share, waits) in [(0.5, false), (1.0, true)] {
        let mut world = World::new(1, Some(share));
        let (local, other) = (world.local, world.other);
        world.run(&[local, other]);
        assert_eq!(world.state.is_held(), waits);
        world.tokens(other, 0, 3, &[10]);
        world.complete_and_sign();
        let actions = world.handle(Event::ReceiptKept { choice: 0, random: Some(0), suspect: false });
        assert!(matches!(actions[0], Action::Audit { awaited, .. } if awaited == waits), "{actions:?}");
        assert_eq!(world.state.is_over(), !waits);
        if waits {
            let actions = world.audited(Ok(Verdict::Audited), Vec::new());
            assert_eq!(conclusion(&actions).verdict, Verdict::Audited);
            assert!(!world.state.is_held());
        }
    }
}

/// A request of one answer that waits for its audit, which every answer has.
fn awaiting_audit(fault: Option<ClaimsFault>) -> World {
    let mut world = World::new(1, Some(1.0));
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.tokens(other, 0, 3, &[10]);
    world.complete_and_check(fault);
    assert!(matches!(world.kept()[..], [Action::Audit { awaited: true, .. }]));
    world
}

/// The answer was taken back, and is to be computed without the other node; nothing of it was returned.
fn assert_recomputed(world: &World, actions: &[Action]) {
    assert!(actions.iter().any(|action| matches!(action, Action::Recompute)), "{actions:?}");
    assert_eq!(routes_wanted(actions), [(0..1, Exclusions { peers: vec![world.other], epochs: Vec::new() })]);
    assert!(world.state.is_held() && !world.state.is_over());
}

#[test]
fn an_answer_whose_audit_failed_is_recomputed_by_this_node() {
    for verdict in [Err("parts of the model are missing".to_owned()), Ok(Verdict::Unchecked)] {
        let mut world = awaiting_audit(None);
        let actions = world.audited(verdict, Vec::new());
        assert_recomputed(&world, &actions);
    }
}

#[test]
fn an_answer_without_all_signatures_is_recomputed_even_if_its_audit_finds_it_right() {
    let mut world = World::new(1, None);
    let suspects = vec![(world.other, SuspicionReason::Unsigned), (world.local, SuspicionReason::Unsigned)];
    let fault = ClaimsFault { why: "it did not sign a claim".to_owned(), suspects };
    world.state.audit = AuditPolicy::new(1.0).ok();
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.tokens(other, 0, 3, &[10]);
    let actions = world.complete_and_check(Some(fault.clone()));
    let suspected = |action: &&Action| matches!(action, Action::Suspect { .. });
    let of_other = |action: &Action| matches!(action, Action::Suspect { peer, reason: SuspicionReason::Unsigned } if *peer == other);
    assert!(actions.iter().filter(suspected).all(of_other) && actions.iter().any(of_other), "{actions:?}");
    assert_eq!(world.state.segments(0)[0].ended.as_deref(), Some("it did not sign a claim"));
    world.kept();
    let actions = world.audited(Ok(Verdict::Audited), Vec::new());
    assert_recomputed(&world, &actions);
}

#[test]
fn stages_that_do_not_sign_in_time_leave_an_answer_without_signatures() {
    let mut world = World::new(1, Some(0.01));
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.tokens(other, 0, 3, &[10]);
    world.handle(Event::AnswerComplete { choice: 0 });
    world.now = Time::from_secs(60);
    let actions = world.handle(Event::Tick { unplaceable: None });
    let [Action::CheckClaims { claims, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(claims.whole, None);
    let fault = ClaimsFault { why: "nobody signed".to_owned(), suspects: Vec::new() };
    world.handle(Event::ClaimsChecked { choice: 0, segment: 0, fault: Some(fault) });
    // Nothing is held back, so the answer is returned unchecked; its audit is certain.
    let actions = world.kept();
    assert!(matches!(actions[0], Action::Audit { awaited: false, .. }), "{actions:?}");
    assert_eq!(conclusion(&actions).verdict, Verdict::Unchecked);
}

/// The chain of an answer broke between its last token and the signatures, so nobody answers.
#[test]
fn a_node_that_waits_for_its_own_signature_looks_at_the_clock() {
    let mut world = World::new(2, Some(1.0));
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.handle(Event::PeerGone { peer: other, why: "it is gone".to_owned() });
    world.open(0..2, &[local]);
    world.reply(local, 0, Reply::Accepted);
    assert!(!world.state.needs_ticks(), "a pass of this node takes as long as it takes");
    let actions = world.handle(Event::AnswerComplete { choice: 0 });
    assert!(matches!(actions[..], [Action::Close { commit: Some(_), .. }]), "{actions:?}");
    assert!(world.state.needs_ticks());
    world.now = Time::from_secs(4);
    let actions = world.handle(Event::Tick { unplaceable: None });
    assert!(matches!(actions[..], [Action::CheckClaims { choice: 0, .. }]), "{actions:?}");
}

#[test]
fn the_answer_of_a_suspect_is_audited_for_certain() {
    for suspect in [false, true] {
        let mut world = World::new(1, Some(0.01));
        let (local, other) = (world.local, world.other);
        world.run(&[local, other]);
        world.tokens(other, 0, 3, &[10]);
        world.complete_and_sign();
        let actions = world.handle(Event::ReceiptKept { choice: 0, random: Some(u64::MAX), suspect });
        assert_eq!(matches!(actions[0], Action::Audit { .. }), suspect, "{actions:?}");
    }
}

#[test]
fn a_request_that_nobody_can_recompute_fails_with_what_is_known() {
    let mut world = awaiting_audit(None);
    let other = world.other;
    world.audited(Ok(Verdict::Unchecked), vec![other]);
    world.now = Time::from_secs(600);
    let actions = world.handle(Event::Tick { unplaceable: None });
    let [Action::Fail(error)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(error.kind(), ErrorKind::VerificationFailed);
    assert!(error.message().contains("an audit found the answer wrong"), "{error}");
}

#[test]
fn a_node_that_says_what_is_not_its_part_is_suspected() {
    let mut world = World::new(1, None);
    let (local, other, last) = (world.local, world.other, fresh_peer());
    world.run(&[local, other, last]);
    let actions = world.tokens(other, 0, 3, &[66]);
    let reason = SuspicionReason::BrokeProtocol;
    assert!(matches!(actions[..], [Action::Suspect { peer, reason: of }] if (peer, of) == (other, reason)));
}

#[test]
fn an_end_that_the_text_does_not_confirm_makes_the_answer_fail_over() {
    let mut world = World::new(1, None);
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.tokens(other, 0, 3, &[10]);
    let actions = world.handle(Event::EndedWrongly { choice: 0 });
    assert!(actions.iter().any(|action| matches!(action, Action::FailOver { .. })), "{actions:?}");
    assert_eq!(routes_wanted(&actions), [(0..1, Exclusions { peers: vec![other], epochs: Vec::new() })]);
    assert!(actions.iter().any(|action| matches!(action, Action::Suspect { peer, .. } if *peer == other)));
}

#[test]
fn a_refuted_answer_is_recomputed_from_its_prompt_without_the_liar() {
    let mut world = World::new(1, Some(1.0));
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.tokens(other, 0, 3, &[66]);
    world.complete_and_sign();
    world.handle(Event::ReceiptKept { choice: 0, random: Some(0), suspect: false });
    let actions = world.audited(Ok(Verdict::Unchecked), vec![other]);
    assert_recomputed(&world, &actions);
    assert_eq!(world.state.answer(0).tokens(), [1, 2, 3]);
    world.open(0..1, &[local]);
    world.reply(local, 0, Reply::Accepted);
    world.tokens(local, 0, 3, &[10, 11]);
    let conclusion = conclusion(&world.handle(Event::AnswerComplete { choice: 0 }));
    assert_eq!((conclusion.failovers, conclusion.tokens.answer), (1, 2));
    assert_eq!(conclusion.verdict, Verdict::Local);
}

#[test]
fn recomputations_of_a_request_are_limited() {
    let mut world = World::new(1, Some(1.0));
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    for round in 0..=MAX_RECOMPUTATIONS {
        if round > 0 {
            world.open(0..1, &[local, other]);
            world.reply(local, 0, Reply::Accepted);
        }
        world.tokens(other, 0, 3, &[66]);
        world.complete_and_sign();
        world.handle(Event::ReceiptKept { choice: 0, random: Some(0), suspect: false });
        let actions = world.audited(Ok(Verdict::Unchecked), vec![other]);
        if round == MAX_RECOMPUTATIONS {
            let failed = |action: &Action| matches!(action, Action::Fail(error) if error.kind() == ErrorKind::VerificationFailed);
            assert!(actions.iter().any(failed), "{actions:?}");
        }
    }
    assert!(world.state.is_over());
}

#[test]
fn stages_that_an_answer_leaves_sign_what_they_did_and_the_answer_does_not_wait_for_it() {
    let mut world = World::new(1, Some(0.5));
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.tokens(other, 0, 3, &[10, 11]);
    let left = world.state.answer(0).id().unwrap();
    // Two tokens for one position.
    let actions = world.tokens(other, 0, 4, &[12]);
    let closes = |action: &Action| matches!(action, Action::Close { session, commit: Some(4), .. } if *session == left);
    assert!(actions.iter().any(closes), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Forget { .. })), "its claims are to arrive");
    world.epoch += 1;
    let chain = ChainId { model: Digest([9; 32]), epoch: 9 };
    let (choices, id, stages) = (0..1, SessionId([5; 16]), vec![StageAt { peer: local, layers: 0..2 }]);
    world.handle(Event::RouteFound { choices, id, chain, stages });
    let committed = Reply::Committed { claims: vec![7] };
    let actions = world.handle(Event::Reply { from: other, session: left, reply: committed });
    let [Action::Forget { session }, Action::CheckClaims { choice: 0, segment: 0, claims }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!((*session, claims.whole.as_deref()), (left, Some(&[7][..])));
    assert!(world.handle(Event::ClaimsChecked { choice: 0, segment: 0, fault: None }).is_empty());
    let segment = &world.state.segments(0)[0];
    assert!(segment.ended.is_some() && segment.positions == 4);
}

#[test]
fn what_some_stages_of_a_left_chain_signed_is_kept_and_the_rest_is_forgotten() {
    let mut world = World::new(1, Some(0.5));
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.tokens(other, 0, 3, &[10]);
    let left = world.state.answer(0).id().unwrap();
    world.tokens(other, 0, 9, &[12]);
    let committed = Reply::Committed { claims: vec![7] };
    let actions = world.handle(Event::Reply { from: local, session: left, reply: committed });
    assert!(!actions.iter().any(|action| matches!(action, Action::CheckClaims { .. })), "the rest may follow");
    world.run(&[local]);
    world.tokens(local, 0, 4, &[11]);
    let actions = world.handle(Event::AnswerComplete { choice: 0 });
    let actions = match actions[..] {
        [Action::Close { commit: Some(_), .. }] => world.reply(local, 0, Reply::Committed { claims: Vec::new() }),
        _ => actions,
    };
    let segment = world.state.segments(0).len() - 1;
    let concluded = world.handle(Event::ClaimsChecked { choice: 0, segment, fault: None });
    let all: Vec<_> = actions.into_iter().chain(concluded).collect();
    let kept = |action: &Action| matches!(action, Action::CheckClaims { segment: 0, claims, .. } if claims.parts == [(local, vec![7])]);
    assert!(all.iter().any(kept), "{all:?}");
    assert!(all.iter().any(|action| matches!(action, Action::Forget { session } if *session == left)), "{all:?}");
}
