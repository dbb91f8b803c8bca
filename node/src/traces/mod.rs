//! Traces: which part of the pool worked on a request, when and for how long, as spans that an OpenTelemetry collector gets
//! (OTLP over HTTP). Off unless `--traces` or the standard variables name a collector; then no span is made anywhere.
//!
//! | file | owns |
//! |---|---|
//! | here | the spans' target, their way to and from other nodes, the tracer of a node |
//! | `exporter`, `http_client` | sending spans, and what is said and counted when that fails |
//! | `queue` | the spans that wait to be sent, at most so many |
//! | `sampler` | which traces are recorded, and how many of those that others ask for |
//!
//! Other rooms hold spans of `tracing`, of a target that the log never shows. A trace begins at an entrance, where a client asks
//! for something (`entrance!`); everywhere else a span is the child of another one (`child!`), or of what travelled here
//! from another node ([`following`]), or it is none. [`context`] gives what travels to another node. A span holds sizes,
//! counts, names and ids, and never a prompt, a text, a key or a value of an operand.
//!
//! A span ends when everybody has dropped it, its children too; [`end`] ends one earlier.

mod exporter;
mod http_client;
mod queue;
mod sampler;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use pangea_client::{Error, ErrorKind, Result};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::observe::Observer;
use crate::wire::TraceParent;
use exporter::Exporter;
use http_client::Client;
use queue::Queue;

/// Target of all spans of traces and of their events.
pub const TARGET: &str = "pangea::trace";

/// Name of the header that carries a context.
pub const HEADER: &str = "traceparent";

/// Time for the last spans to be sent when the node ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// A span of this node with which a trace begins, unless [`follow`] makes it part of another one.
macro_rules! entrance {
    ($name:literal $(, $($fields:tt)*)?) => {
        tracing::info_span!(target: $crate::traces::TARGET, parent: None, $name $(, $($fields)*)?)
    };
}
pub(crate) use entrance;

/// A span that is a part of `parent`; none if that is none.
macro_rules! child {
    ($parent:expr, $name:literal $(, $($fields:tt)*)?) => {{
        let parent: &tracing::Span = $parent;
        if parent.is_disabled() {
            tracing::Span::none()
        } else {
            tracing::info_span!(target: $crate::traces::TARGET, parent: parent, $name $(, $($fields)*)?)
        }
    }};
}
pub(crate) use child;

/// A moment within a span.
macro_rules! moment {
    ($span:expr, $name:literal $(, $($fields:tt)+)?) => {{
        let span: &tracing::Span = $span;
        if !span.is_disabled() {
            tracing::info!(target: $crate::traces::TARGET, parent: span, $({ $($fields)+ },)? $name);
        }
    }};
}
pub(crate) use moment;

/// What travels to another node so that its spans become children of `span`; `None` without traces.
pub fn context(span: &Span) -> Option<TraceParent> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let of_span = span.span_context();
    TraceParent::new(of_span.trace_id().to_bytes(), of_span.span_id().to_bytes(), of_span.is_sampled())
}

/// The span that `entrance` makes, as a child of the span on another node that `parent` names; none where that node traces
/// nothing: what others ask for begins no trace here.
pub fn following(parent: Option<TraceParent>, entrance: impl FnOnce() -> Span) -> Span {
    if parent.is_none() {
        return Span::none();
    }
    let span = entrance();
    follow(&span, parent);
    span
}

/// Makes `span`, which was just made, a child of the span elsewhere that `parent` names, if it names one.
pub fn follow(span: &Span, parent: Option<TraceParent>) {
    set_parent(span, parent, true);
}

/// As [`follow`], for a parent that is this node's own: the traces that others ask for are limited, this one is not.
pub fn follow_own(span: &Span, parent: Option<TraceParent>) {
    set_parent(span, parent, false);
}

