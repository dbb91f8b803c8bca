//! The two scripts of the compute test, the two of the language model test, and `setup.sh`, run as a person runs them,
//! but without a terminal: two homes on this machine, free ports, loopback. They check exit codes and output, and
//! that nothing is left behind. `packages`: what `package.sh` makes, installed and run where nothing else is.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]
#![cfg(unix)]

mod packages;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use pangea_tests::cluster::binary;
use pangea_tests::namespaces::Namespaces;
use pangea_tests::test_model::{SMOLLM2, file_of};

/// Longest wait for one line of a script: a limit for a hang, not part of any assertion.
const TIMEOUT: Duration = Duration::from_secs(180);

const ADDRESS_OF_NOBODY: &str = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

/// A home directory for one side.
struct Side {
    home: tempfile::TempDir,
    binary: PathBuf,
    /// The host it runs on, if not the test's own.
    host: Option<(Arc<Namespaces>, usize)>,
}

impl Side {
    fn new() -> Side {
        Side { home: tempfile::tempdir().expect("a folder for temporary files"), binary: binary(), host: None }
    }

    fn command(&self, script: &str, arguments: &[&str]) -> Command {
        let bash = Path::new("bash");
        let mut command = match &self.host {
            None => Command::new(bash),
            Some((hosts, host)) => hosts.hosts()[*host].command(bash),
        };
        command.arg(repository().join("scripts").join(script)).args(arguments);
        let settings = ["PEER", "PORT", "LISTEN", "KEEP", "POOL_KEY", "MODEL"].map(|name| format!("PANGEA_{name}"));
        for variable in settings.iter().map(String::as_str).chain(["PANGEA_HOME"]) {
            command.env_remove(variable);
        }
        command.env("HOME", self.home.path()).env("PANGEA_BIN", &self.binary).env("PANGEA_SIZE", "192");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        self.command(script, arguments).output().expect("bash runs")
    }

    fn start(&self, script: &str, arguments: &[&str]) -> Running {
        let mut child = self.command(script, arguments).spawn().expect("bash runs");
        let stdout = child.stdout.take().expect("it is piped");
        let mut stderr = child.stderr.take().expect("it is piped");
        // A script prints a few dozen lines; the bound is far above that, so the reader never blocks.
        let (sender, lines) = sync_channel(10_000);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let errors = thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).map(|_| text).unwrap_or_default()
        });
        Running { child, lines, said: String::new(), errors: Some(errors) }
    }

    /// Process id of this side's current node, from its session folder.
    fn node_pid(&self, role: &str) -> u32 {
        let file = self.home.path().join(".pangea/compute_test").join(role).join("node.pid");
        fs::read_to_string(file).expect("the session says its node").trim().parse().expect("a process id")
    }

    /// Checks that no file is left, and no process that names this home.
    fn assert_nothing_left(&self) {
        let left: Vec<_> =
            fs::read_dir(self.home.path()).expect("the home is there").map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        self.assert_no_process();
    }

    fn assert_no_process(&self) {
        let listed = Command::new("ps").args(["-A", "-o", "pid=,args="]).output().expect("ps runs");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let home = self.home.path().to_string_lossy().into_owned();
        let left: Vec<_> = listed.lines().filter(|line| line.contains(&home)).collect();
        assert!(left.is_empty(), "still running: {left:?}");
    }
}

/// A running script.
struct Running {
    child: Child,
    lines: Receiver<String>,
    said: String,
    errors: Option<thread::JoinHandle<String>>,
}

impl Running {
    /// Reads lines until `wanted` returns a value.
    fn wait_for<T>(&mut self, wanted: impl Fn(&str) -> Option<T>) -> T {
        loop {
            let Ok(line) = self.lines.recv_timeout(TIMEOUT) else {
                let _ = self.child.kill();
                panic!("it ended or hung; it said:\n{}\n{}", self.said, self.errors.take().unwrap().join().unwrap());
            };
            self.said.push_str(&line);
            self.said.push('\n');
            if let Some(found) = wanted(&line) {
                return found;
            }
        }
    }

