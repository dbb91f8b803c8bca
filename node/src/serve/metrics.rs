//! Metrics of the models of this node: what a request adds to its engine's, and those of all models for `/metrics`.
//! `observe` owns their presentation.

use std::time::Duration;

use pangea_control::Time;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::catalogue::{Served, ServedModel};
use super::request::Summary;
use crate::engine_metrics::{EngineMetrics, encode};
use crate::observe::Observer;

/// Counts a completed request.
pub(super) fn count_answered(metrics: &EngineMetrics, summary: &Summary) {
    let count = |counter: &Counter, tokens: usize| counter.inc_by(tokens as u64);
    count(&metrics.prompt_tokens, summary.prompt_tokens);
    count(&metrics.cached_tokens, summary.cached_tokens);
    count(&metrics.drafted_tokens, summary.drafted_tokens);
    count(&metrics.accepted_tokens, summary.accepted_tokens);
    metrics.queued.observe(summary.queued.as_secs_f64());
    metrics.first_token.observe((summary.queued + summary.prompt).as_secs_f64());
    metrics.total.observe((summary.queued + summary.prompt + summary.answer).as_secs_f64());
}

/// When the tokens of one answer come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TokenTimes {
    /// Time of the last token; `None` before the first one.
    last: Option<Time>,
}

impl TokenTimes {
    /// Counts `tokens` new ones, which come together at `now`: each of them took its share of the time since the last one. The first
    /// one has no time between it and another.
    pub(super) fn came(&mut self, metrics: &EngineMetrics, tokens: usize, now: Time) {
        if tokens == 0 {
            return;
        }
        metrics.answer_tokens.inc_by(tokens as u64);
        let (intervals, since) = match self.last.replace(now) {
            Some(last) => (tokens, now.since(last)),
            None => (tokens - 1, Duration::ZERO),
        };
        let each = since.as_secs_f64() / tokens as f64;
        (0..intervals).for_each(|_| metrics.between_tokens.observe(each));
    }
}

/// Registers the metrics of all engines of `served` with `observer`. Models come and go, so they are read each time.
pub(crate) fn observe(served: &Served, observer: &Observer) {
    observer.collect(Engines(served.clone()));
}

/// Metrics of all engines, with the current numbers of running and waiting sequences.
#[derive(Debug)]
struct Engines(Served);

/// A gauge of one model: name, help, current value.
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

#[cfg(test)]
mod tests {
    use libp2p::PeerId;
    use pangea_compute::Digest;
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use tokio::sync::watch;

    use super::*;
    use crate::observe::Format;
    use crate::pool::{ModelAdvert, ModelSize, View, advert_of};

    /// A view in which one peer serves models with these names.
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

    #[test]
    fn tokens_are_counted_as_they_come_with_the_time_between_them() {
        let metrics = EngineMetrics::default();
        let (mut one, mut other) = (TokenTimes::default(), TokenTimes::default());
        let at = |millis| Time::since_epoch(Duration::from_millis(millis));
        one.came(&metrics, 1, at(1000));
        other.came(&metrics, 0, at(1000));
        // Two tokens that were drafted come together.
        one.came(&metrics, 2, at(1400));
        other.came(&metrics, 1, at(9000));
        one.came(&metrics, 1, at(1430));
        assert_eq!(metrics.answer_tokens.get(), 5);
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register("between", "", metrics.between_tokens.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for sample in [
            "between_count 3",
            "between_bucket{le=\"0.025\"} 0",
            "between_bucket{le=\"0.05\"} 1",
            "between_bucket{le=\"0.25\"} 3",
        ] {
            assert!(text.lines().any(|line| line == sample), "{sample} in {text}");
        }
    }

    #[tokio::test]
    async fn models_added_after_the_start_are_counted() {
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
            // A second description of the same metric is an error for readers.
            assert_eq!(count("# TYPE pangea_steps counter"), 1, "{text}");
            assert!(!text.contains(&format!("model=\"{gone}\"")), "{text}");
        }
    }
}
