//! The ledger: the leases held and the requests that wait. A state machine without threads and
//! buffers.

use std::collections::{BTreeMap, VecDeque};

use super::{Kind, Shortage, own_work_bytes};
use crate::Time;

/// Requests of one kind that may wait: more than a node has threads and tasks that ask, so a longer queue is a defect or an
/// attack, and further requests are refused at once.
pub const MAX_WAITING: usize = 256;

/// Number of a request and of the lease that it gets; the driver never uses a number twice.
pub type LeaseId = u64;

/// An event of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request for `bytes`.
    Ask {
        /// Number of the request.
        lease: LeaseId,
        /// The purpose.
        kind: Kind,
        /// The size in bytes.
        bytes: u64,
        /// Until when the request may wait; `None` for an answer at once.
        until: Option<Time>,
    },
    /// A lease needs only `bytes` from now on. A size above the present one changes nothing.
    Shrink {
        /// The lease.
        lease: LeaseId,
        /// The size that it keeps, in bytes.
        bytes: u64,
    },
    /// A lease ends, or a waiting request is withdrawn.
    GiveBack(LeaseId),
    /// Time has passed.
    Tick,
}

/// The answer to a request: each request gets exactly one, unless it is given back before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The lease is granted, and lasts until it is given back.
    Grant(LeaseId),
    /// The request is refused.
    Refuse(LeaseId, Shortage),
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    kind: Kind,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    lease: LeaseId,
    bytes: u64,
    until: Time,
}

/// The accounts of all memory of a node.
#[derive(Debug)]
pub struct Ledger {
    limit: u64,
    held: [u64; Kind::ALL.len()],
    leases: BTreeMap<LeaseId, Lease>,
    waiting: [VecDeque<Waiting>; Kind::ALL.len()],
}

impl Ledger {
    /// Creates a ledger of `limit` bytes, all of them free.
    pub fn new(limit: u64) -> Ledger {
        Ledger { limit, held: [0; Kind::ALL.len()], leases: BTreeMap::new(), waiting: Default::default() }
    }

    /// The size of the memory in bytes, leased or free.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes leased now, of all kinds.
    pub fn held(&self) -> u64 {
        self.held.iter().sum()
    }

    /// Bytes leased now for one purpose.
    pub fn held_by(&self, kind: Kind) -> u64 {
        self.held[kind.index()]
    }

    /// Number of requests of `kind` that wait.
    pub fn waiting(&self, kind: Kind) -> usize {
        self.waiting[kind.index()].len()
    }

    /// Bytes that a request of `kind` can get now.
    pub fn free_for(&self, kind: Kind) -> u64 {
        let own: u64 = Kind::ALL.into_iter().filter(|kind| kind.is_own_work()).map(|kind| self.held_by(kind)).sum();
        let kept_free = if kind.is_own_work() { 0 } else { own_work_bytes(self.limit).saturating_sub(own) };
        let free = self.limit.saturating_sub(self.held()).saturating_sub(kept_free);
        free.min(kind.most_bytes(self.limit).saturating_sub(self.held_by(kind)))
    }

    /// When [`Event::Tick`] is due: the earliest deadline of the waiting requests.
    pub fn wake_at(&self) -> Option<Time> {
        self.waiting.iter().flatten().map(|waiting| waiting.until).min()
    }

    /// Handles `event` and returns the answers to requests that follow from it.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Ask { lease, kind, bytes, until } => {
                actions.extend(self.ask(lease, kind, bytes, until.filter(|until| *until > now)));
                return actions;
            }
            Event::Shrink { lease, bytes } => {
                let Some(held) = self.leases.get_mut(&lease).filter(|held| held.bytes > bytes) else { return actions };
                self.held[held.kind.index()] -= held.bytes - bytes;
                held.bytes = bytes;
            }
            Event::GiveBack(lease) => match self.leases.remove(&lease) {
                Some(held) => self.held[held.kind.index()] -= held.bytes,
                None => self.waiting.iter_mut().for_each(|queue| queue.retain(|waiting| waiting.lease != lease)),
            },
            Event::Tick => {}
        }
        self.serve(&mut actions);
        self.expire(now, &mut actions);
        actions
    }

    fn ask(&mut self, lease: LeaseId, kind: Kind, bytes: u64, until: Option<Time>) -> Option<Action> {
        let (limit, most) = (self.limit, kind.most_bytes(self.limit));
        if bytes > most {
            return Some(Action::Refuse(lease, Shortage::TooLarge { kind, needs: bytes, most, limit }));
        }
        let waiting = self.waiting(kind);
        // Requests of the same kind that already wait come first.
        if waiting == 0 && bytes <= self.free_for(kind) {
            self.grant(lease, kind, bytes);
            return Some(Action::Grant(lease));
        }
        let Some(until) = until else { return Some(Action::Refuse(lease, self.full(kind, bytes))) };
        if waiting >= MAX_WAITING {
            return Some(Action::Refuse(lease, Shortage::Queued { kind, needs: bytes, waiting }));
        }
        self.waiting[kind.index()].push_back(Waiting { lease, bytes, until });
        None
    }

    fn grant(&mut self, lease: LeaseId, kind: Kind, bytes: u64) {
        self.held[kind.index()] += bytes;
        self.leases.insert(lease, Lease { kind, bytes });
    }

    fn full(&self, kind: Kind, needs: u64) -> Shortage {
        Shortage::Full { needs, free: self.free_for(kind), limit: self.limit }
    }

    /// Grants the waiting requests that fit now. Only the first of each kind is considered, and of those the oldest
    /// comes first.
    fn serve(&mut self, actions: &mut Vec<Action>) {
        loop {
            let fits = |kind: &Kind| {
                let first = self.waiting[kind.index()].front()?;
                (first.bytes <= self.free_for(*kind)).then_some((first.lease, *kind))
            };
            let Some((_, kind)) = Kind::ALL.iter().filter_map(fits).min() else { return };
            let Some(first) = self.waiting[kind.index()].pop_front() else { return };
            self.grant(first.lease, kind, first.bytes);
            actions.push(Action::Grant(first.lease));
        }
    }

    /// Refuses the requests past their deadline, and grants those behind them that fit now.
    fn expire(&mut self, now: Time, actions: &mut Vec<Action>) {
        let mut expired = false;
        for kind in Kind::ALL {
            let over = |waiting: &Waiting| waiting.until <= now;
            for waiting in self.waiting[kind.index()].iter().filter(|waiting| over(waiting)) {
                actions.push(Action::Refuse(waiting.lease, self.full(kind, waiting.bytes)));
                expired = true;
            }
            self.waiting[kind.index()].retain(|waiting| !over(waiting));
        }
        if expired {
            self.serve(actions);
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
