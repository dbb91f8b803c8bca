//! The spans of a request for answers at its coordinator: finding a route, the sessions at their stages with their phases, audits,
//! failovers. Names follow OpenTelemetry's conventions for generative AI where there is one; numbers and ids only, no texts.

use std::time::Instant;

use libp2p::PeerId;
use pangea_client::Error;
use pangea_control::session::SessionId;
use pangea_units::LayerRange;
use tracing::Span;

use super::request::Summary;
use crate::pipeline::wire::{Message, StageAt};
use crate::traces::{self, child, moment};
use crate::wire::TraceParent;

/// The spans of one request.
pub(super) struct RequestSpans {
    request: Span,
    began: Instant,
    /// The search for a chain, while it goes on.
    routing: Span,
    /// Sessions that have not ended.
    sessions: Vec<SessionSpans>,
    /// The stages that an answer has lost and why, until others go on with it.
    lost: Option<(String, String)>,
}

/// The spans of the sessions that were opened together.
struct SessionSpans {
    first: SessionId,
    choices: u16,
    session: Span,
    phase: Phase,
    /// What the session does now.
    doing: Span,
    tokens: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// It is not accepted yet.
    Open,
    /// Its prompt is computed.
    Prefill,
    /// Its answer is.
    Decode,
}

impl RequestSpans {
    /// The spans of a request to `model`, as a part of whatever asked for it.
    pub(super) fn new(model: &str, prompt_tokens: usize, max_new_tokens: usize, choices: usize) -> RequestSpans {
        let request = child!(
            &Span::current(),
            "generation",
            gen_ai.operation.name = "generate_content",
            gen_ai.provider.name = "pangea",
            gen_ai.request.model = model,
            gen_ai.request.max_tokens = max_new_tokens as i64,
            gen_ai.request.choice.count = choices as i64,
            gen_ai.usage.input_tokens = prompt_tokens as i64
        );
        RequestSpans { request, began: Instant::now(), routing: Span::none(), sessions: Vec::new(), lost: None }
    }

    /// A chain is looked for.
    pub(super) fn routing(&mut self) {
        if self.routing.is_disabled() {
            self.routing = child!(&self.request, "route");
        }
    }

    /// `choices` sessions from `first` on are opened at these stages; returns what their opening carries.
    pub(super) fn opening(
        &mut self,
        first: SessionId,
        choices: u16,
        stages: &[StageAt],
        local: PeerId,
    ) -> Option<TraceParent> {
        traces::set(&self.routing, "pangea.stages", stages.len() as i64);
        self.routing = Span::none();
        if self.request.is_disabled() {
            return None;
        }
        let first_stage = stages.first()?.peer;
        let kind = if first_stage == local { "internal" } else { "client" };
        let session = child!(
            &self.request,
            "session",
            otel.kind = kind,
            server.address = %first_stage,
            pangea.session = %first
        );
        let chain = chain(stages);
        if let Some((from, why)) = self.lost.take() {
            moment!(&self.request, "failover", pangea.session = %first, pangea.from = from, pangea.to = chain, pangea.why = why);
        }
        traces::set(&session, "pangea.chain", chain);
        let context = traces::context(&session);
        let doing = child!(&session, "open");
        self.sessions.push(SessionSpans { first, choices, session, phase: Phase::Open, doing, tokens: 0 });
        context
    }

    /// A stage has sent this message.
    pub(super) fn heard(&mut self, message: &Message) {
        if self.sessions.is_empty() {
            return;
        }
        match message {
            Message::Accepted { session } => self.reach(*session, Phase::Prefill),
            Message::Tokens(tokens) if !tokens.tokens.is_empty() => {
                self.reach(tokens.session, Phase::Decode);
                if let Some(spans) = self.of(tokens.session) {
                    spans.tokens += tokens.tokens.len() as i64;
                }
            }
            _ => {}
        }
    }

    fn reach(&mut self, session: SessionId, phase: Phase) {
        let since = self.began;
        let Some(spans) = self.of(session).filter(|spans| spans.phase < phase) else { return };
        spans.phase = phase;
        spans.doing = match phase {
            Phase::Open => return,
            Phase::Prefill => child!(&spans.session, "prefill"),
            Phase::Decode => {
                let first_token_s = since.elapsed().as_secs_f64();
                child!(&spans.session, "decode", gen_ai.response.time_to_first_chunk = first_token_s)
            }
        };
    }

    fn of(&mut self, session: SessionId) -> Option<&mut SessionSpans> {
        let has = |spans: &SessionSpans| (0..spans.choices).any(|choice| spans.first.choice(choice) == session);
        self.sessions.iter_mut().find(|spans| has(spans))
    }

    /// A session has ended, well or not.
    pub(super) fn over(&mut self, session: SessionId) {
        let Some(spans) = self.of(session) else { return };
        traces::set(&spans.doing, "gen_ai.usage.output_tokens", spans.tokens);
        let first = spans.first;
        self.sessions.retain(|spans| spans.first != first);
    }

    /// An answer has lost these stages, for a reason.
    pub(super) fn lost(&mut self, stages: &[StageAt], why: &str) {
        if self.request.is_disabled() {
            return;
        }
        let from = chain(stages);
        moment!(&self.request, "lost", pangea.from = from, pangea.why = why);
        self.lost = Some((from, why.to_owned()));
    }

    /// An answer is to go on at other stages, because its session failed.
    pub(super) fn failing_over(&mut self, session: SessionId) {
        if let Some(spans) = self.of(session) {
            traces::failed(&spans.session, pangea_client::ErrorKind::Unavailable);
        }
        self.over(session);
    }

    /// The span of an audit of an answer.
    pub(super) fn audit(&self, is_awaited: bool) -> Span {
        child!(&self.request, "audit", pangea.awaited = is_awaited)
    }

    /// The request has its answers.
    pub(super) fn done(&mut self, summary: &Summary) {
        for (name, count) in [
            ("gen_ai.usage.output_tokens", summary.answer_tokens),
            ("gen_ai.usage.cache_read.input_tokens", summary.cached_tokens),
            ("pangea.failovers", summary.failovers),
        ] {
            traces::set(&self.request, name, count as i64);
        }
        traces::set(&self.request, "pangea.verdict", summary.verdict.name());
        self.end();
    }

    /// The request has failed, or nobody waits for its answers any more.
    pub(super) fn failed(&mut self, error: &Error) {
        traces::failed(&self.request, error.kind());
        self.end();
    }

    fn end(&mut self) {
        self.routing = Span::none();
        while let Some(first) = self.sessions.first().map(|spans| spans.first) {
            self.over(first);
        }
        // Audits that nobody waits for end later.
        traces::end(&self.request);
    }
}

/// The stages of a chain, as text.
fn chain(stages: &[StageAt]) -> String {
    let at = |stage: &StageAt| format!("{} at {}", LayerRange::from(&stage.layers), stage.peer);
    stages.iter().map(at).collect::<Vec<_>>().join(", ")
}
