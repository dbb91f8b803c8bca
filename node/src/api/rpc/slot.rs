//! A value that is set once and awaited by any number of readers: a product, a report.
//! This file knows nothing of what the value is.

use pangea_client::{Error, ErrorKind, Result};
use tokio::sync::watch;

/// Fills a slot, once. Dropping it unfilled leaves `Cancelled` in the slot.
pub(super) struct Fill<T> {
    sender: watch::Sender<Option<Result<T>>>,
}

/// The reading side of a slot. Clones wait for the same value, which lives as long as they do.
pub(super) struct Slot<T> {
    receiver: watch::Receiver<Option<Result<T>>>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Slot<T> {
        Slot { receiver: self.receiver.clone() }
    }
}

/// An empty slot and its writer.
pub(super) fn slot<T: Clone>() -> (Fill<T>, Slot<T>) {
    let (sender, receiver) = watch::channel(None);
    (Fill { sender }, Slot { receiver })
}

impl<T: Clone> Fill<T> {
    /// Sets the value, or the error why there is none.
    pub(super) fn fill(self, value: Result<T>) {
        // Without a reader the value is dropped here.
        let _ = self.sender.send(Some(value));
    }
}

impl<T: Clone> Slot<T> {
    /// A slot that has its value from the start.
    pub(super) fn full(value: T) -> Slot<T> {
        let (fill, slot) = slot();
        fill.fill(Ok(value));
        slot
    }

    /// Waits for the value.
    pub(super) async fn wait(&self) -> Result<T> {
        let mut receiver = self.receiver.clone();
        match receiver.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(value)) => value.clone(),
            _ => Err(Error::new(ErrorKind::Cancelled, "the job was cancelled")),
        }
    }
}
