//! Ids of workers and attempts in events and actions; the registry of jobs numbers jobs.
//! The driver maps them to peers.

use std::fmt;

pub use crate::jobs::JobId;

/// A worker: this node or one peer. The driver gives a peer the same id as long as it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

impl WorkerId {
    /// This node.
    pub const LOCAL: WorkerId = WorkerId(0);

    /// Whether this is the node that the scheduler runs on.
    pub fn is_local(self) -> bool {
        self == Self::LOCAL
    }
}

/// Id of one attempt of one task on one worker, assigned by the scheduler and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_local() { f.write_str("local") } else { write!(f, "worker {}", self.0) }
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attempt {}", self.0)
    }
}
