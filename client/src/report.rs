//! The report of a finished job: what `pangea matmul --json` shows, and its wire form. Plain values.

use pangea_schema::job_capnp::{job_report, rejection, task_counts, verification, worker_share};
use serde::Serialize;

use crate::text::string;

/// The report of a finished job.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct JobReport {
    /// `[m, k, n]`: the result is `[m, n]`, and each element of it sums over k; k is 1 where nothing is summed.
    pub shape: [usize; 3],
    /// Dtype of the result.
    pub dtype: String,
    /// Seconds from the operands being at the accepting node to the whole, checked product being there.
    pub seconds: f64,
    /// Additions and multiplications (`2·m·k·n` of a product) per second, in 10⁹.
    pub gflops: f64,
    /// Counts of tasks.
    pub tasks: TaskCounts,
    /// The workers whose results were accepted.
    pub workers: Vec<WorkerShare>,
    /// Tensor bytes sent to peers.
    pub bytes_sent: u64,
    /// Tensor bytes received from peers.
    pub bytes_received: u64,
    /// The checks of the result and their verdict.
    pub verification: Verification,
    /// `local`, `remote` or `mixed`.
    pub mode: String,
    /// The plan's prediction of `seconds`.
    pub predicted_seconds: f64,
}

/// Counts of a job's tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TaskCounts {
    /// Tasks of the job.
    pub total: u32,
    /// Tasks whose accepted result came from a peer.
    pub remote: u32,
    /// Tasks that the accepting node computed.
    pub local: u32,
    /// Attempts after a failure or a failed check.
    pub retried: u32,
    /// Second attempts because the first was late.
    pub hedged: u32,
}

/// One worker's part in a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WorkerShare {
    /// Peer id of the worker; the accepting node's own id for local tasks.
    pub peer: String,
    /// Name that the worker gives itself.
    pub name: String,
    /// Tasks whose result was accepted.
    pub tasks: u32,
    /// Compute time of those tasks in seconds, as the worker reports it.
    pub seconds: f64,
}

/// How a result was checked.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verification {
    /// Method, such as `freivalds-f64+tiles`; `none` where all tasks were local and no check was requested.
    pub method: String,
    /// Verdict of the weakest part: `local`, `verified`, `tolerance-checked` or `unchecked`.
    pub verdict: String,
    /// Results that failed a check in this job.
    pub rejected: Vec<Rejection>,
    /// Seconds that the checks took on the accepting node.
    pub seconds: f64,
}

/// A result that failed its check.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rejection {
    /// The peer that sent the result.
    pub peer: String,
    /// What differed, with the figures.
    pub why: String,
}

