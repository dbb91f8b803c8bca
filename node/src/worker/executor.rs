//! The thread that owns the compute pool. Tasks of peers and of local jobs wait in one queue,
//! the highest priority first, then in order of arrival; it computes one at a time with all threads.
//!
//! Bands and panels of products are packed once and kept while tasks share them.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::{Cancel, Cut, DType, Digest, Operation, PackedA, PackedB, Pool, Tensor};
use tracing::Span;

use super::cost::job_shape;
use super::gpu_products::GpuProducts;
use super::liar::Liar;
use crate::devices::threads::Purpose;
use crate::devices::{Devices, Kind, Lease};
use crate::fault::Fault;
use crate::supervise::Supervisor;
use crate::traces::child;

/// Tasks that may wait here, of all peers and jobs together. A peer's own limit is far lower; this one
/// only keeps a defect from growing memory without bound.
const MAX_QUEUED: usize = 65_536;

/// Shorter work is not used to measure the speed.
const LEARN_FROM: Duration = Duration::from_micros(500);

/// Bytes of packed bands and panels of this node's own jobs that are kept for the next tasks: one group of panels
/// and a band, as the scheduler goes through them, well below the memory that a job may use besides its operands
/// and its result.
const PACKED_LOCAL_BYTES: usize = 48 << 20;

/// The same for operands of peers, whose tasks touch a block of bands and panels that grows.
const PACKED_PEERS_BYTES: usize = 256 << 20;

const _: () = assert!(PACKED_LOCAL_BYTES as u64 >= pangea_control::schedule::limits::LOCAL_GROUP_BYTES);

/// What identifies an operand: equal keys mean equal contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackKey {
    /// Band or panel `index` of a job of this node.
    Local {
        /// The job.
        job: u64,
        /// Which operand of the product.
        side: Side,
        /// Index of the band or panel.
        index: u32,
    },
    /// An operand from a peer.
    Operand(Digest),
    /// Used once, and not kept.
    Once,
}

/// One of the two operands of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A, cut into bands.
    Left,
    /// B, cut into panels.
    Right,
}

/// Measured speeds of a node, in operations per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    /// f32 products.
    pub f32_flops_per_s: f64,
    /// f64 products.
    pub f64_flops_per_s: f64,
    /// i8 products.
    pub i8_flops_per_s: f64,
}

/// One task to compute.
pub struct Work {
    /// What to compute.
    pub operation: Operation,
    /// Tasks with a higher priority are computed first.
    pub priority: i8,
    /// Left operand and its key.
    pub a: (PackKey, Tensor),
    /// Right operand and its key.
    pub b: (PackKey, Tensor),
    /// Bytes of packed bands and panels to keep for the next tasks of the job, up to the limit of the executor.
    pub keep_bytes: usize,
    /// Cancels the task, waiting or running.
    pub cancel: Cancel,
    /// The peer that sent the task; `None` for a job of this node. The node's `--fault` applies to peers only.
    pub owner: Option<PeerId>,
    /// The span that the task is a part of.
    pub span: Span,
    /// Called on the executor's thread just before the task starts; must not block.
    pub started: Option<Box<dyn FnOnce() + Send>>,
    /// Called on the executor's thread with the outcome; must not block.
    pub done: Box<dyn FnOnce(Outcome) + Send>,
}

/// Outcome of a task.
pub struct Outcome {
    /// The result, or the error.
    pub result: Result<Tensor>,
    /// Compute time.
    pub compute: Duration,
    /// Fault to inject into the answer (`--fault`).
    pub fault: Option<Fault>,
}

/// Handle of the executor. Clones share it; the thread ends when the last is dropped.
#[derive(Clone)]
pub struct Executor {
    shared: Arc<Shared>,
    packs: Arc<Mutex<Packs>>,
    isa: &'static str,
    _end: Arc<EndOnDrop>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    heap: BinaryHeap<Queued>,
    arrivals: u64,
    ended: bool,
    /// Jobs of this node that have ended since the executor last looked.
    ended_jobs: Vec<u64>,
    /// Owner and operations of the work that runs.
    running: Option<(Option<PeerId>, f64)>,
    /// Recent operations per second, over all types.
    flops_per_s: f64,
}

