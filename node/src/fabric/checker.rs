//! The thread that checks results, so that neither the network nor the compute pool waits for it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use libp2p::PeerId;

use crate::devices::Devices;
use crate::devices::threads::Purpose;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::{DType, Operation, Pool, ResultProbe, Tensor};

use crate::supervise::Supervisor;
use crate::trust::SignedProduct;

/// Maximum queued checks: the tasks in flight at all peers together are far fewer.
const QUEUE: usize = 4096;

/// The probe that checks results of one panel, created on first use.
#[derive(Default)]
pub(crate) struct PanelProbe(OnceLock<std::result::Result<ResultProbe, String>>);

/// One result to check: whether `c` is the result of the operation on `a` and `b`.
pub(crate) struct Check {
    pub(crate) operation: Operation,
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) c: Tensor,
    pub(crate) dtype: DType,
    pub(crate) probe: Arc<PanelProbe>,
    /// The peer that computed the result; `None` for this node.
    pub(crate) worker: Option<PeerId>,
    /// What the worker signed about it.
    pub(crate) signed: Option<SignedProduct>,
    /// Called on the checker's thread.
    pub(crate) done: Box<dyn FnOnce(Checked) + Send>,
}

/// Result of a check.
pub(crate) struct Checked {
    pub(crate) verdict: CheckVerdict,
    /// Whether the worker signed a statement about the result; true of this node's own results.
    pub(crate) is_signed: bool,
    pub(crate) took: Duration,
}

pub(crate) enum CheckVerdict {
    /// The result is right; the name of the method.
    Good(&'static str),
    /// The result is wrong, with a description of the difference.
    Bad(String),
    /// The check could not be done.
    Failed(String),
}

/// Handle of the checker; the thread ends when it is dropped.
pub(crate) struct Checker {
    /// Boxed, because a channel has memory for all its places from the start.
    queue: SyncSender<Box<Check>>,
}

impl Checker {
    /// Starts the checker's thread.
    pub(crate) fn start(devices: &Devices, supervisor: &Supervisor) -> Result<Checker> {
        let pool = devices.pool(Purpose::Checks)?;
        let (queue, checks) = sync_channel::<Box<Check>>(QUEUE);
        supervisor
            .restarted_thread("checker", move || {
                for check in checks.iter() {
                    let begin = Instant::now();
                    let verdict = catch_unwind(AssertUnwindSafe(|| verify(&check, &pool)));
                    let (verdict, panic) = match verdict {
                        Ok(verdict) => (verdict, None),
                        Err(panic) => (CheckVerdict::Failed("the check panicked".to_owned()), Some(panic)),
                    };
                    let is_by = |worker| check.signed.as_ref().is_some_and(|signed| signed.is_by(&worker));
                    let is_signed = check.worker.is_none_or(is_by);
                    (check.done)(Checked { verdict, is_signed, took: begin.elapsed() });
                    if let Some(panic) = panic {
                        resume_unwind(panic);
                    }
                }
            })
            .map_err(|error| Error::new(ErrorKind::Internal, format!("cannot start the checker's thread: {error}")))?;
        Ok(Checker { queue })
    }

    /// Queues a check.
    pub(crate) fn submit(&self, check: Check) -> Result<()> {
        self.queue
            .try_send(Box::new(check))
            .map_err(|_| Error::new(ErrorKind::Overloaded, "too many results wait to be checked"))
    }
}

fn verify(check: &Check, pool: &Pool) -> CheckVerdict {
    let probe = check.probe.0.get_or_init(|| {
        check.operation.probe(&check.b, check.dtype, rand::random(), pool).map_err(|error| error.to_string())
    });
    match probe {
        Err(why) => CheckVerdict::Failed(why.clone()),
        Ok(probe) => match probe.check(&check.a, &check.b, &check.c, pool) {
            Ok(method) => CheckVerdict::Good(method),
            Err(mismatch) => CheckVerdict::Bad(mismatch.to_string()),
        },
    }
}
