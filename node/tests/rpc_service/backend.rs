//! The node behind the service in these tests. It multiplies with plain loops on a thread, and can be made
//! to hold jobs back. It shows what is reserved and which jobs are cancelled.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pangea_client::{
    Error, ErrorKind, JobReport, JobStatus, LinkProbe, ModelPlan, NodeStatus, PeerStatus, Progress, Result, TaskCounts,
    Topology, Verification, WayBack, WorkerShare,
};
use pangea_compute::{DType, Tensor, TensorBuf};
use pangea_node::api::rpc::{Backend, RunningJob};
use pangea_node::fabric::job::{JobOutcome, JobRequest};
use pangea_node::pool::Members;
use tokio::sync::{oneshot, watch};

#[derive(Clone)]
pub(crate) struct PlainBackend {
    shared: Arc<Shared>,
}

struct Shared {
    memory_limit: u64,
    reserved: watch::Sender<u64>,
    cancelled: watch::Sender<u32>,
    submitted: watch::Sender<u32>,
    /// Jobs wait while it is true.
    hold: watch::Sender<bool>,
    running: Mutex<u32>,
}

pub(crate) struct Reserved {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.reserved.send_modify(|reserved| *reserved -= self.bytes);
    }
}

pub(crate) struct Cancel {
    shared: Arc<Shared>,
    cancelled: watch::Sender<bool>,
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if *self.cancelled.borrow() {
            return;
        }
        self.cancelled.send_replace(true);
        self.shared.cancelled.send_modify(|count| *count += 1);
    }
}

impl PlainBackend {
    pub(crate) fn new(memory_limit: u64) -> PlainBackend {
        PlainBackend {
            shared: Arc::new(Shared {
                memory_limit,
                reserved: watch::channel(0).0,
                cancelled: watch::channel(0).0,
                submitted: watch::channel(0).0,
                hold: watch::channel(false).0,
                running: Mutex::new(0),
            }),
        }
    }

    /// Jobs submitted from now on wait until they are released.
    pub(crate) fn hold_jobs(&self, hold: bool) {
        self.shared.hold.send_replace(hold);
    }

    pub(crate) async fn wait_reserved(&self, bytes: u64) {
        self.shared.reserved.subscribe().wait_for(|reserved| *reserved == bytes).await.unwrap();
    }

    pub(crate) async fn wait_submitted(&self, jobs: u32) {
        self.shared.submitted.subscribe().wait_for(|count| *count >= jobs).await.unwrap();
    }

    pub(crate) async fn wait_cancelled(&self, jobs: u32) {
        self.shared.cancelled.subscribe().wait_for(|count| *count == jobs).await.unwrap();
    }

    pub(crate) fn cancelled(&self) -> u32 {
        *self.shared.cancelled.borrow()
    }

    pub(crate) fn reserved(&self) -> u64 {
        *self.shared.reserved.borrow()
    }
}

impl Backend for PlainBackend {
    type Lease = Reserved;
    type CancelOnDrop = Cancel;

    fn submit(&self, request: JobRequest) -> Result<RunningJob<Cancel>> {
        let shared = self.shared.clone();
        let (progress_sender, progress) = watch::channel(Progress::default());
        let (outcome_sender, outcome) = oneshot::channel();
        let (cancelled, mut is_cancelled) = watch::channel(false);
        let mut hold = shared.hold.subscribe();
        *shared.running.lock().unwrap() += 1;
        let done = cancelled.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let worker_shared = shared.clone();
        std::thread::spawn(move || {
            let released = runtime.block_on(async {
                tokio::select! {
                    _ = hold.wait_for(|hold| !hold) => true,
                    _ = is_cancelled.wait_for(|cancelled| *cancelled) => false,
                }
            });
            let outcome = if released {
                progress_sender.send_replace(Progress { tasks_total: 1, ..Progress::default() });
                let outcome = multiply(&request);
                progress_sender.send_replace(Progress { tasks_total: 1, tasks_done: 1, ..Progress::default() });
                outcome
            } else {
                Err(Error::new(ErrorKind::Cancelled, "cancelled"))
            };
            drop(request);
            *worker_shared.running.lock().unwrap() -= 1;
            if released {
                done.send_replace(true);
            }
            let _ = outcome_sender.send(outcome);
        });
        self.shared.submitted.send_modify(|count| *count += 1);
        Ok(RunningJob { progress, outcome, cancel: Cancel { shared, cancelled } })
    }

    fn lease(&self, bytes: u64) -> Result<Reserved> {
        let mut fits = false;
        self.shared.reserved.send_if_modified(|reserved| {
            fits = bytes <= self.shared.memory_limit - *reserved;
            if fits {
                *reserved += bytes;
            }
            fits
        });
        if !fits {
            return Err(Error::new(ErrorKind::Overloaded, format!("no memory for {bytes} bytes")));
        }
        Ok(Reserved { shared: self.shared.clone(), bytes })
    }