impl JobReport {
    /// Reads the wire form.
    pub fn from_wire(wire: job_report::Reader<'_>) -> capnp::Result<JobReport> {
        Ok(JobReport {
            shape: [wire.get_m() as usize, wire.get_k() as usize, wire.get_n() as usize],
            dtype: string(wire.get_dtype()?)?,
            seconds: wire.get_seconds(),
            gflops: wire.get_gflops(),
            tasks: TaskCounts::from_wire(wire.get_tasks()?),
            workers: wire.get_workers()?.iter().map(WorkerShare::from_wire).collect::<capnp::Result<_>>()?,
            bytes_sent: wire.get_bytes_sent(),
            bytes_received: wire.get_bytes_received(),
            verification: Verification::from_wire(wire.get_verification()?)?,
            mode: string(wire.get_mode()?)?,
            predicted_seconds: wire.get_predicted_seconds(),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: job_report::Builder<'_>) {
        let [m, k, n] = self.shape;
        wire.set_m(m as u64);
        wire.set_k(k as u64);
        wire.set_n(n as u64);
        wire.set_dtype(&self.dtype);
        wire.set_seconds(self.seconds);
        wire.set_gflops(self.gflops);
        self.tasks.to_wire(wire.reborrow().init_tasks());
        let mut workers = wire.reborrow().init_workers(self.workers.len() as u32);
        for (index, worker) in self.workers.iter().enumerate() {
            worker.to_wire(workers.reborrow().get(index as u32));
        }
        wire.set_bytes_sent(self.bytes_sent);
        wire.set_bytes_received(self.bytes_received);
        self.verification.to_wire(wire.reborrow().init_verification());
        wire.set_mode(&self.mode);
        wire.set_predicted_seconds(self.predicted_seconds);
    }

    /// Adds the report of another block of the same product: counts, times and bytes add up, the weaker
    /// verdict remains, `shape` stays.
    pub fn absorb(&mut self, block: &JobReport) {
        self.seconds += block.seconds;
        self.predicted_seconds += block.predicted_seconds;
        let [m, k, n] = self.shape.map(|extent| extent as f64);
        self.gflops = if self.seconds > 0.0 { 2.0 * m * k * n / self.seconds / 1e9 } else { 0.0 };
        self.tasks.total += block.tasks.total;
        self.tasks.remote += block.tasks.remote;
        self.tasks.local += block.tasks.local;
        self.tasks.retried += block.tasks.retried;
        self.tasks.hedged += block.tasks.hedged;
        for share in &block.workers {
            match self.workers.iter_mut().find(|worker| worker.peer == share.peer) {
                Some(worker) => {
                    worker.tasks += share.tasks;
                    worker.seconds += share.seconds;
                }
                None => self.workers.push(share.clone()),
            }
        }
        self.bytes_sent += block.bytes_sent;
        self.bytes_received += block.bytes_received;
        self.verification.absorb(&block.verification);
        if self.mode != block.mode {
            self.mode = "mixed".into();
        }
    }
}

/// Verdicts of parts of a product, strongest first (DESIGN §6).
const VERDICTS: [&str; 5] = ["local", "verified", "audited", "tolerance-checked", "unchecked"];

impl Verification {
    fn absorb(&mut self, block: &Verification) {
        // An unknown verdict counts as the weakest.
        let weakness = |verdict: &str| VERDICTS.iter().position(|known| *known == verdict).unwrap_or(VERDICTS.len());
        if weakness(&block.verdict) > weakness(&self.verdict) {
            self.verdict.clone_from(&block.verdict);
            self.method.clone_from(&block.method);
        }
        self.rejected.extend(block.rejected.iter().cloned());
        self.seconds += block.seconds;
    }

    fn from_wire(wire: verification::Reader<'_>) -> capnp::Result<Verification> {
        Ok(Verification {
            method: string(wire.get_method()?)?,
            verdict: string(wire.get_verdict()?)?,
            rejected: wire.get_rejected()?.iter().map(Rejection::from_wire).collect::<capnp::Result<_>>()?,
            seconds: wire.get_seconds(),
        })
    }

    fn to_wire(&self, mut wire: verification::Builder<'_>) {
        wire.set_method(&self.method);
        wire.set_verdict(&self.verdict);
        let mut rejected = wire.reborrow().init_rejected(self.rejected.len() as u32);
        for (index, rejection) in self.rejected.iter().enumerate() {
            let mut wire = rejected.reborrow().get(index as u32);
            wire.set_peer(&rejection.peer);
            wire.set_why(&rejection.why);
        }
        wire.set_seconds(self.seconds);
    }
}

impl Rejection {
    fn from_wire(wire: rejection::Reader<'_>) -> capnp::Result<Rejection> {
        Ok(Rejection { peer: string(wire.get_peer()?)?, why: string(wire.get_why()?)? })
    }
}

impl TaskCounts {
    fn from_wire(wire: task_counts::Reader<'_>) -> TaskCounts {
        TaskCounts {
            total: wire.get_total(),
            remote: wire.get_remote(),
            local: wire.get_local(),
            retried: wire.get_retried(),
            hedged: wire.get_hedged(),
        }
    }

    fn to_wire(self, mut wire: task_counts::Builder<'_>) {
        wire.set_total(self.total);
        wire.set_remote(self.remote);
        wire.set_local(self.local);
        wire.set_retried(self.retried);
        wire.set_hedged(self.hedged);
    }
}

impl WorkerShare {
    fn from_wire(wire: worker_share::Reader<'_>) -> capnp::Result<WorkerShare> {
        Ok(WorkerShare {
            peer: string(wire.get_peer()?)?,
            name: string(wire.get_name()?)?,
            tasks: wire.get_tasks(),
            seconds: wire.get_seconds(),
        })
    }

    fn to_wire(&self, mut wire: worker_share::Builder<'_>) {
        wire.set_peer(&self.peer);
        wire.set_name(&self.name);
        wire.set_tasks(self.tasks);
        wire.set_seconds(self.seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(peer: &str, verdict: &str, mode: &str) -> JobReport {
        JobReport {
            shape: [10, 20, 30],
            seconds: 1.0,
            tasks: TaskCounts { total: 2, remote: 1, local: 1, retried: 3, hedged: 4 },
            workers: vec![WorkerShare { peer: peer.into(), name: "n".into(), tasks: 2, seconds: 0.5 }],
            bytes_sent: 100,
            verification: Verification {
                method: format!("for {verdict}"),
                verdict: verdict.into(),
                rejected: vec![Rejection { peer: peer.into(), why: "off".into() }],
                seconds: 0.25,
            },
            mode: mode.into(),
            ..JobReport::default()
        }
    }

    #[test]
    fn blocks_add_up_and_the_weakest_verdict_stands() {
        let mut whole = block("a", "verified", "remote");
        whole.absorb(&block("b", "tolerance-checked", "remote"));
        assert_eq!(whole.mode, "remote");
        whole.absorb(&block("a", "local", "local"));
        assert_eq!((whole.seconds, whole.bytes_sent, whole.shape), (3.0, 300, [10, 20, 30]));
        assert_eq!((whole.tasks.total, whole.tasks.hedged), (6, 12));
        assert!((whole.gflops - 2.0 * 6000.0 / 3.0 / 1e9).abs() < 1e-15);
        let shares: Vec<_> = whole.workers.iter().map(|worker| (worker.peer.as_str(), worker.tasks)).collect();
        assert_eq!(shares, [("a", 4), ("b", 2)]);
        assert_eq!(whole.verification.verdict, "tolerance-checked");
        assert_eq!(whole.verification.method, "for tolerance-checked");
        assert_eq!((whole.verification.rejected.len(), whole.verification.seconds), (3, 0.75));
        assert_eq!(whole.mode, "mixed");
    }

    #[test]
    fn a_report_survives_the_way() {
        let report = block("a", "verified", "mixed");
        let mut message = capnp::message::Builder::new_default();
        report.to_wire(message.init_root());
        let wire = message.get_root_as_reader().and_then(JobReport::from_wire);
        assert_eq!(wire.unwrap(), report);
    }
}
