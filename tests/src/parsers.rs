//! Properties of every parser of bytes from outside, for any bytes: the bodies of the fuzz targets and their seeds. The
//! entry points of libFuzzer are in `tests/fuzz`; `tests/tests/parsers.rs` runs the same bodies on seeds and mutations.
//! A body panics where a property does not hold, and never opens or sends anything.

mod membership;
mod model_file;
mod session;
mod trust;

pub use membership::{certificates, join_message, token};
pub use model_file::{gguf, manifest, tokenizer};
pub use session::session_frame;
pub use trust::{commit_chain, receipt};

use std::time::Duration;

use libp2p::PeerId;
use libp2p::multihash::Multihash;
use pangea_client::ErrorKind;
use pangea_compute::chat::calendar::CalendarTime;
use pangea_compute::chat::{self, ChatTemplate, Conversation};
use pangea_compute::{DType, Digest, NpyHeader, Operation, Tensor, csv as csv_text, json as json_text};
use pangea_control::net::admission::{Frame, ProofKind, Refusal};
use pangea_control::placement::{PlacedStage, Placement, PlacementRefusal};
use pangea_control::session::SessionId;
use pangea_node::blob::BlobMessage;
use pangea_node::membership::PoolKey;
use pangea_node::net::peers_file as peers;
use pangea_node::pool::{Advert, LayerSpeed, LinkAdvert, ModelAdvert, ModelSize, StageAdvert, StageState, Term, codec};
use pangea_node::rows::RowsMessage;
use pangea_node::tunnel::{AnswerForm, Ask, AskRoute, Counted, Failure, TunnelMessage};
use pangea_node::wire::{FrameHead, Header, Message, PREFIX_BYTES, Shape, Task, TaskHello, TraceParent};

/// One parser.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of the parser and of its libFuzzer target.
    pub name: &'static str,
    /// Panics where a property does not hold for these bytes.
    pub body: fn(&[u8]),
    /// Inputs that the parser accepts.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All parsers.
pub const TARGETS: [Target; 21] = [
    Target { name: "advert", body: advert, seeds: advert_seeds },
    Target { name: "task_frame", body: task_frame, seeds: task_frame_seeds },
    Target { name: "session_frame", body: session_frame, seeds: session::seeds },
    Target { name: "blob_frame", body: blob_frame, seeds: blob_frame_seeds },
    Target { name: "rows_frame", body: rows_frame, seeds: rows_frame_seeds },
    Target { name: "tunnel_frame", body: tunnel_frame, seeds: tunnel_frame_seeds },
    Target { name: "manifest", body: manifest, seeds: model_file::manifest_seeds },
    Target { name: "admission_frame", body: admission_frame, seeds: admission_frame_seeds },
    Target { name: "npy_header", body: npy_header, seeds: npy_header_seeds },
    Target { name: "csv", body: csv, seeds: csv_seeds },
    Target { name: "json", body: json, seeds: json_seeds },
    Target { name: "peers_file", body: peers_file, seeds: peers_file_seeds },
    Target { name: "chat_template", body: chat_template, seeds: chat_template_seeds },
    Target { name: "pool_key", body: pool_key, seeds: pool_key_seeds },
    Target { name: "join_message", body: join_message, seeds: membership::join_message_seeds },
    Target { name: "certificates", body: certificates, seeds: membership::certificates_seeds },
    Target { name: "token", body: token, seeds: membership::token_seeds },
    Target { name: "gguf", body: gguf, seeds: model_file::gguf_seeds },
    Target { name: "commit_chain", body: commit_chain, seeds: trust::commit_chain_seeds },
    Target { name: "receipt", body: receipt, seeds: trust::receipt_seeds },
    Target { name: "tokenizer", body: tokenizer, seeds: model_file::tokenizer_seeds },
];

/// A frame of `/pangea/task/1`.
pub fn task_frame(bytes: &[u8]) {
    frame::<Message>(bytes);
}

/// A frame of `/pangea/blob/1`.
pub fn blob_frame(bytes: &[u8]) {
    frame::<BlobMessage>(bytes);
}

/// A frame of `/pangea/rows/1`.
pub fn rows_frame(bytes: &[u8]) {
    frame::<RowsMessage>(bytes);
}

/// A frame of `/pangea/http/1`.
pub fn tunnel_frame(bytes: &[u8]) {
    frame::<TunnelMessage>(bytes);
}

