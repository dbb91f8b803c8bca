//! Input of a stage's protocol. Values only.

use libp2p_identity::PeerId;
use pangea_units::Error;

#[cfg(doc)]
use super::Action;
use crate::session::batch::BatchLimits;
use crate::session::{ChainId, Drafts, FrameRows, SessionId, StageAt, Start, SteppedSequence};

/// A stage and its chain.
#[derive(Clone, Debug)]
pub struct StageSettings {
    /// The chain.
    pub chain: ChainId,
    /// All stages of the chain, in order.
    pub stages: Vec<StageAt>,
    /// Index of this stage among them.
    pub index: usize,
    /// Version of this node's numerics.
    pub numerics: u32,
    /// Size of the model's vocabulary, in tokens.
    pub vocabulary: usize,
    /// Context of the model, in positions.
    pub context: usize,
    /// Limits of the batch; only on the first stage.
    pub limits: Option<BatchLimits>,
    /// When tokens are drafted; only on the first stage.
    pub drafts: Drafts,
}

/// A request for one or more answers, as far as decisions depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The session of the first answer; the others follow it ([`SessionId::choice`]).
    pub session: SessionId,
    /// The coordinating node.
    pub coordinator: PeerId,
    /// The stages that the request was routed to.
    pub stages: &'a [StageAt],
    /// Version of the numerics that the request needs.
    pub numerics: u32,
    /// Number of answers.
    pub choices: u16,
    /// Id of the first answer's sequence; set by the first stage.
    pub sequence: Option<u64>,
    /// Number of prompt tokens among `tokens`.
    pub prompt_len: usize,
    /// Maximum number of chosen tokens, counted from `prompt_len`.
    pub max_new_tokens: usize,
    /// Whether log-probabilities of the prompt are requested.
    pub prompt_logprobs: bool,
    /// The prompt and the tokens chosen so far.
    pub tokens: &'a [u32],
    /// Error in the sampling terms, if any.
    pub bad_sampling: Option<&'a Error>,
}

/// A frame from the previous stage.
#[derive(Debug)]
pub struct Incoming {
    /// Number of the frame.
    pub number: u64,
    /// Sequences to drop, before anything else.
    pub drops: Vec<u64>,
    /// Sequences that start, in order.
    pub starts: Vec<Start>,
    /// Rows to compute.
    pub rows: Vec<FrameRows>,
    /// Rows of activations in the payload; `None` if it is not a whole number of rows of the model's width.
    pub payload_rows: Option<usize>,
}

/// Input of a stage's protocol.
#[derive(Debug)]
pub enum Event<'a> {
    /// A request arrived.
    Open(Opening<'a>),
    /// [`Action::Join`] has succeeded.
    Joined,
    /// [`Action::Join`] has failed.
    CannotJoin(Error),
    /// The coordinator, or the previous stage, closes a session.
    Close {
        /// The session.
        session: SessionId,
        /// Number of positions that the stages are to sign for.
        commit: Option<u32>,
    },
    /// The previous stages have signed for a session.
    Commit {
        /// The session.
        session: SessionId,
        /// Number of positions, from the first.
        positions: u32,
    },
    /// [`Action::Sign`] has failed for a session.
    NotSigned {
        /// The session.
        session: SessionId,
        /// The coordinator.
        coordinator: PeerId,
        /// Why.
        error: &'a Error,
    },
    /// A frame from the previous stage.
    Frame(Incoming),
    /// The last stage has completed a frame.
    Stepped {
        /// Number of the frame.
        number: u64,
        /// Result of each sequence.
        advances: Vec<SteppedSequence>,
    },
    /// Another stage cannot continue a session.
    Failed(SessionId),
    /// A peer can no longer be reached.
    PeerGone {
        /// The peer.
        peer: PeerId,
        /// Reason, a clause.
        why: &'a str,
    },
    /// A required message could not be sent to another stage.
    NotSent {
        /// The node of that stage.
        to: PeerId,
        /// Reason, a clause.
        why: &'a str,
    },
    /// The driver cannot continue.
    CannotGoOn {
        /// Reason, a clause.
        why: &'a str,
    },
    /// The stage ends, because its layers leave memory or another chain takes its place; openings may still follow.
    End {
        /// Reason, a clause.
        why: &'a str,
    },
    /// On the first stage: no other event is queued, so the next frame may start. Also sent to every stage as time passes, whether or not
    /// other events are queued.
    Ready,
    /// Time passes ([`StageProtocol::follows_time`](super::StageProtocol::follows_time)).
    Tick,
    /// [`Action::Compute`] has succeeded.
    Computed {
        /// Rows of the sequences that continue.
        rows: Vec<FrameRows>,
        /// On the last stage, the result of each sequence.
        advances: Vec<SteppedSequence>,
        /// Sequences that cannot continue.
        failed: Vec<(u64, Error)>,
    },
    /// [`Action::Compute`] failed for lack of memory, on the first stage; every cache is unchanged.
    Exhausted(Vec<FrameRows>),
}
