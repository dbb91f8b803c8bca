//! What every version sent, byte by byte: a difference is a change of the protocol. Then disturbed bytes, and round trips of messages
//! of every kind.

use std::time::Duration;

use pangea_client::ErrorKind;
use pangea_compute::{DType, Digest, Operation};
use proptest::prelude::*;

use super::conformance::{self, encoded};
use super::frame::{FrameHead, PREFIX_BYTES};
use super::message::{MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, Message, ResultSignature, Shape, Task, TaskHello};
use super::{Header, PROTOCOL, TraceParent, WireError};

fn digest(n: u8) -> Digest {
    let mut bytes = [n; 32];
    bytes[0] = 1;
    Digest::from_bytes(bytes)
}

fn shape() -> Shape {
    Shape::new(DType::F32, 512, 300).unwrap()
}

fn hello() -> TaskHello {
    TaskHello {
        version: 1,
        name: "blue".to_owned(),
        software: "pangea 0.1.0".to_owned(),
        threads: 8,
        f32_flops_per_s: 2e11,
        f64_flops_per_s: 1e11,
        i8_flops_per_s: 4e11,
        store_bytes: 1 << 30,
        tasks_max: 64,
        isa: "avx512".to_owned(),
        works: true,
    }
}

/// A task of a request that is not traced.
fn task() -> Task {
    let (operation, operands) = (Operation::Matmul, [digest(0xaa), digest(0xbb)]);
    let deadline = Some(Duration::from_millis(2500));
    Task { id: 7, priority: -1, deadline, operation, operands, trace: None }
}

/// One message of each kind, and the length of its payload.
fn one_of_each() -> Vec<(Message, usize)> {
    let task = task();
    let signed = Some(ResultSignature { digest: digest(0xcc), signature: [0xdd; 64] });
    vec![
        (Message::Hello(hello()), 0),
        (Message::Operand { digest: digest(0xaa), shape: shape(), offset: 1 << 16 }, 1 << 16),
        (Message::Task(task), 0),
        (Message::Task(Task { trace: conformance::trace(), ..task }), 0),
        (Message::Cancel(7), 0),
        (Message::Release(digest(0xaa)), 0),
        (Message::Result { task: 7, shape: shape(), offset: 0, compute_nanos: 21_000_000, signed: None }, 1 << 19),
        (Message::Result { task: 7, shape: shape(), offset: 0, compute_nanos: 21_000_000, signed }, 1 << 19),
        (
            Message::Failure { task: 7, kind: ErrorKind::Overloaded, message: "no room".to_owned(), retry_after: None },
            0,
        ),
        (Message::Missing { task: 7, digests: vec![digest(0xaa), digest(0xbb)] }, 0),
        (Message::Evicted(digest(0xbb)), 0),
        (Message::Load { queued_nanos: 5_000_000_000 }, 0),
        (Message::Probe { nonce: 3, total: 2 << 20, last: true }, 1 << 20),
        (Message::Probed(3), 0),
        (Message::Goodbye("the node is shutting down".to_owned()), 0),
        (Message::Started(7), 0),
        (
            Message::Failure {
                task: 7,
                kind: ErrorKind::Overloaded,
                message: "no room".to_owned(),
                retry_after: Some(Duration::from_millis(250)),
            },
            0,
        ),
    ]
}

