//! The spans of one stage about the sessions that it computes, and about the passes that it takes. A pass over a prompt has a
//! span of its own; the passes that give an answer's tokens, one each, are summed up in one. Numbers only, no tokens.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use pangea_units::LayerRange;
use tracing::Span;

use super::wire::{FrameRows, Open, SessionId, StageAt};
use crate::traces::{self, child, entrance};

/// The spans of one stage.
pub(super) struct StageSpans {
    local: PeerId,
    /// Name of the model.
    model: String,
    layers: LayerRange,
    /// Requests that are traced, by the session of their first answer.
    requests: BTreeMap<SessionId, Traced>,
    /// The request of each session.
    sessions: BTreeMap<SessionId, SessionId>,
}

/// A traced request.
struct Traced {
    span: Span,
    /// Positions that its sessions begin with.
    given: u32,
    /// Answers that have not ended.
    open: u16,
    /// The span of the passes that give tokens, from the first of them on.
    decoding: Span,
    passes: i64,
    computed: Duration,
}

/// A pass that is computed now, as far as it is traced.
#[derive(Default)]
pub(super) struct Pass {
    /// Of each request whose prompt it reads.
    reading: Vec<Span>,
    /// Requests that it computes tokens for, and since when.
    decoding: Vec<SessionId>,
    began: Option<Instant>,
}

impl StageSpans {
    /// The spans of the stage of `local` at `stage` of a model with this name.
    pub(super) fn new(local: PeerId, model: String, stage: &StageAt) -> StageSpans {
        let (requests, sessions) = (BTreeMap::new(), BTreeMap::new());
        StageSpans { local, model, layers: LayerRange::from(&stage.layers), requests, sessions }
    }

    /// A request was accepted by this stage.
    pub(super) fn began(&mut self, open: &Open) {
        if open.trace.is_none() {
            return;
        }
        let span = entrance!(
            "stage",
            otel.kind = "server",
            gen_ai.request.model = self.model,
            pangea.layers = %self.layers,
            pangea.session = %open.session,
            client.address = %open.coordinator
        );
        if open.coordinator == self.local {
            traces::follow_own(&span, open.trace);
        } else {
            traces::follow(&span, open.trace);
        }
        if span.is_disabled() {
            return;
        }
        for choice in 0..open.choices {
            self.sessions.insert(open.session.choice(choice), open.session);
        }
        let (given, decoding) = (open.tokens.len() as u32, Span::none());
        let traced = Traced { span, given, open: open.choices, decoding, passes: 0, computed: Duration::ZERO };
        self.requests.insert(open.session, traced);
    }

    /// A pass over these rows begins; `session_of` gives the session of a sequence.
    pub(super) fn pass(&mut self, rows: &[FrameRows], session_of: impl Fn(u64) -> Option<SessionId>) -> Pass {
        let mut pass = Pass::default();
        if self.requests.is_empty() {
            return pass;
        }
        for rows in rows {
            let request = session_of(rows.sequence).and_then(|session| self.sessions.get(&session)).copied();
            let Some((request, traced)) = request.and_then(|of| Some((of, self.requests.get_mut(&of)?))) else {
                continue;
            };
            let (first, count) = (i64::from(rows.start), i64::from(rows.rows));
            if rows.start < traced.given {
                let reading = child!(&traced.span, "prefill", pangea.position = first, pangea.rows = count);
                pass.reading.push(reading);
                continue;
            }
            if traced.decoding.is_disabled() {
                traced.decoding = child!(&traced.span, "decode");
            }
            if !pass.decoding.contains(&request) {
                pass.decoding.push(request);
            }
            pass.began.get_or_insert_with(Instant::now);
        }
        pass
    }

    /// The pass has ended.
    pub(super) fn passed(&mut self, pass: Pass) {
        let Some(began) = pass.began else { return };
        for request in &pass.decoding {
            if let Some(traced) = self.requests.get_mut(request) {
                traced.passes += 1;
                traced.computed += began.elapsed();
            }
        }
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
        let Some(traced) = self.requests.get_mut(&request) else { return };
        traced.open -= 1;
        if traced.open > 0 {
            return;
        }
        if let Some(Traced { decoding, passes, computed, .. }) = self.requests.remove(&request) {
            traces::set(&decoding, "pangea.passes", passes);
            traces::set(&decoding, "pangea.compute_s", computed.as_secs_f64());
        }
    }
}
