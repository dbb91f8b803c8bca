//! What a stage's protocol is told. Values only.

use libp2p_identity::PeerId;
use pangea_units::Error;

#[cfg(doc)]
use super::Action;
use crate::session::batch::BatchLimits;
use crate::session::{ChainId, Drafts, FrameRows, SessionId, StageAt, Start, SteppedSequence};

/// What a stage is part of.
#[derive(Clone, Debug)]
pub struct StageSettings {
    /// The chain.
    pub chain: ChainId,
    /// All stages of the chain, in order.
    pub stages: Vec<StageAt>,
    /// The place of this stage among them.
    pub index: usize,
    /// Version of the bits that this node computes.
    pub numerics: u32,
    /// Size of the model's vocabulary, in tokens.
    pub vocabulary: usize,
    /// Context of the model, in positions.
    pub context: usize,
    /// What is computed at once; on the first stage only.
    pub limits: Option<BatchLimits>,
    /// When tokens are drafted; on the first stage only.
    pub drafts: Drafts,
}

/// A request for one or more answers, as far as decisions depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The session of the first answer; the others follow it ([`SessionId::choice`]).
    pub session: SessionId,
    /// The node that asks.
    pub coordinator: PeerId,
    /// The stages that the request was routed to.
    pub stages: &'a [StageAt],
    /// Version of the bits that the request is for.
    pub numerics: u32,
    /// Number of answers.
    pub choices: u16,
    /// Number of the first answer's sequence; set by the first stage.
    pub sequence: Option<u64>,
    /// Number of prompt tokens among `tokens`.
    pub prompt_len: usize,
    /// Largest number of chosen tokens, counted from `prompt_len`.
    pub max_new_tokens: usize,
    /// Whether log-probabilities of the prompt are asked for.
    pub prompt_logprobs: bool,
    /// The prompt and what was chosen so far.
    pub tokens: &'a [u32],
    /// What is wrong with how tokens are to be chosen.
    pub bad_sampling: Option<&'a Error>,
}

/// A frame of the stage before.
#[derive(Debug)]
pub struct Incoming {
    /// Number of the frame.
    pub number: u64,
    /// Sequences to forget, before anything else.
    pub drops: Vec<u64>,
    /// Sequences that begin, in order.
    pub starts: Vec<Start>,
    /// What to compute.
    pub rows: Vec<FrameRows>,
    /// Rows of activations that came with the frame; `None` where these are no whole rows of the model's width.
    pub payload_rows: Option<usize>,
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A request came.
    Open(Opening<'a>),
    /// [`Action::Join`] is done.
    Joined,
    /// [`Action::Join`] could not be done.
    CannotJoin(Error),
    /// The coordinator, or the stage before, ends a session.
    Close {
        /// The session.
        session: SessionId,
        /// Number of positions that the stages are to sign for.
        commit: Option<u32>,
    },
    /// The stages before have signed for a session.
    Commit {
        /// The session.
        session: SessionId,
        /// Number of positions, from the first.
        positions: u32,
    },
    /// [`Action::Sign`] could not be done for a session.
    NotSigned(SessionId),
    /// A frame of the stage before.
    Frame(Incoming),
    /// The last stage has done a frame.
    Stepped {
        /// Number of the frame.
        number: u64,
        /// What became of each sequence.
        advances: Vec<SteppedSequence>,
    },
    /// Another stage cannot go on with a session.
    Failed(SessionId),
    /// A peer cannot be reached any more.
    PeerGone {
        /// The peer.
        peer: PeerId,
        /// Why, a clause.
        why: &'a str,
    },
    /// What another stage must have could not be sent to it.
    NotSent {
        /// The stage's node.
        to: PeerId,
        /// Why, a clause.
        why: &'a str,
    },
    /// The driver cannot go on.
    CannotGoOn {
        /// Why, a clause.
        why: &'a str,
    },
    /// Nothing else waits, on the first stage: the next frame may begin. Also the passing of time.
    Ready,
    /// [`Action::Compute`] is done.
    Computed {
        /// The rows of sequences that go on.
        rows: Vec<FrameRows>,
        /// On the last stage, what became of each sequence.
        advances: Vec<SteppedSequence>,
        /// Sequences that cannot go on.
        failed: Vec<(u64, Error)>,
    },
    /// [`Action::Compute`] could not be done for want of memory, on the first stage; every cache is as it was.
    Exhausted(Vec<FrameRows>),
}
