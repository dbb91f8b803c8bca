//! What the driver of a request is to do, and what a request comes to. Values only.

use std::ops::Range;
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Error;

use super::answer_session::{Exclusions, NewTokens};
#[cfg(doc)]
use super::event::Event;
use crate::session::{ChainId, SessionId, StageAt};
use crate::trust::Verdict;

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Find a route for answers; to be answered with [`Event::RouteFound`] or [`Event::NoRoute`].
    FindRoute {
        /// The answers that take it together.
        choices: Range<usize>,
        /// What the route must do without.
        exclusions: Exclusions,
    },
    /// Prepare a chain on this node alone, if it can hold the model.
    RequestLocal,
    /// Open the sessions of answers at a first stage.
    Open {
        /// The answers.
        choices: Range<usize>,
        /// The number of the first answer's session.
        id: SessionId,
        /// Where.
        route: Route,
        /// Whether these are the answers' first sessions.
        first: bool,
    },
    /// Hear nothing more of a session.
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
        /// Where the answer is complete and its stages are to sign: the positions that they sign for.
        commit: Option<u32>,
    },
    /// Make text of tokens; a text that ends is told with [`Event::AnswerComplete`].
    NewTokens {
        /// Which answer.
        choice: usize,
        /// The tokens.
        new: NewTokens,
    },
    /// Tell that an answer lost its chain and takes another; its route is not used any more.
    FailOver {
        /// Which answer.
        choice: usize,
        /// The session that was lost.
        session: SessionId,
        /// Why.
        why: String,
    },
    /// Check what the stages of an answer signed; to be answered with [`Event::ClaimsChecked`].
    CheckClaims {
        /// Which answer.
        choice: usize,
        /// The signed claims as bytes.
        claims: Vec<u8>,
    },
    /// Keep the receipt of an answer; to be answered with [`Event::ReceiptKept`].
    KeepReceipt {
        /// Which answer.
        choice: usize,
    },
    /// Audit the receipt of an answer.
    Audit {
        /// Which answer.
        choice: usize,
        /// Whether its end is waited for, and told with [`Event::Audited`].
        awaited: bool,
    },
    /// Discard everything that the reader has not been given, for all answers begin again at the prompt.
    Recompute,
    /// The request is refused; nothing follows.
    Refuse {
        /// Why.
        error: Error,
        /// When to try again, where that may help.
        retry_after: Option<Duration>,
    },
    /// The request has failed; nothing follows.
    Fail(Error),
    /// All answers are complete; nothing follows.
    Done(Conclusion),
}

/// A chain that sessions are opened at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The chain.
    pub chain: ChainId,
    /// Its stages; the first takes sessions in.
    pub stages: Vec<StageAt>,
}

/// Tokens of a request's answers, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Tokens of all answers, those that end them included.
    pub answer: usize,
    /// Tokens that were drafted.
    pub drafted: usize,
    /// Drafted tokens that were right.
    pub accepted: usize,
    /// Tokens of the prompt that an earlier request had computed.
    pub cached: usize,
}

/// What a request came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conclusion {
    /// How far the answers can be trusted.
    pub verdict: Verdict,
    /// How often an answer lost its chain or was computed again.
    pub failovers: usize,
    /// Who computed which layers, in the end.
    pub stages: Vec<StageAt>,
    /// Tokens.
    pub tokens: TokenCounts,
    /// From the request's arrival to the first session that was opened.
    pub queued: Duration,
    /// From then to the first token.
    pub prompt: Duration,
    /// From the first token to the last of all answers.
    pub answer: Duration,
}
