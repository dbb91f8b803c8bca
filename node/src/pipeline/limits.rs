//! Limits that both ends of `/pangea/session/1` obey, derived from one another. The sender refuses a message beyond them
//! already. No behaviour here.

pub use pangea_units::limits::{MAX_LAYERS, MAX_STAGES};
/// Maximum length of a header. A frame names every sequence that it moves, an answer's tokens may carry their alternatives,
/// and a request may carry a JSON Schema: each of these limits fits, all of one message together.
pub const MAX_HEADER_BYTES: u32 = 64 << 10;

/// Maximum length of a payload: 512 rows of activations of the widest models (8192), or a prompt of four million
/// tokens. Larger payloads would delay the tokens of other sessions.
pub const MAX_PAYLOAD_BYTES: u32 = 16 << 20;

/// Maximum positions of a session: as many tokens as fit into the longest payload.
pub const MAX_POSITIONS: u32 = MAX_PAYLOAD_BYTES / 4;

/// Maximum answers to one prompt: each takes a place among the running sequences.
pub const MAX_CHOICES: u16 = 8;

/// Maximum tokens that a request may bias. OpenAI documents 300.
pub const MAX_LOGIT_BIAS: usize = 1024;

/// Maximum bytes of a JSON Schema.
pub const MAX_SCHEMA_BYTES: usize = pangea_compute::sample::grammar::MAX_SCHEMA_BYTES;

/// Maximum bytes of a failure's text for people. Longer texts are truncated.
pub const MAX_TEXT_BYTES: usize = 1024;

/// Maximum sequences that one frame starts, or computes rows of: many times the size of a batch.
pub const MAX_SEQUENCES: usize = 256;

/// Maximum sequences that one frame drops: all sequences of a node fit into a few frames.
pub const MAX_DROPS: usize = 1024;

/// Maximum rows of one frame.
pub const MAX_ROWS: u32 = 8192;

/// Maximum drafted tokens of one frame over all sequences, and maximum tokens chosen in one frame.
pub const MAX_DRAFTED: usize = 2048;

/// Maximum tokens with log-probabilities in one message, of the answer and the prompt together.
pub const MAX_TOKENS_OUT: usize = 256;

/// Maximum alternatives per token.
pub const MAX_TOP: usize = pangea_compute::sample::MAX_LOGPROBS;

/// Maximum bytes of a chain's commitments: a kilobyte per stage, many times the size of a signature and its claim.
pub const MAX_COMMIT_BYTES: usize = MAX_STAGES << 10;

/// Maximum bytes of a peer id: a multihash of a key of at most 42 bytes, or of its SHA-256.
pub const MAX_PEER_ID_BYTES: usize = 64;

/// Messages queued for one peer: what a last stage reports of four steps of the largest batch.
pub const QUEUE_MESSAGES: usize = 4 * MAX_SEQUENCES;

/// Bytes of payloads queued for one peer: queued activations count against no budget.
pub const QUEUE_BYTES: usize = 4 * MAX_PAYLOAD_BYTES as usize;

const _: () = assert!(QUEUE_BYTES >= MAX_PAYLOAD_BYTES as usize, "every message finds room once the queue is empty");
