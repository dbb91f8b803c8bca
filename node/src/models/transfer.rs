//! Progress of a model's download. A plain value; the listener decides how to show it.

/// Progress at one moment of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Current phase, in a word for people.
    pub phase: &'static str,
    /// Bytes of the phase that are done.
    pub done_bytes: u64,
    /// Total bytes of the phase; 0 if unknown.
    pub total_bytes: u64,
}

/// Receives the progress of a transfer.
pub(super) type Listener<'a> = &'a mut dyn FnMut(Transfer);

/// Waiting for another process that downloads into the same folder.
pub(super) const WAITING: &str = "waiting";

/// Bytes are received.
pub(super) const FETCHING: &str = "fetching";

/// The complete file is hashed.
pub(super) const CHECKING: &str = "checking";
