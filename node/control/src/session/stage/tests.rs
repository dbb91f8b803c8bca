//! The protocol of stages, one event at a time: which actions follow, and in which order.

use super::*;
use crate::session::batch::{BatchLimits, CacheBytes};
use crate::session::first_stage::{CLOSE_TIMEOUT, GRAMMAR_TIMEOUT, NOTICE_INTERVAL};
use crate::session::{ChainId, Drafts, StageAt, Start};
use crate::test_peers::peer;
use pangea_units::Digest;

/// A drafter that drafts nothing.
#[derive(Clone, Debug)]
struct NoDrafts;

impl Drafter for NoDrafts {
    fn propose(&mut self, _: &[u32], _: usize) -> Vec<u32> {
        Vec::new()
    }

    fn observe(&mut self, _: usize, _: usize, _: f64) {}
}

mod openings;

const COORDINATOR: u64 = 9;

fn session(n: u8) -> SessionId {
    SessionId([n; 16])
}

fn stages(count: u32) -> Vec<StageAt> {
    (0..count).map(|at| StageAt { peer: peer(u64::from(at)), layers: at..at + 1 }).collect()
}

/// A stage under test.
struct Stage {
    protocol: StageProtocol<NoDrafts>,
    stages: Vec<StageAt>,
    now: Time,
}

impl Stage {
    fn new(count: u32, index: usize) -> Stage {
        let limits = BatchLimits {
            running: 4,
            waiting: 1,
            wait: Duration::from_secs(30),
            prompt_rows: 64,
            prompt_rows_beside: 64,
            draft: 0,
            cache: CacheBytes {
                page_tokens: 16,
                page: 1 << 10,
                windowed_page: 0,
                window: usize::MAX,
                kept_behind: 0,
                states: 0,
            },
            bytes: 64 << 10,
            is_recurrent: false,
            kept: 0,
            groups: count as usize,
        };
        let settings = StageSettings {
            chain: ChainId { model: Digest::from_bytes([7; 32]), epoch: 3 },
            stages: stages(count),
            index,
            numerics: 1,
            vocabulary: 100,
            context: 128,
            limits: (index == 0).then_some(limits),
            drafts: Drafts::Off,
        };
        Stage { protocol: StageProtocol::new(settings, NoDrafts), stages: stages(count), now: Time::from_secs(1) }
    }

    fn handle(&mut self, event: Event<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.protocol.handle(event, self.now, &mut actions);
        actions
    }

    /// Opens a session of one answer to three tokens; returns the actions once it has joined.
    fn open(&mut self, n: u8) -> Vec<Action> {
        self.open_of(session(n), u64::from(n), COORDINATOR)
    }

    fn open_of(&mut self, session: SessionId, sequence: u64, coordinator: u64) -> Vec<Action> {
        let stages = self.stages.clone();
        let first = self.protocol.settings.index == 0;
        let opening = Opening {
            session,
            coordinator: peer(coordinator),
            stages: &stages,
            numerics: 1,
            choices: 1,
            sequence: (!first).then_some(sequence),
            prompt_len: 3,
            max_new_tokens: 8,
            prompt_logprobs: false,
            tokens: &[1, 2, 3],
            bad_sampling: None,
        };
        let mut actions = self.handle(Event::Open(opening));
        if let [Action::Join { .. }] = actions[..] {
            actions = self.handle(Event::Joined);
        }
        actions
    }

    /// Computes the next frame successfully; returns the actions after it.
    fn compute(&mut self) -> Vec<Action> {
        let planned = self.handle(Event::Ready);
        let Some(Action::Compute { rows, .. }) = planned.last() else { panic!("nothing to compute: {planned:?}") };
        let rows = rows.clone();
        self.handle(Event::Computed { rows, advances: Vec::new(), failed: Vec::new() })
    }

    /// Reports, as the last stage, that a sequence got a token.
    fn stepped(&mut self, number: u64, sequence: u64, computed: u32, ended: bool) -> Vec<Action> {
        let advance = SteppedSequence { sequence, computed, chosen: vec![5], ended, failed: false };
        self.handle(Event::Stepped { number, advances: vec![advance] })
    }
}