fn set_parent(span: &Span, parent: Option<TraceParent>, is_remote: bool) {
    let Some(parent) = parent.filter(|_| !span.is_disabled()) else { return };
    let flags = TraceFlags::default().with_sampled(parent.is_sampled());
    let (trace, of_span) = (TraceId::from_bytes(parent.trace()), SpanId::from_bytes(parent.span()));
    let context = SpanContext::new(trace, of_span, flags, is_remote, TraceState::NONE);
    // Fails for a span that has begun already; it then stays where it is.
    let _ = span.set_parent(Context::new().with_remote_span_context(context));
}

/// Ends a span now, whoever holds it longer.
pub fn end(span: &Span) {
    span.in_scope(|| {});
}

/// Notes a fact about what a span did.
pub fn set(span: &Span, name: &'static str, value: impl Into<Value>) {
    span.set_attribute(name, value);
}

/// Gives a span a name that is known only when it runs. Names are few: a route has one, a path does not.
pub fn named(span: &Span, name: String) {
    span.record("otel.name", name);
}

/// Notes that what a span did failed.
pub fn failed(span: &Span, kind: ErrorKind) {
    failed_with(span, kind.name());
}

/// Notes that what a span did failed, and how others name that.
pub fn failed_with(span: &Span, error: impl Into<Value>) {
    span.set_attribute("error.type", error);
    span.set_status(Status::error(""));
}

/// Where spans go, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// URL that batches of spans are posted to.
    pub endpoint: String,
    /// Share of the traces that begin here that are recorded, 0 to 1.
    pub ratio: f64,
}

/// Number of spans by what became of them. Clones share it.
#[derive(Clone, Debug)]
pub struct SpanCounts(Family<Outcome, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl SpanCounts {
    const OUTCOMES: [&'static str; 4] = ["sent", "failed", "dropped", "capped"];

    /// Registers the metric with `observer`.
    pub fn new(observer: &Observer) -> SpanCounts {
        let known = SpanCounts::OUTCOMES.map(|outcome| Outcome { outcome });
        SpanCounts(observer.counters("trace_spans", "Spans of traces, by what became of them", known))
    }

    fn add(&self, outcome: &'static str, spans: usize) {
        self.0.get_or_create(&Outcome { outcome }).inc_by(spans as u64);
    }
}

/// The tracer of a node before its identity is known: it makes spans and sends none.
pub struct Traces {
    provider: SdkTracerProvider,
    exporter: SpanExporter,
    running: Arc<OnceLock<Running>>,
}

/// What spans are sent with.
#[derive(Debug)]
struct Running {
    exporter: SpanExporter,
    counts: SpanCounts,
}

impl Running {
    fn count(running: &OnceLock<Running>, outcome: &'static str, spans: usize) {
        if let Some(running) = running.get() {
            running.counts.add(outcome, spans);
        }
    }
}

impl Traces {
    /// A tracer with these settings. Nothing is sent yet, and no collector needs to be there.
    ///
    /// # Errors
    /// `InvalidInput` if the settings, or the standard variables beside them, cannot be used.
    pub fn new(settings: &TraceSettings) -> Result<Traces> {
        let client = Client::new(&settings.endpoint)?;
        let trouble = client.trouble();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(settings.endpoint.as_str())
            .build()
            .map_err(|error| Error::new(ErrorKind::InvalidInput, format!("traces cannot be sent: {error}")))?;
        let (running, waiting) = (Arc::<OnceLock<Running>>::default(), Arc::<AtomicUsize>::default());
        let sending = Exporter::new(settings.endpoint.clone(), Arc::clone(&running), Arc::clone(&waiting), trouble);
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampler::sampler(settings.ratio, &running))
            .with_span_processor(Queue::new(sending, Arc::clone(&running), waiting))
            .build();
        Ok(Traces { provider, exporter, running })
    }

    /// What the subscriber of the process needs so that spans are made.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        layer(&self.provider)
    }

    /// Sends spans from now on as those of this node.
    pub fn started(self, peer: &str, counts: SpanCounts) -> RunningTraces {
        let Traces { provider, mut exporter, running } = self;
        opentelemetry_sdk::trace::SpanExporter::set_resource(&mut exporter, &resource(peer));
        // There is one node in a process, and this is called once.
        let _ = running.set(Running { exporter, counts });
        RunningTraces { provider }
    }
}

