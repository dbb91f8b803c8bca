//! The log lines of the coordinator of a request: one when its first session opens, one when it has ended. Nothing is counted
//! here, and the stages on other nodes write their own.

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind};
use pangea_control::session::SessionId;
use pangea_units::LayerRange;

use super::request::Summary;
use crate::pipeline::wire::StageAt;

/// The log of one request.
#[derive(Default)]
pub(super) struct RequestLog {
    /// First session of the request; `None` before it has one, and after its end.
    request: Option<SessionId>,
}

impl RequestLog {
    /// Sessions of the request were opened; only the first call logs.
    pub(super) fn began(&mut self, session: SessionId, id: &str, model: &str, stages: &[StageAt], local: PeerId) {
        if self.request.is_some() {
            return;
        }
        self.request = Some(session);
        let stages: Vec<String> = stages.iter().map(|stage| one_stage(stage, local)).collect();
        let (stages, short) = (stages.join(", "), session.short());
        tracing::info!(
            event = "request_started",
            request = %session,
            id,
            model,
            stages,
            "Request {short} started: {model}, {stages}"
        );
    }

    /// The request has its answers.
    pub(super) fn done(&mut self, model: &str, summary: &Summary) {
        let Some(request) = self.request.take() else { return };
        let (short, verdict) = (request.short(), summary.verdict.name());
        let (tokens, tokens_per_s) = (summary.answer_tokens, summary.answer_tokens_per_s());
        tracing::info!(
            event = "request_ended",
            %request,
            model,
            tokens,
            tokens_per_s,
            verdict,
            "Request {short} ended: {model}, {tokens} tokens, {tokens_per_s:.1} tokens/s, {verdict}"
        );
    }

    /// The request has failed, or nobody waits for its answers any more.
    pub(super) fn failed(&mut self, model: &str, tokens: usize, error: &Error) {
        let Some(request) = self.request.take() else { return };
        let short = request.short();
        let how = if error.kind() == ErrorKind::Cancelled { "cancelled" } else { "failed" };
        tracing::info!(
            event = "request_ended",
            %request,
            model,
            tokens,
            %error,
            "Request {short} {how} after {tokens} tokens of {model}: {error}"
        );
    }
}

fn one_stage(stage: &StageAt, local: PeerId) -> String {
    let layers = LayerRange::from(&stage.layers);
    match stage.peer == local {
        true => format!("layers {layers} on this node"),
        false => format!("layers {layers} on node {}", stage.peer),
    }
}
