//! Writes log events to standard error, as text for people or as one JSON object per line.

use std::fmt;
use std::io::{IsTerminal, stderr};

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Sets up logging for the process. A second call has no effect.
pub(super) fn start(config: LogConfig) {
    let filter = EnvFilter::new(match config.level {
        LogLevel::Error => "error",
        LogLevel::Info => "warn,pangea=info,pangea_node=info",
        LogLevel::Debug => "info,pangea=debug,pangea_node=debug",
        LogLevel::Trace => "debug,pangea=trace,pangea_node=trace",
    });
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // Fails only if a subscriber is set already, which then stays in force.
    let _ = match config.format {
        LogFormat::Json => subscriber.json().flatten_event(true).with_target(false).try_init(),
        LogFormat::Text => subscriber
            .fmt_fields(Sentences { with_fields: config.level >= LogLevel::Debug })
            .with_target(config.level >= LogLevel::Debug)
            .with_ansi(stderr().is_terminal())
            .try_init(),
    };
}

/// Formats an event as its message alone: its fields repeat the message for programs and appear in JSON logs. Events
/// without a message, and all events at debug level, show their fields.
struct Sentences {
    with_fields: bool,
}

impl<'writer> FormatFields<'writer> for Sentences {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut message = Message(None);
        fields.record(&mut message);
        match message.0 {
            Some(sentence) if !self.with_fields => writer.write_str(&sentence),
            _ => DefaultFields::new().format_fields(writer, fields),
        }
    }
}

/// The message of an event.
struct Message(Option<String>);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}