struct Queued {
    order: (i8, u64),
    work: Work,
    /// The span of the wait.
    _waiting: Span,
}

impl Work {
    /// The cost of the task, as the additions and multiplications of a product that takes as long.
    fn flops(&self) -> f64 {
        job_shape(self.operation, &self.a.1, &self.b.1).map_or(0.0, |shape| shape.flops())
    }

    /// Computes the result, on the GPU or with packed operands that other tasks share.
    fn compute(&self, packs: &Mutex<Packs>, pool: &Pool, gpu: &GpuProducts) -> Result<Tensor> {
        let on_gpu = || gpu.product(&self.a.1, &self.b.1, &self.cancel);
        let result = match self.operation.cut() {
            Cut::Crossed => {
                on_gpu().unwrap_or_else(|| product(packs, &self.a, &self.b, self.keep_bytes, pool, &self.cancel))
            }
            Cut::Paired => self.operation.compute(&self.a.1, &self.b.1, pool, &self.cancel),
        };
        result.map_err(crate::compute_error)
    }
}

impl Executor {
    /// Starts the thread, measures its speeds, leases memory for packed operands from `devices`, and passes peers' tasks
    /// through `fault`.
    pub fn start(devices: &Devices, fault: Option<Fault>, supervisor: &Supervisor) -> Result<(Executor, Speeds)> {
        let pool = devices.pool(Purpose::Products)?;
        let isa = pool.isa().name();
        // Measured on a separate pool, which frees its working memory at the end: tasks need other amounts.
        let (speeds, gpu) = {
            let _turn = devices.turn(Purpose::Probe);
            let mut speeds = measure(&devices.pool(Purpose::Probe)?)?;
            let gpu = GpuProducts::measured(devices, &mut speeds, |processor, gpu| gpu > processor);
            (speeds, gpu)
        };
        let queue = Queue { flops_per_s: speeds.f32_flops_per_s, ..Queue::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), wake: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let packs = Arc::new(Mutex::new(Packs::new(devices)));
        let idle = Arc::downgrade(&packs);
        devices.on_shortage(move || {
            if let Some(packs) = idle.upgrade() {
                lock(&packs).clear();
            }
        });
        let mut compute = Compute { pool, gpu, packs: Arc::clone(&packs), liar: fault.map(Liar::new) };
        supervisor
            .restarted_thread("executor", move || compute.run(&of_thread))
            .map_err(|error| Error::new(ErrorKind::Internal, format!("no thread to compute on: {error}")))?;
        let end = Arc::new(EndOnDrop { shared: Arc::clone(&shared) });
        Ok((Executor { shared, packs, isa, _end: end }, speeds))
    }

    /// The instruction set of its kernels.
    pub fn isa(&self) -> &'static str {
        self.isa
    }

    /// Drops the operands packed for `job`, a job of this node that has ended.
    pub fn forget(&self, job: u64) {
        self.shared.lock().ended_jobs.push(job);
        self.shared.wake.notify_one();
    }

    /// Drops the packed operands of peers, when no peer is served any more.
    pub fn forget_peers(&self) {
        lock(&self.packs).forget_peers();
    }

    /// Whether nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        let queue = self.shared.lock();
        queue.heap.is_empty() && queue.running.is_none()
    }

    /// Time that the tasks of all owners except `owner` will take, waiting and running.
    pub fn backlog_without(&self, owner: PeerId) -> Duration {
        let queue = self.shared.lock();
        let waiting = queue.heap.iter().map(|queued| (queued.work.owner, queued.work.flops()));
        let flops: f64 =
            waiting.chain(queue.running).filter(|(of, _)| *of != Some(owner)).map(|(_, flops)| flops).sum();
        Duration::try_from_secs_f64(flops / queue.flops_per_s.max(1.0)).unwrap_or(Duration::MAX)
    }

    /// Queues a task. Fails with `Overloaded` if too many wait.
    pub fn submit(&self, work: Work) -> Result<()> {
        let mut queue = self.shared.lock();
        if queue.heap.len() >= MAX_QUEUED {
            return Err(Error::new(ErrorKind::Overloaded, format!("{MAX_QUEUED} tasks wait already")));
        }
        queue.arrivals += 1;
        let order = (work.priority, queue.arrivals);
        let _waiting = child!(&work.span, "queue");
        queue.heap.push(Queued { order, work, _waiting });
        drop(queue);
        self.shared.wake.notify_one();
        Ok(())
    }
}

