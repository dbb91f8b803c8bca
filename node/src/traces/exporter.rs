//! Sends spans, on the queue's own thread. What cannot be sent is lost and counted; the log says so once, and once more when
//! spans are sent again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::Running;
use super::http_client::Trouble;

/// An exporter in front of the library's own.
#[derive(Debug)]
pub(super) struct Exporter {
    endpoint: String,
    running: Arc<OnceLock<Running>>,
    waiting: Arc<AtomicUsize>,
    /// Why the last request failed, if it did.
    trouble: Trouble,
    is_failing: AtomicBool,
}

impl Exporter {
    pub(super) fn new(
        endpoint: String,
        running: Arc<OnceLock<Running>>,
        waiting: Arc<AtomicUsize>,
        trouble: Trouble,
    ) -> Exporter {
        Exporter { endpoint, running, waiting, trouble, is_failing: AtomicBool::new(false) }
    }

    fn note(&self, result: &OTelSdkResult) {
        let endpoint = &self.endpoint;
        match result {
            Ok(()) if self.is_failing.swap(false, Ordering::Relaxed) => {
                tracing::info!(event = "traces_sent", endpoint, "Traces are sent to {endpoint} again");
            }
            Err(error) if !self.is_failing.swap(true, Ordering::Relaxed) => {
                let why = self.trouble.take().unwrap_or_else(|| error.to_string());
                tracing::warn!(
                    event = "traces_not_sent",
                    endpoint,
                    why,
                    "cannot send traces to {endpoint}: {why}; their spans are lost until it answers. Start a collector there, or \
                     leave out --traces"
                );
            }
            _ => {}
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = match self.running.get() {
            Some(running) => running.exporter.export(batch).await,
            // No part of a node runs yet that makes spans.
            None => Err(OTelSdkError::InternalFailure("the node has not started".to_owned())),
        };
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        Running::count(&self.running, if result.is_ok() { "sent" } else { "failed" }, spans);
        self.note(&result);
        result
    }
}
