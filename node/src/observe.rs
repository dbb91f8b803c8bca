//! The metrics of a node and their text forms. The owner of a metric declares its name, help and type in one call to
//! the [`Observer`], next to the code that counts and logs. There is no central list of metrics.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper bounds of the buckets of every histogram of durations, in seconds: from a cached first token to a long answer.
pub const SECONDS_BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// Upper bounds of the buckets of a histogram of times between tokens, in seconds: from a small model on one machine to a large one
/// over a slow link.
pub const TOKEN_SECONDS_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Upper bounds of the buckets of a histogram of measured by predicted times: close together around 1, where a prediction is right.
pub const RATIO_BUCKETS: [f64; 11] = [0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.333, 2.0, 4.0, 10.0, 30.0];

/// The content type of [`Format::OpenMetrics`].
const OPEN_METRICS: &str = "application/openmetrics-text";

/// Label set of a metric.
pub trait Labels: EncodeLabelSet + Clone + fmt::Debug + Eq + std::hash::Hash + Send + Sync + 'static {}

impl<L: EncodeLabelSet + Clone + fmt::Debug + Eq + std::hash::Hash + Send + Sync + 'static> Labels for L {}

/// All metrics of a node. Clones share them.
#[derive(Clone)]
pub struct Observer(Arc<Mutex<Registry>>);

impl Default for Observer {
    fn default() -> Self {
        Observer(Arc::new(Mutex::new(Registry::with_prefix("pangea"))))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

impl Observer {
    /// Registers a counter. Its sample is named `pangea_<name>_total`.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.registry().register(name, help, counter.clone());
        counter
    }

    /// Registers a family of counters, one for each set of labels. Those of the `known` sets are there from the start, at 0: what
    /// reads them sees the first event as well. Only where nobody can list the sets, `known` is empty.
    pub fn counters<L: Labels>(
        &self,
        name: &str,
        help: &str,
        known: impl IntoIterator<Item = L>,
    ) -> Family<L, Counter> {
        let counters = Family::default();
        known.into_iter().for_each(|labels| drop(counters.get_or_create(&labels)));
        self.registry().register(name, help, counters.clone());
        counters
    }

    /// Registers a family of histograms of seconds, one for each set of labels. Their samples are named
    /// `pangea_<name>_seconds_…`.
    pub fn durations<L: Labels>(&self, name: &str, help: &str) -> Family<L, Histogram> {
        let durations = Family::<L, Histogram>::new_with_constructor(|| Histogram::new(SECONDS_BUCKETS));
        self.registry().register_with_unit(name, help, Unit::Seconds, durations.clone());
        durations
    }

    /// Registers a family of histograms of ratios, measured by predicted, one for each set of labels; those of the `known` sets are
    /// there from the start. Their samples are named `pangea_<name>_ratio_…`.
    pub fn ratios<L: Labels>(
        &self,
        name: &str,
        help: &str,
        known: impl IntoIterator<Item = L>,
    ) -> Family<L, Histogram> {
        let ratios = Family::<L, Histogram>::new_with_constructor(|| Histogram::new(RATIO_BUCKETS));
        known.into_iter().for_each(|labels| drop(ratios.get_or_create(&labels)));
        self.registry().register_with_unit(name, help, Unit::Other("ratio".to_owned()), ratios.clone());
        ratios
    }

    /// Registers a gauge. `read` is called at each scrape.
    pub fn gauge(&self, name: &'static str, help: &'static str, read: impl Fn() -> f64 + Send + Sync + 'static) {
        self.read(name, help, ConstGauge::new(0.0).metric_type(), move |metric| ConstGauge::new(read()).encode(metric));
    }

    /// Registers a family of gauges, one for each set of labels. `read` is called at each scrape.
    pub fn gauges<L: EncodeLabelSet>(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> Vec<(L, f64)> + Send + Sync + 'static,
    ) {
        self.read(name, help, ConstGauge::new(0.0).metric_type(), move |mut metric| {
            for (labels, value) in read() {
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
            Ok(())
        });
    }

    /// Registers a counter whose value is kept elsewhere and never falls. `read` is called at each scrape. Its sample
    /// is named `pangea_<name>_total`.
    pub fn count(&self, name: &'static str, help: &'static str, read: impl Fn() -> u64 + Send + Sync + 'static) {
        self.read(name, help, ConstCounter::new(0u64).metric_type(), move |metric| {
            ConstCounter::new(read()).encode(metric)
        });
    }

    /// Registers a family of counters whose values are kept elsewhere and never fall while their set of labels is there. `read` is
    /// called at each scrape.
    pub fn counts<L: EncodeLabelSet>(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> Vec<(L, u64)> + Send + Sync + 'static,
    ) {
        self.read(name, help, ConstCounter::new(0u64).metric_type(), move |mut metric| {
            for (labels, value) in read() {
                ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
            }
            Ok(())
        });
    }

    fn read(
        &self,
        name: &'static str,
        help: &'static str,
        metric_type: MetricType,
        write: impl Fn(MetricEncoder<'_>) -> fmt::Result + Send + Sync + 'static,
    ) {
        self.collect(Reading { name, help, metric_type, write: Box::new(write) });
    }

    /// Registers a collector, which is called at each scrape, for metrics whose label sets come and go.
    pub fn collect(&self, collector: impl Collector) {
        self.registry().register_collector(Box::new(collector));
    }

    /// All metrics as text in `format`.
    ///
    /// # Errors
    /// If a collector fails.
    pub fn text(&self, format: Format) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry())?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Prometheus => to_prometheus(&text),
        })
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A metric whose samples are read at each scrape.
struct Reading {
    name: &'static str,
    help: &'static str,
    metric_type: MetricType,
    write: Box<dyn Fn(MetricEncoder<'_>) -> fmt::Result + Send + Sync>,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reading of {}", self.name)
    }
}

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (name, unit) = unit_of(self.name);
        (self.write)(encoder.encode_descriptor(name, self.help, unit.as_ref(), self.metric_type)?)
    }
}