fn sent(actions: &[Action], to: u64) -> Vec<(SessionId, &Notice)> {
    let of = |action| match action {
        &Action::Send { to: other, session, ref notice } if other == peer(to) => Some((session, notice)),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

fn is_forgotten(actions: &[Action], n: u8) -> bool {
    actions.iter().any(|action| matches!(action, Action::Forget(of) if *of == session(n)))
}

fn error() -> Error {
    Error::new(ErrorKind::Internal, "a layer gave no number")
}

#[test]
fn a_session_is_forwarded_along_the_chain_and_accepted() {
    let mut first = Stage::new(3, 0);
    let actions = first.open(1);
    assert!(
        matches!(actions[..], [Action::ForwardOpen(to), Action::Send { notice: Notice::Accepted, .. }] if to == peer(1))
    );
    assert!(matches!(Stage::new(3, 1).open(1)[..], [Action::ForwardOpen(to)] if to == peer(2)));
    assert!(Stage::new(3, 2).open(1).is_empty());
}

#[test]
fn a_full_queue_refuses_and_forgets() {
    let mut first = Stage::new(1, 0);
    for n in 1..=5 {
        first.open(n);
    }
    let actions = first.open(6);
    assert!(
        matches!(sent(&actions, COORDINATOR)[..], [(_, Notice::Refused { retry_after: Some(_), .. })]),
        "{actions:?}"
    );
    assert!(is_forgotten(&actions, 6));
    assert_eq!(first.protocol.sessions(), 5);
}

#[test]
fn ended_sessions_are_closed_when_their_coordinator_is_gone() {
    let mut first = Stage::new(3, 0);
    first.open(1);
    first.compute();
    first.stepped(0, 0, 3, true);
    assert_eq!(first.protocol.sessions(), 1, "it waits for its coordinator to close it");
    let actions = first.handle(Event::PeerGone { peer: peer(COORDINATOR), why: "it left" });
    assert!(is_forgotten(&actions, 1), "{actions:?}");
    assert!(matches!(sent(&actions, 1)[..], [(of, Notice::Close)] if of == session(1)), "{actions:?}");
    assert_eq!(first.protocol.sessions(), 0);
    assert!(!first.protocol.follows_time());
    // The later stages are notified along the chain.
    let mut middle = Stage::new(3, 1);
    middle.open(1);
    let actions = middle.handle(Event::Close { session: session(1), commit: None });
    assert!(matches!(sent(&actions, 2)[..], [(_, Notice::Close)]) && middle.protocol.sessions() == 0);
}

#[test]
fn an_ended_session_that_is_not_closed_times_out() {
    let mut first = Stage::new(2, 0);
    first.open(1);
    first.compute();
    first.stepped(0, 0, 3, true);
    first.now += CLOSE_TIMEOUT;
    assert!(first.protocol.follows_time() && first.handle(Event::Ready).is_empty());
    first.now += Duration::from_millis(1);
    let actions = first.handle(Event::Ready);
    assert!(is_forgotten(&actions, 1) && sent(&actions, 1).len() == 1, "{actions:?}");
    assert_eq!(first.protocol.sessions(), 0);
}

#[test]
fn a_failure_of_one_stage_ends_the_session_on_every_stage() {
    let mut middle = Stage::new(3, 1);
    middle.open(1);
    let rows = vec![FrameRows { sequence: 1, start: 0, rows: 3, choose: true, all_logits: false, draft: Vec::new() }];
    let frame = Incoming { number: 0, drops: Vec::new(), starts: Vec::new(), rows, payload_rows: Some(3) };
    assert!(matches!(middle.handle(Event::Frame(frame))[..], [Action::Compute { .. }]));
    let computed = Event::Computed { rows: Vec::new(), advances: Vec::new(), failed: vec![(1, error())] };
    let actions = middle.handle(computed);
    assert!(matches!(sent(&actions, COORDINATOR)[..], [(_, Notice::Failed(_))]), "{actions:?}");
    assert!(matches!(sent(&actions, 0)[..], [(_, Notice::Failed(_))]), "{actions:?}");
    assert!(matches!(sent(&actions, 2)[..], [(_, Notice::Close)]), "{actions:?}");
    assert!(matches!(actions.last(), Some(Action::Frame { number: 0, .. })), "the frame goes on: {actions:?}");

    let mut first = Stage::new(3, 0);
    first.open(1);
    first.compute();
    let actions = first.handle(Event::Failed(session(1)));
    assert!(is_forgotten(&actions, 1) && matches!(sent(&actions, 1)[..], [(_, Notice::Close)]), "{actions:?}");
    assert!(sent(&actions, COORDINATOR).is_empty(), "the stage that failed has notified the coordinator");
}

#[test]
fn a_coordinator_on_the_first_stage_is_notified_of_a_failure_once() {
    let mut last = Stage::new(2, 1);
    let chain = stages(2);
    let opening = Opening {
        session: session(1),
        coordinator: peer(0),
        stages: &chain,
        numerics: 1,
        choices: 1,
        sequence: Some(1),
        prompt_len: 1,
        max_new_tokens: 8,
        prompt_logprobs: false,
        tokens: &[1],
        bad_sampling: None,
    };
    last.handle(Event::Open(opening));
    let actions = last.handle(Event::CannotJoin(error()));
    assert!(matches!(sent(&actions, 0)[..], [(_, Notice::Failed(_))]), "{actions:?}");
    assert_eq!(last.protocol.sessions(), 0);
}

#[test]
fn a_session_in_flight_is_signed_once_its_frame_is_done() {
    let mut first = Stage::new(2, 0);
    first.open(1);
    first.compute();
    assert!(first.handle(Event::Close { session: session(1), commit: Some(3) }).is_empty());
    let actions = first.stepped(0, 0, 3, true);
    let signed = actions.iter().find_map(|action| match action {
        Action::Sign { positions: 3, to, tokens, .. } => Some((*to, tokens.clone())),
        _ => None,
    });
    assert_eq!(signed, Some((peer(1), Some(vec![1, 2, 3, 5]))), "{actions:?}");
    assert!(is_forgotten(&actions, 1));
}

#[test]
fn the_last_stage_signs_to_the_coordinator() {
    let mut last = Stage::new(2, 1);
    last.open(1);
    let actions = last.handle(Event::Commit { session: session(1), positions: 3 });
    assert!(matches!(actions[..], [Action::Sign { to, coordinator, tokens: None, .. }, Action::Forget(_)]
            if to == coordinator && to == peer(COORDINATOR)));
    assert!(last.handle(Event::Commit { session: session(1), positions: 3 }).is_empty(), "once");
}

#[test]
fn a_stage_that_does_not_sign_says_so_to_the_coordinator_and_to_the_stages_after_it() {
    let error = Error::new(ErrorKind::NotFound, "it is gone");
    let coordinator = peer(COORDINATOR);
    let not_signed = || Event::NotSigned { session: session(1), coordinator, error: &error };
    let told = |actions: &[Action]| {
        let [(of, Notice::Failed(error))] = sent(actions, COORDINATOR)[..] else { panic!("{actions:?}") };
        assert_eq!((of, error.kind()), (session(1), ErrorKind::VerificationFailed));
    };
    let actions = Stage::new(2, 1).handle(not_signed());
    assert_eq!(actions.len(), 1);
    told(&actions);
    let actions = Stage::new(3, 1).handle(not_signed());
    told(&actions);
    assert!(matches!(sent(&actions, 2)[..], [(_, Notice::Close)]));
}

#[test]
fn a_drop_after_a_start_is_sent_in_a_later_frame() {
    let mut first = Stage::new(2, 0);
    first.open(1);
    let planned = first.handle(Event::Ready);
    assert!(matches!(planned[..], [Action::Start { .. }, Action::Compute { .. }]), "{planned:?}");
    let computed = Event::Computed { rows: Vec::new(), advances: Vec::new(), failed: vec![(0, error())] };
    let actions = first.handle(computed);
    let frames: Vec<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Frame { number, drops, starts, .. } => Some((*number, drops.len(), starts.len())),
            _ => None,
        })
        .collect();
    assert_eq!(frames, [(0, 0, 1), (1, 1, 0)], "{actions:?}");
    // The report of the planned frame makes room for the next one.
    first.handle(Event::Stepped { number: 0, advances: Vec::new() });
    first.handle(Event::Stepped { number: 1, advances: Vec::new() });
    assert!(first.protocol.has_room());
}

