//! `/metrics`: what the engines and this API count, in Prometheus' text form. Who counts is elsewhere; nothing here adds up.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pangea_client::ErrorKind;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::App;
use super::error::ApiError;
use crate::serve::{SECONDS_BUCKETS, Served};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/metrics", get(show))
}

const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What this API counts, and where all is registered.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<PathLabels, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    path: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabels {
    path: String,
}

impl Metrics {
    /// Registers everything that is counted.
    pub(super) fn new(served: &Served) -> Metrics {
        let mut registry = Registry::with_prefix("pangea");
        let requests = Family::<RequestLabels, Counter>::default();
        let seconds = Family::<PathLabels, Histogram>::new_with_constructor(|| Histogram::new(SECONDS_BUCKETS));
        registry.register("http_requests", "Answered requests", requests.clone());
        registry.register_with_unit(
            "http_head",
            "From a request to the head of its answer",
            Unit::Seconds,
            seconds.clone(),
        );
        // Models come and go: what there is of them is asked for each time.
        registry.register_collector(Box::new(Engines(served.clone())));
        registry.register_collector(Box::new(Queues(served.clone())));
        Metrics { registry, requests, seconds }
    }
}

/// What the engines count.
#[derive(Debug)]
struct Engines(Served);

impl Collector for Engines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode_metrics(&mut encoder)
    }
}

/// How many sequences run and wait at this moment.
#[derive(Debug)]
struct Queues(Served);

impl Collector for Queues {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let models = self.0.list();
        for (name, help, value) in [
            (
                "sequences_running",
                "Sequences being computed",
                (|model| model.running) as fn(&crate::serve::ServedModel) -> usize,
            ),
            ("sequences_waiting", "Sequences in the queue", |model| model.waiting),
        ] {
            let gauge = ConstGauge::new(0i64);
            let mut described = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for model in &models {
                let labels = [("model", model.name.as_str())];
                let gauge = ConstGauge::new(value(model) as i64);
                gauge.encode(described.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Everything that is counted.
async fn show(State(app): State<App>) -> Result<Response, ApiError> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &app.metrics.registry)
        .map_err(|error| ApiError::new(ErrorKind::Internal, format!("the metrics cannot be written: {error}")))?;
    let mut response = text.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT));
    Ok(response)
}

/// Counts a request; what is asked for under no known path counts as one path.
pub(super) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let since = Instant::now();
    let response = next.run(request).await;
    app.metrics.seconds.get_or_create(&PathLabels { path: path.clone() }).observe(since.elapsed().as_secs_f64());
    app.metrics.requests.get_or_create(&RequestLabels { path, status: response.status().as_u16() }).inc();
    response
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use libp2p::PeerId;
    use pangea_compute::Digest;
    use tokio::sync::watch;

    use super::*;
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
        let metrics = Metrics::new(&served);
        for (names, gone) in [(&["first"][..], "second"), (&["first", "second"], "third"), (&["second"], "first")] {
            let (_, pool) = watch::channel(view(names));
            served.clone().follow(pool).await;
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &metrics.registry).unwrap();
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