    async fn peers(&self) -> Result<Vec<PeerStatus>> {
        Ok(vec![PeerStatus {
            peer: "12D3KooW".into(),
            name: "other".into(),
            state: "connected".into(),
            addresses: vec!["/ip4/10.0.0.1/tcp/7777".into(), "/ip4/10.0.0.1/udp/7777/quic-v1".into()],
            trust: 0.5,
            found_by: "mdns".into(),
            tasks_checked: 7,
            ..PeerStatus::default()
        }])
    }

    async fn status(&self) -> Result<NodeStatus> {
        Ok(NodeStatus {
            name: "plain".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            jobs_running: *self.shared.running.lock().unwrap(),
            memory_limit_bytes: self.shared.memory_limit,
            memory_used_bytes: self.reserved(),
            ..NodeStatus::default()
        })
    }

    async fn connect(&self, address: &str, timeout: Duration) -> Result<String> {
        let message = format!("no answer from {address} within {} s", timeout.as_secs());
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    fn jobs(&self) -> Vec<JobStatus> {
        Vec::new()
    }

    fn members(&self) -> Option<Members> {
        None
    }

    fn topology(&self) -> Topology {
        Topology::default()
    }

    fn plan_model(&self, model: &str) -> Result<ModelPlan> {
        Err(Error::new(ErrorKind::NotFound, format!("no node of the pool serves {model}")))
    }

    async fn ways_back(&self) -> Result<Vec<WayBack>> {
        Ok(vec![WayBack { name: "kitchen".to_owned(), reached: true, ..WayBack::default() }])
    }

    async fn check_peer(&self, peer: &str, _: Duration) -> Result<Duration> {
        Err(Error::new(ErrorKind::NotFound, format!("no connected peer is named '{peer}'")))
    }

    async fn probe_link(&self, peer: &str, message_bytes: u64, _: u32) -> Result<LinkProbe> {
        if peer != "12D3KooW" {
            return Err(Error::new(ErrorKind::NotFound, format!("peer {peer} is not known")));
        }
        Ok(LinkProbe { peer: peer.into(), message_bytes, ..LinkProbe::default() })
    }
}

/// The elements of a tensor as f64, row-major.
fn elements(tensor: &Tensor) -> Vec<f64> {
    let mut bytes = vec![0; tensor.size_bytes()];
    tensor.read_bytes(0, &mut bytes);
    let element = |bytes: &[u8]| match tensor.dtype() {
        DType::F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
        DType::F64 => f64::from_le_bytes(bytes.try_into().unwrap()),
        DType::I8 => f64::from(bytes[0] as i8),
        DType::F16 => f64::from(half_to_f32(u16::from_le_bytes(bytes.try_into().unwrap()))),
        other => panic!("{other} is not needed in these tests"),
    };
    bytes.chunks_exact(tensor.dtype().size_bytes()).map(element).collect()
}

/// Converts a finite half to f32.
fn half_to_f32(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    match exponent {
        0 => sign * mantissa * 2f32.powi(-24),
        _ => sign * (1024.0 + mantissa) * 2f32.powi(exponent - 25),
    }
}

/// A small integer as half.
fn half_from_integer(value: f64) -> u16 {
    let sign = if value < 0.0 { 0x8000 } else { 0 };
    let magnitude = value.abs();
    if magnitude == 0.0 {
        return sign;
    }
    let exponent = magnitude.log2().floor();
    let mantissa = ((magnitude / exponent.exp2() - 1.0) * 1024.0) as u16;
    sign | ((exponent as u16 + 15) << 10) | mantissa
}

fn multiply(request: &JobRequest) -> Result<JobOutcome> {
    let (m, k, n) = (request.a.rows(), request.a.cols(), request.b.cols());
    let (a, b) = (elements(&request.a), elements(&request.b));
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for l in 0..k {
            for j in 0..n {
                c[i * n + j] += a[i * k + l] * b[l * n + j];
            }
        }
    }
    let dtype = DType::product(request.a.dtype(), request.b.dtype()).unwrap();
    let mut product = TensorBuf::new(dtype, m, n).unwrap();
    for (to, value) in product.bytes_mut().chunks_exact_mut(dtype.size_bytes()).zip(c) {
        match dtype {
            DType::F32 => to.copy_from_slice(&(value as f32).to_le_bytes()),
            DType::F64 => to.copy_from_slice(&value.to_le_bytes()),
            DType::I32 => to.copy_from_slice(&(value as i32).to_le_bytes()),
            DType::F16 => to.copy_from_slice(&half_from_integer(value).to_le_bytes()),
            other => panic!("{other} is not needed in these tests"),
        }
    }
    let report = JobReport {
        shape: [m, k, n],
        dtype: dtype.name().into(),
        seconds: 0.25,
        gflops: 2.0,
        tasks: TaskCounts { total: 1, local: 1, ..TaskCounts::default() },
        workers: vec![WorkerShare { peer: "self".into(), name: "plain".into(), tasks: 1, seconds: 0.2 }],
        verification: Verification { method: "none".into(), verdict: "local".into(), ..Verification::default() },
        mode: "local".into(),
        ..JobReport::default()
    };
    Ok(JobOutcome { result: product.freeze(), report })
}
