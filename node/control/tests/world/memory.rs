//! The memory of the world's nodes: the ledger that the binary has, leases that give back what they took when they are
//! dropped, and those that wait for one.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use pangea_control::devices::{Action, Event, Kind, LeaseId, Ledger};
use pangea_units::Error;

use crate::checks::Broken;
use crate::node::StageKey;
use crate::scenario::Micros;
use crate::world::{Happening, World};

/// Memory that somebody has; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Lease {
    id: LeaseId,
    bytes: u64,
    changes: Rc<RefCell<Vec<Event>>>,
}

impl Lease {
    /// How many bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps only `bytes`.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        self.bytes = self.bytes.min(bytes);
        self.changes.borrow_mut().push(Event::Shrink { lease: self.id, bytes });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.changes.borrow_mut().push(Event::GiveBack(self.id));
    }
}

/// Who waits for a lease.
#[derive(Clone, Debug)]
pub(crate) enum Waiter {
    /// The result of a task on a stream.
    Result { stream: u64, task: u64 },
    /// Weights and sessions of a stage, ordered for an epoch.
    Load { key: StageKey, epoch: u64 },
}

/// The memory of a run.
pub(crate) struct Memory {
    ledger: Ledger,
    next: LeaseId,
    /// Leases that were asked for and not granted yet.
    waiting: BTreeMap<LeaseId, (Waiter, Lease)>,
    /// What became of leases since the ledger last heard of it.
    changes: Rc<RefCell<Vec<Event>>>,
    /// Answers that those who waited have not heard.
    answers: VecDeque<(Waiter, Result<Lease, Error>)>,
    /// Whether a request could not be granted and nothing has given way yet.
    pub(crate) is_short: bool,
}

impl Memory {
    /// So many bytes, all of them free.
    pub(crate) fn new(limit: u64) -> Memory {
        Memory {
            ledger: Ledger::new(limit),
            next: 0,
            waiting: BTreeMap::new(),
            changes: Rc::default(),
            answers: VecDeque::new(),
            is_short: false,
        }
    }

    /// The accounts.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

impl World {
    /// Tells the ledger what became of leases, and the checks what the ledger did.
    pub(crate) fn settle(&mut self, node: usize) -> Result<(), Broken> {
        let Some(run) = &self.nodes[node].run else { return Ok(()) };
        let changes = std::mem::take(&mut *run.memory.changes.borrow_mut());
        changes.into_iter().try_for_each(|event| self.tell_ledger(node, event).map(drop))
    }

    /// Lets the ledger hear of the time.
    pub(crate) fn ledger_tick(&mut self, node: usize) -> Result<(), Broken> {
        let Some(run) = &self.nodes[node].run else { return Ok(()) };
        let due = run.memory.ledger.wake_at().is_some_and(|at| at <= run.time(self.now));
        if due { self.tell_ledger(node, Event::Tick).map(drop) } else { Ok(()) }
    }

    /// The next who waited for memory and has an answer.
    pub(crate) fn next_answer(&mut self, node: usize) -> Option<(Waiter, Result<Lease, Error>)> {
        self.nodes[node].run.as_mut()?.memory.answers.pop_front()
    }

    fn tell_ledger(&mut self, node: usize, event: Event) -> Result<Option<Error>, Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(None) };
        let time = run.time(now);
        let actions = run.memory.ledger.handle(event, time);
        self.checks.ledger_heard(node, &event);
        let mut refused = None;
        for action in actions {
            let memory = &mut run.memory;
            match action {
                Action::Grant(lease) => {
                    self.checks.granted(node, lease);
                    if let Some((waiter, lease)) = memory.waiting.remove(&lease) {
                        memory.answers.push_back((waiter, Ok(lease)));
                    }
                }
                Action::Refuse(lease, shortage) => match memory.waiting.remove(&lease) {
                    Some((waiter, _)) => memory.answers.push_back((waiter, Err(shortage.into()))),
                    None => refused = Some(shortage.into()),
                },
            }
        }
        self.checks.held(now, node, &run.memory.ledger)?;
        Ok(refused)
    }

    /// A lease at once, or why there is none.
    pub(crate) fn lease(&mut self, node: usize, kind: Kind, bytes: u64) -> Result<Result<Lease, Error>, Broken> {
        self.settle(node)?;
        let Some(lease) = self.new_lease(node, bytes) else { return Ok(Err(gone())) };
        let id = lease.id;
        let refused = self.tell_ledger(node, Event::Ask { lease: id, kind, bytes, until: None })?;
        let Some(error) = refused else { return Ok(Ok(lease)) };
        if let Some(run) = self.nodes[node].run.as_mut().filter(|run| kind != Kind::Operands && !run.memory.is_short) {
            run.memory.is_short = true;
            let run = run.number;
            self.after(100, Happening::GiveWay { node, run });
        }
        // Giving back what was refused changes nothing.
        Ok(Err(error))
    }

    /// A lease within `patience`; the answer goes to `waiter`, also where it comes at once.
    pub(crate) fn lease_soon(
        &mut self,
        node: usize,
        kind: Kind,
        bytes: u64,
        patience: Micros,
        waiter: Waiter,
    ) -> Result<(), Broken> {
        self.settle(node)?;
        let now = self.now;
        let Some(lease) = self.new_lease(node, bytes) else { return Ok(()) };
        let id = lease.id;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let until = Some(run.time(now) + std::time::Duration::from_micros(patience));
        run.memory.waiting.insert(id, (waiter, lease));
        self.tell_ledger(node, Event::Ask { lease: id, kind, bytes, until }).map(drop)
    }

    /// Withdraws what waits for memory.
    pub(crate) fn stop_waiting(&mut self, node: usize, whose: impl Fn(&Waiter) -> bool) {
        if let Some(run) = &mut self.nodes[node].run {
            run.memory.waiting.retain(|_, (waiter, _)| !whose(waiter));
            run.memory.answers.retain(|(waiter, _)| !whose(waiter));
        }
    }

    fn new_lease(&mut self, node: usize, bytes: u64) -> Option<Lease> {
        let memory = &mut self.nodes[node].run.as_mut()?.memory;
        memory.next += 1;
        Some(Lease { id: memory.next, bytes, changes: Rc::clone(&memory.changes) })
    }
}

fn gone() -> Error {
    Error::new(pangea_units::ErrorKind::Unavailable, "the node does not run")
}
