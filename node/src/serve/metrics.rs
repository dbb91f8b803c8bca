//! What an engine counts: name, help, type and field of each metric stand together in one table. Counting only: how it is
//! shown is `observe`'s.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

use super::catalogue::{Served, ServedModel};
use super::request::Summary;
use crate::observe::{Observer, SECONDS_BUCKETS};

/// A model's name and what its engine counts.
pub(super) type ModelMetrics = (String, Arc<EngineMetrics>);

/// Declares what one engine counts: `visibility field: "name", "help"`.
macro_rules! engine_metrics {
    (
        counters { $($count_vis:vis $count:ident: $count_name:literal, $count_help:literal;)* }
        durations { $($time_vis:vis $time:ident: $time_name:literal, $time_help:literal;)* }
    ) => {
        /// What one engine counts.
        #[derive(Debug)]
        pub struct EngineMetrics {
            $($count_vis $count: Counter,)*
            $($time_vis $time: Histogram,)*
        }

        impl Default for EngineMetrics {
            fn default() -> EngineMetrics {
                EngineMetrics {
                    $($count: Counter::default(),)*
                    $($time: Histogram::new(SECONDS_BUCKETS),)*
                }
            }
        }

        /// Writes what is counted of every model that there is now.
        pub(super) fn encode(models: &[ModelMetrics], encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
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
        pub(crate) requests: "requests", "Requests taken in";
        pub(crate) refused: "requests_refused", "Requests refused because the queue was full";
        pub(crate) cancelled: "requests_cancelled", "Requests whose client went away";
        pub(crate) failed: "requests_failed", "Requests that failed";
        pub(crate) failovers: "failovers", "Answers that went on elsewhere after a stage was lost";
        pub(crate) preempted: "sequences_preempted", "Sequences that gave their memory up and were computed again";
        pub(crate) steps: "steps", "Passes through the model";
        prompt_tokens: "prompt_tokens", "Tokens of prompts";
        cached_tokens: "prompt_tokens_cached", "Tokens of prompts that an earlier request had computed";
        answer_tokens: "answer_tokens", "Tokens of answers";
        drafted_tokens: "draft_tokens", "Tokens that were drafted";
        accepted_tokens: "draft_tokens_accepted", "Drafted tokens that were right";
    }
    durations {
        queued: "request_queued", "From a request to its first step";
        first_token: "request_first_token", "From a request to its first token";
        total: "request_total", "From a request to the end of its answer";
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

/// Counts for `observer` what the engines of `served` do. Models come and go: what there is of them is asked for each time.
pub(crate) fn observe(served: &Served, observer: &Observer) {
    observer.collect(Engines(served.clone()));
}

/// What the engines count, and how many sequences run and wait at this moment.
#[derive(Debug)]
struct Engines(Served);

/// A gauge of one model at this moment: name, help, value.
type ModelGauge = (&'static str, &'static str, fn(&ServedModel) -> usize);

const GAUGES: [ModelGauge; 2] = [
    ("sequences_running", "Sequences being computed", |model| model.running),
    ("sequences_waiting", "Sequences in the queue", |model| model.waiting),
];

impl Collector for Engines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        encode(&self.0.metrics(), &mut encoder)?;
        let models = self.0.list();
        for (name, help, value) in GAUGES {
            let mut described = encoder.encode_descriptor(name, help, None, ConstGauge::new(0i64).metric_type())?;
            for model in &models {
                let labels = [("model", model.name.as_str())];
                ConstGauge::new(value(model) as i64).encode(described.encode_family(&labels)?)?;
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use libp2p::PeerId;
    use pangea_compute::Digest;
    use std::collections::{BTreeMap, BTreeSet};
    use tokio::sync::watch;

    use super::*;
    use crate::observe::Format;
    use crate::pool::{ModelAdvert, ModelSize, View, advert_of};

    /// A node whose one peer serves models of these names.
    fn view(names: &[&str]) -> Arc<View> {
        let mut other = advert_of(PeerId::random());
        let model = |name: &&str| ModelAdvert {
            digest: Digest::from_bytes(*blake3::hash(name.as_bytes()).as_bytes()),
            name: (*name).to_owned(),
            served: true,
            whole: true,
            split: false,
            pinned: None,
            size: ModelSize::default(),
        };
        other.models = names.iter().map(model).collect();
        let own = Arc::new(advert_of(PeerId::random()));
        let nodes = BTreeMap::from([(other.peer, Arc::new(other))]);
        Arc::new(View { local: own.peer, own, term: None, nodes, connected: BTreeSet::new() })
    }

    #[tokio::test]
    async fn models_that_come_after_the_start_are_counted() {
        let served = Served::default();
        let observer = Observer::default();
        observe(&served, &observer);
        for (names, gone) in [(&["first"][..], "second"), (&["first", "second"], "third"), (&["second"], "first")] {
            let (_, pool) = watch::channel(view(names));
            served.clone().follow(pool).await;
            let text = observer.text(Format::OpenMetrics).unwrap();
            let count = |line: &str| text.lines().filter(|other| *other == line).count();
            for name in names {
                for sample in ["steps_total", "failovers_total", "request_total_seconds_count"] {
                    assert_eq!(count(&format!("pangea_{sample}{{model=\"{name}\"}} 0")), 1, "{text}");
                }
            }
            // Whoever reads this takes a second description of the same thing for an error.
            assert_eq!(count("# TYPE pangea_steps counter"), 1, "{text}");
            assert!(!text.contains(&format!("model=\"{gone}\"")), "{text}");
        }
    }
}
