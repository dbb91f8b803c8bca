//! Writes log events to standard error, as text for people or as one JSON object per line, or to the
//! system's journal. A line that cannot be written, because
//! the disk is full or nobody reads it any more, is lost and counted; it never ends the process.

use std::fmt;
use std::io::{self, Write, stderr};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::terminal;
use crate::config::{LogConfig, LogFormat, LogLevel};

/// Sets up logging for the process. A second call has no effect.
pub(super) fn start(config: LogConfig) {
    // Errors of the log itself would be printed to standard error, which panics where that is what fails.
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(config.level))
        .with_writer(|| Lossy(stderr()))
        .log_internal_errors(false);
    // Fails only if a subscriber is set already, which then stays in force.
    let _ = match config.format {
        LogFormat::Journal if start_journal(&config) => Ok(()),
        LogFormat::Json => subscriber.json().flatten_event(true).with_target(false).try_init(),
        LogFormat::Text | LogFormat::Journal => subscriber
            .fmt_fields(Sentences { with_fields: config.level >= LogLevel::Debug })
            .with_target(config.level >= LogLevel::Debug)
            .with_ansi(terminal::colours(&stderr()))
            .try_init(),
    };
}

/// Sends events to the journal from now on; returns whether there is one.
fn start_journal(config: &LogConfig) -> bool {
    // Fields have their own names, so that `journalctl EVENT=ready` finds them.
    let Ok(journal) = tracing_journald::layer() else { return false };
    let journal = journal.with_field_prefix(None).with_syslog_identifier("pangea".to_owned());
    tracing_subscriber::registry().with(filter(config.level)).with(journal).try_init().is_ok()
}

fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::new(match level {
        LogLevel::Error => "error",
        LogLevel::Info => "warn,pangea=info,pangea_node=info",
        LogLevel::Debug => "info,pangea=debug,pangea_node=debug",
        LogLevel::Trace => "debug,pangea=trace,pangea_node=trace",
    })
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
