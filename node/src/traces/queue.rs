//! The spans that have ended and wait to be sent. A span that finds the queue full is dropped and counted; nothing that makes
//! spans ever waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};

use super::Running;

/// Spans that wait or are being sent: a span takes about a kilobyte, and a busy node makes some hundred a second.
pub(super) const WAITING_MAX: usize = 4096;

/// Spans of one request to the collector.
const BATCH_MAX: usize = 512;

/// Time after which spans are sent that do not fill a batch.
const SEND_INTERVAL: Duration = Duration::from_secs(1);

/// A processor in front of the library's own, which counts what it drops for itself alone.
#[derive(Debug)]
pub(super) struct Queue {
    inner: BatchSpanProcessor,
    running: Arc<OnceLock<Running>>,
    /// Spans that were passed on and are not sent yet; the exporter takes off what it has sent.
    waiting: Arc<AtomicUsize>,
}

impl Queue {
    pub(super) fn new<E: SpanExporter + 'static>(
        exporter: E,
        running: Arc<OnceLock<Running>>,
        waiting: Arc<AtomicUsize>,
    ) -> Queue {
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(WAITING_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(SEND_INTERVAL)
            .build();
        Queue { inner: BatchSpanProcessor::new(exporter, config), running, waiting }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            Running::count(&self.running, "dropped", 1);
            return;
        }
        self.inner.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, sync_channel};

    use opentelemetry::trace::{Tracer, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;
    use crate::observe::{Format, Observer};
    use crate::traces::{SpanCounts, TraceSettings, Traces};

    /// A collector that takes nothing until it is let go.
    #[derive(Debug)]
    struct Stuck(Mutex<Receiver<()>>);

    impl SpanExporter for Stuck {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            // Ends with the sender.
            let _ = self.0.lock().unwrap().recv();
            Ok(())
        }
    }

    #[test]
    fn spans_beyond_what_may_wait_are_dropped_and_counted_and_nobody_waits() {
        let observer = Observer::default();
        let counts = SpanCounts::new(&observer);
        let settings = TraceSettings { endpoint: "http://127.0.0.1:1/v1/traces".to_owned(), ratio: 1.0 };
        let traces = Traces::new(&settings).unwrap();
        let running = Arc::clone(&traces.running);
        let _running = traces.started("peer", counts);
        let (go, wait) = sync_channel(1);
        let queue = Queue::new(Stuck(Mutex::new(wait)), running, Arc::default());
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        let tracer = provider.tracer("test");
        for _ in 0..WAITING_MAX + 10 {
            drop(tracer.start("span"));
        }
        let text = observer.text(Format::Prometheus).unwrap();
        assert!(text.contains("pangea_trace_spans_total{outcome=\"dropped\"} 10\n"), "{text}");
        drop(go);
        assert!(provider.shutdown().is_ok());
    }
}
