//! A value that is there once, later, for everyone who waits for it: a product, a report.
//! It knows nothing of what it holds.

use pangea_client::{Error, ErrorKind, Result};
use tokio::sync::watch;

/// Fills a slot, once. Dropping it unfilled leaves `Cancelled` in the slot.
pub(super) struct Fill<T> {
    sender: watch::Sender<Option<Result<T>>>,
}

/// The waiting side of a slot. Clones wait for the same value, which lives as long as they do.
pub(super) struct Slot<T> {
    receiver: watch::Receiver<Option<Result<T>>>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Slot<T> {
        Slot { receiver: self.receiver.clone() }
    }
}

/// An empty slot and what fills it.
pub(super) fn slot<T: Clone>() -> (Fill<T>, Slot<T>) {
    let (sender, receiver) = watch::channel(None);
    (Fill { sender }, Slot { receiver })
}

impl<T: Clone> Fill<T> {
    /// Puts the value, or why there is none, where the waiters see it.
    pub(super) fn fill(self, value: Result<T>) {
        // With nobody left to want it, it is dropped here.
        let _ = self.sender.send(Some(value));
    }
}

impl<T: Clone> Slot<T> {
    /// A slot that is full from the start.
    pub(super) fn full(value: T) -> Slot<T> {
        let (fill, slot) = slot();
        fill.fill(Ok(value));
        slot
    }

    /// The value, once it is there.
    pub(super) async fn wait(&self) -> Result<T> {
        let mut receiver = self.receiver.clone();
        match receiver.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(value)) => value.clone(),
            _ => Err(Error::new(ErrorKind::Cancelled, "the job was cancelled")),
        }
    }
}
