//! What an engine counts, in the form that Prometheus reads. Counting only: who asks, and how it is shown, is elsewhere.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::request::Summary;

/// Upper ends of the buckets of every duration, in seconds: from a cached first token to a long answer.
pub const SECONDS_BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// What one engine counts.
#[derive(Debug)]
pub struct EngineMetrics {
    pub(crate) requests: Counter,
    pub(crate) refused: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) failed: Counter,
    pub(crate) failovers: Counter,
    pub(crate) preempted: Counter,
    pub(crate) steps: Counter,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    answer_tokens: Counter,
    drafted_tokens: Counter,
    accepted_tokens: Counter,
    queued: Histogram,
    first_token: Histogram,
    total: Histogram,
}

impl Default for EngineMetrics {
    fn default() -> EngineMetrics {
        EngineMetrics {
            requests: Counter::default(),
            refused: Counter::default(),
            cancelled: Counter::default(),
            failed: Counter::default(),
            failovers: Counter::default(),
            preempted: Counter::default(),
            steps: Counter::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            answer_tokens: Counter::default(),
            drafted_tokens: Counter::default(),
            accepted_tokens: Counter::default(),
            queued: Histogram::new(SECONDS_BUCKETS),
            first_token: Histogram::new(SECONDS_BUCKETS),
            total: Histogram::new(SECONDS_BUCKETS),
        }
    }
}

impl EngineMetrics {
    /// Counts a request that was answered in full.
    pub(crate) fn answered(&self, summary: &Summary) {
        let count = |counter: &Counter, tokens: usize| counter.inc_by(tokens as u64);
        count(&self.prompt_tokens, summary.prompt_tokens);
        count(&self.cached_tokens, summary.cached_tokens);
        count(&self.answer_tokens, summary.answer_tokens);
        count(&self.drafted_tokens, summary.drafted_tokens);
        count(&self.accepted_tokens, summary.accepted_tokens);
        self.queued.observe(summary.queued.as_secs_f64());
        self.first_token.observe((summary.queued + summary.prompt).as_secs_f64());
        self.total.observe((summary.queued + summary.prompt + summary.answer).as_secs_f64());
    }

    /// Makes all of it readable.
    pub(crate) fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("requests", "Requests taken in", &self.requests),
            ("requests_refused", "Requests refused because the queue was full", &self.refused),
            ("requests_cancelled", "Requests whose client went away", &self.cancelled),
            ("requests_failed", "Requests that failed", &self.failed),
            ("failovers", "Answers that went on elsewhere after a stage was lost", &self.failovers),
            ("sequences_preempted", "Sequences that gave their memory up and were computed again", &self.preempted),
            ("steps", "Passes through the model", &self.steps),
            ("prompt_tokens", "Tokens of prompts", &self.prompt_tokens),
            ("prompt_tokens_cached", "Of these, computed by an earlier request", &self.cached_tokens),
            ("answer_tokens", "Tokens of answers", &self.answer_tokens),
            ("draft_tokens", "Tokens that were drafted", &self.drafted_tokens),
            ("draft_tokens_accepted", "Drafted tokens that were right", &self.accepted_tokens),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, histogram) in [
            ("request_queued", "From a request to its first step", &self.queued),
            ("request_first_token", "From a request to its first token", &self.first_token),
            ("request_total", "From a request to the end of its answer", &self.total),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
    }
}
