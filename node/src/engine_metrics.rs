//! What is counted of one model's engine: name, help, type and field of each metric stand together in one table. Counting only:
//! how it is shown is `observe`'s, and which models there are is `serve`'s.

use std::sync::Arc;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

use crate::observe::{SECONDS_BUCKETS, TOKEN_SECONDS_BUCKETS};

/// A model's name and what its engine counts.
pub(crate) type ModelMetrics = (String, Arc<EngineMetrics>);

/// Declares what one engine counts: `field: "name", "help"`, and the bounds of a histogram's buckets.
macro_rules! engine_metrics {
    (
        counters { $($count:ident: $count_name:literal, $count_help:literal;)* }
        durations { $($time:ident: $time_name:literal, $time_help:literal, $buckets:ident;)* }
    ) => {
        /// What one engine counts.
        #[derive(Debug)]
        pub struct EngineMetrics {
            $(pub(crate) $count: Counter,)*
            $(pub(crate) $time: Histogram,)*
        }

        impl Default for EngineMetrics {
            fn default() -> EngineMetrics {
                EngineMetrics {
                    $($count: Counter::default(),)*
                    $($time: Histogram::new($buckets),)*
                }
            }
        }

        /// Writes what is counted of every model that there is now.
        pub(crate) fn encode(models: &[ModelMetrics], encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
            $(
                let all = models.iter().map(|(model, metrics)| (model, &metrics.$count));
                family($count_name, $count_help, None, all, encoder)?;
            )*
            $(
                let all = models.iter().map(|(model, metrics)| (model, &metrics.$time));
                family($time_name, $time_help, Some(&Unit::Seconds), all, encoder)?;
            )*
            Ok(())
        }
    };
}

engine_metrics! {
    counters {
        requests: "requests", "Requests taken in";
        refused: "requests_refused", "Requests refused because the queue was full";
        cancelled: "requests_cancelled", "Requests whose client went away";
        failed: "requests_failed", "Requests that failed";
        failovers: "failovers", "Answers that went on elsewhere after a stage was lost";
        preempted: "sequences_preempted", "Sequences that gave their memory up and were computed again";
        steps: "steps", "Passes through the model";
        steps_cut_off: "steps_cut_off", "Passes that were cut off because nobody waited for them any more";
        prompt_tokens: "prompt_tokens", "Tokens of prompts";
        cached_tokens: "prompt_tokens_cached", "Tokens of prompts that an earlier request had computed";
        answer_tokens: "answer_tokens", "Tokens of answers, counted as they come";
        drafted_tokens: "draft_tokens", "Tokens that were drafted";
        accepted_tokens: "draft_tokens_accepted", "Drafted tokens that were right";
    }
    durations {
        queued: "request_queued", "From a request to its first step", SECONDS_BUCKETS;
        first_token: "request_first_token", "From a request to its first token", SECONDS_BUCKETS;
        between_tokens: "request_between_tokens", "From one token of an answer to its next", TOKEN_SECONDS_BUCKETS;
        total: "request_total", "From a request to the end of its answer", SECONDS_BUCKETS;
    }
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
