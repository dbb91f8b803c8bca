//! Actions of the driver of a request, and the request's conclusion. Values only.

use std::ops::Range;
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Error;

use super::answer_session::{Exclusions, SignedClaims};
#[cfg(doc)]
use super::event::Event;
use super::reply::NewTokens;
use crate::peers::SuspicionReason;
use crate::session::{ChainId, SessionId, StageAt};
use crate::trust::Verdict;

/// What the driver does next.
#[derive(Debug)]
pub enum Action {
    /// Find a route for answers; the driver answers with [`Event::RouteFound`] or [`Event::NoRoute`].
    FindRoute {
        /// The answers that share the route.
        choices: Range<usize>,
        /// Nodes and placements that the route must not use.
        exclusions: Exclusions,
    },
    /// Prepare a chain on this node alone, if it can hold the model.
    RequestLocal,
    /// Open the sessions of answers at a first stage.
    Open {
        /// The answers.
        choices: Range<usize>,
        /// Id of the first answer's session.
        id: SessionId,
        /// The chain to open them at.
        route: Route,
        /// Whether they start at the prompt, so that the log-probabilities of the prompt can come from them.
        from_prompt: bool,
    },
    /// Stop listening to a session.
    Forget {
        /// The session.
        session: SessionId,
    },
    /// Close a session at its first stage.
    Close {
        /// The chain that the session is at.
        chain: ChainId,
        /// The session.
        session: SessionId,
        /// The first stage.
        first_stage: PeerId,
        /// Set if the answer is complete and its stages are to sign: the number of positions that they sign for.
        commit: Option<u32>,
    },
    /// Convert tokens to text; when the text ends, the driver answers with [`Event::AnswerComplete`].
    NewTokens {
        /// Which answer.
        choice: usize,
        /// The tokens.
        new: NewTokens,
    },
    /// Log that an answer lost its chain and needs another one; its route is no longer used.
    FailOver {
        /// Which answer.
        choice: usize,
        /// The session that was lost.
        session: SessionId,
        /// Why.
        why: String,
    },
    /// Check the stages' signed claims of an answer; the driver answers with [`Event::ClaimsChecked`].
    CheckClaims {
        /// Which answer.
        choice: usize,
        /// The segment that the claims are about, from 0.
        segment: usize,
        /// The signed claims.
        claims: SignedClaims,
    },
    /// Lower the trust of a node.
    Suspect {
        /// The node.
        peer: PeerId,
        /// Why.
        reason: SuspicionReason,
    },
    /// Store the receipt of an answer; the driver answers with [`Event::ReceiptKept`].
    KeepReceipt {
        /// Which answer.
        choice: usize,
    },
    /// Audit the receipt of an answer.
    Audit {
        /// Which answer.
        choice: usize,
        /// Whether the request waits for the audit; if so, the driver answers with [`Event::Audited`].
        awaited: bool,
    },
    /// Discard everything that the reader has not received: all answers restart at the prompt.
    Recompute,
    /// The request is refused; nothing follows.
    Refuse {
        /// Why.
        error: Error,
        /// Delay after which a retry may succeed, if any.
        retry_after: Option<Duration>,
    },
    /// The request has failed; nothing follows.
    Fail(Error),
    /// All answers are complete; nothing follows.
    Done(Conclusion),
}

/// A chain at which sessions are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The chain.
    pub chain: ChainId,
    /// Its stages; sessions are opened at the first one.
    pub stages: Vec<StageAt>,
}

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Tokens of all answers, including those that end them.
    pub answer: usize,
    /// Tokens that were drafted.
    pub drafted: usize,
    /// Drafted tokens that were accepted.
    pub accepted: usize,
    /// Tokens of the prompt that were cached from an earlier request.
    pub cached: usize,
}

/// Conclusion of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conclusion {
    /// How far the answers can be trusted.
    pub verdict: Verdict,
    /// Failovers and recomputations of all answers.
    pub failovers: usize,
    /// The stages of the last segment of each answer.
    pub stages: Vec<StageAt>,
    /// Token counts.
    pub tokens: TokenCounts,
    /// Time from the request's arrival to the opening of its first session.
    pub queued: Duration,
    /// Time from then to the first token.
    pub prompt: Duration,
    /// Time from the first token to the last one of all answers.
    pub answer: Duration,
}
