//! What every version sent, byte by byte: a difference is a change of the protocol. Then disturbed bytes.

use std::time::Duration;

use pangea_client::ErrorKind;
use pangea_compute::Digest;

use super::limits::{BODY_BYTES, CHUNK_BYTES};
use super::message::{AnswerForm, Ask, AskRoute, Counted, Failure, TunnelMessage};
use crate::wire::conformance::{self, encoded};
use crate::wire::{Header, PREFIX_BYTES};

fn digest() -> Digest {
    let mut bytes = [0xaa; 32];
    bytes[0] = 1;
    Digest::from_bytes(bytes)
}

fn ask(body_bytes: usize) -> Ask {
    Ask { route: AskRoute::Messages, model: digest(), body_bytes: body_bytes as u32, trace: None }
}

/// One message of each kind, and the length of its payload.
fn one_of_each() -> Vec<(TunnelMessage, usize)> {
    let counted = Counted { prompt_tokens: 4000, answer_tokens: 17 };
    let failure = Failure {
        kind: ErrorKind::Overloaded,
        status: 429,
        message: "64 answers wait".to_owned(),
        param: Some("n".to_owned()),
        code: Some("rate_limit_exceeded".to_owned()),
        retry_after: Some(Duration::from_secs(2)),
    };
    vec![
        (TunnelMessage::Ask(ask(300)), 300),
        (TunnelMessage::Ask(ask(BODY_BYTES)), CHUNK_BYTES),
        (TunnelMessage::Ask(Ask { trace: conformance::trace(), ..ask(300) }), 300),
        (TunnelMessage::More, CHUNK_BYTES),
        (TunnelMessage::Working(counted), 0),
        (TunnelMessage::Head(AnswerForm::Events), 0),
        (TunnelMessage::Chunk(counted), 70),
        (TunnelMessage::End(counted), 0),
        (TunnelMessage::Failure(failure), 0),
        (TunnelMessage::Failure(Failure::new(ErrorKind::Internal, "a stage is gone")), 0),
    ]
}

fn read(_: &TunnelMessage, header: &[u8], payload: usize) -> TunnelMessage {
    TunnelMessage::decode(header, payload).unwrap()
}

#[test]
fn messages_of_every_version_are_read() {
    conformance::assert_frames_recorded(super::PROTOCOL, |_| one_of_each(), read);
}

#[test]
fn fields_of_later_versions_are_ignored() {
    conformance::assert_later_fields_are_ignored(&one_of_each(), read);
}

#[test]
fn disturbed_bytes_never_panic_and_lengths_and_statuses_stay_within_their_limits() {
    conformance::assert_sturdy(&one_of_each(), |message, payload| match message {
        TunnelMessage::Ask(ask) => {
            assert!((1..=BODY_BYTES).contains(&(ask.body_bytes as usize)) && ask.first_bytes() == payload);
        }
        TunnelMessage::More | TunnelMessage::Chunk(_) => assert_ne!(payload, 0),
        TunnelMessage::Failure(failure) => assert!((400..600).contains(&failure.status)),
        _ => assert_eq!(payload, 0),
    });
}

#[test]
fn a_body_beyond_the_limit_and_an_empty_piece_are_refused() {
    let decoded = |message: &TunnelMessage, payload: usize| {
        TunnelMessage::decode(&encoded(message, payload)[PREFIX_BYTES..], payload)
    };
    assert!(decoded(&TunnelMessage::Ask(ask(BODY_BYTES)), CHUNK_BYTES).is_ok());
    assert!(decoded(&TunnelMessage::Ask(ask(BODY_BYTES + 1)), CHUNK_BYTES).is_err());
    assert!(decoded(&TunnelMessage::Ask(ask(0)), 0).is_err(), "no body");
    assert!(decoded(&TunnelMessage::Ask(ask(300)), 299).is_err(), "a part of the body is missing");
    assert!(decoded(&TunnelMessage::Chunk(Counted::default()), 0).is_err());
}

#[test]
fn long_words_of_a_failure_are_cut_and_control_characters_are_left_out() {
    let failure = Failure {
        param: Some("p".repeat(500)),
        code: Some("c".repeat(500)),
        ..Failure::new(ErrorKind::Internal, format!("\u{1b}[2Ja\n{}", "x".repeat(5000)))
    };
    let bytes = encoded(&TunnelMessage::Failure(failure), 0);
    let TunnelMessage::Failure(read) = TunnelMessage::decode(&bytes[PREFIX_BYTES..], 0).unwrap() else { panic!() };
    assert!(read.message.starts_with("[2Jaxx") && !read.message.contains(char::is_control), "{}", read.message);
    assert_eq!((read.param.unwrap().len(), read.code.unwrap().len()), (128, 64));
}

#[test]
fn every_route_has_a_path_of_its_own() {
    for route in AskRoute::ALL {
        assert_eq!(AskRoute::of_path(route.path()), Some(route));
    }
    for path in ["/v1/models", "/api/pangea/status", "/metrics", "/v1/federation/vote", "/v1/messages/"] {
        assert_eq!(AskRoute::of_path(path), None, "{path}");
    }
}
