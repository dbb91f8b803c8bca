//! Writes log events to standard error, as text for people or as one JSON object per line, or to the
//! system's journal. A line that cannot be written, because
//! the disk is full or nobody reads it any more, is lost and counted; it never ends the process.

use std::fmt;
use std::io::{self, Write, stderr};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::terminal;
use crate::config::{LogConfig, LogFormat, LogLevel};
use crate::traces::{TARGET, Traces};

/// Sets up logging for the process, and the spans of `traces` if there are any. A second call has no effect.
pub(super) fn start(config: LogConfig, traces: Option<&Traces>) {
    // Errors of the log itself would be printed to standard error, which panics where that is what fails.
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Lossy(stderr())).log_internal_errors(false);
    let journal = (config.format == LogFormat::Journal).then(journal).flatten();
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match (journal, config.format) {
        (Some(journal), _) => Box::new(journal),
        (None, LogFormat::Json) => Box::new(lines.json().flatten_event(true).with_target(false)),
        (None, LogFormat::Text | LogFormat::Journal) => Box::new(
            lines
                .fmt_fields(Sentences { with_fields: config.level >= LogLevel::Debug })
                .with_target(config.level >= LogLevel::Debug)
                .with_ansi(terminal::colours(&stderr())),
        ),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter(config.level)));
    // Fails only if a subscriber is set already, which then stays in force.
    let _ = subscriber.with(traces.map(|traces| traces.layer())).try_init();
}

/// The system's journal, if there is one.
fn journal() -> Option<tracing_journald::Layer> {
    // Fields have their own names, so that `journalctl EVENT=ready` finds them.
    let journal = tracing_journald::layer().ok()?;
    Some(journal.with_field_prefix(None).with_syslog_identifier("pangea".to_owned()))
}

/// What the log shows: never the spans of traces, which would be in front of every line.
fn filter(level: LogLevel) -> EnvFilter {
    let shown = match level {
        LogLevel::Error => "error",
        LogLevel::Info => "warn,pangea=info,pangea_node=info",
        LogLevel::Debug => "info,pangea=debug,pangea_node=debug",
        LogLevel::Trace => "debug,pangea=trace,pangea_node=trace",
    };
    EnvFilter::new(format!("{shown},{TARGET}=off"))
}

/// Lines that could not be written since the last one that was.
static LOST: AtomicU64 = AtomicU64::new(0);

/// A writer that never fails: what cannot be written is lost, and the next line that can be says how much.
struct Lossy<W>(W);

impl<W: Write> Lossy<W> {
    /// Writes one event, which is passed whole.
    fn line(&mut self, line: &[u8], lost: &AtomicU64) {
        let before = lost.load(Ordering::Relaxed);
        let told = match before {
            0 => Ok(()),
            before => writeln!(self.0, "{before} log lines could not be written and are lost"),
        };
        match told.and_then(|()| self.0.write_all(line)) {
            Ok(()) => lost.fetch_sub(before, Ordering::Relaxed),
            Err(_) => lost.fetch_add(1, Ordering::Relaxed),
        };
    }
}

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line, &LOST);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // As with a line: nobody is told that it failed.
        let _ = self.0.flush();
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is full at first.
    #[derive(Default)]
    struct Disk {
        is_full: bool,
        written: String,
    }

    impl Write for &mut Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.is_full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.written.push_str(std::str::from_utf8(bytes).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_lost_and_counted() {
        let (mut disk, lost) = (Disk { is_full: true, ..Disk::default() }, AtomicU64::new(0));
        for _ in 0..3 {
            Lossy(&mut disk).line(b"a line\n", &lost);
        }
        disk.is_full = false;
        Lossy(&mut disk).line(b"again\n", &lost);
        Lossy(&mut disk).line(b"and again\n", &lost);
        assert_eq!(disk.written, "3 log lines could not be written and are lost\nagain\nand again\n");
        disk.is_full = true;
        assert_eq!(Lossy(&mut disk).write(b"x").unwrap(), 1);
    }
}
