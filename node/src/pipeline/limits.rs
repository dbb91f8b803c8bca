//! The numbers that both ends of `/pangea/session/1` keep to, derived from one another. A message beyond them is refused
//! by its sender already. No behaviour here.

pub use pangea_units::limits::{MAX_LAYERS, MAX_STAGES};
/// The longest header. A frame names every sequence that it moves, an answer's tokens may bring their most likely others,
/// and a request may bring a JSON Schema: each of these lists below fits, all of one message together.
pub const MAX_HEADER_BYTES: u32 = 64 << 10;

/// The longest payload: 512 rows of activations of the widest models (8192), or a prompt of four million tokens. More
/// would hold up the tokens of other sessions behind it.
pub const MAX_PAYLOAD_BYTES: u32 = 16 << 20;

/// Positions of a session: what the longest payload can bring as tokens.
pub const MAX_POSITIONS: u32 = MAX_PAYLOAD_BYTES / 4;

/// Answers to one prompt: each takes a place among the running sequences.
pub const MAX_CHOICES: u16 = 8;

/// Tokens that a request may bias. OpenAI documents 300.
pub const MAX_LOGIT_BIAS: usize = 1024;

/// A JSON Schema as text.
pub const MAX_SCHEMA_BYTES: usize = 32 << 10;

/// Text of a failure, for people. Longer ones lose their end.
pub const MAX_TEXT_BYTES: usize = 1024;

/// Sequences that one frame starts, and that it computes rows of: many times what a batch has.
pub const MAX_SEQUENCES: usize = 256;

/// Sequences that one frame drops: all that a node held, in a few frames.
pub const MAX_DROPS: usize = 1024;

/// Rows of one frame.
pub const MAX_ROWS: u32 = 8192;

/// Drafted tokens of one frame, all sequences together, and tokens chosen in one frame.
pub const MAX_DRAFTED: usize = 2048;

/// Tokens with their log-probabilities in one message, those of the answer and of the prompt together.
pub const MAX_TOKENS_OUT: usize = 256;

/// Most likely tokens beside one.
pub const MAX_TOP: usize = pangea_compute::sample::MAX_LOGPROBS;

/// The commitments of a whole chain: a kilobyte for each stage, many times what a signature and its claim take.
pub const MAX_COMMIT_BYTES: usize = MAX_STAGES << 10;

/// Bytes of a peer id: a multihash of a key of at most 42 bytes, or of its SHA-256.
pub const MAX_PEER_ID_BYTES: usize = 64;

/// Messages that wait for the wire to one peer: what a last stage tells of four steps of the largest batch.
pub const QUEUE_MESSAGES: usize = 4 * MAX_SEQUENCES;

/// Bytes of payloads that wait for the wire to one peer: activations wait in memory that is nobody's budget.
pub const QUEUE_BYTES: usize = 4 * MAX_PAYLOAD_BYTES as usize;

const _: () = assert!(QUEUE_BYTES >= MAX_PAYLOAD_BYTES as usize, "every message finds room once the queue is empty");
