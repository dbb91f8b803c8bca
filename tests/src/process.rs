//! One child process: its output lines with their arrival times, and its end. The process is killed when dropped.
//! Knows nothing of nodes; see `cluster`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Time after which a test counts an expected event as missing. No test depends on a shorter time.
pub const TIMEOUT: Duration = Duration::from_secs(90);

/// A line that a process wrote.
#[derive(Clone, Debug)]
pub struct Line {
    /// Arrival time.
    pub at: Instant,
    /// Text, without the line feed.
    pub text: String,
    /// Whether the line is from standard output; otherwise from standard error.
    pub out: bool,
}

/// A running or ended process.
pub struct Process {
    name: String,
    pid: Pid,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What types to a process.
pub struct Keyboard(ChildStdin);

impl Keyboard {
    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    /// Exit status, set once the process is reaped; before that no other process can get its pid.
    ended: Option<ExitStatus>,
    pipes_open: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Process {
    /// Starts `command` and copies its output to the file `log`.
    ///
    /// # Panics
    /// Where the process cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(name, &mut command);
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Process::watch(name, child, out, err, log)
    }

    /// Starts `command` like [`Process::start`], with a keyboard as its standard input.
    ///
    /// # Panics
    /// Where the process cannot be started.
    pub fn with_keyboard(name: &str, mut command: Command, log: &Path) -> (Process, Keyboard) {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(name, &mut command);
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let keyboard = Keyboard(child.stdin.take().unwrap());
        (Process::watch(name, child, out, err, log), keyboard)
    }

    fn watch(name: &str, child: Child, out: ChildStdout, err: ChildStderr, log: &Path) -> Process {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let pid = Pid::from_child(&child);
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        shared.lock().pipes_open = 2;
        let threads = vec![
            read(out, true, log.try_clone().unwrap(), Arc::clone(&shared)),
            read(err, false, log, Arc::clone(&shared)),
            reap(child, pid, Arc::clone(&shared)),
        ];
        Process { name: name.to_owned(), pid, shared, threads }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// Sends a signal; does nothing where the process has ended.
    pub fn signal(&self, signal: Signal) {
        let state = self.shared.lock();
        if state.ended.is_none() {
            kill_process(self.pid, signal).unwrap();
        }
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.shared.lock().lines.clone()
    }

    /// Number of lines with `text` so far.
    pub fn count(&self, text: &str) -> usize {
        self.shared.lock().lines.iter().filter(|line| line.text.contains(text)).count()
    }

    /// Waits for a line with `text`; a line that arrived earlier counts.
    ///
    /// # Panics
    /// Where the process ends without such a line, or after [`TIMEOUT`].
    pub fn line(&self, text: &str) -> Line {
        self.nth_line(text, 1)
    }

    /// Waits for the `n`-th line with `text`.
    ///
    /// # Panics
    /// As [`Process::line`].
    pub fn nth_line(&self, text: &str, n: usize) -> Line {
        let deadline = Instant::now() + TIMEOUT;
        let mut state = self.shared.lock();
        loop {
            if let Some(line) = state.lines.iter().filter(|line| line.text.contains(text)).nth(n - 1) {
                return line.clone();
            }
            let over = state.ended.is_some() && state.pipes_open == 0;
            let left = deadline.saturating_duration_since(Instant::now());
            if over || left.is_zero() {
                let said: Vec<String> = state.lines.iter().map(|line| line.text.clone()).collect();
                let how = if over { "ended without" } else { "did not say for a long time" };
                drop(state);
                panic!("{} {how}: {text:?} (no. {n}). It said:\n{}", self.name, said.join("\n"));
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        self.shared.lock().ended.is_some()
    }

    /// Waits for the end of the process and of its output.
    ///
    /// # Panics
    /// After [`TIMEOUT`].
    pub fn wait(&self) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
        let mut state = self.shared.lock();
        loop {
            if let Some(status) = state.ended.filter(|_| state.pipes_open == 0) {
                return status;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                panic!("{} did not end", self.name);
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Peak resident memory in bytes (`VmHWM`); `None` once the process has ended, and where the system does not tell.
    pub fn peak_memory_bytes(&self) -> Option<u64> {
        self.status_bytes("VmHWM:")
    }

    /// Resident memory in bytes (`VmRSS`); `None` once the process has ended, and where the system does not tell.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib << 10)
    }

    /// The last peak of resident memory that was seen before the process ended, in bytes; waits for the end.
    pub fn peak_memory_until_end(&self) -> u64 {
        let mut peak = 0;
        while !self.has_ended() {
            peak = self.peak_memory_bytes().unwrap_or(0).max(peak);
            // The counter never falls: only a peak in the last moment can be missed.
            std::thread::sleep(Duration::from_millis(2));
        }
        peak
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        for thread in self.threads.drain(..) {
            // The panic of a reader has been printed.
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"))
}

fn read(pipe: impl Read + Send + 'static, out: bool, mut log: File, shared: Arc<Shared>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while matches!(pipe.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
            let at = Instant::now();
            let _ = log.write_all(&bytes);
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            shared.lock().lines.push(Line { at, text, out });
            shared.changed.notify_all();
            bytes.clear();
        }
        shared.lock().pipes_open -= 1;
        shared.changed.notify_all();
    })
}

fn reap(mut child: Child, pid: Pid, shared: Arc<Shared>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        // Not reaped yet: until the exit status is stored below, no other process can get this pid.
        while waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
            .is_err_and(|error| error == rustix::io::Errno::INTR)
        {}
        let mut state = shared.lock();
        state.ended = Some(child.wait().unwrap());
        drop(state);
        shared.changed.notify_all();
    })
}

/// Polls until `condition` holds: for state that has no notification.
///
/// # Panics
/// After [`TIMEOUT`].
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "this never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
