//! The log lines of one stage about requests of other nodes: one when a request begins here, one when it has ended. A request of
//! this node is logged by its coordinator, once. Nothing is counted for anyone but the reader of the log.

use std::collections::BTreeMap;
use std::time::Instant;

use libp2p::PeerId;
use pangea_units::LayerRange;

use super::wire::{Open, SessionId, StageAt};

/// The log of one stage.
pub(super) struct RequestLog {
    local: PeerId,
    /// Name of the model.
    model: String,
    layers: LayerRange,
    /// Requests under way, by the session of their first answer.
    requests: BTreeMap<SessionId, Logged>,
    /// The request of each session.
    sessions: BTreeMap<SessionId, SessionId>,
}

/// One request.
struct Logged {
    prompt_len: u32,
    /// Answers that have not ended.
    open: u16,
    /// Tokens of all answers that have ended.
    tokens: u64,
    /// Positions that were computed of each answer that has not ended.
    positions: BTreeMap<SessionId, u32>,
    /// When the first token was computed.
    answering: Option<Instant>,
    began: Instant,
}

impl RequestLog {
    /// The log of the stage of `local` at `stage` of a model with this name.
    pub(super) fn new(local: PeerId, model: String, stage: &StageAt) -> RequestLog {
        let (requests, sessions) = (BTreeMap::new(), BTreeMap::new());
        RequestLog { local, model, layers: LayerRange::from(&stage.layers), requests, sessions }
    }

    /// Another node's request was accepted by this stage.
    pub(super) fn began(&mut self, open: &Open) {
        if open.coordinator == self.local {
            return;
        }
        let request = open.session;
        for choice in 0..open.choices {
            self.sessions.insert(request.choice(choice), request);
        }
        let logged = Logged {
            prompt_len: open.prompt_len,
            open: open.choices,
            tokens: 0,
            positions: BTreeMap::new(),
            answering: None,
            began: Instant::now(),
        };
        self.requests.insert(request, logged);
        let (id, model, layers, coordinator) = (request.short(), &self.model, self.layers, open.coordinator);
        tracing::info!(
            event = "request_started",
            %request,
            model,
            %layers,
            %coordinator,
            prompt_tokens = open.prompt_len,
            "Request {id} started: this node computes layers {layers} of {model} for node {coordinator}"
        );
    }

    /// The stage has computed the positions of a session below `end`.
    pub(super) fn computed(&mut self, session: SessionId, end: u32) {
        let Some(logged) = self.sessions.get(&session).and_then(|request| self.requests.get_mut(request)) else {
            return;
        };
        if end >= logged.prompt_len {
            logged.answering.get_or_insert_with(Instant::now);
        }
        logged.positions.insert(session, end);
    }

    /// All sessions have ended, because the chain failed.
    pub(super) fn clear(&mut self) {
        for session in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.ended(session);
        }
    }

    /// A session has ended here.
    pub(super) fn ended(&mut self, session: SessionId) {
        let Some(request) = self.sessions.remove(&session) else { return };
        let Some(logged) = self.requests.get_mut(&request) else { return };
        logged.open -= 1;
        // The last position of the prompt gives the first token.
        let positions = logged.positions.remove(&session);
        logged.tokens += positions.map_or(0, |end| u64::from((end + 1).saturating_sub(logged.prompt_len)));
        if logged.open > 0 {
            return;
        }
        let Some(Logged { tokens, answering, began, .. }) = self.requests.remove(&request) else { return };
        let took = answering.unwrap_or(began).elapsed().as_secs_f64();
        let tokens_per_s = if took > 0.0 { tokens.saturating_sub(1) as f64 / took } else { 0.0 };
        let (id, model, layers) = (request.short(), &self.model, self.layers);
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
