//! Verbosity and format of the log on standard error. `cli::log` sets up the subscriber.

use clap::ValueEnum;

/// Verbosity of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Errors only (`-q`).
    Error,
    /// Lines that people and scripts look for.
    #[default]
    Info,
    /// Details for finding the cause of a problem as well (`-v`).
    Debug,
    /// Everything, including the libraries (`-vv`).
    Trace,
}

impl LogLevel {
    /// The level for `-q` (`quiet`) and for `-v` given `verbose` times.
    pub fn from_flags(quiet: bool, verbose: u8) -> LogLevel {
        match (quiet, verbose) {
            (true, _) => LogLevel::Error,
            (false, 0) => LogLevel::Info,
            (false, 1) => LogLevel::Debug,
            (false, _) => LogLevel::Trace,
        }
    }
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
    /// One entry per event in the system's journal, with its fields; text where there is no journal.
    Journal,
}

/// Verbosity and format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// Verbosity.
    pub level: LogLevel,
    /// Format of a line.
    pub format: LogFormat,
}
