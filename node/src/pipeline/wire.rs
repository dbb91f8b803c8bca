//! The messages of `/pangea/session/1`: typed here, Cap'n Proto on the wire (`codec`). What exists is bounded and well
//! formed; what a session, a sequence or a frame is for, the stages know.
//!
//! Everybody sends on the stream that it opened itself; messages of one sender arrive in order.

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

/// The protocol, versioned in its name.
pub const PROTOCOL: &str = "/pangea/session/1";

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Coordinator to first stage; from there along the chain to the last stage, with `sequence` set.
    Open(Box<Open>),
    /// First stage to coordinator: taken into the queue.
    Accepted {
        /// The session.
        session: SessionId,
    },
    /// First stage to coordinator: not taken.
    Refused {
        /// The session.
        session: SessionId,
        /// Why, for programs.
        kind: ErrorKind,
        /// Why, for people.
        message: String,
        /// When to try again, if that may help.
        retry_after_ms: Option<u32>,
    },
    /// Coordinator to first stage, and along the chain: nobody wants the session any more, or it is complete.
    Close {
        /// The chain that the session is at.
        chain: ChainId,
        /// The session.
        session: SessionId,
        /// Number of positions that the stages are to sign for.
        commit: Option<u32>,
    },
    /// Stage to next stage, in order: what is to be done next. Payload: activations, f32 little-endian, `[rows, width]`.
    Frame(Frame),
    /// Last stage to first stage: a frame is done.
    Stepped(Stepped),
    /// Last stage to coordinator: tokens of an answer.
    Tokens(Tokens),
    /// Any stage to coordinator and first stage: a session cannot go on here.
    Failed {
        /// The chain that the session is at.
        chain: ChainId,
        /// The session.
        session: SessionId,
        /// Why, for programs.
        kind: ErrorKind,
        /// Why, for people.
        message: String,
    },
    /// Along the chain and at last to the coordinator: commitments. Payload: the chain's bytes, opaque here.
    Commit {
        /// The chain that the session is at.
        chain: ChainId,
        /// The session.
        session: SessionId,
        /// Number of positions, from the first.
        positions: u32,
    },
}

/// A request for one or more answers to a prompt, at the stages that will give them.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// The session of the first answer; the others' follow it ([`SessionId::choice`]).
    pub session: SessionId,
    /// Who wants it.
    pub coordinator: PeerId,
    /// The model.
    pub model: Digest,
    /// The placement that it was routed by.
    pub epoch: u64,
    /// Version of the bits.
    pub numerics: u32,
    /// The route: contiguous layers from the first, at least one stage.
    pub stages: Vec<StageAt>,
    /// How many answers, at least one.
    pub choices: u16,
    /// The first stage's number of the first answer's sequence, set along the chain.
    pub sequence: Option<u64>,
    /// How many of `tokens` are the prompt.
    pub prompt_len: u32,
    /// Largest number of chosen tokens, counted from `prompt_len`.
    pub max_new_tokens: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What form the answer has.
    pub format: AnswerFormat,
    /// Whether log-probabilities of the prompt are wanted.
    pub prompt_logprobs: bool,
    /// The prompt and what was chosen so far. They travel as the payload, u32 little-endian.
    pub tokens: Vec<u32>,
}

/// What a chain of stages is to do next.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// The placement.
    pub epoch: u64,
    /// The model.
    pub model: Digest,
    /// Grows by one on a chain.
    pub number: u64,
    /// The first stage, whose numbers these are.
    pub first_stage: PeerId,
    /// Sequences to forget, before anything else.
    pub drops: Vec<u64>,
    /// Sequences that begin, in order.
    pub starts: Vec<Start>,
    /// What to compute, in the order of the payload's rows.
    pub rows: Vec<FrameRows>,
}

impl Frame {
    /// Rows of the payload.
    pub fn rows(&self) -> usize {
        self.rows.iter().map(|rows| rows.rows as usize).sum()
    }
}

/// A frame is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// The placement.
    pub epoch: u64,
    /// The model.
    pub model: Digest,
    /// The frame's number.
    pub number: u64,
    /// What became of each sequence.
    pub advances: Vec<SteppedSequence>,
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
    /// Why the answer ends here, if it does.
    pub ended: Option<EndReason>,
    /// The prompt's tokens with their log-probabilities where they were asked for, in order, in pieces.
    pub prompt: Vec<TokenOut>,
    /// Tokens that were drafted for these.
    pub drafted: u32,
    /// How many of them were right.
    pub accepted: u32,
    /// Positions at the session's beginning that an earlier session had computed.
    pub cached: u32,
}
