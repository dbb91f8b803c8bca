//! The log lines of one stage about a request of another node: one when it begins here, one when it has ended. A request of
//! this node is logged by its coordinator, once. Nothing is counted for anyone but the reader of the log.

use std::collections::BTreeMap;
use std::time::Instant;

use super::stage_requests::StageFacts;
use super::wire::{Open, SessionId};

/// One request of another node.
pub(super) struct LoggedRequest {
    request: SessionId,
    prompt_len: u32,
    /// Tokens of all answers that have ended.
    tokens: u64,
    /// Positions that were computed of each answer that has not ended.
    positions: BTreeMap<SessionId, u32>,
    /// When the first token was computed.
    answering: Option<Instant>,
    began: Instant,
}

impl LoggedRequest {
    /// A request was accepted by this stage; `None` for one of this node.
    pub(super) fn began(open: &Open, stage: &StageFacts) -> Option<LoggedRequest> {
        if open.coordinator == stage.local {
            return None;
        }
        let request = open.session;
        let (id, model, layers, coordinator) = (request.short(), &stage.model, stage.layers, open.coordinator);
        tracing::info!(
            event = "request_started",
            %request,
            model,
            %layers,
            %coordinator,
            prompt_tokens = open.prompt_len,
            "Request {id} started: this node computes layers {layers} of {model} for node {coordinator}"
        );
        Some(LoggedRequest {
            request,
            prompt_len: open.prompt_len,
            tokens: 0,
            positions: BTreeMap::new(),
            answering: None,
            began: Instant::now(),
        })
    }

    /// The stage has computed the positions of a session below `end`.
    pub(super) fn computed(&mut self, session: SessionId, end: u32) {
        if end >= self.prompt_len {
            self.answering.get_or_insert_with(Instant::now);
        }
        self.positions.insert(session, end);
    }

    /// One of its answers has ended here.
    pub(super) fn answer_ended(&mut self, session: SessionId) {
        // The last position of the prompt gives the first token.
        let positions = self.positions.remove(&session);
        self.tokens += positions.map_or(0, |end| u64::from((end + 1).saturating_sub(self.prompt_len)));
    }

    /// All of its answers have ended.
    pub(super) fn ended(self, stage: &StageFacts) {
        let LoggedRequest { request, tokens, answering, began, .. } = self;
        let took = answering.unwrap_or(began).elapsed().as_secs_f64();
        let tokens_per_s = if took > 0.0 { tokens.saturating_sub(1) as f64 / took } else { 0.0 };
        let (id, model, layers) = (request.short(), &stage.model, stage.layers);
        tracing::info!(
            event = "request_ended",
            %request,
            model,
            %layers,
            tokens,
            tokens_per_s,
            "Request {id} ended: layers {layers} of {model}, {tokens} tokens, {tokens_per_s:.1} tokens/s"
        );
    }
}
