//! What a stage refuses: requests, frames and reports that do not fit. Whatever does is taken to the last number.

use super::*;

/// An opening of one answer that fits.
fn fitting<'a>(stages: &'a [StageAt], tokens: &'a [u32]) -> Opening<'a> {
    Opening {
        session: session(1),
        coordinator: peer(COORDINATOR),
        stages,
        numerics: 1,
        choices: 1,
        sequence: None,
        prompt_len: tokens.len(),
        max_new_tokens: 8,
        prompt_logprobs: false,
        tokens,
        bad_sampling: None,
    }
}

/// Why the first stage refuses an opening; `None` if it joins.
fn refusal(first: &mut Stage, opening: Opening<'_>) -> Option<ErrorKind> {
    let actions = first.handle(Event::Open(opening));
    if let [Action::Join { .. }] = actions[..] {
        return None;
    }
    let [(of, Notice::Refused { error, retry_after: None })] = sent(&actions, COORDINATOR)[..] else {
        panic!("{actions:?}")
    };
    assert!(of == session(1) && is_forgotten(&actions, 1) && first.protocol.sessions() == 0, "{actions:?}");
    Some(error.kind())
}

#[test]
fn a_first_stage_refuses_requests_that_do_not_fit() {
    let (chain, other) = (stages(2), stages(1));
    let why = |opening| refusal(&mut Stage::new(2, 0), opening);
    let three = || fitting(&chain, &[1, 2, 3]);
    let (invalid, elsewhere) = (Some(ErrorKind::InvalidInput), Some(ErrorKind::Unavailable));
    assert_eq!(why(three()), None);
    assert_eq!(why(fitting(&other, &[1, 2, 3])), elsewhere);
    assert_eq!(why(Opening { numerics: 2, ..three() }), elsewhere);
    // The vocabulary has 100 tokens.
    assert_eq!(
        [why(fitting(&chain, &[])), why(fitting(&chain, &[1, 100])), why(fitting(&chain, &[1, 101]))],
        [invalid; 3]
    );
    assert_eq!(why(fitting(&chain, &[99])), None);
    assert_eq!(why(Opening { prompt_len: 0, ..three() }), invalid);
    assert_eq!(why(Opening { prompt_len: 4, ..three() }), invalid);
    // Two of the tokens were generated before.
    let resumed = |max_new_tokens| Opening { prompt_len: 1, max_new_tokens, ..three() };
    assert_eq!([why(resumed(1)), why(resumed(2)), why(resumed(3))], [invalid, None, None]);
    // The context has 128 positions, one of them for a new token.
    let long = [1; 129];
    assert_eq!([127, 128, 129].map(|tokens| why(fitting(&chain, &long[..tokens]))), [None, invalid, invalid]);
    let bad = Error::new(ErrorKind::NotFound, "no such sampler");
    assert_eq!(why(Opening { bad_sampling: Some(&bad), ..three() }), Some(ErrorKind::NotFound));
}

#[test]
fn every_answer_of_a_request_is_a_session_of_its_own_and_they_fail_together() {
    let chain = stages(3);
    let mut middle = Stage::new(3, 1);
    let opening = Opening { choices: 3, sequence: Some(7), ..fitting(&chain, &[1]) };
    middle.handle(Event::Open(opening));
    assert_eq!(middle.protocol.sessions(), 3);
    for choice in 0..3 {
        assert_eq!(middle.protocol.session_of(7 + u64::from(choice)), Some(session(1).choice(choice)));
    }
    assert_eq!(middle.protocol.session_of(10), None);
    let actions = middle.handle(Event::CannotJoin(error()));
    let all = || (0..3).map(|choice| session(1).choice(choice));
    for to in [COORDINATOR, 0] {
        let told: Vec<_> = sent(&actions, to).into_iter().map(|(of, _)| of).collect();
        assert_eq!(told, all().collect::<Vec<_>>(), "{actions:?}");
    }
    assert_eq!(middle.protocol.sessions(), 0);
    assert!(middle.handle(Event::CannotJoin(error())).is_empty(), "once");
}

#[test]
fn a_request_whose_sequences_have_no_numbers_breaks_the_chain() {
    let chain = stages(2);
    for (sequence, breaks) in [(u64::MAX - 2, false), (u64::MAX - 1, true)] {
        let mut last = Stage::new(2, 1);
        let opening = Opening { choices: 2, sequence: Some(sequence), ..fitting(&chain, &[1]) };
        let actions = last.handle(Event::Open(opening));
        assert_eq!(breaks_first(&actions), breaks, "{actions:?}");
    }
}