/// Whether the chain breaks: before anybody is told, so that nobody comes back to it.
fn breaks_first(actions: &[Action]) -> bool {
    matches!(actions.first(), Some(Action::Break { .. }))
}

#[test]
fn an_invalid_frame_fails_the_chain_and_everybody_is_notified() {
    let rows =
        |start| vec![FrameRows { sequence: 1, start, rows: 2, choose: true, all_logits: false, draft: Vec::new() }];
    let frame = |number, start, payload_rows| {
        Event::Frame(Incoming { number, drops: Vec::new(), starts: Vec::new(), rows: rows(start), payload_rows })
    };
    for wrong in [frame(1, 0, Some(2)), frame(0, 127, Some(2)), frame(0, 0, Some(1)), frame(0, 0, None)] {
        let mut last = Stage::new(2, 1);
        last.open(1);
        let actions = last.handle(wrong);
        assert!(matches!(sent(&actions, COORDINATOR)[..], [(_, Notice::Failed(_))]), "{actions:?}");
        assert!(breaks_first(&actions), "{actions:?}");
        assert_eq!(last.protocol.sessions(), 0);
        let joins = last.open(2).iter().any(|action| matches!(action, Action::Join { .. }));
        assert!(!joins && last.protocol.sessions() == 0, "the broken chain takes a session");
    }
    let mut last = Stage::new(2, 1);
    last.open(1);
    assert!(matches!(last.handle(frame(0, 126, Some(2)))[..], [Action::Compute { .. }]), "at the context's end");
}