    fn address(&mut self) -> String {
        self.wait_for(|line| line.split_once("_responder.sh ").map(|(_, address)| address.trim().to_owned()))
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Exit code, standard output, standard error.
    fn finish(mut self) -> (Option<i32>, String, String) {
        while let Ok(line) = self.lines.recv_timeout(TIMEOUT) {
            self.said.push_str(&line);
            self.said.push('\n');
        }
        let code = self.child.wait().expect("it was started").code();
        (code, self.said, self.errors.take().unwrap().join().unwrap())
    }
}

const LOOPBACK: [&str; 2] = ["--listen", "/ip4/127.0.0.1/tcp/0"];

fn remote_tasks(said: &str) -> u64 {
    let line = said
        .lines()
        .find(|line| line.ends_with("tasks ran REMOTELY"))
        .unwrap_or_else(|| panic!("no count in:\n{said}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn two_sides_test_each_other_and_leave_nothing_behind() {
    let (first, second) = (Side::new(), Side::new());
    let mut initiator = first.start("03_initiator.sh", &LOOPBACK);
    let address = initiator.address();
    assert!(address.starts_with("/ip4/127.0.0.1/tcp/"), "{address}");
    let responder = second.start("03_responder.sh", &[&address, LOOPBACK[0], LOOPBACK[1]]);

    let sides = [("initiator", initiator.finish()), ("responder", responder.finish())];
    for (side, (code, said, errors)) in &sides {
        assert_eq!(*code, Some(0), "{side} said:\n{said}\n{errors}\nall:\n{sides:#?}");
        assert!(remote_tasks(said) > 0, "{said}");
        assert!(said.contains("All tests passed"), "{said}");
        assert!(!said.contains('\u{1b}'), "colours without a terminal:\n{said}");
        for test in ["is a peer", "on this node", "on the other node", "sooner", "bit for bit", "nobody there"] {
            assert!(
                said.lines().any(|line| line.contains(test) && line.contains("passed")),
                "{test} is not in {side}'s:\n{said}"
            );
        }
    }
    first.assert_nothing_left();
    second.assert_nothing_left();
}

#[test]
fn two_sides_answer_together_and_one_of_them_is_killed() {
    let Some(model) = file_of(SMOLLM2, "two_sides_answer_together_and_one_of_them_is_killed") else { return };
    let (first, second) = (Side::new(), Side::new());
    let model = ["--model", model.to_str().unwrap()];
    let mut initiator = first.start("llm_initiator.sh", &[&LOOPBACK[..], &model].concat());
    let address = initiator.address();
    let responder = second.start("llm_responder.sh", &[&address, LOOPBACK[0], LOOPBACK[1]]);

    let sides = [("initiator", initiator.finish()), ("responder", responder.finish())];
    for (side, (code, said, errors)) in &sides {
        assert_eq!(*code, Some(0), "{side} said:\n{said}\n{errors}\nall:\n{sides:#?}");
        assert!(said.contains("All tests passed"), "{said}");
        for test in ["is a peer", "one master", "both nodes compute", "makes sense"] {
            assert!(
                said.lines().any(|line| line.contains(test) && line.contains("passed")),
                "{test} is not in {side}'s:\n{said}"
            );
        }
    }
    let (_, said, _) = &sides[0].1;
    for test in ["receipt holds", "goes on", "failed over in", "connected again", "computes answers again"] {
        assert!(said.lines().any(|line| line.contains(test) && line.contains("passed")), "{test} is not in:\n{said}");
    }
    first.assert_nothing_left();
    second.assert_nothing_left();
}

#[test]
fn the_shown_address_is_reachable_from_another_host() {
    const TEST: &str = "the_shown_address_is_reachable_from_another_host";
    let (mut first, mut second) = (Side::new(), Side::new());
    let Some(hosts) = Namespaces::for_test(TEST, 2) else { return };
    let hosts = Arc::new(hosts);
    let bridge = ["link add docker0 type bridge", "addr add 172.17.0.1/16 dev docker0", "link set docker0 up"];
    for step in bridge {
        let done = hosts.hosts()[0].command(Path::new("ip")).args(step.split(' ')).status().expect("ip runs");
        assert!(done.success(), "ip {step}");
    }
    let of_the_first = format!("/ip4/{}/tcp/7777/p2p/", hosts.hosts()[0].address);
    first.host = Some((hosts.clone(), 0));
    second.host = Some((hosts, 1));
    let mut initiator = first.start("03_initiator.sh", &[]);
    let address = initiator.address();
    assert!(address.starts_with(&of_the_first), "neither the bridge nor loopback: {address}");
    let (code, said, errors) = second.start("03_responder.sh", &["--peer", &address]).finish();
    assert_eq!(code, Some(0), "{said}\n{errors}");
    let (code, said, errors) = initiator.finish();
    assert_eq!(code, Some(0), "{said}\n{errors}");
    assert!(remote_tasks(&said) > 0, "{said}");
    first.assert_nothing_left();
    second.assert_nothing_left();
}

#[test]
fn the_responder_takes_its_address_from_the_environment() {
    let side = Side::new();
    let output =
        side.command("03_responder.sh", &["--timeout", "1"]).env("PANGEA_PEER", ADDRESS_OF_NOBODY).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains(ADDRESS_OF_NOBODY) && errors.contains("within 1 s"), "{errors}");
    side.assert_no_process();
}

#[test]
fn an_initiator_without_a_responder_times_out_and_keeps_its_logs() {
    let side = Side::new();
    let output = side.run("03_initiator.sh", &["--timeout", "1", LOOPBACK[0], LOOPBACK[1]]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("no responder connected within 1 s"), "{errors}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let logs = said.lines().find_map(|line| line.strip_prefix("Logs are in ")).unwrap_or_else(|| panic!("{said}"));
    assert!(fs::read_to_string(Path::new(logs).join("node-1.log")).unwrap().contains("Listening on"));
    side.assert_no_process();
}

#[test]
fn a_signal_in_the_middle_leaves_nothing_behind() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let side = Side::new();
        let mut initiator = side.start("03_initiator.sh", &LOOPBACK);
        initiator.address();
        let node = side.node_pid("initiator");
        initiator.signal(signal);
        let (ended, said, errors) = initiator.finish();
        assert_eq!(ended, Some(code), "{said}\n{errors}");
        assert!(!Path::new("/proc").join(node.to_string()).exists(), "the node still runs");
        side.assert_nothing_left();
    }
}

#[test]
fn the_next_session_removes_what_a_killed_one_left() {
    let side = Side::new();
    let mut killed = side.start("03_initiator.sh", &LOOPBACK);
    killed.address();
    let orphan = side.node_pid("initiator");
    killed.signal("-KILL");
    // The killed session's node holds standard error open: it can only be read once the next session has ended that node.
    killed.child.wait().unwrap();

    let mut next = side.start("03_initiator.sh", &LOOPBACK);
    next.address();
    assert_ne!(side.node_pid("initiator"), orphan);
    next.signal("-TERM");
    next.finish();
    side.assert_nothing_left();
}

#[test]
fn a_second_session_of_one_role_is_refused() {
    let side = Side::new();
    let mut first = side.start("03_initiator.sh", &LOOPBACK);
    first.address();
    let second = side.run("03_initiator.sh", &LOOPBACK);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("is running (process"), "{second:?}");
    first.signal("-TERM");
    first.finish();
    side.assert_nothing_left();
}

