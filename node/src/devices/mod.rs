//! The node's memory and compute threads: one handle, through which everything that keeps memory for longer than one
//! call takes its lease first, and from which every compute pool comes. Who gets what is [`pangea_control::devices`]'
//! decision; this room keeps the clock and wakes those that waited.
//!
//! * [`Lease`]: memory that somebody has; dropping it gives it back.
//! * [`choice`]: the device that computes layers, by its name.
//! * `gpu`: the GPU of this node.
//! * [`threads`]: the compute pools; [`Turn`]: the cores, for work that is not cut into pieces.

pub mod choice;
mod cores;
mod gpu;
mod lease;
pub mod threads;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use pangea_client::{DeviceStatus, Error, ErrorKind, Result};
use pangea_compute::commit::Profile;
use pangea_control::Time;
use pangea_control::devices::{Action, Event, LeaseId, Ledger, Shortage};
use tokio::sync::{Notify, oneshot};

use crate::clock;
use crate::observe::Observer;
use choice::{BitsChoice, DeviceChoice};
use cores::Cores;

pub use cores::Turn;
pub use gpu::NodeGpu;
pub use lease::Lease;
pub use pangea_control::devices::Kind;

/// The memory and the threads of a node. Clones share them.
#[derive(Clone)]
pub struct Devices {
    shared: Arc<Shared>,
}

struct Shared {
    limit: u64,
    threads: usize,
    cores: Cores,
    /// The GPU that computes layers.
    gpu: Option<NodeGpu>,
    accounts: Mutex<Accounts>,
    /// Drops packed operands that no product uses now.
    drop_packs: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Notified when a request cannot be granted at once.
    short: Notify,
}

struct Accounts {
    ledger: Ledger,
    next: LeaseId,
    /// The thread or task that waits for the answer to each request.
    waiters: BTreeMap<LeaseId, Waiter>,
}

type Answer = std::result::Result<(), Shortage>;

/// Receiver of the answer to a request.
enum Waiter {
    /// A thread.
    Thread(SyncSender<Answer>),
    /// An asynchronous task.
    Task(oneshot::Sender<Answer>),
}

impl Waiter {
    fn send(self, answer: Answer) {
        // A receiver that no longer waits has dropped its request, and with it the lease.
        match self {
            Waiter::Thread(to) => drop(to.try_send(answer)),
            Waiter::Task(to) => drop(to.send(answer)),
        }
    }
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Devices({} of {} bytes, {} threads)", self.held(), self.limit(), self.shared.threads)
    }
}

impl Devices {
    /// Creates the accounts of `max_memory` bytes and `threads` compute threads.
    pub fn new(max_memory: u64, threads: usize) -> Devices {
        Devices::of(max_memory, threads, None)
    }

    /// The same with the GPU of that choice, if it names one; `gpu_memory`: bytes that its layers may take.
    ///
    /// # Errors
    /// `InvalidInput` where no GPU is of that choice, with the reason of each; `Unavailable` where its driver refuses.
    pub fn with_device(
        max_memory: u64,
        threads: usize,
        choice: &DeviceChoice,
        bits: BitsChoice,
        gpu_memory: Option<u64>,
    ) -> Result<Devices> {
        Ok(Devices::of(max_memory, threads, NodeGpu::open(choice, gpu_memory, max_memory, bits)?))
    }

    fn of(max_memory: u64, threads: usize, gpu: Option<NodeGpu>) -> Devices {
        let accounts = Accounts { ledger: Ledger::new(max_memory), next: 1, waiters: BTreeMap::new() };
        let (accounts, drop_packs, short) = (Mutex::new(accounts), OnceLock::new(), Notify::new());
        let cores = Cores::new();
        Devices { shared: Arc::new(Shared { limit: max_memory, threads, cores, gpu, accounts, drop_packs, short }) }
    }

    /// The GPU that computes layers, also one that was given up.
    pub fn gpu(&self) -> Option<&NodeGpu> {
        self.shared.gpu.as_ref()
    }

    /// Gives the GPU up for good: layers are computed by the processor from now on. Returns whether it was used until now.
    pub fn give_up_gpu(&self, why: &str) -> bool {
        self.gpu().is_some_and(|gpu| gpu.give_up(why))
    }

    /// What computes layers, for people: the GPU's name, or the processor's instruction set.
    pub fn called(&self, isa: &str) -> String {
        match self.gpu().filter(|gpu| gpu.works().is_some()) {
            Some(gpu) => format!("gpu/{}", gpu.report().name),
            None => format!("cpu/{isa}"),
        }
    }

