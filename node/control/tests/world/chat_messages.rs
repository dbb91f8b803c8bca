//! What travels on session streams of the world: the messages of `/pangea/session/1`, with numbers in place of activations.

use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_control::generation::ReportedTokens;
use pangea_control::session::{ChainId, FrameRows, SessionId, StageAt, Start, SteppedSequence};
use pangea_units::ErrorKind;

use crate::claims::Claim;

/// A request for one or more answers.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) session: SessionId,
    pub(crate) coordinator: PeerId,
    pub(crate) chain: ChainId,
    pub(crate) stages: Vec<StageAt>,
    pub(crate) choices: u16,
    pub(crate) sequence: Option<u64>,
    pub(crate) prompt_len: usize,
    pub(crate) max_new_tokens: usize,
    pub(crate) seed: u64,
    /// Whether every row of the prompt gives logits: then none of it may come from another's cache.
    pub(crate) scored: bool,
    pub(crate) tokens: Vec<u32>,
}

/// A message of a session.
#[derive(Clone, Debug)]
pub(crate) enum SessionMessage {
    /// Opens sessions.
    Open(Box<Open>),
    /// Ends a session.
    Close { chain: ChainId, session: SessionId, commit: Option<u32> },
    /// The stages before have signed.
    Commit { chain: ChainId, session: SessionId, positions: u32, claims: Vec<Claim> },
    /// Rows to compute.
    Frame(Frame),
    /// A frame is done.
    Stepped { chain: ChainId, number: u64, advances: Vec<SteppedSequence> },
    /// A session cannot go on.
    Failed { chain: ChainId, session: SessionId, kind: ErrorKind, message: String },
    /// A request is taken in.
    Accepted { session: SessionId },
    /// A request is not taken in.
    Refused { session: SessionId, kind: ErrorKind, message: String, retry_after: Option<Duration> },
    /// Tokens of an answer.
    Tokens { session: SessionId, tokens: ReportedTokens },
}

/// What a stage sends to the next.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) chain: ChainId,
    pub(crate) number: u64,
    pub(crate) drops: Vec<u64>,
    pub(crate) starts: Vec<Start>,
    pub(crate) rows: Vec<FrameRows>,
    pub(crate) activations: Vec<u64>,
}
