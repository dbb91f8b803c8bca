//! What one connection holds and moves: tensors, bytes, jobs, waiting calls. Each reservation is released by dropping its
//! guard; while there is one, the connection keeps its place at the port. This file only decides whether there is room.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pangea_client::{Counters, Error, ErrorKind, Result};

use pangea_control::net::callers::{Origin, Standing};
use pangea_control::net::rate::RateLimiter;
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::limits::Limits;
use crate::clock;
use crate::net::Caller;

/// How often each client starts something.
pub(super) type CallRates = Rc<RefCell<RateLimiter<Origin>>>;

/// Sums over all connections since the start.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) connections: AtomicU32,
    tensors: AtomicU32,
    tensor_bytes: AtomicU64,
    jobs_running: AtomicU32,
    calls: AtomicU32,
}

impl Totals {
    pub(super) fn counters(&self) -> Counters {
        Counters {
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            tensors: self.tensors.load(Ordering::Relaxed),
            tensor_bytes: self.tensor_bytes.load(Ordering::Relaxed),
            jobs_running: self.jobs_running.load(Ordering::Relaxed),
        }
    }

    /// Whether no job runs and no call waits.
    pub(super) fn idle(&self) -> bool {
        self.jobs_running.load(Ordering::Relaxed) == 0 && self.calls.load(Ordering::Relaxed) == 0
    }
}

/// One connection's account.
pub(super) struct Account<B> {
    backend: B,
    limits: Limits,
    totals: Arc<Totals>,
    caller: Caller,
    rates: CallRates,
    /// Reservations of any kind.
    reservations: Cell<u32>,
    proven: CancellationToken,
    pub(super) bytes_in: Cell<u64>,
    pub(super) bytes_out: Cell<u64>,
    tensors: Cell<u32>,
    tensor_bytes: Cell<u64>,
    jobs: Cell<u32>,
    calls: Cell<u32>,
}

impl<B: Backend> Account<B> {
    pub(super) fn new(backend: B, limits: Limits, totals: Arc<Totals>, caller: Caller, rates: CallRates) -> Account<B> {
        totals.connections.fetch_add(1, Ordering::Relaxed);
        Account {
            backend,
            limits,
            totals,
            caller,
            rates,
            reservations: Cell::new(0),
            proven: CancellationToken::new(),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            tensors: Cell::new(0),
            tensor_bytes: Cell::new(0),
            jobs: Cell::new(0),
            calls: Cell::new(0),
        }
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            connections: 1,
            tensors: self.tensors.get(),
            tensor_bytes: self.tensor_bytes.get(),
            jobs_running: self.jobs.get(),
        }
    }

    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The client has shown that it may call.
    pub(super) fn prove(&self) {
        self.proven.cancel();
        if self.reservations.get() == 0 {
            self.caller.stands(Standing::Idle);
        }
    }

    /// Cancelled once the client has shown that it may call.
    pub(super) fn proven(&self) -> &CancellationToken {
        &self.proven
    }

    /// Cancelled when the connection must close, because a newcomer has its place.
    pub(super) fn closing(&self) -> &CancellationToken {
        self.caller.closing()
    }

    fn reserve(&self) {
        self.proven.cancel();
        if self.reservations.replace(self.reservations.get() + 1) == 0 {
            self.caller.stands(Standing::Busy);
        }
    }

    fn release(&self) {
        self.reservations.set(self.reservations.get() - 1);
        if self.reservations.get() == 0 {
            self.caller.stands(Standing::Idle);
        }
    }

    /// Counts something that the client starts.
    fn started(&self) -> Result<()> {
        let asked = self.rates.borrow_mut().ask(&self.caller.origin(), clock::now());
        asked.map_err(|again| {
            let message = format!(
                "one client may start {} jobs and calls per second; try again in {} ms",
                self.limits.calls_per_second,
                again.as_millis().max(1)
            );
            Error::new(ErrorKind::Overloaded, message)
        })
    }

    /// Reserves a place for one more tensor; its bytes are reserved separately.
    pub(super) fn seat(self: &Rc<Self>) -> Result<TensorSeat<B>> {
        let limit = self.limits.tensors_per_connection;
        take(&self.tensors, limit, "tensors; drop some first")?;
        self.totals.tensors.fetch_add(1, Ordering::Relaxed);
        self.reserve();
        Ok(TensorSeat { account: Rc::clone(self) })
    }

    /// Reserves memory for `bytes` of a tensor.
    pub(super) fn hold(self: &Rc<Self>, bytes: u64) -> Result<TensorMemory<B>> {
        let limit = self.limits.bytes_per_connection;
        let held = self.tensor_bytes.get();
        if held.checked_add(bytes).is_none_or(|sum| sum > limit) {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!(
                    "a tensor of {bytes} bytes is refused: one connection may hold {limit} bytes \
                     and this one holds {held}; drop tensors first, or use smaller blocks"
                ),
            ));
        }
        let lease = self.backend.lease(bytes)?;
        self.tensor_bytes.set(held + bytes);
        self.totals.tensor_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(TensorMemory { account: Rc::clone(self), bytes, _lease: lease })
    }

    /// Reserves a place for one more job.
    pub(super) fn job(self: &Rc<Self>) -> Result<JobSeat<B>> {
        self.started()?;
        take(&self.jobs, self.limits.jobs_per_connection, "jobs; wait for some or cancel them")?;
        self.totals.jobs_running.fetch_add(1, Ordering::Relaxed);
        self.reserve();
        Ok(JobSeat { account: Rc::clone(self) })
    }

    /// Reserves a place for one more waiting call.
    pub(super) fn call(self: &Rc<Self>) -> Result<CallSeat<B>> {
        self.started()?;
        take(&self.calls, self.limits.calls_per_connection, "calls; await their answers first")?;
        self.totals.calls.fetch_add(1, Ordering::Relaxed);
        self.reserve();
        Ok(CallSeat { account: Rc::clone(self) })
    }
}

