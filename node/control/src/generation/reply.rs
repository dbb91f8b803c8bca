//! What stages say about a session, and what of it is new to the coordinator. Values only.

use std::time::Duration;

use pangea_units::ErrorKind;

use crate::session::{EndReason, TokenOut};

/// A stage's message about a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The first stage has accepted the session.
    Accepted,
    /// The first stage has refused the session.
    Refused {
        /// Reason for programs.
        kind: ErrorKind,
        /// Reason for people.
        message: String,
        /// Delay after which a retry may succeed, if any.
        retry_after: Option<Duration>,
    },
    /// Tokens of the answer.
    Tokens(ReportedTokens),
    /// The stages cannot continue the session.
    Failed {
        /// Reason for programs.
        kind: ErrorKind,
        /// Reason for people.
        message: String,
    },
    /// Stages have signed their claims: all of them if the last stage says so, those up to the sender otherwise.
    Committed {
        /// The signed claims as bytes; not parsed here.
        claims: Vec<u8>,
    },
}

/// Tokens of an answer as a stage reports them; some may be known already.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReportedTokens {
    /// Position of the first token, counted from the first token of the prompt.
    pub position: u32,
    /// The tokens.
    pub tokens: Vec<TokenOut>,
    /// Why the answer ends after them, if it does.
    pub ended: Option<EndReason>,
    /// Tokens of the prompt with their log-probabilities.
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

/// Tokens that were not known before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewTokens {
    /// The tokens, in order.
    pub tokens: Vec<TokenOut>,
    /// Tokens of the prompt with their log-probabilities.
    pub prompt: Vec<TokenOut>,
    /// Why the answer ends after them, if it does.
    pub ended: Option<EndReason>,
    /// Tokens that were drafted for these.
    pub drafted: usize,
    /// Drafted tokens that were accepted.
    pub accepted: usize,
    /// Positions at the start of the session that were cached from an earlier one.
    pub cached: usize,
    /// Positions from the first that are computed, at most as many as there are tokens, while no token follows them; otherwise 0.
    pub computed: usize,
}