/// A frame of any protocol: a decoded message, encoded again, decodes to the same message, for any bytes.
fn frame<M: Header>(bytes: &[u8]) {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else { return };
    let Ok(head) = FrameHead::parse(*prefix, M::LIMITS) else { return };
    assert_eq!(head.to_bytes(), *prefix, "a prefix has one form");
    let Some(header) = rest.get(..head.header_len()) else { return };
    let Ok(message) = M::decode(header, head.payload_len()) else { return };
    let once = encoded(&message, head.payload_len());
    let again = M::decode(&once[PREFIX_BYTES..], head.payload_len()).expect("what was encoded is decoded");
    // Compares bytes, not values: a speed that is NaN does not equal itself.
    assert_eq!(encoded(&again, head.payload_len()), once);
}

fn encoded<M: Header>(message: &M, payload_len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(payload_len, &mut bytes).expect("what was decoded can be encoded");
    bytes
}

fn blob_frame_seeds() -> Vec<Vec<u8>> {
    let model = Digest::from_bytes([5; 32]);
    let messages = [
        (BlobMessage::Manifest(model), 0),
        (BlobMessage::Have(model), 0),
        (BlobMessage::Part { model, piece: 3, part: 1, trace: TraceParent::new([7; 16], [8; 8], true) }, 0),
        (BlobMessage::Chunk { total: 4096, offset: 1024 }, 512),
        (BlobMessage::Refusal { kind: ErrorKind::NotFound, message: "not here".to_owned() }, 0),
    ];
    messages.iter().map(|(message, payload_len)| encoded(message, *payload_len)).collect()
}

fn rows_frame_seeds() -> Vec<Vec<u8>> {
    let messages = [
        (RowsMessage::Wanted { session: SessionId([7; 16]), layers: 3..9 }, 0),
        (RowsMessage::Chunk { total: 4096, offset: 1024 }, 512),
        (RowsMessage::Refusal { kind: ErrorKind::NotFound, message: "not kept".to_owned() }, 0),
    ];
    messages.iter().map(|(message, payload_len)| encoded(message, *payload_len)).collect()
}

fn tunnel_frame_seeds() -> Vec<Vec<u8>> {
    let trace = TraceParent::new([7; 16], [8; 8], true);
    let ask = Ask { route: AskRoute::Messages, model: Digest::from_bytes([5; 32]), body_bytes: 40, trace };
    let counted = Counted { prompt_tokens: 12, answer_tokens: 3 };
    let failure = Failure {
        param: Some("n".to_owned()),
        code: Some("rate_limit_exceeded".to_owned()),
        retry_after: Some(Duration::from_secs(2)),
        ..Failure::new(ErrorKind::Overloaded, "no place")
    };
    let messages = [
        (TunnelMessage::Ask(ask), 40),
        (TunnelMessage::More, 512),
        (TunnelMessage::Working(counted), 0),
        (TunnelMessage::Head(AnswerForm::Lines), 0),
        (TunnelMessage::Chunk(counted), 70),
        (TunnelMessage::End(counted), 0),
        (TunnelMessage::Failure(failure), 0),
    ];
    messages.iter().map(|(message, payload_len)| encoded(message, *payload_len)).collect()
}

fn task_frame_seeds() -> Vec<Vec<u8>> {
    let digest = |byte| Digest::from_bytes([byte; 32]);
    let shape = Shape::new(DType::F32, 16, 8).expect("a small shape");
    let advert = TaskHello {
        version: 1,
        name: "mac2".to_owned(),
        software: "pangea 0.1.0".to_owned(),
        threads: 8,
        f32_flops_per_s: 1e11,
        f64_flops_per_s: 5e10,
        i8_flops_per_s: 4e11,
        store_bytes: 1 << 30,
        tasks_max: 4,
        isa: "avx512".to_owned(),
        works: true,
    };
    let task = Task {
        id: 7,
        priority: -1,
        deadline: Some(Duration::from_millis(250)),
        operation: Operation::Matmul,
        operands: [digest(1), digest(2)],
        trace: TraceParent::new([7; 16], [8; 8], true),
    };
    let messages = [
        (Message::Hello(advert), 0),
        (Message::Operand { digest: digest(3), shape, offset: 0 }, 512),
        (Message::Task(task), 0),
        (Message::Cancel(7), 0),
        (Message::Release(digest(1)), 0),
        (Message::Result { task: 7, shape, offset: 256, compute_nanos: 1_000_000, signed: None }, 256),
        (Message::Failure { task: 7, kind: ErrorKind::Overloaded, message: "full".to_owned(), retry_after: None }, 0),
        (Message::Missing { task: 7, digests: vec![digest(1), digest(2)] }, 0),
        (Message::Evicted(digest(1)), 0),
        (Message::Load { queued_nanos: 5 }, 0),
        (Message::Probe { nonce: 9, total: 4096, last: true }, 4096),
        (Message::Probed(9), 0),
        (Message::Goodbye("stopping".to_owned()), 0),
        (Message::Started(7), 0),
    ];
    messages.iter().map(|(message, payload_len)| encoded(message, *payload_len)).collect()
}