/// The unit that a name ends with, and the name without it.
fn unit_of(name: &str) -> (&str, Option<Unit>) {
    [("_bytes", Unit::Bytes), ("_seconds", Unit::Seconds)]
        .into_iter()
        .find_map(|(suffix, unit)| Some((name.strip_suffix(suffix)?, Some(unit))))
        .unwrap_or((name, None))
}

/// The text forms of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus, which every tool reads.
    Prometheus,
}

impl Format {
    /// The form that a client prefers according to its `Accept` header (RFC 9110, section 12.5.1).
    pub fn accepted(accept: Option<&str>) -> Format {
        let quality = |wanted: &str| {
            let mut best = 0.0f32;
            for range in accept.unwrap_or_default().split(',') {
                let mut parts = range.split(';').map(str::trim);
                if parts.next().is_some_and(|media| media.eq_ignore_ascii_case(wanted)) {
                    let quality = parts.find_map(|parameter| parameter.strip_prefix("q=")?.parse().ok());
                    best = best.max(quality.unwrap_or(1.0));
                }
            }
            best
        };
        let open = quality(OPEN_METRICS);
        if open > 0.0 && open >= quality("text/plain") { Format::OpenMetrics } else { Format::Prometheus }
    }

    /// The `Content-Type` header of the form.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Converts OpenMetrics text to Prometheus text, in which a counter has the name of its samples and neither a unit nor
/// the end of the text is marked.
fn to_prometheus(open_metrics: &str) -> String {
    let mut counters = std::collections::BTreeSet::new();
    for line in open_metrics.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" counter")) {
            counters.insert(name);
        }
    }
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let described = ["# HELP ", "# TYPE "].iter().find_map(|kind| {
            let (name, rest) = line.strip_prefix(kind)?.split_once(' ')?;
            counters.contains(name).then(|| format!("{kind}{name}_total {rest}"))
        });
        text.push_str(described.as_deref().unwrap_or(line));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    struct Outcome {
        outcome: &'static str,
    }

    fn observed() -> Observer {
        let observer = Observer::default();
        observer.counter("births", "Nodes born").inc_by(3);
        let known = ["done", "failed"].map(|outcome| Outcome { outcome });
        observer.counters("jobs", "Jobs that ended", known).get_or_create(&Outcome { outcome: "done" }).inc();
        observer.durations("wait", "Time waited").get_or_create(&Outcome { outcome: "done" }).observe(0.7);
        observer.gauge("peers", "Peers there", || 2.0);
        observer.gauges("memory_bytes", "Memory held", || {
            vec![([("purpose", "weights")], 3.0), ([("purpose", "packs")], 0.0)]
        });
        observer.count("sent_bytes", "Bytes sent", || 4);
        observer.counts("link_bytes", "Bytes of a link", || vec![([("peer", "one")], 5)]);
        let ratio = observer.ratios("speed", "Measured by predicted", [Outcome { outcome: "failed" }]);
        ratio.get_or_create(&Outcome { outcome: "done" }).observe(1.2);
        observer
    }

    #[test]
    fn every_metric_has_help_and_type_in_both_forms() {
        let open = observed().text(Format::OpenMetrics).unwrap();
        assert!(open.ends_with("# EOF\n"), "{open}");
        for line in [
            "# HELP pangea_births Nodes born.",
            "# TYPE pangea_births counter",
            "pangea_births_total 3",
            "# UNIT pangea_sent_bytes bytes",
            "# UNIT pangea_memory_bytes bytes",
            "# UNIT pangea_speed_ratio ratio",
        ] {
            assert!(open.lines().any(|other| other == line), "{line} in {open}");
        }
        let text = observed().text(Format::Prometheus).unwrap();
        for line in [
            "# HELP pangea_births_total Nodes born.",
            "# TYPE pangea_births_total counter",
            "pangea_births_total 3",
            "pangea_jobs_total{outcome=\"done\"} 1",
            "pangea_jobs_total{outcome=\"failed\"} 0",
            "# TYPE pangea_wait_seconds histogram",
            "pangea_wait_seconds_bucket{le=\"1.0\",outcome=\"done\"} 1",
            "# TYPE pangea_peers gauge",
            "pangea_peers 2.0",
            "# TYPE pangea_memory_bytes gauge",
            "pangea_memory_bytes{purpose=\"weights\"} 3.0",
            "pangea_memory_bytes{purpose=\"packs\"} 0.0",
            "# HELP pangea_sent_bytes_total Bytes sent",
            "# TYPE pangea_sent_bytes_total counter",
            "pangea_sent_bytes_total 4",
            "pangea_link_bytes_total{peer=\"one\"} 5",
            "# TYPE pangea_speed_ratio histogram",
            "pangea_speed_ratio_bucket{le=\"1.333\",outcome=\"done\"} 1",
            "pangea_speed_ratio_count{outcome=\"failed\"} 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
        // Each sample belongs to the metric that was described just before it.
        let mut described = String::new();
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => described = rest.split(' ').next().unwrap().to_owned(),
                None if line.starts_with('#') => {}
                None => assert!(line.starts_with(&described), "{line} under {described}"),
            }
        }
    }

    #[test]
    fn a_client_gets_the_form_that_it_prefers_and_prometheus_text_by_default() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (None, Format::Prometheus),
            (Some("*/*"), Format::Prometheus),
            (Some("text/plain"), Format::Prometheus),
            (Some("application/openmetrics-text;q=0.2, text/plain"), Format::Prometheus),
            (Some("application/openmetrics-text;q=0"), Format::Prometheus),
            (Some("Application/OpenMetrics-Text; version=1.0.0"), Format::OpenMetrics),
            (Some(prometheus), Format::OpenMetrics),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept:?}");
        }
    }
}
