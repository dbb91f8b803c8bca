//! Which traces are recorded: a share of those that begin here, and of those that begin elsewhere the ones that are recorded
//! there, as long as they are not too many. Whoever asks this node for something can ask for a trace, so the number is limited.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use opentelemetry::trace::{Link, SpanKind, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{ParentBasedSampler, Sampler, SamplingDecision, SamplingResult, ShouldSample};
use pangea_control::net::rate::{Rate, RateLimiter};

use super::Running;
use crate::clock;

/// Spans per second that others may begin here, of clients and peers together: a request of a client or a peer, a task, a
/// session of a stage. Each has a handful of children, so the spans of one second take a part of the queue.
pub(super) const OTHERS: Rate = Rate { per_second: 200.0, burst: 1000.0 };

/// The sampler of a node that records a share of `ratio` of its own traces.
pub(super) fn sampler(ratio: f64, running: &Arc<OnceLock<Running>>) -> ParentBasedSampler {
    let limiter = Arc::new(Mutex::new(RateLimiter::new(OTHERS)));
    let others = Others { limiter, running: Arc::clone(running) };
    ParentBasedSampler::new(Sampler::TraceIdRatioBased(ratio)).with_remote_parent_sampled(others)
}

/// Decides about spans whose parent is recorded on another node or in a client.
#[derive(Clone, Debug)]
struct Others {
    limiter: Arc<Mutex<RateLimiter<()>>>,
    running: Arc<OnceLock<Running>>,
}

impl ShouldSample for Others {
    fn should_sample(
        &self,
        _: Option<&Context>,
        _: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let decision = match limiter.ask(&(), clock::now()) {
            Ok(()) => SamplingDecision::RecordAndSample,
            Err(_) => {
                Running::count(&self.running, "capped", 1);
                SamplingDecision::Drop
            }
        };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::NONE }
    }
}
