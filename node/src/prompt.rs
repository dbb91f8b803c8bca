//! Questions about belonging on the terminal of `pangea node`: whom to admit, which pool to join. Which question is asked when is decided
//! by `pangea_control::membership::questions`; here a terminal is read and written. The node never waits for it.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, IsTerminal, Write, stderr, stdin};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use pangea_client::Result;
use pangea_control::membership::questions::Typed;
use pangea_control::membership::{Matter, Question, Questions};
use rustix::fs::{Mode, OFlags};
use rustix::process::getpgrp;
use rustix::termios::{tcgetpgrp, ttyname};
use tokio::net::unix::pipe::Receiver;

use crate::config::{LogConfig, LogFormat, LogLevel};
use crate::pool::Members;

/// Interval of looking whether an open question is over: nodes that leave the network give no notice.
const LOOK: Duration = Duration::from_secs(5);

/// Interval of looking whether this process has the terminal again, while another one has it.
const BACKGROUND: Duration = Duration::from_millis(500);

/// Longest line that is read; an answer has a few characters.
const MAX_LINE_BYTES: usize = 256;

/// Whether a person can be asked: standard input and error are a terminal, and the log there is for people.
pub fn is_possible(log: &LogConfig) -> bool {
    let for_people = log.format == LogFormat::Text && log.level >= LogLevel::Info;
    for_people && stdin().is_terminal() && stderr().is_terminal()
}

/// Asks what `members` has to be decided, for as long as the node runs.
pub async fn run(members: &Members) -> Infallible {
    let mut terminal = Terminal::open().inspect_err(|error| {
        tracing::warn!(event = "terminal_not_read", %error, "cannot read the terminal: {error}; use `pangea members`");
    });
    let mut attention = members.attention();
    attention.mark_changed();
    let mut questions = Questions::default();
    // At most one for each waiting node, of which there are few.
    let mut following = FuturesUnordered::new();
    loop {
        tokio::select! {
            // Never fails: the sender is in `members`.
            Ok(()) = attention.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
            line = next_line(&mut terminal) => match questions.typed(&line) {
                Typed::Yes(question) => following.push(agree(members, question)),
                Typed::No(question) => members.decline(&question),
                Typed::Unclear => say("type y or n"),
                Typed::Nothing => {}
            },
            Some((question, result)) = following.next(), if !following.is_empty() => conclude(&question, result),
        }
        attention.mark_unchanged();
        if let Some(question) = questions.open(&members.questions()) {
            say(&question.text());
        }
    }
}

async fn agree(members: &Members, question: Question) -> (Question, Result<()>) {
    let result = members.agree(&question).await;
    (question, result)
}

fn conclude(question: &Question, result: Result<()>) {
    let name = &question.name;
    match (result, question.matter) {
        (Err(error), _) => say(&error.to_string()),
        (Ok(()), Matter::Admit(_)) => say(&format!("accepted; {name} joins once this is confirmed there")),
        // The log and the next question say it.
        (Ok(()), Matter::Join(_) | Matter::Compare) => {}
    }
}

/// Writes a line for the person. One that cannot be written is lost, as lines of the log are.
fn say(text: &str) {
    let _ = writeln!(stderr(), "?  {text}");
}

/// The next line that is typed; never, once the terminal is gone.
async fn next_line(terminal: &mut io::Result<Terminal>) -> String {
    if let Ok(open) = terminal {
        match open.line().await {
            Ok(line) => return line,
            Err(error) => *terminal = Err(error),
        }
    }
    std::future::pending().await
}

/// The terminal of standard input, opened once more: reading it never waits, and other processes that share it are not affected.
struct Terminal {
    /// A terminal is read like a pipe.
    file: Receiver,
    /// What was typed of the next line.
    typed: Vec<u8>,
}

impl Terminal {
    fn open() -> io::Result<Terminal> {
        let path = ttyname(stdin(), Vec::new())?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        Ok(Terminal { file: Receiver::from_file_unchecked(file)?, typed: Vec::new() })
    }

    /// The next line. Cancel-safe.
    ///
    /// # Errors
    /// If the terminal is gone.
    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.typed.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.typed.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            // What is so long is no answer.
            self.typed.truncate(MAX_LINE_BYTES);
            self.file.readable().await?;
            // Reading in the background would stop the process.
            if tcgetpgrp(stdin()).is_ok_and(|foreground| foreground != getpgrp()) {
                tokio::time::sleep(BACKGROUND).await;
                continue;
            }
            let mut bytes = [0; MAX_LINE_BYTES];
            match self.file.try_read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.typed.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