#[test]
fn a_chain_without_one_of_its_stages_fails_and_refuses_sessions() {
    let mut first = Stage::new(2, 0);
    first.open(1);
    let actions = first.handle(Event::PeerGone { peer: peer(1), why: "it left" });
    assert!(matches!(sent(&actions, COORDINATOR)[..], [(_, Notice::Failed(_))]), "{actions:?}");
    assert!(breaks_first(&actions) && !first.protocol.has_room());
    let refused = first.open(2);
    assert!(
        matches!(sent(&refused, COORDINATOR)[..], [(_, Notice::Refused { error, .. })] if error.kind() == ErrorKind::Unavailable),
        "{refused:?}"
    );
}

#[test]
fn a_stage_that_loses_the_one_before_it_closes_the_sessions_of_those_behind() {
    let mut middle = Stage::new(3, 1);
    middle.open(1);
    middle.open(2);
    let actions = middle.handle(Event::PeerGone { peer: peer(0), why: "it left" });
    assert!(matches!(sent(&actions, 2)[..], [(_, Notice::Close), (_, Notice::Close)]), "{actions:?}");
    let mut last = Stage::new(3, 2);
    last.open(1);
    last.handle(Event::Close { session: session(1), commit: None });
    assert_eq!(last.protocol.sessions(), 0);
}

/// The session of a coordinator on the same node would wait for ever otherwise: it expects no silence of its own stages.
#[test]
fn a_stage_that_ends_tells_its_sessions_and_takes_no_others() {
    let mut alone = Stage::new(1, 0);
    alone.open(1);
    let actions = alone.handle(Event::End { why: "its layers leave memory" });
    let told = sent(&actions, COORDINATOR);
    assert!(matches!(told[..], [(of, Notice::Failed(_))] if of == session(1)), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::Forget(of) if *of == session(1))), "{actions:?}");
    assert!(
        !actions.iter().any(|action| matches!(action, Action::Break { .. })),
        "the chain did not fail: {actions:?}"
    );
    assert_eq!(alone.protocol.sessions(), 0);
    let actions = alone.open(2);
    assert!(matches!(sent(&actions, COORDINATOR)[..], [(_, Notice::Refused { .. })]), "{actions:?}");
    let mut middle = Stage::new(3, 1);
    middle.open(1);
    let actions = middle.handle(Event::End { why: "its layers leave memory" });
    assert!(matches!(sent(&actions, COORDINATOR)[..], [(_, Notice::Failed(_))]), "{actions:?}");
    assert!(matches!(sent(&actions, 2)[..], [(_, Notice::Close)]), "{actions:?}");
}

