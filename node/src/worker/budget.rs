//! The node's memory for tensors. Everything that holds a tensor for longer than one call takes its
//! share here first and gives it back by dropping the reservation; nobody allocates on a peer's word.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pangea_client::{Error, ErrorKind, Result};

/// A bound on bytes, shared by clones.
#[derive(Clone, Debug)]
pub struct Budget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// At most `limit` bytes.
    pub fn new(limit: u64) -> Budget {
        Budget { shared: Arc::new(Shared { limit, used: AtomicU64::new(0) }) }
    }

    /// The bound in bytes.
    pub fn limit(&self) -> u64 {
        self.shared.limit
    }

    /// Bytes reserved now.
    pub fn used(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, or refuses with `Overloaded` and takes nothing.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation> {
        let taken = self.shared.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= self.shared.limit)
        });
        match taken {
            Ok(_) => Ok(Reservation { shared: Arc::clone(&self.shared), bytes }),
            Err(used) => Err(Error::new(
                ErrorKind::Overloaded,
                format!(
                    "{bytes} bytes do not fit into this node's memory for tensors ({used} of {} bytes are in use); \
                     try again later or start the node with a larger --max-memory",
                    self.shared.limit
                ),
            )),
        }
    }
}

/// A share of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Reservation {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_reservation_takes_nothing_and_a_dropped_one_gives_back() {
        let budget = Budget::new(100);
        let held = budget.reserve(60).unwrap();
        assert_eq!(budget.reserve(41).unwrap_err().kind(), ErrorKind::Overloaded);
        assert_eq!(budget.reserve(u64::MAX).unwrap_err().kind(), ErrorKind::Overloaded);
        assert_eq!(budget.used(), 60);
        let rest = budget.reserve(40).unwrap();
        drop((held, rest));
        assert_eq!(budget.used(), 0);
    }
}