/// The tracer of a running node.
pub struct RunningTraces {
    provider: SdkTracerProvider,
}

impl RunningTraces {
    /// Sends what waits, within a bounded time, and ends. Blocks.
    pub fn shutdown(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::debug!(event = "traces_not_flushed", %error);
        }
    }
}

fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("pangea"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false)
        .with_filter(Targets::new().with_target(TARGET, Level::INFO))
}

/// What a collector reads of the node that a span comes from. The standard variables win, except over the node's own id.
fn resource(peer: &str) -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let of_node = Resource::builder_empty()
        .with_service_name("pangea")
        .with_attribute(version)
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    let named = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let of_node = match named {
        Some(name) => of_node.with_service_name(name),
        None => of_node,
    };
    of_node.with_attribute(KeyValue::new("service.instance.id", peer.to_owned())).build()
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// What `test` gives where spans are made and a share of `ratio` of the traces is recorded.
    fn traced<T>(ratio: f64, test: impl FnOnce() -> T) -> T {
        let provider = SdkTracerProvider::builder().with_sampler(sampler::sampler(ratio, &Arc::default())).build();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer(&provider)), test)
    }

    #[test]
    fn a_span_follows_what_travelled_here_and_its_children_stay_in_the_trace() {
        traced(0.0, || {
            let parent = TraceParent::parse(PARENT);
            let span = entrance!("task");
            follow(&span, parent);
            let child = child!(&span, "compute");
            let [of_span, of_child] = [&span, &child].map(|span| context(span).unwrap());
            assert_eq!([of_span.trace(), of_child.trace()], [parent.unwrap().trace(); 2]);
            assert!(of_span.is_sampled() && of_child.is_sampled(), "the parent says that the trace is recorded");
            assert!(of_span.span() != parent.unwrap().span() && of_span.span() != of_child.span());
        });
    }

    #[test]
    fn what_is_not_recorded_elsewhere_is_not_recorded_here() {
        traced(1.0, || {
            let span = entrance!("task");
            follow(&span, TraceParent::parse(&PARENT.replace("-01", "-00")));
            assert!(!context(&span).unwrap().is_sampled());
            assert!(context(&entrance!("task")).unwrap().is_sampled(), "a trace of this node's own");
        });
        traced(0.0, || assert!(!context(&entrance!("task")).unwrap().is_sampled()));
    }

    #[test]
    fn a_span_without_a_parent_begins_a_trace_and_without_traces_nothing_travels() {
        traced(1.0, || {
            let [one, two] = ["one", "two"].map(|_| context(&entrance!("task")).unwrap());
            assert_ne!(one.trace(), two.trace());
            assert_eq!(
                context(&tracing::info_span!("of the log")),
                None,
                "spans of another target are none of a trace"
            );
        });
        let span = entrance!("task");
        follow(&span, TraceParent::parse(PARENT));
        assert_eq!(context(&span), None);
    }

    #[test]
    fn what_a_node_without_traces_asks_for_begins_none() {
        traced(1.0, || {
            let span = following(None, || entrance!("task"));
            assert_eq!((context(&span), context(&child!(&span, "compute"))), (None, None));
            assert!(context(&following(TraceParent::parse(PARENT), || entrance!("task"))).is_some());
        });
    }

    #[test]
    fn others_have_only_so_many_traces_recorded_here() {
        traced(0.0, || {
            let recorded = |number: u64, follow: fn(&Span, Option<TraceParent>)| {
                let span = entrance!("task");
                follow(&span, TraceParent::new([1; 16], number.to_be_bytes(), true));
                context(&span).unwrap().is_sampled()
            };
            let most = 2 * sampler::OTHERS.burst as u64;
            let taken = (1..=most).filter(|number| recorded(*number, follow)).count() as u64;
            assert!(taken >= most / 2 && taken < most, "{taken} of {most}");
            assert!(recorded(1, follow_own), "this node's own are not limited");
        });
    }
}
