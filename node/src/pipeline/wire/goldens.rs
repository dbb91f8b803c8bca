//! What every version sent, byte by byte: a difference is a change of the protocol. Then disturbed bytes, round trips of messages of
//! every kind, and the largest of each kind.

use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_compute::sample::{AnswerFormat, Sampling};
use proptest::prelude::*;

use super::*;
use crate::pipeline::limits::*;
use crate::pipeline::payload::Payload;
use crate::wire::conformance;
use crate::wire::{FrameHead, Header, PREFIX_BYTES, WireError};

/// A peer id of an Ed25519 key, which it contains.
fn peer(n: u8) -> PeerId {
    let mut bytes = vec![0, 36, 8, 1, 18, 32];
    bytes.extend([n; 32]);
    PeerId::from_bytes(&bytes).unwrap()
}

fn chain() -> ChainId {
    ChainId { model: model(), epoch: 5 }
}

fn session(n: u8) -> SessionId {
    let mut bytes = [n; 16];
    bytes[0] = 1;
    SessionId(bytes)
}

fn model() -> Digest {
    Digest::from_bytes([0xdd; 32])
}

fn open() -> Open {
    Open {
        session: session(2),
        coordinator: peer(3),
        model: model(),
        epoch: 5,
        numerics: 1,
        stages: vec![StageAt { peer: peer(1), layers: 0..12 }, StageAt { peer: peer(2), layers: 12..30 }],
        choices: 2,
        sequence: Some(77),
        prompt_len: 3,
        max_new_tokens: 100,
        sampling: Sampling {
            repetition_window: Some(64),
            logit_bias: vec![(7, -100.0), (9, 0.5)],
            seed: u64::MAX - 1,
            logprobs: Some(5),
            ..Sampling::default()
        },
        format: AnswerFormat::JsonSchema("{\"type\":\"object\"}".to_owned()),
        prompt_logprobs: true,
        trace: None,
        tokens: vec![1, 2, 3, 49_151],
    }
}

fn frame() -> Frame {
    let rows = FrameRows { sequence: 78, start: 40, rows: 3, choose: true, all_logits: false, draft: vec![11, 12] };
    Frame {
        epoch: 5,
        model: model(),
        number: 1000,
        first_stage: peer(1),
        drops: vec![70, 71],
        starts: vec![
            Start { sequence: 78, session: session(2), source: StartSource::Empty },
            Start { sequence: 79, session: session(3), source: StartSource::Fork { from: 78, tokens: 40 } },
            Start { sequence: 80, session: session(4), source: StartSource::Take { from: 60, tokens: 16 } },
        ],
        rows: vec![rows, FrameRows { sequence: 79, start: 0, rows: 1, choose: false, all_logits: true, draft: vec![] }],
    }
}

fn stepped() -> Stepped {
    let advance = SteppedSequence { sequence: 78, computed: 42, chosen: vec![11, 5], ended: false, failed: false };
    let ended = SteppedSequence { sequence: 79, computed: 1, chosen: vec![], ended: true, failed: true };
    Stepped { epoch: 5, model: model(), number: 1000, advances: vec![advance, ended] }
}

fn tokens() -> Tokens {
    let first = TokenOut { token: 4, logprob: None, top: vec![] };
    let other = TokenOut { token: 11, logprob: Some(-0.25), top: vec![(11, -0.25), (12, -2.5)] };
    Tokens {
        session: session(2),
        position: 40,
        tokens: vec![other.clone()],
        ended: Some(EndReason::Length),
        prompt: vec![first, other],
        drafted: 4,
        accepted: 1,
        cached: 7,
        computed: 0,
    }
}

fn plain() -> Open {
    Open {
        sequence: None,
        sampling: Sampling::greedy(),
        format: AnswerFormat::Text,
        prompt_logprobs: false,
        tokens: vec![1, 2, 3],
        ..open()
    }
}

