//! The failure of a command: a sentence for the user and one of the exit codes that scripts rely on. Exit codes follow
//! from error kinds, never from text.

use std::fmt;
use std::process::ExitCode;

use pangea_client::{Error, ErrorKind};

use crate::config::ConfigError;

/// Exit codes of every command; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// The command failed.
    Failed = 1,
    /// Bad usage or input.
    Usage = 2,
    /// The named node cannot be reached.
    Unreachable = 3,
    /// No trustworthy result could be had.
    Untrusted = 4,
    /// Stopped with Ctrl-C: 128 + SIGINT, as shells report it.
    Interrupted = 130,
}

/// Hint where nobody answers at the address of a peer.
pub(super) const NOT_THERE: &str = "is `pangea node` running there, and is that its port?";

/// Why a command failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// The exit code.
    pub(super) exit: Exit,
    /// A sentence that says what is wrong and what to do.
    pub(super) message: String,
    /// Kind of the error that a node returned, if any.
    pub(super) kind: Option<ErrorKind>,
}

impl Failure {
    /// A failure with this exit code.
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), kind: None }
    }

    /// Bad usage or input.
    pub(super) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// A failure of the work itself.
    pub(super) fn failed(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Failed, message)
    }

    /// Stopped with Ctrl-C.
    pub(super) fn interrupted() -> Failure {
        Failure::new(Exit::Interrupted, "stopped; the work was cancelled on every node, and no file was left behind")
    }

    /// Appends what to do.
    pub(super) fn hint(self, what: &str) -> Failure {
        Failure { message: format!("{}; {what}", self.message), ..self }
    }

    /// Prefixes the message with its subject.
    pub(super) fn about(self, what: impl fmt::Display) -> Failure {
        Failure { message: format!("{what}: {}", self.message), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> ExitCode {
        ExitCode::from(failure.exit as u8)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let exit = match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::NotFound => Exit::Usage,
            ErrorKind::VerificationFailed => Exit::Untrusted,
            ErrorKind::Unauthorized
            | ErrorKind::Overloaded
            | ErrorKind::Unavailable
            | ErrorKind::DeadlineExceeded
            | ErrorKind::Cancelled
            | ErrorKind::Internal => Exit::Failed,
        };
        Failure { kind: Some(error.kind()), ..Failure::new(exit, error.message()) }
    }
}

impl From<pangea_compute::Error> for Failure {
    fn from(error: pangea_compute::Error) -> Failure {
        crate::compute_error(error).into()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::usage(error.to_string())
    }
}
