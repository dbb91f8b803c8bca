//! Metrics of the models of this node: what a request adds to its engine's, and those of all models for `/metrics`.
//! `observe` owns their presentation.

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
    count(&metrics.answer_tokens, summary.answer_tokens);
    count(&metrics.drafted_tokens, summary.drafted_tokens);
    count(&metrics.accepted_tokens, summary.accepted_tokens);
    metrics.queued.observe(summary.queued.as_secs_f64());
    metrics.first_token.observe((summary.queued + summary.prompt).as_secs_f64());
    metrics.total.observe((summary.queued + summary.prompt + summary.answer).as_secs_f64());
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