/// One message of each kind, and the length of its payload.
fn one_of_each() -> Vec<(Message, usize)> {
    let reading = Tokens { session: session(2), position: 40, computed: 32, ..Tokens::default() };
    let ending = Tokens { tokens: vec![], prompt: vec![], ended: Some(EndReason::Stop), ..tokens() };
    let idle = Frame { drops: vec![], starts: vec![], rows: vec![], ..frame() };
    vec![
        (Message::Open(Box::new(open())), 16),
        (Message::Open(Box::new(plain())), 12),
        (Message::Open(Box::new(Open { trace: conformance::trace(), ..plain() })), 12),
        (Message::Accepted { session: session(2) }, 0),
        (refused(Some(250)), 0),
        (refused(None), 0),
        (Message::Close { chain: chain(), session: session(2), commit: Some(900) }, 0),
        (Message::Frame(frame()), 4 * 576 * 4),
        (Message::Frame(idle), 0),
        (Message::Stepped(stepped()), 0),
        (Message::Tokens(tokens()), 0),
        (Message::Tokens(ending), 0),
        (Message::Tokens(reading), 0),
        (failed("a stage is gone"), 0),
        (Message::Commit { chain: chain(), session: session(2), positions: 1000 }, 200),
    ]
}

fn refused(retry_after_ms: Option<u32>) -> Message {
    let message = "no room".to_owned();
    Message::Refused { session: session(2), kind: ErrorKind::Overloaded, message, retry_after_ms }
}

fn failed(message: &str) -> Message {
    Message::Failed { chain: chain(), session: session(2), kind: ErrorKind::Unavailable, message: message.to_owned() }
}

fn encoded(message: &Message, payload: usize) -> Vec<u8> {
    message.check_sendable(payload).unwrap();
    conformance::encoded(message, payload)
}

/// The message as the other side decodes it.
fn received(message: &Message, payload: usize) -> Result<Message, WireError> {
    let mut bytes = Vec::new();
    message.encode(payload, &mut bytes).unwrap();
    let behind = message.outgoing(Payload::zeroed(payload));
    assert_eq!(behind.len(), payload);
    Ok(Message::decode(&bytes[PREFIX_BYTES..], payload)?.incoming(behind).0)
}

/// The message that a header and the bytes behind it are; those bytes are the ones that go with `sent`.
fn read(sent: &Message, header: &[u8], payload: usize) -> Message {
    sent.check_sendable(payload).unwrap();
    Message::decode(header, payload).unwrap().incoming(sent.outgoing(Payload::zeroed(payload))).0
}

#[test]
fn messages_of_every_version_are_read() {
    conformance::assert_frames_recorded(PROTOCOL, |_| one_of_each(), read);
}

#[test]
fn fields_of_later_versions_are_ignored() {
    conformance::assert_later_fields_are_ignored(&one_of_each(), read);
}

#[test]
fn tokens_of_an_opening_travel_behind_it_and_other_payloads_pass() {
    let sent = Message::Open(Box::new(open()));
    assert_eq!(sent.outgoing(Payload::empty()).as_bytes()[..8], [1, 0, 0, 0, 2, 0, 0, 0]);
    let payload = Payload::from_f32(vec![1.5, -0.0]);
    let (message, rest) = Message::Frame(frame()).incoming(payload.clone());
    assert_eq!((message, rest.as_f32()), (Message::Frame(frame()), payload.as_f32()));
}

#[test]
fn disturbed_bytes_never_panic_and_what_is_read_could_have_been_sent() {
    conformance::assert_sturdy(&one_of_each(), |read, payload| drop(encoded(&read, payload)));
}

