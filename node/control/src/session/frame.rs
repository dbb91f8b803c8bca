//! What a frame tells every stage of a chain: the sequences that end and begin, the rows to compute, and what became of them.
//! Values only; activations travel beside a frame and are unknown here.

use super::SessionId;

/// A sequence that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The first stage's number of the sequence.
    pub sequence: u64,
    /// The session that it computes.
    pub session: SessionId,
    /// Where its keys and values come from.
    pub source: StartSource,
}

/// Where the keys and values of a new sequence come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartSource {
    /// There are none yet.
    Empty,
    /// A copy of those of another sequence's first positions.
    Fork {
        /// The other sequence.
        from: u64,
        /// Number of positions.
        tokens: u32,
    },
    /// Those of another sequence's first positions; that sequence ends.
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
    /// The drafted tokens among the rows: they are the last ones.
    pub draft: Vec<u32>,
}

/// What became of a sequence in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteppedSequence {
    /// The sequence.
    pub sequence: u64,
    /// Positions whose keys and values hold.
    pub computed: u32,
    /// Tokens that were chosen.
    pub chosen: Vec<u32>,
    /// Whether the answer is complete.
    pub ended: bool,
    /// Whether the sequence cannot go on.
    pub failed: bool,
}
