//! What an engine counts, in the form that Prometheus reads. Counting only: who asks, and how it is shown, is elsewhere.

use std::sync::Arc;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

use super::request::Summary;

/// Upper ends of the buckets of every duration, in seconds: from a cached first token to a long answer.
pub const SECONDS_BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// A model's name and what its engine counts.
pub(super) type ModelMetrics = (String, Arc<EngineMetrics>);

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
}

/// One of the things that every engine counts.
type Of<M> = fn(&EngineMetrics) -> &M;

/// Name, what it counts, and where it is.
const COUNTERS: [(&str, &str, Of<Counter>); 12] = [
    ("requests", "Requests taken in", |of| &of.requests),
    ("requests_refused", "Requests refused because the queue was full", |of| &of.refused),
    ("requests_cancelled", "Requests whose client went away", |of| &of.cancelled),
    ("requests_failed", "Requests that failed", |of| &of.failed),
    ("failovers", "Answers that went on elsewhere after a stage was lost", |of| &of.failovers),
    ("sequences_preempted", "Sequences that gave their memory up and were computed again", |of| &of.preempted),
    ("steps", "Passes through the model", |of| &of.steps),
    ("prompt_tokens", "Tokens of prompts", |of| &of.prompt_tokens),
    ("prompt_tokens_cached", "Of these, computed by an earlier request", |of| &of.cached_tokens),
    ("answer_tokens", "Tokens of answers", |of| &of.answer_tokens),
    ("draft_tokens", "Tokens that were drafted", |of| &of.drafted_tokens),
    ("draft_tokens_accepted", "Drafted tokens that were right", |of| &of.accepted_tokens),
];

/// The same of durations, in seconds.
const DURATIONS: [(&str, &str, Of<Histogram>); 3] = [
    ("request_queued", "From a request to its first step", |of| &of.queued),
    ("request_first_token", "From a request to its first token", |of| &of.first_token),
    ("request_total", "From a request to the end of its answer", |of| &of.total),
];

/// Writes what is counted of every model that there is now.
pub(super) fn encode(models: &[ModelMetrics], encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
    for (name, help, of) in COUNTERS {
        let all = models.iter().map(|(model, metrics)| (model, of(metrics)));
        family(name, help, None, all, encoder)?;
    }
    for (name, help, of) in DURATIONS {
        let all = models.iter().map(|(model, metrics)| (model, of(metrics)));
        family(name, help, Some(&Unit::Seconds), all, encoder)?;
    }
    Ok(())
}

/// One thing that is counted of several models.
fn family<'a, M: EncodeMetric + TypedMetric + 'a>(
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    models: impl Iterator<Item = (&'a String, &'a M)>,
    encoder: &mut DescriptorEncoder<'_>,
) -> std::fmt::Result {
    let mut described = encoder.encode_descriptor(name, help, unit, M::TYPE)?;
    for (model, metric) in models {
        let labels = [("model", model.as_str())];
        metric.encode(described.encode_family(&labels)?)?;
    }
    Ok(())
}