    /// Profile by which what computes layers is compared by value, as adverts say it; empty where its bits are exact.
    pub fn bits(&self) -> String {
        let has_own = self.gpu().is_some_and(|gpu| gpu.works().is_some() && !gpu.is_exact());
        if has_own { Profile::Grid.name().to_owned() } else { String::new() }
    }

    /// All adapters of this machine, and what this node does with each; none where it was not to look for them.
    pub fn show(&self) -> Vec<DeviceStatus> {
        self.gpu().map(NodeGpu::show).unwrap_or_default()
    }

    /// The accounts that layers on the GPU are leased from.
    pub(crate) fn gpu_accounts(&self) -> Vec<&Devices> {
        self.gpu().map(|gpu| gpu.accounts(self)).unwrap_or_default()
    }

    /// Bytes that models may take: of this machine's memory and of the GPU's own.
    pub fn offered_bytes(&self) -> u64 {
        let working = self.gpu().filter(|gpu| gpu.works().is_some());
        self.limit() + working.map_or(0, NodeGpu::own_bytes)
    }

    /// All bytes that may be leased: `--max-memory`.
    pub fn limit(&self) -> u64 {
        self.shared.limit
    }

    /// Bytes leased now.
    pub fn held(&self) -> u64 {
        self.accounts().ledger.held()
    }

    /// Bytes leased now for each purpose.
    pub fn held_by_kind(&self) -> Vec<(Kind, u64)> {
        let accounts = self.accounts();
        Kind::ALL.into_iter().map(|kind| (kind, accounts.ledger.held_by(kind))).collect()
    }

    /// Registers the metrics of the memory with `observer`.
    pub fn observe(&self, observer: &Observer) {
        let limit = self.limit() as f64;
        observer.gauge("memory_limit_bytes", "Memory that may be leased: --max-memory", move || limit);
        let devices = self.clone();
        observer.gauges("memory_bytes", "Memory that is leased, by purpose", move || {
            devices.by_purpose(|ledger, kind| ledger.held_by(kind) as f64)
        });
        let devices = self.clone();
        observer.gauges("memory_requests_waiting", "Requests that wait for memory, by purpose", move || {
            devices.by_purpose(|ledger, kind| ledger.waiting(kind) as f64)
        });
    }

    fn by_purpose(&self, read: impl Fn(&Ledger, Kind) -> f64) -> Vec<([(&'static str, &'static str); 1], f64)> {
        let accounts = self.accounts();
        Kind::ALL.into_iter().map(|kind| ([("purpose", kind.name())], read(&accounts.ledger, kind))).collect()
    }

    /// Bytes that a request for this purpose can get now.
    pub fn free_for(&self, kind: Kind) -> u64 {
        self.accounts().ledger.free_for(kind)
    }

    /// `drop_packs` must drop packed operands that are not in use. It is called before a request is refused. There is one
    /// executor, so only the first call has an effect.
    pub(crate) fn on_shortage(&self, drop_packs: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.drop_packs.set(Box::new(drop_packs));
    }

    /// Waits until a request could not be granted since the last call: memory that is only kept for later should then
    /// be freed. For one caller.
    pub(crate) async fn is_short(&self) {
        self.shared.short.notified().await;
    }

    /// Leases `bytes` without waiting.
    ///
    /// # Errors
    /// `Overloaded` with the numbers; nothing is leased then.
    pub fn lease(&self, kind: Kind, bytes: u64) -> Result<Lease> {
        let answer = match self.ask_at_once(kind, bytes) {
            // A failed request for packed operands must not drop other packed operands.
            Err(Shortage::Full { .. }) if kind != Kind::Packs && self.make_room() => self.ask_at_once(kind, bytes),
            answer => answer,
        };
        // Memory that is only kept for peers must not refuse this node's layers and products forever.
        if let Err(Shortage::Full { .. }) = answer
            && !matches!(kind, Kind::Packs | Kind::Operands)
        {
            self.shared.short.notify_one();
        }
        Ok(answer?)
    }

    /// Leases as much as is free, from `least` to `most` bytes, and waits up to `timeout` for `least`. Blocks.
    ///
    /// # Errors
    /// As [`Devices::lease_within`].
    pub fn lease_up_to(&self, kind: Kind, least: u64, most: u64, timeout: Duration) -> Result<Lease> {
        let wanted = self.free_for(kind).clamp(least, most.max(least));
        self.lease(kind, wanted).or_else(|_| self.lease_within(kind, least, timeout))
    }

