//! What a request is, and what happens to it. Values only; [`GenerationState`](super::GenerationState) decides what follows.

use std::ops::Range;

use libp2p_identity::PeerId;

#[cfg(doc)]
use super::action::Action;
use super::answer_session::Reply;
use crate::Time;
use crate::session::{ChainId, SessionId, StageAt};
use crate::trust::{AuditPolicy, Verdict};

/// What a request is.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The node that coordinates it.
    pub local: PeerId,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// How many answers; at least one.
    pub choices: usize,
    /// Which sessions are audited; `None` where no receipt is kept, so that nothing is signed or audited.
    pub audit: Option<AuditPolicy>,
    /// When the request arrived.
    pub arrived: Time,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The request begins.
    Start,
    /// A stage says something of a session.
    Reply {
        /// The stage.
        from: PeerId,
        /// The session.
        session: SessionId,
        /// What the stage says.
        reply: Reply,
    },
    /// A peer cannot be reached any more.
    PeerGone {
        /// The peer.
        peer: PeerId,
        /// Why.
        why: String,
    },
    /// There may be another route.
    RoutesChanged,
    /// Time went by.
    Tick {
        /// Why no route can be had while the pool is as it is, where that is certain.
        unplaceable: Option<String>,
    },
    /// The route that [`Action::FindRoute`] asks for.
    RouteFound {
        /// The answers that take it.
        choices: Range<usize>,
        /// The number of the first answer's session, drawn at random; the others' follow it ([`SessionId::choice`]).
        id: SessionId,
        /// The chain.
        chain: ChainId,
        /// Its stages, in order.
        stages: Vec<StageAt>,
    },
    /// There is no such route.
    NoRoute,
    /// The first stage of answers that were opened cannot be reached.
    OpenFailed {
        /// The answers.
        choices: Range<usize>,
        /// Why.
        why: String,
    },
    /// The text of an answer has ended.
    AnswerComplete {
        /// Which answer.
        choice: usize,
    },
    /// The signed claims of an answer's stages were checked.
    ClaimsChecked {
        /// Which answer.
        choice: usize,
        /// What is wrong with them, if anything.
        fault: Option<String>,
    },
    /// The receipt of an answer is kept.
    ReceiptKept {
        /// Which answer.
        choice: usize,
        /// Random bits for the draw of audits; `None` where the system has none.
        random: Option<u64>,
    },
    /// An audit that is waited for has ended.
    Audited {
        /// The verdict of the audited answer, where the audit could be made.
        verdict: Option<Verdict>,
        /// Stages whose part was found to be wrong.
        liars: Vec<PeerId>,
    },
    /// Nobody wants the answers any more.
    Cancelled,
}
