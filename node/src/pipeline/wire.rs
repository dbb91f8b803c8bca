//! The messages of `/pangea/session/1`: typed here, Cap'n Proto on the wire (`codec`). A message that exists is bounded
//! and well formed; the stages know what sessions, sequences and frames mean.
//!
//! Each node sends on the stream that it opened itself; messages of one sender arrive in order.

mod check;
mod codec;
#[cfg(test)]
mod goldens;

use libp2p::PeerId;
use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_compute::sample::{AnswerFormat, Sampling};
pub use pangea_control::session::{
    ChainId, EndReason, FrameRows, SessionId, StageAt, Start, StartSource, SteppedSequence, TokenOut,
};

use crate::wire::TraceParent;

/// The protocol, versioned in its name.
pub const PROTOCOL: &str = "/pangea/session/1";

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Coordinator to first stage; from there along the chain to the last stage, with `sequence` set.
    Open(Box<Open>),
    /// First stage to coordinator: the session is queued.
    Accepted {
        /// The session.
        session: SessionId,
    },
    /// First stage to coordinator: the session is refused.
    Refused {
        /// The session.
        session: SessionId,
        /// Reason for programs.
        kind: ErrorKind,
        /// Reason for people.
        message: String,
        /// Delay after which a retry may succeed, if any.
        retry_after_ms: Option<u32>,
    },
    /// Coordinator to first stage, and along the chain: the session is no longer wanted, or it is complete.
    Close {
        /// The chain that the session is at.
        chain: ChainId,
        /// The session.
        session: SessionId,
        /// Number of positions that the stages are to sign for.
        commit: Option<u32>,
    },
    /// Stage to next stage, in order: what to compute next. Payload: activations, f32 little-endian, `[rows, width]`.
    Frame(Frame),
    /// Last stage to first stage: a frame is done.
    Stepped(Stepped),
    /// Last stage to coordinator: tokens of an answer.
    Tokens(Tokens),
    /// Any stage to coordinator and first stage: a session cannot continue on the sender.
    Failed {
        /// The chain that the session is at.
        chain: ChainId,
        /// The session.
        session: SessionId,
        /// Reason for programs.
        kind: ErrorKind,
        /// Reason for people.
        message: String,
    },
    /// Along the chain and finally to the coordinator: commitments. Payload: the encoded chain of claims, opaque here.
    Commit {
        /// The chain that the session is at.
        chain: ChainId,
        /// The session.
        session: SessionId,
        /// Number of positions, from the first.
        positions: u32,
    },
}

/// A request for one or more answers to a prompt, sent to the stages that compute them.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// The session of the first answer; the others follow it ([`SessionId::choice`]).
    pub session: SessionId,
    /// The coordinating node.
    pub coordinator: PeerId,
    /// Digest of the model.
    pub model: Digest,
    /// Epoch of the placement that it was routed by.
    pub epoch: u64,
    /// Version of the numerics.
    pub numerics: u32,
    /// The route: contiguous layers from the first, at least one stage.
    pub stages: Vec<StageAt>,
    /// Number of answers, at least one.
    pub choices: u16,
    /// The first stage's id of the first answer's sequence, set along the chain.
    pub sequence: Option<u64>,
    /// Number of `tokens` that are the prompt.
    pub prompt_len: u32,
    /// Maximum number of chosen tokens, counted from `prompt_len`.
    pub max_new_tokens: u32,
    /// Sampling terms.
    pub sampling: Sampling,
    /// Format of the answer.
    pub format: AnswerFormat,
    /// Whether log-probabilities of the prompt are requested.
    pub prompt_logprobs: bool,
    /// The span of the session at its coordinator.
    pub trace: Option<TraceParent>,
    /// The prompt and the tokens chosen so far, sent as the payload, u32 little-endian.
    pub tokens: Vec<u32>,
}

impl Open {
    /// The chain that it is for.
    pub fn chain(&self) -> ChainId {
        ChainId { model: self.model, epoch: self.epoch }
    }

    /// Whether the session of an answer scores the prompt: the first one does, if it starts at the prompt.
    pub fn scores(&self, choice: u16) -> bool {
        self.prompt_logprobs && choice == 0 && self.tokens.len() == self.prompt_len as usize
    }
}

/// The next work of a chain's stages.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Epoch of the placement.
    pub epoch: u64,
    /// Digest of the model.
    pub model: Digest,
    /// Number of the frame; grows by one per frame of a chain.
    pub number: u64,
    /// The first stage, which assigned the sequences' ids.
    pub first_stage: PeerId,
    /// Sequences to drop, before anything else.
    pub drops: Vec<u64>,
    /// Sequences that start, in order.
    pub starts: Vec<Start>,
    /// Rows to compute, in the order of the payload's rows.
    pub rows: Vec<FrameRows>,
}

impl Frame {
    /// The chain that it is for.
    pub fn chain(&self) -> ChainId {
        ChainId { model: self.model, epoch: self.epoch }
    }

    /// Number of rows in the payload.
    pub fn rows(&self) -> usize {
        self.rows.iter().map(|rows| rows.rows as usize).sum()
    }
}

/// Report of a completed frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// Epoch of the placement.
    pub epoch: u64,
    /// Digest of the model.
    pub model: Digest,
    /// Number of the frame.
    pub number: u64,
    /// Result of each sequence.
    pub advances: Vec<SteppedSequence>,
}

impl Stepped {
    /// The chain that it is of.
    pub fn chain(&self) -> ChainId {
        ChainId { model: self.model, epoch: self.epoch }
    }
}

/// Tokens of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    /// The session.
    pub session: SessionId,
    /// Position of the first token, counted from the session's first token.
    pub position: u32,
    /// The tokens.
    pub tokens: Vec<TokenOut>,
    /// Why the answer ends after them, if it does.
    pub ended: Option<EndReason>,
    /// Tokens of the prompt with their log-probabilities, if requested, in order, in pieces.
    pub prompt: Vec<TokenOut>,
    /// Tokens that were drafted for these.
    pub drafted: u32,
    /// Drafted tokens that were accepted.
    pub accepted: u32,
    /// Positions at the start of the session that were cached from an earlier one.
    pub cached: u32,
    /// Positions from the first that are computed, while no token follows them; otherwise 0.
    pub computed: u32,
}