/// A node's advert to its pool: a decoded advert, encoded again, decodes to the same advert, for any bytes.
pub fn advert(bytes: &[u8]) {
    let Ok(advert) = codec::decode(bytes) else { return };
    let once = codec::encode(&advert).expect("what was decoded can be encoded");
    let again = codec::decode(&once).expect("what was encoded is decoded");
    assert_eq!(again, advert);
}

fn advert_seeds() -> Vec<Vec<u8>> {
    let peer = |byte: u8| {
        let key = [&[8, 1, 0x12, 32][..], &[byte; 32]].concat();
        PeerId::from_multihash(Multihash::wrap(0, &key).expect("a short key")).expect("a peer id")
    };
    let term = Term { counter: 3, master: peer(1) };
    let model = Digest::from_bytes([7; 32]);
    let stage = |state| StageAdvert {
        model,
        layers: 0..4,
        epoch: 2,
        state,
        session_bytes: 1 << 20,
        broken: Some(1),
        pace: None,
    };
    let new = Advert {
        incarnation: 1_700_000_000_000,
        sequence: 1,
        name: "blue".to_owned(),
        uptime: Duration::from_secs(5),
        numerics: 1,
        addresses: vec!["/ip4/10.0.0.1/tcp/7777".parse().expect("an address")],
        device: "cpu".to_owned(),
        threads: 2,
        memory_bytes: 1 << 30,
        f32_flops_per_s: 1e11,
        ..Advert::new(peer(1))
    };
    let full = Advert {
        software: "1.2.3".to_owned(),
        votes: true,
        term: Some(term),
        counter: 4,
        speed: Some(LayerSpeed { weight_bytes_per_s: 1e10, macs_per_s: 1e11 }),
        links: vec![LinkAdvert {
            to: peer(2),
            rtt: Duration::from_micros(100),
            bytes_per_s: 1e9,
            sent_bytes_per_s: 1e6,
            transport: "tcp".to_owned(),
            found_by: "mdns".to_owned(),
        }],
        models: vec![ModelAdvert {
            digest: model,
            name: "m".to_owned(),
            served: true,
            whole: false,
            split: false,
            pinned: Some(0..4),
            size: ModelSize { layers: 4, ..ModelSize::default() },
        }],
        stages: vec![
            stage(StageState::Fetching { done: 1, total: 2 }),
            stage(StageState::Loading),
            stage(StageState::Ready),
            stage(StageState::Failed("why".to_owned())),
        ],
        placements: vec![Placement {
            model,
            name: "m".to_owned(),
            epoch: 2,
            term,
            stages: vec![PlacedStage { peer: peer(1), layers: 0..4 }],
        }],
        refusals: vec![PlacementRefusal { model, why: "no room".to_owned() }],
        ..new.clone()
    };
    [new, full].iter().map(|advert| codec::encode(advert).expect("a small advert")).collect()
}

/// A frame of `/pangea/admission/1`: every frame has exactly one form.
pub fn admission_frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::parse(bytes) {
        assert_eq!(frame.encode(), bytes);
    }
}

fn admission_frame_seeds() -> Vec<Vec<u8>> {
    let frames = [
        Frame::Hello { proof: ProofKind::Key, nonce: [1; 32] },
        Frame::Hello { proof: ProofKind::Nothing, nonce: [2; 32] },
        Frame::Hello { proof: ProofKind::Certificate, nonce: [2; 32] },
        Frame::Certificate { bytes: 121 },
        Frame::Proof([3; 32]),
        Frame::Accept([4; 32]),
        Frame::Refuse(Refusal::WrongKey),
    ];
    frames.iter().map(|frame| frame.encode().to_vec()).collect()
}

/// The header of a `.npy` file: a header that is read can be written and read again, and its sizes never overflow.
pub fn npy_header(bytes: &[u8]) {
    let Ok((header, start)) = NpyHeader::parse(bytes) else { return };
    assert!(start <= bytes.len() as u64, "the elements begin behind the header");
    let _ = header.payload_bytes();
    let _ = header.matrix_shape();
    if let Ok(written) = header.to_bytes() {
        let (again, start) = NpyHeader::parse(&written).expect("what was written is read");
        assert_eq!(again, header);
        assert_eq!(start, written.len() as u64);
    }
}

