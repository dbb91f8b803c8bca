//! A run of tokens that the same stages chose. Values only.

use crate::session::{SessionId, StageAt};

/// A run of tokens of one answer that the same stages computed; an answer has more than one after a failover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The session.
    pub session: SessionId,
    /// Version of the placement.
    pub epoch: u64,
    /// The first position whose following token was chosen in this segment.
    pub chosen_from: u64,
    /// Number of positions, from the first, whose following tokens are known from it; set when it ends.
    pub positions: u64,
    /// Whether the last stage gives the log-probabilities of the prompt, as part of what it signs.
    pub scored: bool,
    /// The stages, in order.
    pub stages: Vec<StageAt>,
    /// Why the session did not end normally; `None` if it did.
    pub ended: Option<String>,
}