#[test]
fn a_later_stage_counts_every_answer_of_a_request() {
    let chain = stages(2);
    let mut last = Stage::new(2, 1);
    let open = |last: &mut Stage, n: u64, choices: u16, sequence| {
        let opening =
            Opening { session: numbered(n << 16), choices, sequence: Some(sequence), ..fitting(&chain, &[1]) };
        last.handle(Event::Open(opening))
    };
    let most = MAX_SESSIONS as u16;
    assert!(matches!(open(&mut last, 1, most - 2, 0)[..], [Action::Join { sequence: 0 }]));
    let refused = open(&mut last, 2, 3, most.into());
    assert_eq!(sent(&refused, COORDINATOR).len(), 3, "{refused:?}");
    assert!(matches!(open(&mut last, 3, 2, most.into())[..], [Action::Join { .. }]));
}

#[test]
fn rows_without_a_place_of_their_own_break_the_chain() {
    let frame = |start, rows, draft: &[u32]| {
        let (choose, all_logits, draft) = (true, false, draft.to_vec());
        let rows = FrameRows { sequence: 1, start, rows, choose, all_logits, draft };
        let payload_rows = Some(rows.rows as usize);
        Event::Frame(Incoming { number: 0, drops: Vec::new(), starts: Vec::new(), rows: vec![rows], payload_rows })
    };
    for (event, breaks) in [
        (frame(0, 0, &[]), true),
        (frame(0, 2, &[5]), false),
        (frame(0, 2, &[5, 6]), true),
        (frame(0, 2, &[5, 6, 7]), true),
        (frame(0, 128, &[]), false),
        (frame(0, 129, &[]), true),
        (frame(u32::MAX, 1, &[]), true),
    ] {
        let mut last = Stage::new(2, 1);
        last.open(1);
        let actions = last.handle(event);
        assert_eq!(breaks_first(&actions), breaks, "{actions:?}");
    }
}

#[test]
fn only_the_loss_of_another_stage_or_of_a_coordinator_ends_sessions_and_only_its_own() {
    let gone = |n| Event::PeerGone { peer: peer(n), why: "it left" };
    let mut first = Stage::new(3, 0);
    first.open_of(session(1), 0, COORDINATOR);
    first.open_of(session(2), 0, 8);
    assert!(first.handle(gone(7)).is_empty() && first.handle(gone(0)).is_empty());
    let actions = first.handle(gone(8));
    assert!(is_forgotten(&actions, 2) && !is_forgotten(&actions, 1), "{actions:?}");
    assert!(matches!(actions[..], [Action::Count(Count::Cancelled), ..]), "{actions:?}");
    // A later stage hears of it from the first one.
    let mut middle = Stage::new(3, 1);
    middle.open(1);
    assert!(middle.handle(gone(COORDINATOR)).is_empty() && middle.handle(gone(1)).is_empty());
    assert_eq!(middle.protocol.sessions(), 1);
    assert!(breaks_first(&middle.handle(gone(2))));
}

#[test]
fn a_stage_says_where_in_the_chain_it_is_and_how_much_it_does() {
    assert_eq!([0, 1, 2].map(|index| Stage::new(3, index).protocol.is_last()), [false, false, true]);
    let mut first = Stage::new(2, 0);
    (1..=5).for_each(|n| drop(first.open(n)));
    first.handle(Event::Ready);
    assert_eq!((first.protocol.load(), first.protocol.frame_number()), ((4, 1), 0), "four run and one waits");
    let mut first = Stage::new(2, 0);
    first.open(1);
    for number in 0..3 {
        assert_eq!(first.protocol.frame_number(), number);
        first.compute();
        first.stepped(number, 0, 3 + number as u32, false);
    }
    assert_eq!((first.protocol.load(), first.protocol.frame_number()), ((1, 0), 3));
    let mut last = Stage::new(2, 1);
    last.open(1);
    assert_eq!(last.protocol.load(), (0, 0));
    // Its pace is known once it has computed some frames.
    for number in 0..3 {
        assert!(last.protocol.pace().is_none());
        let rows = FrameRows { sequence: 1, start: 0, rows: 1, choose: true, all_logits: false, draft: Vec::new() };
        let rows = vec![rows];
        let (drops, starts) = (Vec::new(), Vec::new());
        last.handle(Event::Frame(Incoming { number, drops, starts, rows: rows.clone(), payload_rows: Some(1) }));
        last.now += Duration::from_millis(5);
        last.handle(Event::Computed { rows, advances: Vec::new(), failed: Vec::new() });
    }
    assert_eq!(last.protocol.pace().map(|pace| pace.step), Some(Duration::from_millis(5)));
}
