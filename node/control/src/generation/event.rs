//! A request and its events. Values only; [`GenerationState`](super::GenerationState) decides what follows.

use std::ops::Range;
use std::time::Duration;

use libp2p_identity::PeerId;

#[cfg(doc)]
use super::action::Action;
use super::reply::Reply;
use crate::Time;
use crate::peers::SuspicionReason;
use crate::session::{ChainId, SessionId, StageAt};
use crate::trust::{AuditPolicy, Verdict};

/// A request.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The coordinating node.
    pub local: PeerId,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Number of answers; at least one.
    pub choices: usize,
    /// Maximum number of tokens of each answer.
    pub max_new_tokens: usize,
    /// Whether a grammar restricts the answers.
    pub grammar: bool,
    /// Whether log-probabilities of the prompt are requested; they come with the first answer.
    pub prompt_logprobs: bool,
    /// Time after its opening at which an answer without a token is late ([`PromptPace`](super::PromptPace)).
    pub patience: Duration,
    /// Which sessions are audited; `None` if no receipt is stored, so that nothing is signed or audited.
    pub audit: Option<AuditPolicy>,
    /// Whether only one node may compute the answers, so that the request fails where that node cannot.
    pub one_server: bool,
    /// Arrival time of the request.
    pub arrived: Time,
}

/// Input of the request's state machine.
#[derive(Debug)]
pub enum Event {
    /// The request begins.
    Start,
    /// A stage sent a message about a session.
    Reply {
        /// The stage.
        from: PeerId,
        /// The session.
        session: SessionId,
        /// Content of the message.
        reply: Reply,
    },
    /// A peer can no longer be reached.
    PeerGone {
        /// The peer.
        peer: PeerId,
        /// Why.
        why: String,
    },
    /// The available routes may have changed.
    RoutesChanged,
    /// Time has passed.
    Tick {
        /// Why no route can exist while the pool does not change, if that is certain.
        unplaceable: Option<String>,
    },
    /// The route requested by [`Action::FindRoute`].
    RouteFound {
        /// The answers that share it.
        choices: Range<usize>,
        /// Id of the first answer's session, drawn at random; the others' ids follow it ([`SessionId::choice`]).
        id: SessionId,
        /// The chain.
        chain: ChainId,
        /// Its stages, in order.
        stages: Vec<StageAt>,
    },
    /// No such route exists.
    NoRoute,
    /// The first stage of opened answers cannot be reached.
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
    /// The last stage ended an answer at a token that does not end it.
    EndedWrongly {
        /// Which answer.
        choice: usize,
    },
    /// The signed claims of an answer's stages were checked.
    ClaimsChecked {
        /// Which answer.
        choice: usize,
        /// The segment that the claims are about, from 0.
        segment: usize,
        /// What is wrong with the claims, if anything.
        fault: Option<ClaimsFault>,
    },
    /// The receipt of an answer is stored.
    ReceiptKept {
        /// Which answer.
        choice: usize,
        /// Random bits for the draw of audits; `None` if the system has none.
        random: Option<u64>,
        /// Whether a stage of the answer is on a suspect.
        suspect: bool,
    },
    /// An audit that the request waits for has ended.
    Audited {
        /// Verdict of the audited answer, or why the audit could not be done.
        verdict: Result<Verdict, String>,
        /// Stages whose output is wrong: refuted, or wrong and not signed.
        wrong: Vec<PeerId>,
    },
    /// The client no longer wants the answers.
    Cancelled,
}

/// Why the claims of an answer's stages do not cover the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimsFault {
    /// Why, a clause.
    pub why: String,
    /// Nodes that may be the reason.
    pub suspects: Vec<(PeerId, SuspicionReason)>,
}
