//! How far the fetching of a model is. A value; who shows it decides how.

/// A moment of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// What is being done, in a word for people.
    pub phase: &'static str,
    /// Bytes of the phase that are done.
    pub done_bytes: u64,
    /// Bytes of the phase in all; 0 where that is not known.
    pub total_bytes: u64,
}

/// Who is told how far a transfer is.
pub(super) type Listener<'a> = &'a mut dyn FnMut(Transfer);

/// Waiting for another process that fetches into the same folder.
pub(super) const WAITING: &str = "waiting";

/// Bytes are coming in.
pub(super) const FETCHING: &str = "fetching";

/// The whole file is read once more.
pub(super) const CHECKING: &str = "checking";
