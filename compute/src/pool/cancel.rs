//! Cancellation of running work. The work looks at it between pieces of bounded length; who decides is the caller.

use crate::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Stops a running product or forward pass within milliseconds. A clone is the same flag.
#[derive(Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    condition: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// A flag that is also set while `condition` holds. The condition is evaluated before each piece of work, on all compute
    /// threads, so it must be quick and must not block.
    pub fn when(condition: impl Fn() -> bool + Send + Sync + 'static) -> Cancel {
        Cancel { flag: Arc::default(), condition: Some(Arc::new(condition)) }
    }

    /// Sets the flag; it cannot be cleared.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::Relaxed) || self.condition.as_ref().is_some_and(|condition| condition())
    }

    /// [`Error::Cancelled`] where the flag is set.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cancel({})", self.flag.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_set_by_hand_or_by_its_condition_and_so_is_every_clone() {
        let due = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&due);
        let cancel = Cancel::when(move || shared.load(Ordering::Relaxed));
        let clone = cancel.clone();
        assert!(!clone.is_cancelled() && clone.check().is_ok());
        due.store(true, Ordering::Relaxed);
        assert!(clone.is_cancelled() && matches!(clone.check(), Err(Error::Cancelled)));
        due.store(false, Ordering::Relaxed);
        assert!(!clone.is_cancelled());
        cancel.cancel();
        assert!(clone.is_cancelled());
    }
}
