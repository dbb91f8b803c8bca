//! Content of a frame for every stage of a chain: sequences that end and start, rows to compute, and their results.
//! Values only; activations travel beside a frame and are unknown here.

use super::SessionId;

/// A sequence that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The first stage's id of the sequence.
    pub sequence: u64,
    /// The session that the sequence computes.
    pub session: SessionId,
    /// Origin of its keys and values.
    pub source: StartSource,
}

/// Origin of a new sequence's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartSource {
    /// The cache starts empty.
    Empty,
    /// A copy of another sequence's first positions.
    Fork {
        /// The other sequence.
        from: u64,
        /// Number of positions.
        tokens: u32,
    },
    /// Another sequence's first positions; that sequence ends.
    Take {
        /// The other sequence.
        from: u64,
        /// Number of positions.
        tokens: u32,
    },
}

/// Rows of one sequence in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameRows {
    /// The sequence.
    pub sequence: u64,
    /// Position of the first row; a cache that is longer is cut to it.
    pub start: u32,
    /// Number of rows; at least one.
    pub rows: u32,
    /// Whether a token is chosen after the last row.
    pub choose: bool,
    /// Whether the logits of every row are wanted.
    pub all_logits: bool,
    /// Drafted tokens, which are the last of the rows.
    pub draft: Vec<u32>,
}

/// Result of a frame for one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteppedSequence {
    /// The sequence.
    pub sequence: u64,
    /// Positions whose keys and values are valid.
    pub computed: u32,
    /// Tokens that were chosen.
    pub chosen: Vec<u32>,
    /// Whether the answer is complete.
    pub ended: bool,
    /// Whether the sequence cannot go on.
    pub failed: bool,
}
