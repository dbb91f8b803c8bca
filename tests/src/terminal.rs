//! A process on a terminal of its own: what the terminal shows, what a person types, and the state that the terminal is left in.
//! Knows nothing of nodes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::process::TIMEOUT;

/// Size of an ordinary terminal: columns, rows.
pub const ORDINARY: (u16, u16) = (80, 24);

/// A process and its terminal. The process is killed when dropped.
pub struct Terminal {
    child: Child,
    controller: OwnedFd,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// What a terminal makes of the bytes.
    parser: vt100::Parser,
    bytes: Vec<u8>,
    is_closed: bool,
}

/// A terminal after its process has ended.
pub struct Left {
    /// How the process ended.
    pub status: ExitStatus,
    /// Everything that was written.
    pub bytes: Vec<u8>,
    /// The screen at the end.
    pub screen: vt100::Screen,
    /// Whether the terminal echoes and edits lines, as it did before.
    pub is_cooked: bool,
}

impl Terminal {
    /// Starts `command` on a terminal of `columns` x `rows` that calls itself `xterm-256color`, unless the command sets `TERM`.
    ///
    /// # Panics
    /// Where there are no terminals, or the process cannot be started.
    pub fn start(mut command: Command, (columns, rows): (u16, u16)) -> Terminal {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let end = || File::from(open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap());
        tcsetwinsize(&controller, size(columns, rows)).unwrap();
        if !command.get_envs().any(|(variable, _)| variable == "TERM") {
            command.env("TERM", "xterm-256color");
        }
        // The test's own surroundings decide nothing.
        for variable in ["COLUMNS", "CI", "CLICOLOR", "CLICOLOR_FORCE", "RUST_BACKTRACE"] {
            command.env_remove(variable);
        }
        if !command.get_envs().any(|(variable, _)| variable == "NO_COLOR") {
            command.env_remove("NO_COLOR");
        }
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        // The command's copies of the terminal would keep it open.
        drop(command);
        let parser = vt100::Parser::new(rows, columns, 0);
        let state = Mutex::new(State { parser, bytes: Vec::new(), is_closed: false });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let reader = read(File::from(controller.try_clone().unwrap()), Arc::clone(&shared));
        Terminal { child, controller, shared, reader: Some(reader) }
    }

    /// Types `text`.
    pub fn type_text(&self, text: &str) {
        File::from(self.controller.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
    }

    /// Gives the terminal another size, and tells the process.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.shared.state.lock().unwrap().parser.screen_mut().set_size(rows, columns);
        tcsetwinsize(&self.controller, size(columns, rows)).unwrap();
        // The process is not in the terminal's foreground group, which the kernel would tell.
        self.signal(Signal::WINCH);
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The text on the screen.
    pub fn text(&self) -> String {
        self.shared.state.lock().unwrap().parser.screen().contents()
    }

    /// Waits until the screen shows `text`, and returns all that it shows then.
    ///
    /// # Panics
    /// Where the process closes the terminal before, or after [`TIMEOUT`].
    pub fn shows(&self, text: &str) -> String {
        self.shows_that(text, |shown| shown.contains(text))
    }

    /// Waits until `is_right` of what the screen shows; `what` names that.
    ///
    /// # Panics
    /// As [`Terminal::shows`].
    pub fn shows_that(&self, what: &str, is_right: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + TIMEOUT;
        let mut state = self.shared.state.lock().unwrap();
        loop {
            let shown = state.parser.screen().contents();
            if is_right(&shown) {
                return shown;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let over = state.is_closed || left.is_zero();
            if over {
                drop(state);
                panic!("the terminal never showed {what:?}, but:\n{shown}");
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits for the end of the process and of its output.
    pub fn finish(mut self) -> Left {
        let status = self.child.wait().unwrap();
        let is_cooked = {
            let modes = tcgetattr(&self.controller).unwrap().local_modes;
            modes.contains(LocalModes::ICANON | LocalModes::ECHO)
        };
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        let state = self.shared.state.lock().unwrap();
        Left { status, bytes: state.bytes.clone(), screen: state.parser.screen().clone(), is_cooked }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A process that has ended is not there any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that a command writes to a terminal of ordinary size, and how it ends.
pub fn run_on_terminal(command: Command) -> Left {
    Terminal::start(command, ORDINARY).finish()
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Reads until all processes have closed the terminal, which Linux reports as an error.
fn read(mut controller: File, shared: Arc<Shared>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = controller.read(&mut buffer) {
            let mut state = shared.state.lock().unwrap();
            state.parser.process(&buffer[..count]);
            state.bytes.extend_from_slice(&buffer[..count]);
            shared.changed.notify_all();
        }
        shared.state.lock().unwrap().is_closed = true;
        shared.changed.notify_all();
    })
}
