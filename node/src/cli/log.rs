//! Where log events go: standard error, as text for people or as one JSON object a line.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Sets up logging for the rest of the process. A second call changes nothing.
pub fn start(config: LogConfig) {
    let filter = EnvFilter::new(match config.level {
        LogLevel::Error => "error",
        LogLevel::Info => "warn,pangea=info,pangea_node=info",
        LogLevel::Debug => "info,pangea=debug,pangea_node=debug",
        LogLevel::Trace => "debug,pangea=trace,pangea_node=trace",
    });
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // Only a subscriber that is set already can make this fail, and then that one does.
    let _ = match config.format {
        LogFormat::Json => subscriber.json().flatten_event(true).with_target(false).try_init(),
        LogFormat::Text => subscriber.with_target(config.level >= LogLevel::Debug).with_ansi(stderr().is_terminal()).try_init(),
    };
}
