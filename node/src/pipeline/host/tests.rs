//! Who reaches whom through the pipeline of a node without links.

use pangea_compute::Digest;
use pangea_compute::sample::{AnswerFormat, Sampling};

use super::*;
use crate::pipeline::links::Inbox;
use crate::pipeline::wire::{Open, Tokens};

fn peer() -> PeerId {
    Keypair::generate_ed25519().public().to_peer_id()
}

fn stages(peers: &[PeerId]) -> Vec<StageAt> {
    let stage = |(at, peer): (u32, &PeerId)| StageAt { peer: *peer, layers: at..at + 1 };
    (0..).zip(peers).map(stage).collect()
}

fn opening(session: SessionId, coordinator: PeerId, stages: Vec<StageAt>) -> Open {
    Open {
        session,
        coordinator,
        model: Digest::from_bytes([1; 32]),
        epoch: 5,
        numerics: 1,
        stages,
        choices: 2,
        sequence: Some(3),
        prompt_len: 1,
        max_new_tokens: 1,
        sampling: Sampling::default(),
        format: AnswerFormat::Text,
        prompt_logprobs: false,
        trace: None,
        tokens: vec![1],
    }
}

/// Any member could fill the queue of a session's coordinator, and end any session whose id it knew.
#[test]
fn only_the_stages_of_a_session_reach_its_coordinator_and_the_last_one_always_does() {
    let pipeline = Pipeline::new(Keypair::generate_ed25519(), Supervisor::default());
    let (first, last, stranger) = (peer(), peer(), peer());
    let session = SessionId([7; 16]);
    let (events, mut received) = mpsc::channel(8);
    pipeline.add_session(session, &stages(&[first, last]), events);
    let chain = ChainId { model: Digest::from_bytes([1; 32]), epoch: 5 };
    let failed = || {
        let (kind, message) = (ErrorKind::Internal, "I say so".to_owned());
        Message::Failed { chain, session, kind, message }
    };
    let tokens = || Message::Tokens(Tokens { session, ..Tokens::default() });
    let commit = || Message::Commit { chain, session, positions: 1 };
    for message in [failed(), tokens(), commit(), Message::Accepted { session }] {
        pipeline.message(stranger, message, Payload::empty());
    }
    pipeline.peer_gone(stranger, "it closed the connection");
    assert!(received.try_recv().is_err(), "a stranger is heard");
    assert!(pipeline.admits(first, &commit()) && !pipeline.admits(stranger, &commit()));
    for _ in 0..100 {
        pipeline.message(first, Message::Accepted { session }, Payload::empty());
    }
    for _ in 0..4 {
        pipeline.message(last, tokens(), Payload::empty());
    }
    let mut of_last = 0;
    while let Ok(event) = received.try_recv() {
        of_last += usize::from(matches!(event, SessionEvent::Message { from, .. } if from == last));
    }
    assert_eq!(of_last, 4, "another stage takes the place of the last one's tokens");
}

/// A refused opening's tokens are not even read; whoever waits for the sessions hears of it all the same.
#[test]
fn an_opening_of_a_node_that_may_not_send_it_is_refused_before_its_payload_is_read() {
    let pipeline = Pipeline::new(Keypair::generate_ed25519(), Supervisor::default());
    let (local, previous) = (pipeline.local(), peer());
    let session = SessionId([7; 16]);
    let (events, mut received) = mpsc::channel(4);
    let stages = stages(&[previous, local]);
    pipeline.add_session(session, &stages, events);
    let open = opening(session, local, stages);
    assert!(!pipeline.admits(previous, &Message::Open(Box::new(open))), "there is no such stage here");
    let event = received.try_recv().unwrap();
    assert!(matches!(event, SessionEvent::Message { message: Message::Failed { .. }, .. }), "{event:?}");
}

/// A failure is sent for every answer, so that no coordinator waits for a session without stages until its timeout.
#[test]
fn an_opening_forwarded_to_a_node_without_the_chain_fails_at_its_coordinator() {
    let pipeline = Pipeline::new(Keypair::generate_ed25519(), Supervisor::default());
    let (local, previous) = (pipeline.local(), peer());
    let session = SessionId([7; 16]);
    let (events, mut received) = mpsc::channel(4);
    let stages = stages(&[previous, local]);
    pipeline.add_session(session, &stages, events.clone());
    pipeline.add_session(session.choice(1), &stages, events);
    let open = opening(session, local, stages);
    pipeline.message(previous, Message::Open(Box::new(open)), Payload::empty());
    for choice in 0..2 {
        let event = received.try_recv().unwrap();
        let SessionEvent::Message { from, message: Message::Failed { session: of, kind, .. }, .. } = event else {
            panic!("{event:?}");
        };
        assert_eq!((from, of, kind), (local, session.choice(choice), ErrorKind::Unavailable));
    }
}
