//! Properties of every frame of `/pangea/session/1`, for any bytes, with frames of every kind as seeds.

use libp2p::PeerId;
use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_compute::sample::{AnswerFormat, Sampling};
use pangea_node::pipeline::payload::Payload;
use pangea_node::pipeline::wire::{
    ChainId, EndReason, Frame, FrameRows, Message, Open, SessionId, StageAt, Start, StartSource, Stepped,
    SteppedSequence, TokenOut, Tokens,
};
use pangea_node::wire::{FrameHead, Header, PREFIX_BYTES, TraceParent};

/// A decoded message can be encoded, and decodes to the same message; rows and tokens match the payload.
pub fn session_frame(bytes: &[u8]) {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else { return };
    let Ok(head) = FrameHead::parse(*prefix, Message::LIMITS) else { return };
    let Some(header) = rest.get(..head.header_len()) else { return };
    let Ok(message) = Message::decode(header, head.payload_len()) else { return };
    let once = encoded(&message, head.payload_len());
    let again = Message::decode(&once[PREFIX_BYTES..], head.payload_len()).expect("what was encoded is decoded");
    assert_eq!(again, message);
    match message.incoming(Payload::zeroed(head.payload_len())) {
        (Message::Open(open), payload) => {
            assert!(payload.is_empty() && open.tokens.len() * 4 == head.payload_len());
            assert!((1..=open.tokens.len()).contains(&(open.prompt_len as usize)));
        }
        (Message::Frame(frame), payload) if frame.rows() > 0 => {
            assert!(!payload.is_empty() && payload.as_f32().len().is_multiple_of(frame.rows()));
        }
        _ => {}
    }
}

fn encoded(message: &Message, payload_len: usize) -> Vec<u8> {
    message.check_sendable(payload_len).expect("what was decoded can be sent");
    let mut bytes = Vec::new();
    message.encode(payload_len, &mut bytes).expect("what was decoded can be encoded");
    bytes
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let session = SessionId([7; 16]);
    let model = Digest::from_bytes([9; 32]);
    let chain = ChainId { model, epoch: 1 };
    // An Ed25519 key as it is.
    let key = [[0, 36, 8, 1, 18, 32].as_slice(), &[5; 32]].concat();
    let peer = PeerId::from_bytes(&key).expect("a peer id");
    let token = TokenOut { token: 3, logprob: Some(-0.5), top: vec![(3, -0.5), (4, -1.5)] };
    let messages = [
        Message::Open(Box::new(Open {
            session,
            coordinator: peer,
            model,
            epoch: 1,
            numerics: 1,
            stages: vec![StageAt { peer, layers: 0..4 }, StageAt { peer, layers: 4..30 }],
            choices: 2,
            sequence: Some(3),
            prompt_len: 3,
            max_new_tokens: 8,
            sampling: Sampling { logit_bias: vec![(1, 0.5)], logprobs: Some(2), ..Sampling::default() },
            format: AnswerFormat::JsonSchema("{}".to_owned()),
            prompt_logprobs: true,
            trace: TraceParent::new([7; 16], [8; 8], true),
            tokens: vec![1, 2, 3, 4],
        })),
        Message::Accepted { session },
        Message::Refused {
            session,
            kind: ErrorKind::Overloaded,
            message: "full".to_owned(),
            retry_after_ms: Some(100),
        },
        Message::Close { chain, session, commit: Some(3) },
        Message::Frame(Frame {
            epoch: 1,
            model,
            number: 2,
            first_stage: peer,
            drops: vec![1],
            starts: vec![Start { sequence: 3, session, source: StartSource::Fork { from: 2, tokens: 4 } }],
            rows: vec![FrameRows { sequence: 3, start: 4, rows: 2, choose: true, all_logits: false, draft: vec![5] }],
        }),
        Message::Stepped(Stepped {
            epoch: 1,
            model,
            number: 2,
            advances: vec![SteppedSequence { sequence: 3, computed: 5, chosen: vec![6], ended: false, failed: false }],
        }),
        Message::Tokens(Tokens {
            session,
            position: 4,
            tokens: vec![token.clone()],
            ended: Some(EndReason::Stop),
            prompt: vec![token],
            drafted: 2,
            accepted: 1,
            cached: 1,
            computed: 4,
        }),
        Message::Failed { chain, session, kind: ErrorKind::Unavailable, message: "a stage is gone".to_owned() },
        Message::Commit { chain, session, positions: 2 },
    ];
    let payload_len = |message: &Message| match message {
        Message::Open(open) => open.tokens.len() * 4,
        Message::Frame(_) => 2 * 16 * 4,
        Message::Commit { .. } => 100,
        _ => 0,
    };
    messages.iter().map(|message| encoded(message, payload_len(message))).collect()
}