#[test]
fn the_largest_messages_fit_their_headers() {
    let token = TokenOut { token: 1, logprob: Some(-1.0), top: vec![(1, -1.0); MAX_TOP] };
    let drafts = MAX_DRAFTED / MAX_SEQUENCES;
    let rows = FrameRows {
        sequence: 1,
        start: 0,
        rows: MAX_ROWS / MAX_SEQUENCES as u32,
        choose: true,
        all_logits: true,
        draft: vec![1; drafts],
    };
    let start = Start { sequence: 1, session: session(1), source: StartSource::Empty };
    let advance = SteppedSequence { sequence: 1, computed: 1, chosen: vec![1; drafts], ended: false, failed: false };
    let layers = |index: usize| index as u32..index as u32 + 1;
    let stages = (0..MAX_STAGES).map(|index| StageAt { peer: peer(1), layers: layers(index) });
    let largest = [
        Message::Open(Box::new(Open {
            stages: stages.collect(),
            sampling: Sampling { logit_bias: vec![(1, 1.0); MAX_LOGIT_BIAS], ..Sampling::default() },
            format: AnswerFormat::JsonSchema("x".repeat(MAX_SCHEMA_BYTES)),
            trace: conformance::trace(),
            ..open()
        })),
        Message::Frame(Frame {
            drops: vec![1; MAX_DROPS],
            starts: vec![start; MAX_SEQUENCES],
            rows: vec![rows; MAX_SEQUENCES],
            ..frame()
        }),
        Message::Stepped(Stepped { advances: vec![advance; MAX_SEQUENCES], ..stepped() }),
        Message::Tokens(Tokens { tokens: vec![token; MAX_TOKENS_OUT], prompt: vec![], ..tokens() }),
        failed(&"x".repeat(MAX_TEXT_BYTES)),
    ];
    for message in largest {
        let payload = match &message {
            Message::Open(open) => open.tokens.len() * 4,
            Message::Frame(frame) => frame.rows() * 4,
            _ => 0,
        };
        encoded(&message, payload);
        assert_eq!(received(&message, payload).unwrap(), message);
    }
}

