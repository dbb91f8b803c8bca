//! The error kinds of DESIGN §4.5, the same on every surface, and the error that carries one.
//! It never parses message text to decide anything.

use std::fmt;

/// Why something failed, in terms a caller can act on. Retries look at this, never at text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong: shapes, dtypes, malformed files. Trying again cannot help.
    InvalidInput,
    /// The caller may not do this.
    Unauthorized,
    /// What was named does not exist.
    NotFound,
    /// A limit is reached for now; trying later can help.
    Overloaded,
    /// Whoever was asked cannot be reached or is gone.
    Unavailable,
    /// The deadline passed.
    DeadlineExceeded,
    /// The caller, or its going away, cancelled the work.
    Cancelled,
    /// No trustworthy result could be had.
    VerificationFailed,
    /// A defect on our side.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the wire numbers.
    pub const ALL: [ErrorKind; 9] = [
        ErrorKind::InvalidInput,
        ErrorKind::Unauthorized,
        ErrorKind::NotFound,
        ErrorKind::Overloaded,
        ErrorKind::Unavailable,
        ErrorKind::DeadlineExceeded,
        ErrorKind::Cancelled,
        ErrorKind::VerificationFailed,
        ErrorKind::Internal,
    ];

    /// The name as every surface shows it.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::InvalidInput => "InvalidInput",
            ErrorKind::Unauthorized => "Unauthorized",
            ErrorKind::NotFound => "NotFound",
            ErrorKind::Overloaded => "Overloaded",
            ErrorKind::Unavailable => "Unavailable",
            ErrorKind::DeadlineExceeded => "DeadlineExceeded",
            ErrorKind::Cancelled => "Cancelled",
            ErrorKind::VerificationFailed => "VerificationFailed",
            ErrorKind::Internal => "Internal",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<ErrorKind> {
        ErrorKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failure: its kind for programs, a sentence for people (what is wrong, where, what to do).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }

    /// What a caller decides by.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What a person reads.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// The result of anything that can fail with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