fn npy_header_seeds() -> Vec<Vec<u8>> {
    let header =
        |dtype, big_endian, fortran, shape: &[u64]| NpyHeader { dtype, big_endian, fortran, shape: shape.to_vec() };
    [
        header(DType::F32, false, false, &[3, 4]),
        header(DType::F64, true, true, &[1, 0]),
        header(DType::I8, false, true, &[5]),
        header(DType::F16, false, false, &[]),
        header(DType::I32, false, false, &[2, 3, 4]),
    ]
    .iter()
    .map(|header| header.to_bytes().expect("a header that NumPy would write"))
    .collect()
}

/// A matrix as CSV: a matrix that is read can be written and read again, with the same shape and numbers.
pub fn csv(bytes: &[u8]) {
    if let Ok(tensor) = csv_text::parse(bytes) {
        let again = csv_text::parse(csv_text::write(&tensor).as_bytes()).expect("what was written is read");
        assert_same(&tensor, &again);
    }
}

fn csv_seeds() -> Vec<Vec<u8>> {
    ["1,2\n3,4\n", "-1e-3, 2.5\r\n inf, nan\r\n", "7", "\n", "1;2\n", "# a\n1\t2\n"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

/// A matrix as JSON: as for CSV, where JSON has a number for every element.
pub fn json(bytes: &[u8]) {
    if let Ok(tensor) = json_text::parse(bytes) {
        let written = json_text::write(&tensor).expect("JSON has only finite numbers");
        assert_same(&tensor, &json_text::parse(written.as_bytes()).expect("what was written is read"));
    }
}

fn json_seeds() -> Vec<Vec<u8>> {
    ["[[1,2],[3,4]]", "[[1.5e3,-0.0]]", " [ [ 1 ] , [ 2 ] ] ", "[]", "[[]]", "[[\"a\"]]", "{\"a\": [[1]]}"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

fn assert_same(left: &Tensor, right: &Tensor) {
    assert_eq!(left.shape(), right.shape());
    for row in 0..left.rows() {
        for col in 0..left.cols() {
            let (a, b) = (left.get(row, col), right.get(row, col));
            assert!(
                a == b || (a.is_some_and(f64::is_nan) && b.is_some_and(f64::is_nan)),
                "[{row}, {col}]: {a:?}, {b:?}"
            );
        }
    }
}

/// `peers.json`: any text is a list or an error.
pub fn peers_file(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = peers::parse(text);
    }
}

fn peers_file_seeds() -> Vec<Vec<u8>> {
    let one = r#"{"peers": [{"name": "mac2", "address": "/ip4/192.168.1.20/tcp/7777/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"}]}"#;
    [one, r#"{"peers": []}"#, "{}", "[1, 2"].map(|text| text.as_bytes().to_vec()).to_vec()
}

/// A pool key: 64 hex digits and nothing else.
pub fn pool_key(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && PoolKey::parse(text).is_ok()
    {
        let digits = text.trim();
        assert!(digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{text:?}");
    }
}

fn pool_key_seeds() -> Vec<Vec<u8>> {
    vec![b"0123456789abcdef".repeat(4), [b"0123456789ABCDEF".repeat(4), b"\n".to_vec()].concat()]
}

/// A chat template: any text gives a prompt or an error, the same one for the same conversation.
pub fn chat_template(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(template) = ChatTemplate::new(text, "<s>", "</s>") else { return };
    let said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "é")];
    let messages = said.map(|(role, text)| chat::Message::new(role, text));
    let conversation = Conversation {
        messages: &messages,
        add_generation_prompt: true,
        tools: None,
        variables: &Default::default(),
        now: CalendarTime::from_unix_seconds(0),
    };
    if let Ok(prompt) = template.render(&conversation) {
        assert_eq!(template.render(&conversation).expect("it was rendered before"), prompt);
    }
}

fn chat_template_seeds() -> Vec<Vec<u8>> {
    [
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' ~ m.content | trim }}{% endfor %}",
        "{%- set ns = namespace(x='') -%}{% for m in messages[1:] %}{% set ns.x = ns.x + m.content %}{% endfor %}{{ ns.x }}",
        "{% macro f(x) %}{{ x.split(' ')[-1].upper() }}{% endmacro %}{{ f(messages[0].content) }}{{ [1, {'a': none}]|tojson }}",
        "{% if messages|length > 9 %}{{ raise_exception('no') }}{% elif tools %}{{ strftime_now('%Y') }}{% endif %}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