struct EndOnDrop {
    shared: Arc<Shared>,
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the speed with a task of `flops` that took `took`.
    fn learn(&self, flops: f64, took: Duration) {
        if took > LEARN_FROM {
            let mut queue = self.lock();
            queue.flops_per_s += 0.2 * (flops / took.as_secs_f64() - queue.flops_per_s);
        }
    }

    /// Waits for the next thing to do; `None` when the executor ends.
    fn next(&self) -> Option<Next> {
        let mut queue = self.lock();
        loop {
            if queue.ended {
                return None;
            }
            queue.running = None;
            if !queue.ended_jobs.is_empty() {
                return Some(Next::Forget(std::mem::take(&mut queue.ended_jobs)));
            }
            if let Some(queued) = queue.heap.pop() {
                queue.running = Some((queued.work.owner, queued.work.flops()));
                return Some(Next::Work(Box::new(queued.work)));
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What the executor does next.
enum Next {
    Forget(Vec<u64>),
    Work(Box<Work>),
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> Ordering {
        // A heap pops its greatest: the highest priority, then the earliest arrival.
        self.order.0.cmp(&other.order.0).then(other.order.1.cmp(&self.order.1))
    }
}

struct Compute {
    pool: Pool,
    gpu: GpuProducts,
    packs: Arc<Mutex<Packs>>,
    liar: Option<Liar>,
}

impl Compute {
    fn run(&mut self, shared: &Shared) {
        while let Some(next) = shared.next() {
            let mut work = match next {
                Next::Forget(jobs) => {
                    lock(&self.packs).forget(&jobs);
                    continue;
                }
                Next::Work(work) => *work,
            };
            if work.cancel.is_cancelled() {
                let result = Err(Error::new(ErrorKind::Cancelled, "the task was cancelled before it started"));
                (work.done)(Outcome { result, compute: Duration::ZERO, fault: None });
                continue;
            }
            let flops = work.flops();
            if let Some(started) = work.started.take() {
                started();
            }
            let begin = Instant::now();
            let computing = child!(&work.span, "compute");
            let mut compute = || {
                let mut result = work.compute(&self.packs, &self.pool, &self.gpu);
                let mut fault = None;
                if let Some(liar) = self.liar.as_mut().filter(|_| work.owner.is_some()) {
                    (result, fault) = liar.twist(result, &work.a.1, &work.b.1, begin.elapsed(), &work.cancel);
                }
                (result, fault)
            };
            match catch_unwind(AssertUnwindSafe(&mut compute)) {
                Ok((result, fault)) => {
                    let compute = begin.elapsed();
                    drop(computing);
                    shared.learn(flops, compute);
                    (work.done)(Outcome { result, compute, fault });
                }
                Err(panic) => {
                    // The owner of the task gets an error, and the supervisor starts this thread again without
                    // half-packed operands.
                    lock(&self.packs).clear();
                    let result = Err(Error::new(ErrorKind::Internal, "computing the task panicked"));
                    (work.done)(Outcome { result, compute: begin.elapsed(), fault: None });
                    resume_unwind(panic);
                }
            }
        }
    }
}

/// Speeds of each type, a twentieth of a second each.
fn measure(pool: &Pool) -> Result<Speeds> {
    let speed =
        |dtype| pangea_compute::probe::gflops(dtype, pool, 50).map(|gflops| gflops * 1e9).map_err(crate::compute_error);
    Ok(Speeds {
        f32_flops_per_s: speed(DType::F32)?,
        f64_flops_per_s: speed(DType::F64)?,
        i8_flops_per_s: speed(DType::I8)?,
    })
}

/// Packed bands and panels, the most recently used last.
struct Packs {
    a: Vec<Kept<PackedA>>,
    b: Vec<Kept<PackedB>>,
    devices: Devices,
}

/// One packed operand. The layout depends on the product's arithmetic, so an operand packed for an f32 product does not
/// serve an f64 product.
struct Kept<T> {
    key: PackKey,
    /// Element type of the other operand. Both element types together determine the arithmetic.
    other: DType,
    packed: T,
    /// `None` until the operand is kept.
    lease: Option<Lease>,
}

impl<T> Kept<T> {
    fn new(key: PackKey, other: DType, packed: T) -> Kept<T> {
        Kept { key, other, packed, lease: None }
    }
}

/// Computes `a · b` with the packs of both, and keeps what was packed for it. Packs in use are taken out of `packs`, so the
/// lock is not held while the product runs.
fn product(
    packs: &Mutex<Packs>,
    a: &(PackKey, Tensor),
    b: &(PackKey, Tensor),
    keep_bytes: usize,
    pool: &Pool,
    cancel: &Cancel,
) -> std::result::Result<Tensor, pangea_compute::Error> {
    if a.0 == PackKey::Once && b.0 == PackKey::Once {
        return pangea_compute::matmul(&a.1, &b.1, pool, cancel);
    }
    let (dtype_a, dtype_b) = (a.1.dtype(), b.1.dtype());
    let (kept_a, kept_b) = {
        let mut packs = lock(packs);
        (take(&mut packs.a, &a.0, dtype_b), take(&mut packs.b, &b.0, dtype_a))
    };
    let kept_a = match kept_a {
        Some(kept) => kept,
        None => Kept::new(a.0, dtype_b, PackedA::new(&a.1, dtype_b, pool, cancel)?),
    };
    let kept_b = match kept_b {
        Some(kept) => kept,
        None => Kept::new(b.0, dtype_a, PackedB::new(&b.1, dtype_a, pool, cancel)?),
    };
    let product = pangea_compute::matmul_packed(&kept_a.packed, &kept_b.packed, pool, cancel);
    if !cancel.is_cancelled() {
        // After a cancel the job may have ended, and its packs would never be dropped.
        lock(packs).keep(kept_a, kept_b, keep_bytes);
    }
    product
}

fn lock(packs: &Mutex<Packs>) -> MutexGuard<'_, Packs> {
    packs.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Packs {
    fn new(devices: &Devices) -> Packs {
        Packs { a: Vec::new(), b: Vec::new(), devices: devices.clone() }
    }

    /// Bytes that bands and panels of this node's jobs, or of peers, may take; all packs together have the share of
    /// [`Kind::Packs`].
    fn most_bytes(&self, local: bool) -> usize {
        let share = usize::try_from(Kind::Packs.most_bytes(self.devices.limit())).unwrap_or(usize::MAX);
        share.min(if local { PACKED_LOCAL_BYTES } else { PACKED_PEERS_BYTES })
    }

    /// Keeps both operands of a product if there is memory for them.
    fn keep(&mut self, a: Kept<PackedA>, b: Kept<PackedB>, keep_bytes: usize) {
        let local = matches!(a.key, PackKey::Local { .. });
        if a.key != PackKey::Once {
            self.a.push(a);
        }
        if b.key != PackKey::Once {
            self.b.push(b);
        }
        self.shrink(local, keep_bytes);
        self.lease(!local);
    }

    /// Takes leases for the operands just kept. Without memory, packs of the `others` are dropped first, then those
    /// without a lease.
    fn lease(&mut self, others_local: bool) {
        let Packs { a, b, devices } = self;
        let others = |key: &PackKey| matches!(key, PackKey::Local { .. }) == others_local;
        let lease = |bytes: usize, other: &mut dyn FnMut() -> bool| loop {
            match devices.lease(Kind::Packs, bytes as u64) {
                Ok(lease) => return Some(lease),
                Err(_) if other() => {}
                Err(_) => return None,
            }
        };
        if let Some(at) = a.iter().position(|kept| kept.lease.is_none()) {
            let mut kept = a.remove(at);
            kept.lease = lease(kept.packed.size_bytes(), &mut || drop_oldest(a, others) || drop_oldest(b, others));
            a.extend(kept.lease.is_some().then_some(kept));
        }
        if let Some(at) = b.iter().position(|kept| kept.lease.is_none()) {
            let mut kept = b.remove(at);
            kept.lease = lease(kept.packed.size_bytes(), &mut || drop_oldest(a, others) || drop_oldest(b, others));
            b.extend(kept.lease.is_some().then_some(kept));
        }
    }

    /// Drops all packs.
    fn clear(&mut self) {
        self.a.clear();
        self.b.clear();
    }

    /// Drops the packs of peers' operands.
    fn forget_peers(&mut self) {
        self.a.retain(|kept| matches!(kept.key, PackKey::Local { .. }));
        self.b.retain(|kept| matches!(kept.key, PackKey::Local { .. }));
    }

    /// Drops the packs of `jobs`.
    fn forget(&mut self, jobs: &[u64]) {
        let stays = |key: &PackKey| !matches!(key, PackKey::Local { job, .. } if jobs.contains(job));
        self.a.retain(|kept| stays(&kept.key));
        self.b.retain(|kept| stays(&kept.key));
    }

    /// Drops the packs over the limit: first bands of this node's jobs, each of which has been used with its group of
    /// panels; then panels and peers' operands, the least recently used first.
    fn shrink(&mut self, local: bool, keep_bytes: usize) {
        let of = |key: &PackKey| matches!(key, PackKey::Local { .. }) == local;
        // Packed, they are padded to whole kernel blocks.
        let limit = keep_bytes.saturating_add(keep_bytes / 8).min(self.most_bytes(local));
        loop {
            let bands: Vec<usize> = positions(&self.a, of);
            let panels: Vec<usize> = positions(&self.b, of);
            let size_a: usize = bands.iter().map(|at| self.a[*at].packed.size_bytes()).sum();
            let size_b: usize = panels.iter().map(|at| self.b[*at].packed.size_bytes()).sum();
            if size_a + size_b <= limit {
                return;
            }
            match (bands.as_slice(), panels.as_slice()) {
                ([oldest, _, ..], _) if local || size_a >= size_b || panels.len() < 2 => drop(self.a.remove(*oldest)),
                (_, [oldest, _, ..]) => drop(self.b.remove(*oldest)),
                ([oldest, ..], _) => drop(self.a.remove(*oldest)),
                (_, [oldest, ..]) => drop(self.b.remove(*oldest)),
                ([], []) => return,
            }
        }
    }
}

fn positions<T>(kept: &[Kept<T>], of: impl Fn(&PackKey) -> bool) -> Vec<usize> {
    kept.iter().enumerate().filter(|(_, kept)| of(&kept.key)).map(|(at, _)| at).collect()
}

fn take<T>(kept: &mut Vec<Kept<T>>, key: &PackKey, other: DType) -> Option<Kept<T>> {
    let at = kept.iter().position(|of| of.key == *key && of.other == other)?;
    Some(kept.remove(at))
}

/// Drops the least recently used pack of those that `of` accepts. Returns whether there was one.
fn drop_oldest<T>(kept: &mut Vec<Kept<T>>, of: impl Fn(&PackKey) -> bool) -> bool {
    let oldest = kept.iter().position(|kept| of(&kept.key) && kept.lease.is_some());
    oldest.map(|at| kept.remove(at)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operand_packed_for_one_arithmetic_is_packed_again_for_another() {
        let pool = Pool::new(1).unwrap();
        let packs = Mutex::new(Packs::new(&Devices::new(1 << 30, 1)));
        let a = Tensor::generate(DType::F32, 40, 30, 1).unwrap();
        let key_a = PackKey::Operand(a.digest());
        for dtype in [DType::F32, DType::F64, DType::F32] {
            let b = Tensor::generate(dtype, 30, 50, 2).unwrap();
            let b = (PackKey::Operand(b.digest()), b);
            let product = super::product(&packs, &(key_a, a.clone()), &b, usize::MAX, &pool, &Cancel::new()).unwrap();
            let alone = pangea_compute::matmul(&a, &b.1, &pool, &Cancel::new()).unwrap();
            assert_eq!(product.dtype(), alone.dtype());
            for at in [(0, 0), (39, 49)] {
                let difference = product.get(at.0, at.1).unwrap() - alone.get(at.0, at.1).unwrap();
                assert!(difference.abs() < 1e-4, "{dtype} at {at:?}: {difference}");
            }
        }
    }
}
