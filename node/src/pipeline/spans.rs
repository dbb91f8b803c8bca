//! The spans of one stage about a request that it computes, and about the passes that it takes. A pass over a prompt has a
//! span of its own; the passes that give an answer's tokens, one each, are summed up in one. Numbers only, no tokens.

use std::time::{Duration, Instant};

use tracing::Span;

use super::stage_requests::StageFacts;
use super::wire::{FrameRows, Open, SessionId};
use crate::traces::{self, child, entrance};

/// A traced request.
pub(super) struct TracedRequest {
    span: Span,
    /// Positions that its sessions begin with.
    given: u32,
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

impl Pass {
    /// The requests that it has computed tokens for, and how long; `None` if there are none that are traced.
    pub(super) fn ended(self) -> Option<(Vec<SessionId>, Duration)> {
        Some((self.decoding, self.began?.elapsed()))
    }
}

impl TracedRequest {
    /// A request was accepted by this stage; `None` for one that nobody traces.
    pub(super) fn began(open: &Open, stage: &StageFacts) -> Option<TracedRequest> {
        open.trace?;
        let span = entrance!(
            "stage",
            otel.kind = "server",
            gen_ai.request.model = stage.model,
            pangea.layers = %stage.layers,
            pangea.session = %open.session,
            client.address = %open.coordinator
        );
        if open.coordinator == stage.local {
            traces::follow_own(&span, open.trace);
        } else {
            traces::follow(&span, open.trace);
        }
        let (given, decoding) = (open.tokens.len() as u32, Span::none());
        let is_traced = !span.is_disabled();
        is_traced.then_some(TracedRequest { span, given, decoding, passes: 0, computed: Duration::ZERO })
    }

    /// `pass`, which begins, has these rows of this request, whose first session is `request`.
    pub(super) fn enters(&mut self, pass: &mut Pass, request: SessionId, rows: &FrameRows) {
        let (first, count) = (i64::from(rows.start), i64::from(rows.rows));
        if rows.start < self.given {
            let reading = child!(&self.span, "prefill", pangea.position = first, pangea.rows = count);
            pass.reading.push(reading);
            return;
        }
        if self.decoding.is_disabled() {
            self.decoding = child!(&self.span, "decode");
        }
        if !pass.decoding.contains(&request) {
            pass.decoding.push(request);
        }
        pass.began.get_or_insert_with(Instant::now);
    }

    /// A pass has computed tokens of it.
    pub(super) fn passed(&mut self, took: Duration) {
        self.passes += 1;
        self.computed += took;
    }

    /// All of its answers have ended.
    pub(super) fn ended(self) {
        traces::set(&self.decoding, "pangea.passes", self.passes);
        traces::set(&self.decoding, "pangea.compute_s", self.computed.as_secs_f64());
    }
}