#[test]
fn a_port_in_use_is_named_with_advice() {
    let side = Side::new();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let _udp = UdpSocket::bind(("0.0.0.0", port));
    let output = side.run("03_initiator.sh", &["--port", &port.to_string()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains(&port.to_string()) && errors.contains("--port"), "{errors}");
    side.assert_no_process();
}

#[test]
fn invalid_addresses_and_options_are_bad_usage() {
    let side = Side::new();
    let good = ADDRESS_OF_NOBODY;
    let wrong: [(&str, &[&str]); 12] = [
        ("03_responder.sh", &[]),
        ("03_responder.sh", &["192.168.1.20:7777"]),
        ("03_responder.sh", &["/ip4/192.168.1.20/tcp/7777"]),
        ("03_responder.sh", &["/ip4/192.168.1.20/tcp/7777/p2p/short"]),
        ("03_responder.sh", &[good, good]),
        ("03_responder.sh", &[good, "--size", "0"]),
        ("03_initiator.sh", &["--port", "70000"]),
        ("03_initiator.sh", &["--no-such-option"]),
        ("03_initiator.sh", &["--model", "any"]),
        ("llm_responder.sh", &[]),
        ("llm_initiator.sh", &["--peer", good]),
        ("setup.sh", &["no-such-subcommand"]),
    ];
    for (script, arguments) in wrong {
        let output = side.run(script, arguments);
        assert_eq!(output.status.code(), Some(2), "{script} {arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{script} {arguments:?} says nothing");
    }
    side.assert_nothing_left();
}

#[test]
fn the_menu_lists_the_scripts_headers() {
    let side = Side::new();
    let said = String::from_utf8(side.run("setup.sh", &[]).stdout).unwrap();
    let entries: Vec<_> = said.lines().map(str::trim).collect();
    let at =
        entries.iter().position(|line| *line == "18  Distributed Compute Test").unwrap_or_else(|| panic!("{said}"));
    assert!(entries[at + 1].starts_with("3a  Initiator") && entries[at + 2].starts_with("3b  Responder"), "{said}");
    let at = entries.iter().position(|line| *line == "19  Distributed Language Model Test");
    let at = at.unwrap_or_else(|| panic!("{said}"));
    assert!(entries[at + 1].starts_with("4a  Initiator") && entries[at + 2].starts_with("4b  Responder"), "{said}");
    let help = side.run("setup.sh", &["help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Usage:"));
}

#[test]
fn a_checkout_where_nothing_was_built_uses_the_binary_that_a_package_brought() {
    let folder = tempfile::tempdir().unwrap();
    let (programs, checkout) = (folder.path().join("bin"), folder.path().join("checkout"));
    fs::create_dir_all(&programs).unwrap();
    fs::create_dir_all(&checkout).unwrap();
    let copied = Command::new("cp").arg("-r").arg(repository().join("scripts")).arg(&checkout).status().unwrap();
    assert!(copied.success());
    fs::copy(repository().join("Cargo.toml"), checkout.join("Cargo.toml")).unwrap();
    let program = |name: &str, text: &str| {
        let path = programs.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("cargo", "echo built; exit 1");
    // A package's binary says which version it is, and what it is asked for.
    let brings = |version: &str| {
        program("pangea", &format!("[ \"$1\" = --version ] && echo 'pangea {version}' || echo \"asked: $*\""));
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.arg(checkout.join("scripts/setup.sh")).args(["bench", "--size", "64"]).stdin(Stdio::null());
        command.env("PATH", path).env_remove("PANGEA_BIN").env_remove("CARGO_TARGET_DIR").output().unwrap()
    };
    let used = brings(env!("CARGO_PKG_VERSION"));
    let said = String::from_utf8_lossy(&used.stdout).into_owned();
    assert!(said.contains("Using ") && said.contains("asked: bench matmul --size 64"), "{used:?}");
    let other = brings("0.0.1");
    assert!(String::from_utf8_lossy(&other.stdout).starts_with("built"), "{other:?}");
    fs::create_dir_all(checkout.join("target/release")).unwrap();
    fs::write(checkout.join("target/release/pangea"), "").unwrap();
    let built = brings(env!("CARGO_PKG_VERSION"));
    assert!(String::from_utf8_lossy(&built.stdout).starts_with("built"), "what was built here comes first: {built:?}");
}
