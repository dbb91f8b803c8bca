//! How much a command says on standard error, and in what form. The subscriber that does it is set up in `cli::log`.

use clap::ValueEnum;

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Failures only (`-q`).
    Error,
    /// What people and scripts look for.
    #[default]
    Info,
    /// Why things happen (`-v`).
    Debug,
    /// Everything, the libraries beneath included (`-vv`).
    Trace,
}

impl LogLevel {
    /// What `-q` and so many `-v` ask for.
    pub fn from_flags(quiet: bool, verbose: u8) -> LogLevel {
        match (quiet, verbose) {
            (true, _) => LogLevel::Error,
            (false, 0) => LogLevel::Info,
            (false, 1) => LogLevel::Debug,
            (false, _) => LogLevel::Trace,
        }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// How much.
    pub level: LogLevel,
    /// In what form.
    pub format: LogFormat,
}