impl<B> Drop for Account<B> {
    fn drop(&mut self) {
        self.totals.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn take(count: &Cell<u32>, limit: u32, what: &str) -> Result<()> {
    if count.get() >= limit {
        let message = format!("one connection may have {limit} {what}");
        return Err(Error::new(ErrorKind::Overloaded, message));
    }
    count.set(count.get() + 1);
    Ok(())
}

/// Place of one tensor.
pub(super) struct TensorSeat<B: Backend> {
    account: Rc<Account<B>>,
}

impl<B: Backend> Drop for TensorSeat<B> {
    fn drop(&mut self) {
        self.account.tensors.set(self.account.tensors.get() - 1);
        self.account.totals.tensors.fetch_sub(1, Ordering::Relaxed);
        self.account.release();
    }
}

/// Memory of one tensor.
pub(super) struct TensorMemory<B: Backend> {
    account: Rc<Account<B>>,
    bytes: u64,
    _lease: B::Lease,
}

impl<B: Backend> Drop for TensorMemory<B> {
    fn drop(&mut self) {
        self.account.tensor_bytes.set(self.account.tensor_bytes.get() - self.bytes);
        self.account.totals.tensor_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Place of one job.
pub(super) struct JobSeat<B: Backend> {
    account: Rc<Account<B>>,
}

impl<B: Backend> Drop for JobSeat<B> {
    fn drop(&mut self) {
        self.account.jobs.set(self.account.jobs.get() - 1);
        self.account.totals.jobs_running.fetch_sub(1, Ordering::Relaxed);
        self.account.release();
    }
}

/// Place of one waiting call.
pub(super) struct CallSeat<B: Backend> {
    account: Rc<Account<B>>,
}

impl<B: Backend> Drop for CallSeat<B> {
    fn drop(&mut self) {
        self.account.calls.set(self.account.calls.get() - 1);
        self.account.totals.calls.fetch_sub(1, Ordering::Relaxed);
        self.account.release();
    }
}
