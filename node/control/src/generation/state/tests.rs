//! One request: which routes it requests, how long it may be refused, what it holds back, and how it ends.

use pangea_units::{Digest, ErrorKind};

use super::*;
use crate::generation::ReportedTokens;
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
        let local = fresh_peer();
        let audit = audit.map(|share| AuditPolicy::new(share).unwrap());
        let setup = Setup { local, prompt: vec![1, 2, 3], choices, audit, arrived: Time::ZERO };
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

    fn reply(&mut self, from: PeerId, choice: u16, reply: Reply) -> Vec<Action> {
        self.handle(Event::Reply { from, session: ID.choice(choice), reply })
    }

    fn tokens(&mut self, from: PeerId, choice: u16, position: u32, ids: &[u32]) -> Vec<Action> {
        let tokens = ids.iter().map(|token| TokenOut { token: *token, ..TokenOut::default() }).collect();
        self.reply(from, choice, Reply::Tokens(ReportedTokens { position, tokens, ..ReportedTokens::default() }))
    }

    /// Ends the text of the only answer and lets its stages sign.
    fn complete_and_sign(&mut self) -> Vec<Action> {
        let actions = self.handle(Event::AnswerComplete { choice: 0 });
        assert!(matches!(actions[..], [Action::Close { commit: Some(_), .. }]), "{actions:?}");
        let other = self.other;
        let actions = self.reply(other, 0, Reply::Committed { claims: Vec::new() });
        assert!(matches!(actions[..], [Action::CheckClaims { .. }]), "{actions:?}");
        self.handle(Event::ClaimsChecked { choice: 0, fault: None })
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
fn all_answers_of_a_new_request_take_one_route_together() {
    let mut world = World::new(3, None);
    let wanted = routes_wanted(&world.handle(Event::Start));
    assert_eq!(wanted, [(0..3, Exclusions::default())]);
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
    let actions = world.handle(Event::ReceiptKept { choice: 0, random: Some(u64::MAX) });
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
        let actions = world.handle(Event::ReceiptKept { choice: 0, random: Some(0) });
        assert!(matches!(actions[0], Action::Audit { awaited, .. } if awaited == waits), "{actions:?}");
        assert_eq!(world.state.is_over(), !waits);
        if waits {
            let audited = Event::Audited { verdict: Some(Verdict::Audited), liars: Vec::new() };
            assert_eq!(conclusion(&world.handle(audited)).verdict, Verdict::Audited);
            assert!(!world.state.is_held());
        }
    }
}

#[test]
fn a_failed_audit_leaves_the_answer_unchecked() {
    let mut world = World::new(1, Some(1.0));
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.tokens(other, 0, 3, &[10]);
    world.complete_and_sign();
    world.handle(Event::ReceiptKept { choice: 0, random: None });
    let actions = world.handle(Event::Audited { verdict: None, liars: Vec::new() });
    assert_eq!(conclusion(&actions).verdict, Verdict::Unchecked);
}

#[test]
fn a_refuted_answer_is_recomputed_from_its_prompt_without_the_liar() {
    let mut world = World::new(1, Some(1.0));
    let (local, other) = (world.local, world.other);
    world.run(&[local, other]);
    world.tokens(other, 0, 3, &[66]);
    world.complete_and_sign();
    world.handle(Event::ReceiptKept { choice: 0, random: Some(0) });
    let actions = world.handle(Event::Audited { verdict: Some(Verdict::Unchecked), liars: vec![other] });
    assert!(matches!(actions[0], Action::Recompute), "{actions:?}");
    assert_eq!(routes_wanted(&actions), [(0..1, Exclusions { peers: vec![other], epochs: Vec::new() })]);
    assert_eq!(world.state.answer(0).tokens(), [1, 2, 3]);
    assert!(world.state.is_held(), "its reader has received nothing");
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
        world.handle(Event::ReceiptKept { choice: 0, random: Some(0) });
        let actions = world.handle(Event::Audited { verdict: Some(Verdict::Unchecked), liars: vec![other] });
        if round == MAX_RECOMPUTATIONS {
            assert_eq!(conclusion(&actions).verdict, Verdict::Unchecked);
        }
    }
    assert!(world.state.is_over());
}