#[test]
fn an_opening_on_a_failed_chain_is_reported_to_coordinator_and_first_stage() {
    let mut last = Stage::new(3, 2);
    last.handle(Event::CannotGoOn { why: "out of memory" });
    let actions = last.open(1);
    for to in [COORDINATOR, 0] {
        let told = sent(&actions, to);
        assert!(matches!(told[..], [(of, Notice::Failed(_))] if of == session(1)), "{to}: {actions:?}");
    }
}

#[test]
fn a_report_that_no_frame_can_have_given_ends_the_chain() {
    let advance = |sequence, computed, chosen: &[u32]| SteppedSequence {
        sequence,
        computed,
        chosen: chosen.to_vec(),
        ended: false,
        failed: false,
    };
    let begun = || {
        let mut first = Stage::new(2, 0);
        first.open(1);
        first.compute();
        first
    };
    for (number, advances) in [
        (7, vec![advance(0, 3, &[5])]),
        (7, vec![]),
        (0, vec![advance(9, 3, &[5])]),
        (0, vec![advance(0, 4, &[5])]),
        (0, vec![advance(0, 2, &[5])]),
        (0, vec![advance(0, 3, &[])]),
        (0, vec![advance(0, 1, &[])]),
        (0, vec![advance(0, 4, &[5, 6])]),
        (0, vec![advance(0, 3, &[5]), advance(0, 3, &[5])]),
    ] {
        let mut first = begun();
        let actions = first.handle(Event::Stepped { number, advances: advances.clone() });
        let [(_, Notice::Failed(error))] = sent(&actions, COORDINATOR)[..] else { panic!("{advances:?}: {actions:?}") };
        assert_eq!(error.kind(), ErrorKind::VerificationFailed);
        assert!(breaks_first(&actions), "{actions:?}");
    }
    let mut first = begun();
    assert!(sent(&first.stepped(0, 0, 3, false), COORDINATOR).is_empty());
    // The same report once more.
    let actions = first.stepped(0, 0, 3, false);
    assert!(breaks_first(&actions), "{actions:?}");
}

/// The last stage compiles grammars beside its other work; until one is there, the row before the first token is computed again.
#[test]
fn an_answer_waits_for_its_grammar_before_its_first_token_and_not_for_long() {
    let waiting = |first: &mut Stage, number| {
        let advance = SteppedSequence { sequence: 0, computed: 2, chosen: Vec::new(), ended: false, failed: false };
        first.handle(Event::Stepped { number, advances: vec![advance] })
    };
    let is_broken = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Break { .. }));
    let mut first = Stage::new(2, 0);
    first.open(1);
    first.compute();
    assert!(!is_broken(&waiting(&mut first, 0)));
    let again = first.handle(Event::Ready);
    let Some(Action::Compute { rows, tokens }) = again.last() else { panic!("{again:?}") };
    assert_eq!((rows[0].start, rows[0].rows, rows[0].choose, &tokens[..]), (2, 1, true, &[3][..]));
    let rows = rows.clone();
    first.handle(Event::Computed { rows, advances: Vec::new(), failed: Vec::new() });
    first.now += GRAMMAR_TIMEOUT + Duration::from_millis(1);
    assert!(is_broken(&waiting(&mut first, 1)), "it took too long");

    let mut first = Stage::new(2, 0);
    first.open(1);
    first.compute();
    first.stepped(0, 0, 3, false);
    first.compute();
    let advance = SteppedSequence { sequence: 0, computed: 3, chosen: Vec::new(), ended: false, failed: false };
    let actions = first.handle(Event::Stepped { number: 1, advances: vec![advance] });
    assert!(is_broken(&actions), "after a token the grammar is there");
}

#[test]
fn a_chain_whose_later_stages_are_silent_ends_within_seconds_and_says_so() {
    let mut first = Stage::new(2, 0);
    first.open(1);
    first.compute();
    first.now += Duration::from_secs(5);
    assert!(!first.handle(Event::Ready).iter().any(|action| matches!(action, Action::Break { .. })));
    first.now += Duration::from_millis(100);
    let actions = first.handle(Event::Ready);
    let [(_, Notice::Failed(error))] = sent(&actions, COORDINATOR)[..] else { panic!("{actions:?}") };
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(breaks_first(&actions), "{actions:?}");
}

