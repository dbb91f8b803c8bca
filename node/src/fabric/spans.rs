//! The spans of a product: the job as a whole, and each attempt of its tasks. Sizes and ids only; no values of operands.

use libp2p::PeerId;
use pangea_compute::TensorShape;
use pangea_control::schedule::{StartReason, Tile};
use tracing::Span;

use super::job::{JobReport, JobRequest};
use crate::traces::{self, child};

/// The span of a job, as a part of whatever asked for it.
pub(super) fn product(request: &JobRequest, output: TensorShape, job: u64) -> Span {
    let span = child!(
        &Span::current(),
        "product",
        pangea.job = job as i64,
        pangea.operation = request.operation.result_name(),
        pangea.dtype = %output.dtype
    );
    let shape = || format!("{}x{}x{}", output.rows, request.a.cols(), output.cols);
    if !span.is_disabled() {
        traces::set(&span, "pangea.shape", shape());
    }
    span
}

/// Notes how a job was done, and ends its span.
pub(super) fn done(job: &Span, report: &JobReport) {
    if job.is_disabled() {
        return;
    }
    traces::set(job, "pangea.verdict", report.verification.verdict.clone());
    traces::set(job, "pangea.mode", report.mode.clone());
    let tasks = &report.tasks;
    for (name, count) in [
        ("pangea.tasks", tasks.total),
        ("pangea.tasks.remote", tasks.remote),
        ("pangea.tasks.retried", tasks.retried),
        ("pangea.tasks.hedged", tasks.hedged),
    ] {
        traces::set(job, name, i64::from(count));
    }
    traces::end(job);
}

/// The span of an attempt of a task; `peer` is `None` for this node.
pub(super) fn task(job: &Span, tile: Tile, peer: Option<PeerId>, reason: StartReason) -> Span {
    let (band, panel) = (i64::from(tile.band), i64::from(tile.panel));
    let kind = if peer.is_some() { "client" } else { "internal" };
    let span =
        child!(job, "task", otel.kind = kind, pangea.band = band, pangea.panel = panel, pangea.reason = reason.name());
    if let Some(peer) = peer.filter(|_| !span.is_disabled()) {
        traces::set(&span, "server.address", peer.to_string());
    }
    span
}