    /// Leases `bytes`, and waits up to `timeout` for them. Blocks.
    ///
    /// # Errors
    /// `Overloaded` with the numbers, at once if this node can never lease so much for `kind`, otherwise after `timeout`.
    pub fn lease_within(&self, kind: Kind, bytes: u64, timeout: Duration) -> Result<Lease> {
        if let Ok(lease) = self.lease(kind, bytes) {
            return Ok(lease);
        }
        let (sender, answer) = sync_channel(1);
        let until = clock::now() + timeout;
        let lease = self.ask(kind, bytes, until, Waiter::Thread(sender));
        self.wait_for(&answer, until)??;
        Ok(lease)
    }

    /// As [`Devices::lease_up_to`], without blocking.
    ///
    /// # Errors
    /// As [`Devices::lease_within`].
    pub async fn lease_soon_up_to(&self, kind: Kind, least: u64, most: u64, patience: Duration) -> Result<Lease> {
        let wanted = self.free_for(kind).clamp(least, most.max(least));
        match self.lease(kind, wanted) {
            Ok(lease) => Ok(lease),
            Err(_) => self.lease_soon(kind, least, patience).await,
        }
    }

    /// Whether a request for this purpose is waiting.
    pub fn is_awaited(&self, kind: Kind) -> bool {
        self.accounts().ledger.waiting(kind) > 0
    }

    /// [`Devices::lease_within`] without blocking. Dropping the future withdraws the request.
    ///
    /// # Errors
    /// As [`Devices::lease_within`].
    pub async fn lease_soon(&self, kind: Kind, bytes: u64, timeout: Duration) -> Result<Lease> {
        if let Ok(lease) = self.lease(kind, bytes) {
            return Ok(lease);
        }
        let (sender, mut answer) = oneshot::channel();
        let until = clock::now() + timeout;
        let lease = self.ask(kind, bytes, until, Waiter::Task(sender));
        let answered = tokio::select! {
            answered = &mut answer => answered,
            () = tokio::time::sleep_until(clock::instant(until)) => {
                self.tell(Event::Tick);
                answer.await
            }
        };
        answered.map_err(|_| unanswered())??;
        Ok(lease)
    }

    /// Waits for the answer to a request that ends at `until`.
    fn wait_for(&self, answer: &Receiver<Answer>, until: Time) -> Result<Answer> {
        loop {
            match answer.recv_timeout(until.since(clock::now())) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) => self.tell(Event::Tick),
                Err(RecvTimeoutError::Disconnected) => return Err(unanswered()),
            }
        }
    }

    fn ask_at_once(&self, kind: Kind, bytes: u64) -> std::result::Result<Lease, Shortage> {
        let mut accounts = self.accounts();
        let lease = accounts.number();
        let actions = accounts.ledger.handle(Event::Ask { lease, kind, bytes, until: None }, clock::now());
        match actions.first() {
            Some(Action::Refuse(_, shortage)) => Err(*shortage),
            _ => Ok(Lease::new(self.clone(), lease, bytes)),
        }
    }

    fn ask(&self, kind: Kind, bytes: u64, until: Time, waiter: Waiter) -> Lease {
        let mut accounts = self.accounts();
        let lease = accounts.number();
        accounts.waiters.insert(lease, waiter);
        let actions = accounts.ledger.handle(Event::Ask { lease, kind, bytes, until: Some(until) }, clock::now());
        accounts.answer(actions);
        Lease::new(self.clone(), lease, bytes)
    }

    /// Passes `event` to the ledger, and its answers to the receivers that wait for them.
    fn tell(&self, event: Event) {
        let mut accounts = self.accounts();
        if let Event::GiveBack(lease) = event {
            accounts.waiters.remove(&lease);
        }
        let actions = accounts.ledger.handle(event, clock::now());
        accounts.answer(actions);
    }

    /// Drops packed operands. Returns whether there were any.
    fn make_room(&self) -> bool {
        let Some(drop_packs) = self.shared.drop_packs.get() else { return false };
        let held = self.accounts().ledger.held_by(Kind::Packs);
        if held > 0 {
            drop_packs();
        }
        held > 0
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.shared.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    fn number(&mut self) -> LeaseId {
        self.next += 1;
        self.next
    }

    fn answer(&mut self, actions: Vec<Action>) {
        for action in actions {
            let (lease, answer) = match action {
                Action::Grant(lease) => (lease, Ok(())),
                Action::Refuse(lease, shortage) => (lease, Err(shortage)),
            };
            if let Some(waiter) = self.waiters.remove(&lease) {
                waiter.send(answer);
            }
        }
    }
}