#[test]
fn coordinators_hear_until_the_first_token_that_the_chain_works_on() {
    let mut first = Stage::new(2, 0);
    first.open(1);
    first.compute();
    let notices = |first: &mut Stage| {
        first.now += NOTICE_INTERVAL;
        sent(&first.handle(Event::Ready), COORDINATOR).len()
    };
    assert_eq!([notices(&mut first), notices(&mut first)], [1, 1]);
    first.stepped(0, 0, 3, false);
    assert_eq!(notices(&mut first), 0);
}

fn numbered(n: u64) -> SessionId {
    SessionId(u128::from(n + 1).to_le_bytes())
}

/// Answers of one token each that nobody closes took memory without limit; now the coordinator with the most loses its oldest.
#[test]
fn ended_sessions_that_nobody_closes_take_no_more_than_the_memory_for_sessions() {
    let mut first = Stage::new(2, 0);
    let positions = 64 * 16;
    let end = |first: &mut Stage, n: u64, coordinator| {
        first.open_of(numbered(n), 0, coordinator);
        first.compute();
        first.now += Duration::from_millis(1);
        first.stepped(n, n, 3, true);
        first.now += Duration::from_millis(1);
        first.handle(Event::Ready)
    };
    let honest = end(&mut first, 0, COORDINATOR);
    assert!(honest.is_empty(), "{honest:?}");
    for n in 1..=300 {
        let actions = end(&mut first, n, 8);
        assert!(first.protocol.sessions() * 4 <= positions);
        let lost = actions.iter().filter(|action| matches!(action, Action::Forget(_))).count();
        assert!(lost <= 1 && !actions.iter().any(|action| matches!(action, Action::Forget(of) if *of == numbered(0))));
    }
    assert_eq!(first.protocol.sessions(), positions / 4);
}

#[test]
fn a_later_stage_drops_sessions_that_no_message_moves() {
    let mut middle = Stage::new(3, 1);
    assert!(!middle.protocol.follows_time(), "a stage without sessions waits for no time");
    middle.open(1);
    middle.now += LEASE;
    assert!(middle.protocol.follows_time() && middle.handle(Event::Tick).is_empty());
    let rows = vec![FrameRows { sequence: 1, start: 0, rows: 3, choose: true, all_logits: false, draft: Vec::new() }];
    let frame = Incoming { number: 0, drops: Vec::new(), starts: Vec::new(), rows, payload_rows: Some(3) };
    middle.handle(Event::Frame(frame));
    middle.now += LEASE;
    assert!(middle.handle(Event::Tick).is_empty(), "the frame moved it");
    middle.now += Duration::from_millis(1);
    let actions = middle.handle(Event::Tick);
    assert!(is_forgotten(&actions, 1) && matches!(sent(&actions, 2)[..], [(_, Notice::Close)]), "{actions:?}");
    assert_eq!(middle.protocol.sessions(), 0);
}

#[test]
fn a_later_stage_that_always_has_messages_drops_sessions_that_none_of_them_moves() {
    let mut middle = Stage::new(3, 1);
    middle.open(1);
    middle.now += LEASE;
    assert!(middle.handle(Event::Ready).is_empty());
    middle.now += Duration::from_millis(1);
    assert!(is_forgotten(&middle.handle(Event::Ready), 1));
    assert_eq!(middle.protocol.sessions(), 0);
}

