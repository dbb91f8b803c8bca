//! The error type of this crate; callers act on its [`ErrorKind`]. A message is a sentence for people: the operation, the
//! shapes, and what to do. Errors are returned, never printed or logged.

use std::path::{Path, PathBuf};

use pangea_units::ErrorKind;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shapes of two operands do not fit.
    #[error("{operation}: shapes do not fit: A is {} x {} and B is {} x {}: {hint}", a.0, a.1, b.0, b.1)]
    Shape {
        /// The operation that failed.
        operation: &'static str,
        /// Rows and columns of the left operand.
        a: (usize, usize),
        /// Rows and columns of the right operand.
        b: (usize, usize),
        /// What must hold.
        hint: &'static str,
    },
    /// An element type that the operation does not support.
    #[error("{operation}: dtype {dtype} is not supported: {hint}")]
    Dtype {
        /// The operation that failed.
        operation: &'static str,
        /// The type's name.
        dtype: String,
        /// What to use instead.
        hint: &'static str,
    },
    /// An argument outside its allowed range.
    #[error("{operation}: {what}")]
    Invalid {
        /// The operation that failed.
        operation: &'static str,
        /// What is wrong and what to do.
        what: String,
    },
    /// A file or text that is not in the format it should be.
    #[error("{format}: {what} ({place})")]
    Parse {
        /// The format being read: `npy`, `csv`, `json`.
        format: &'static str,
        /// What is wrong.
        what: String,
        /// Where: a byte offset, or line and column.
        place: String,
    },
    /// A computed value that is NaN or infinite, from which nothing can be computed.
    #[error("{operation}: {what}; the model's weights or an earlier stage's output are damaged")]
    NonFinite {
        /// The operation that failed.
        operation: &'static str,
        /// The value.
        what: String,
    },
    /// The system refused an allocation.
    #[error("out of memory: cannot allocate {bytes} bytes for {what}; use smaller blocks or free memory")]
    OutOfMemory {
        /// Size of the allocation.
        bytes: u64,
        /// What the memory was for.
        what: &'static str,
    },
    /// A tensor with more bytes than the address space holds; refused by arithmetic, before any allocation.
    #[error("{rows} x {cols} elements of {dtype} take more bytes than this machine can address; use smaller blocks")]
    TooLarge {
        /// The name of the element type.
        dtype: &'static str,
        /// The number of rows.
        rows: usize,
        /// The number of columns.
        cols: usize,
    },
    /// A configured limit is reached; the request may succeed once other work has ended.
    #[error("{what}")]
    Busy {
        /// The limit, and what to do.
        what: String,
    },
    /// The disk is full.
    #[error("the disk is full: writing {} failed and the partial file was removed; free space or choose another place", path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
    },
    /// Reading or writing a file failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A GPU that was reset, removed or given up, or whose driver failed. The same work can be done on another device.
    #[error("the GPU {device} is lost: {why}; restart this program to use it again")]
    DeviceLost {
        /// The name of the adapter.
        device: String,
        /// What its driver says.
        why: String,
    },
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// The kind that a caller acts on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Shape { .. } | Error::Dtype { .. } | Error::Invalid { .. } | Error::Parse { .. } => {
                ErrorKind::InvalidInput
            }
            Error::OutOfMemory { .. } | Error::TooLarge { .. } | Error::DiskFull { .. } | Error::Busy { .. } => {
                ErrorKind::Overloaded
            }
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            Error::Io { .. } | Error::NonFinite { .. } => ErrorKind::Internal,
            Error::DeviceLost { .. } => ErrorKind::Unavailable,
            Error::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// An error about `path`; a full disk or an exhausted quota becomes [`Error::DiskFull`].
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Error {
        let path = path.to_path_buf();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::DiskFull { path },
            _ => Error::Io { path, source },
        }
    }

    pub(crate) fn invalid(operation: &'static str, what: impl Into<String>) -> Error {
        Error::Invalid { operation, what: what.into() }
    }
}