/// The ledger answers every request by its deadline, so a missing answer is a defect of this node.
fn unanswered() -> Error {
    Error::new(ErrorKind::Internal, "a request for memory was not answered")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Format;

    #[test]
    fn a_refused_lease_takes_nothing_and_a_dropped_one_gives_back() {
        let devices = Devices::new(100 << 20, 1);
        let held = devices.lease(Kind::Tensors, 60 << 20).unwrap();
        let refused = devices.lease(Kind::Tensors, 41 << 20).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        assert!(refused.message().starts_with("needs 41.0 MiB; 40.0 MiB free"), "{refused}");
        assert_eq!(devices.lease(Kind::Tensors, u64::MAX).unwrap_err().kind(), ErrorKind::Overloaded);
        assert_eq!(devices.held(), 60 << 20);
        let rest = devices.lease(Kind::Tensors, 40 << 20).unwrap();
        drop((held, rest));
        assert_eq!(devices.held(), 0);
    }

    #[test]
    fn a_thread_that_waits_gets_what_another_gives_back() {
        let devices = Devices::new(1000, 1);
        let held = devices.lease(Kind::Tensors, 1000).unwrap();
        let waits = std::thread::scope(|scope| {
            let waits = scope.spawn(|| devices.lease_within(Kind::Tensors, 700, Duration::from_secs(60)));
            drop(held);
            waits.join().unwrap()
        });
        assert_eq!(devices.held(), 700);
        drop(waits.unwrap());
        assert_eq!(devices.held(), 0);
    }

    #[test]
    fn a_request_that_waits_too_long_is_refused_and_holds_nothing() {
        let devices = Devices::new(1000, 1);
        let held = devices.lease(Kind::Tensors, 600).unwrap();
        let refused = devices.lease_within(Kind::Tensors, 700, Duration::from_millis(1)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        drop(held);
        assert_eq!(devices.held(), 0);
    }

    #[tokio::test]
    async fn a_task_that_stops_waiting_leaves_the_queue() {
        let devices = Devices::new(1000, 1);
        let held = devices.lease(Kind::Tensors, 1000).unwrap();
        let asked = devices.lease_soon(Kind::Tensors, 1000, Duration::from_secs(60));
        assert!(futures::poll!(std::pin::pin!(asked)).is_pending());
        drop(held);
        assert_eq!(devices.held(), 0);
        let lease = devices.lease_soon(Kind::Tensors, 1000, Duration::from_secs(60)).await.unwrap();
        assert_eq!((lease.bytes(), devices.held()), (1000, 1000));
    }

    #[test]
    fn memory_is_counted_by_purpose() {
        let devices = Devices::new(1000, 1);
        let observer = Observer::default();
        devices.observe(&observer);
        let lease = devices.lease(Kind::Weights, 900).unwrap();
        let samples = |wanted: &[&str]| {
            let text = observer.text(Format::Prometheus).unwrap();
            for sample in wanted {
                assert!(text.lines().any(|line| line == *sample), "{sample} in {text}");
            }
        };
        samples(&["pangea_memory_limit_bytes 1000.0", "pangea_memory_bytes{purpose=\"weights\"} 900.0"]);
        samples(&[
            "pangea_memory_bytes{purpose=\"audits\"} 0.0",
            "pangea_memory_requests_waiting{purpose=\"weights\"} 0.0",
        ]);
        drop(lease);
        samples(&["pangea_memory_bytes{purpose=\"weights\"} 0.0"]);
    }

    #[test]
    fn packed_operands_are_dropped_when_their_memory_is_needed() {
        let devices = Devices::new(1000, 1);
        let packs = Arc::new(Mutex::new(vec![devices.lease(Kind::Packs, 100).unwrap()]));
        let dropped = Arc::clone(&packs);
        devices.on_shortage(move || dropped.lock().unwrap().clear());
        let lease = devices.lease(Kind::Tensors, 950).unwrap();
        assert_eq!((devices.held(), packs.lock().unwrap().len()), (950, 0));
        drop(lease);
    }
}
