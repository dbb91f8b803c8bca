//! The small names that events and actions use for workers and attempts; jobs are named by their registry.
//! Never says which peer or which capability is behind one: the driver keeps those maps.

use std::fmt;

pub use crate::jobs::JobId;

/// A worker: this node or one peer. The driver gives a peer the same id for as long as it runs.
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

/// One try of one task on one worker, named by the scheduler; never used twice.
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