#[test]
fn a_later_stage_takes_a_limited_number_of_sessions_and_sequences() {
    let mut last = Stage::new(2, 1);
    for n in 0..MAX_SESSIONS as u64 {
        assert!(last.open_of(numbered(n), n, COORDINATOR).is_empty(), "session {n}");
    }
    let n = MAX_SESSIONS as u64;
    let refused = last.open_of(numbered(n), n, COORDINATOR);
    assert!(
        matches!(sent(&refused, COORDINATOR)[..], [(_, Notice::Failed(error))] if error.kind() == ErrorKind::Overloaded),
        "{refused:?}"
    );
    // The same session with other sequences is no way around it.
    let again = last.open_of(numbered(0), n, COORDINATOR);
    assert!(matches!(sent(&again, COORDINATOR)[..], [(_, Notice::Failed(_))]), "{again:?}");

    let mut last = Stage::new(2, 1);
    let start = |sequence| Start { sequence, session: session(1), source: StartSource::Empty };
    let frame = |number, drops, starts| {
        Event::Frame(Incoming { number, drops, starts, rows: Vec::new(), payload_rows: Some(0) })
    };
    let held = MAX_SEQUENCES_HELD as u64;
    let actions = last.handle(frame(0, Vec::new(), (0..held).map(start).collect()));
    assert!(!actions.iter().any(|action| matches!(action, Action::Break { .. })));
    let actions = last.handle(frame(1, vec![0], vec![start(held)]));
    assert!(!actions.iter().any(|action| matches!(action, Action::Break { .. })), "one went, one came");
    let actions = last.handle(frame(2, Vec::new(), vec![start(held + 1)]));
    assert!(breaks_first(&actions), "{actions:?}");
}

#[test]
fn a_session_that_continues_a_cache_that_failed_ends_for_the_failures_reason() {
    let start = |sequence: u64, source| Start { sequence, session: session(sequence as u8), source };
    let rows = |sequence, start| {
        let (rows, draft) = (1, Vec::new());
        FrameRows { sequence, start, rows, choose: true, all_logits: false, draft }
    };
    let is_failed = |actions: &[Action], kind: ErrorKind| {
        [COORDINATOR, 0]
            .iter()
            .all(|to| matches!(sent(actions, *to)[..], [(_, Notice::Failed(error))] if error.kind() == kind))
    };
    // Memory that failed a session is short for its followers, too; of any other failure they know nothing.
    for (cause, then) in [
        (ErrorKind::Overloaded, ErrorKind::Overloaded),
        (ErrorKind::Internal, ErrorKind::Unavailable),
        (ErrorKind::InvalidInput, ErrorKind::Unavailable),
    ] {
        let mut last = Stage::new(2, 1);
        (1..6).for_each(|n| drop(last.open(n)));
        let mut number = 0;
        let mut frame =
            |last: &mut Stage, drops: Vec<u64>, starts: Vec<Start>, of: FrameRows, why: Option<ErrorKind>| {
                let rows = vec![of.clone()];
                last.handle(Event::Frame(Incoming { number, drops, starts, rows, payload_rows: Some(1) }));
                number += 1;
                let failed: Vec<_> = why.map(|why| (of.sequence, Error::new(why, "it broke"))).into_iter().collect();
                let rows = if failed.is_empty() { vec![of] } else { Vec::new() };
                last.handle(Event::Computed { rows, advances: Vec::new(), failed })
            };
        let empty = start(1, StartSource::Empty);
        let actions = frame(&mut last, Vec::new(), vec![empty], rows(1, 0), Some(cause));
        assert!(is_failed(&actions, cause), "its own failure: {actions:?}");
        // The driver finds an empty cache, whoever is to blame for it.
        let missing = Some(ErrorKind::InvalidInput);
        let fork = start(2, StartSource::Fork { from: 1, tokens: 1 });
        let actions = frame(&mut last, Vec::new(), vec![fork], rows(2, 1), missing);
        assert!(is_failed(&actions, then), "a fork: {actions:?}");
        let take = start(3, StartSource::Take { from: 2, tokens: 1 });
        let actions = frame(&mut last, vec![1], vec![take], rows(3, 1), missing);
        assert!(is_failed(&actions, then), "what takes a fork: {actions:?}");
        // A cache of its own, even under the name of a lost one, is nobody else's.
        let own = start(4, StartSource::Empty);
        assert!(sent(&frame(&mut last, vec![3], vec![own], rows(4, 0), None), 0).is_empty());
        let fork = start(5, StartSource::Fork { from: 4, tokens: 1 });
        let actions = frame(&mut last, Vec::new(), vec![fork], rows(5, 1), Some(ErrorKind::Internal));
        assert!(is_failed(&actions, ErrorKind::Internal), "{actions:?}");
    }
}