fn read(_: &Message, header: &[u8], payload: usize) -> Message {
    Message::decode(header, payload).unwrap()
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
fn a_malformed_trace_is_none_and_the_task_is_read() {
    let traced = Task { trace: conformance::trace(), ..task() };
    let bytes = encoded(&Message::Task(traced), 0);
    let text = traced.trace.unwrap().to_string();
    let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    for (offset, byte) in [(0, b'1'), (2, b'_'), (3, b'G'), (54, 0xff), (55, b'0')] {
        let mut malformed = bytes[PREFIX_BYTES..].to_vec();
        malformed[at - PREFIX_BYTES + offset] = byte;
        assert_eq!(Message::decode(&malformed, 0).unwrap(), Message::Task(task()), "{offset}");
    }
}

/// The header of a result as nodes sent it before results were signed.
const UNSIGNED_RESULT: [u64; 12] = [
    0x0000_0000_0b00_0000,
    0x0000_0000_0200_0100,
    0x0500_0000_0000_0000,
    0x0000_0000_0000_0000,
    0x0000_0000_0300_0100,
    0x0700_0000_0000_0000,
    0x0000_0000_0000_0000,
    0x406f_4001_0000_0000,
    0x0000_0000_0300_0000,
    0x0200_0000_0000_0000,
    0x0002_0000_0000_0000,
    0x2c01_0000_0000_0000,
];

#[test]
fn a_result_of_a_node_that_signs_none_is_read() {
    let header: Vec<u8> = UNSIGNED_RESULT.into_iter().flat_map(u64::to_be_bytes).collect();
    let read = Message::decode(&header, 1 << 19).unwrap();
    let result = Message::Result { task: 7, shape: shape(), offset: 0, compute_nanos: 21_000_000, signed: None };
    assert_eq!(read, result);
}

#[test]
fn disturbed_bytes_never_panic_and_never_become_an_impossible_message() {
    conformance::assert_sturdy(&one_of_each(), |message, payload| {
        if let Message::Operand { shape, offset, .. } | Message::Result { shape, offset, .. } = message {
            assert!(offset + payload as u64 <= shape.size_bytes());
        }
    });
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_anything_is_read() {
    let head = |header, payload| FrameHead::new(header, payload, Message::LIMITS);
    for header in [0, 4, MAX_HEADER_BYTES + 8, u32::MAX] {
        let refused = WireError::HeaderLength { bytes: header, max_bytes: MAX_HEADER_BYTES };
        assert_eq!(head(header, 0).unwrap_err(), refused);
    }
    let refused = WireError::PayloadLength { bytes: MAX_PAYLOAD_BYTES + 1, max_bytes: MAX_PAYLOAD_BYTES };
    assert_eq!(head(8, MAX_PAYLOAD_BYTES + 1).unwrap_err(), refused);
    assert!(head(MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES).is_ok());
}

#[test]
fn a_payload_stays_inside_its_tensor_and_goes_with_no_other_message() {
    let total = shape().size_bytes();
    let piece = |offset, payload| {
        let bytes = encoded(&Message::Operand { digest: digest(1), shape: shape(), offset }, payload);
        Message::decode(&bytes[PREFIX_BYTES..], payload)
    };
    assert!(piece(total - 8, 8).is_ok());
    assert!(piece(total - 8, 9).is_err());
    assert!(piece(u64::MAX, 8).is_err());
    assert!(piece(0, 0).is_err(), "an empty piece would never finish");
    let cancel = encoded(&Message::Cancel(1), 8);
    assert!(Message::decode(&cancel[PREFIX_BYTES..], 8).is_err());
    assert!(Shape::new(DType::F64, u64::MAX, 2).is_err());
}

#[test]
fn names_lose_their_control_characters_and_long_ones_their_end() {
    let odd = TaskHello { name: format!("a\u{1b}[2J{}", "ü".repeat(60)), ..hello() };
    let bytes = encoded(&Message::Hello(odd), 0);
    let Message::Hello(read) = Message::decode(&bytes[PREFIX_BYTES..], 0).unwrap() else { panic!("a hello") };
    assert!(read.name.starts_with("a[2Jü") && read.name.len() <= 64 && !read.name.contains('\u{1b}'));
}

#[test]
fn speeds_that_are_no_numbers_are_refused() {
    for speed in [f64::NAN, f64::INFINITY, -1.0] {
        let bytes = encoded(&Message::Hello(TaskHello { f32_flops_per_s: speed, ..hello() }), 0);
        assert!(Message::decode(&bytes[PREFIX_BYTES..], 0).is_err());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(header in proptest::collection::vec(any::<u8>(), 0..400), payload in 0usize..1 << 20) {
        let _ = Message::decode(&header, payload);
    }

    #[test]
    fn any_task_comes_back(id: u64, priority: i8, ms in 1u32.., a: [u8; 32], b: [u8; 32], trace: ([u8; 16], [u8; 8], bool)) {
        let operands = [Digest::from_bytes(a), Digest::from_bytes(b)];
        let deadline = Some(Duration::from_millis(u64::from(ms)));
        let trace = TraceParent::new(trace.0, trace.1, trace.2);
        let task = Task { id, priority, deadline, operation: Operation::Matmul, operands, trace };
        let bytes = encoded(&Message::Task(task), 0);
        prop_assert_eq!(Message::decode(&bytes[PREFIX_BYTES..], 0).unwrap(), Message::Task(task));
    }

    #[test]
    fn any_failure_text_survives_up_to_its_limit(message in ".{0,600}", millis in 1..u64::from(u32::MAX)) {
        let asked = Some(Duration::from_millis(millis));
        let sent = Message::Failure { task: 1, kind: ErrorKind::Overloaded, message: message.clone(), retry_after: asked };
        let bytes = encoded(&sent, 0);
        let Message::Failure { message: read, retry_after, .. } = Message::decode(&bytes[PREFIX_BYTES..], 0).unwrap() else {
            return Err(TestCaseError::fail("a failure"));
        };
        prop_assert_eq!(retry_after, asked);
        prop_assert!(message.starts_with(&read) && (read.len() == message.len() || read.len() > 1020));
    }
}