#[test]
fn what_is_beyond_a_limit_or_does_not_fit_together_is_refused_by_both_sides() {
    let refuse = |message: Message, payload: usize| {
        assert!(message.check_sendable(payload).is_err(), "sends {message:?}");
        let mut bytes = Vec::new();
        message.encode(payload, &mut bytes).unwrap();
        assert!(Message::decode(&bytes[PREFIX_BYTES..], payload).is_err(), "receives {message:?}");
    };
    let opening = |change: fn(&mut Open)| {
        let mut open = open();
        change(&mut open);
        refuse(Message::Open(Box::new(open)), 16);
    };
    opening(|open| open.stages.clear());
    opening(|open| open.stages[1].layers = 13..30);
    opening(|open| open.stages[0].layers = 1..12);
    opening(|open| open.stages[1].layers = 12..12);
    opening(|open| open.stages[1].layers = 12..MAX_LAYERS + 1);
    opening(|open| open.stages = (0..65).map(|n| StageAt { peer: peer(1), layers: n..n + 1 }).collect());
    opening(|open| open.choices = 0);
    opening(|open| open.choices = MAX_CHOICES + 1);
    opening(|open| open.sequence = Some(u64::MAX));
    opening(|open| open.prompt_len = 0);
    opening(|open| open.prompt_len = 5);
    opening(|open| (open.prompt_len, open.max_new_tokens) = (1, 2));
    opening(|open| open.max_new_tokens = MAX_POSITIONS);
    opening(|open| open.sampling.temperature = f32::NAN);
    opening(|open| open.sampling.logprobs = Some(MAX_TOP + 1));
    opening(|open| open.sampling.logit_bias = vec![(1, f32::INFINITY)]);
    opening(|open| open.sampling.logit_bias = vec![(1, 1.0); MAX_LOGIT_BIAS + 1]);
    opening(|open| open.format = AnswerFormat::JsonSchema("x".repeat(MAX_SCHEMA_BYTES + 1)));
    refuse(Message::Open(Box::new(open())), 15);

    let framed = |change: fn(&mut Frame)| {
        let mut frame = frame();
        change(&mut frame);
        let payload = frame.rows() * 4;
        refuse(Message::Frame(frame), payload);
    };
    framed(|frame| frame.rows[1].rows = 0);
    framed(|frame| frame.rows[1].rows = MAX_ROWS);
    framed(|frame| frame.rows[1].start = MAX_POSITIONS);
    framed(|frame| frame.rows[0].draft = vec![1; 4]);
    framed(|frame| frame.starts[1].source = StartSource::Fork { from: 1, tokens: MAX_POSITIONS + 1 });
    framed(|frame| frame.drops = vec![1; MAX_DROPS + 1]);
    framed(|frame| frame.starts = vec![frame.starts[0]; MAX_SEQUENCES + 1]);
    framed(|frame| frame.rows = vec![frame.rows[1].clone(); MAX_SEQUENCES + 1]);
    for payload in [0, 4, 4 * 576 * 4 + 4] {
        refuse(Message::Frame(frame()), payload);
    }
    refuse(Message::Frame(Frame { rows: vec![], ..frame() }), 4);

    let told = |change: fn(&mut Tokens)| {
        let mut tokens = tokens();
        change(&mut tokens);
        refuse(Message::Tokens(tokens), 0);
    };
    told(|tokens| tokens.tokens[0].logprob = Some(f32::NAN));
    told(|tokens| tokens.prompt[1].top[0].1 = f32::INFINITY);
    told(|tokens| tokens.prompt[1].top = vec![(1, -1.0); MAX_TOP + 1]);
    told(|tokens| tokens.tokens = vec![TokenOut::default(); MAX_TOKENS_OUT]);
    told(|tokens| tokens.accepted = 5);
    told(|tokens| tokens.position = MAX_POSITIONS);

    let chosen = SteppedSequence { chosen: vec![1; MAX_DRAFTED], ..stepped().advances[0].clone() };
    refuse(Message::Stepped(Stepped { advances: vec![chosen.clone(), chosen], ..stepped() }), 0);
    refuse(Message::Commit { chain: chain(), session: session(1), positions: 0 }, MAX_COMMIT_BYTES + 1);
    refuse(Message::Accepted { session: session(1) }, 4);
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_anything_is_read() {
    let head = |header, payload| FrameHead::new(header, payload, Message::LIMITS);
    assert!(head(MAX_HEADER_BYTES + 8, 0).is_err());
    assert!(head(8, MAX_PAYLOAD_BYTES + 1).is_err());
    assert!(head(MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES).is_ok());
}

#[test]
fn the_sessions_of_other_answers_follow_the_first() {
    let mut bytes = [0xff; 16];
    bytes[15] = 0;
    let next = SessionId(bytes).choice(2);
    assert_eq!((next.0[0], next.0[14], next.0[15]), (1, 0, 1));
    assert_eq!(SessionId([0xff; 16]).choice(1), SessionId([0; 16]));
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let source = prop_oneof![
        Just(StartSource::Empty),
        (any::<u64>(), 0..=MAX_POSITIONS).prop_map(|(from, tokens)| StartSource::Fork { from, tokens }),
        (any::<u64>(), 0..=MAX_POSITIONS).prop_map(|(from, tokens)| StartSource::Take { from, tokens }),
    ];
    let start = (any::<u64>(), any::<[u8; 16]>(), source).prop_map(|(sequence, session, source)| Start {
        sequence,
        session: SessionId(session),
        source,
    });
    let rows = (any::<u64>(), 0u32..1 << 21, 1u32..40, any::<[bool; 2]>(), prop::collection::vec(any::<u32>(), 0..9))
        .prop_map(|(sequence, start, rows, [choose, all_logits], draft)| FrameRows {
            sequence,
            start,
            rows: rows.max(draft.len() as u32),
            choose,
            all_logits,
            draft,
        });
    let lists = (
        prop::collection::vec(any::<u64>(), 0..20),
        prop::collection::vec(start, 0..6),
        prop::collection::vec(rows, 0..12),
    );
    (any::<[u64; 2]>(), any::<[u8; 32]>(), any::<u8>(), lists).prop_map(
        |([epoch, number], model, front, (drops, starts, rows))| Frame {
            epoch,
            model: Digest::from_bytes(model),
            number,
            first_stage: peer(front),
            drops,
            starts,
            rows,
        },
    )
}

fn any_tokens() -> impl Strategy<Value = Tokens> {
    let value = -1e6f32..=0.0;
    let token = (any::<u32>(), prop::option::of(value.clone()), prop::collection::vec((any::<u32>(), value), 0..20))
        .prop_map(|(token, logprob, top)| TokenOut { token, logprob, top });
    let ended = prop_oneof![
        Just(None),
        Just(Some(EndReason::Stop)),
        Just(Some(EndReason::Length)),
        Just(Some(EndReason::GrammarComplete))
    ];
    let lists = (prop::collection::vec(token.clone(), 0..20), prop::collection::vec(token, 0..20));
    (any::<[u8; 16]>(), 0u32..1 << 21, lists, ended, any::<u32>(), any::<u32>()).prop_map(
        |(session, position, (tokens, prompt), ended, one, other)| Tokens {
            session: SessionId(session),
            position,
            tokens,
            ended,
            prompt,
            drafted: one.max(other),
            accepted: one.min(other),
            cached: other,
            computed: one,
        },
    )
}

fn any_open() -> impl Strategy<Value = Open> {
    let format = prop_oneof![
        Just(AnswerFormat::Text),
        Just(AnswerFormat::JsonObject),
        ".{0,300}".prop_map(AnswerFormat::JsonSchema),
    ];
    let sampling = (
        [0.0f32..=100.0, 0.01f32..=1.0, 0.0f32..=1.0, 0.01f32..=1.0, 0.01f32..=100.0, -100.0f32..=100.0],
        any::<[u32; 2]>(),
        prop::option::of(any::<u32>()),
        prop::option::of(0..=MAX_TOP),
        prop::collection::vec((any::<u32>(), -100f32..100.0), 0..9),
    )
        .prop_map(
            |([temperature, top_p, min_p, typical_p, repetition, penalty], [top_k, seed], window, logprobs, bias)| {
                Sampling {
                    temperature,
                    top_k: top_k as usize,
                    top_p,
                    min_p,
                    typical_p,
                    repetition_penalty: repetition,
                    repetition_window: window.map(|tokens| tokens as usize),
                    presence_penalty: penalty,
                    frequency_penalty: -penalty,
                    logit_bias: bias,
                    seed: u64::from(seed) << 32 | u64::from(top_k),
                    logprobs,
                }
            },
        );
    let ends = prop::collection::btree_set(1u32..200, 1..6);
    let tokens = prop::collection::vec(any::<u32>(), 1..50);
    let numbers = (any::<[u8; 16]>(), any::<u64>(), any::<u32>(), prop::option::of(0..u64::MAX - 100));
    (numbers, ends, sampling, format, tokens, 1u32..50, 1..=MAX_CHOICES, any::<bool>()).prop_map(
        |(
            (session, epoch, numerics, sequence),
            ends,
            sampling,
            format,
            tokens,
            prompt_len,
            choices,
            prompt_logprobs,
        )| {
            let mut first = 0;
            let stages = ends.into_iter().map(|end| {
                let layers = std::mem::replace(&mut first, end)..end;
                StageAt { peer: peer(end as u8), layers }
            });
            let prompt_len = prompt_len.min(tokens.len() as u32);
            Open {
                session: SessionId(session),
                coordinator: peer(9),
                model: model(),
                epoch,
                numerics,
                stages: stages.collect(),
                choices,
                sequence,
                prompt_len,
                max_new_tokens: tokens.len() as u32 - prompt_len + u32::from(choices),
                sampling,
                format,
                prompt_logprobs,
                trace: conformance::trace().filter(|_| epoch % 2 == 0),
                tokens,
            }
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(header in prop::collection::vec(any::<u8>(), 0..600), payload in 0usize..1 << 20) {
        let _ = Message::decode(&header, payload);
    }

    #[test]
    fn any_frame_comes_back(frame in any_frame(), width in 1usize..9) {
        let payload = frame.rows() * width * 4;
        let message = Message::Frame(frame);
        encoded(&message, payload);
        prop_assert_eq!(received(&message, payload).unwrap(), message);
    }

    #[test]
    fn any_tokens_come_back(tokens in any_tokens()) {
        let message = Message::Tokens(tokens);
        encoded(&message, 0);
        prop_assert_eq!(received(&message, 0).unwrap(), message);
    }

    #[test]
    fn any_opening_comes_back(open in any_open()) {
        let payload = open.tokens.len() * 4;
        let message = Message::Open(Box::new(open));
        encoded(&message, payload);
        prop_assert_eq!(received(&message, payload).unwrap(), message);
    }

    #[test]
    fn any_text_survives_up_to_its_limit(text in ".{0,600}") {
        let sent = failed(&text);
        let Message::Failed { message: read, .. } = received(&sent, 0).unwrap() else {
            return Err(TestCaseError::fail("a failure"));
        };
        prop_assert!(text.starts_with(&read) && (read.len() == text.len() || read.len() > 1020));
    }
}
