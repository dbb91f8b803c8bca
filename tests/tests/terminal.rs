//! What people see: `pangea top` on real terminals, and where colours, progress and redrawn lines may appear.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::command::{command, pangea, stderr, stdout};
use pangea_tests::terminal::{Left, ORDINARY, Terminal, run_on_terminal};
use rustix::process::Signal;

const ESCAPE: u8 = 0x1b;

/// `pangea top` of a node on a terminal, once it shows the node.
fn top(node: &Node, folder: &Path, more: &[&str]) -> Terminal {
    let arguments = [&["top", "--rpc", &node.rpc, "--interval", "100ms"], more].concat();
    Terminal::start(command(folder, &arguments), ORDINARY)
}

/// The terminal is as it was before the view.
fn assert_restored(left: &Left) {
    assert!(!left.screen.alternate_screen(), "the view's screen is still there");
    assert!(!left.screen.hide_cursor(), "the cursor is hidden");
    assert!(left.is_cooked, "the terminal is still raw");
    let entered = String::from_utf8_lossy(&left.bytes).contains("\u{1b}[?1049h");
    assert!(entered, "the view never had a screen of its own");
}

#[test]
fn top_shows_the_pool_follows_the_terminal_and_leaves_it_as_it_was() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["alpha", "beta"]);
    let view = top(&nodes[0], cluster.folder(), &[]);
    let shown = view.shows_that("both nodes", |text| text.contains("alpha") && text.contains("beta"));
    assert!(shown.contains("NODE▼") && shown.contains("no jobs yet") && shown.contains("q quit"), "{shown}");
    assert!(!shown.contains("GFLOP/s"), "80 columns have no room for it:\n{shown}");

    view.resize(120, 30);
    let shown = view.shows("GFLOP/s");
    assert!(shown.contains("TASKS") && shown.contains("connected"), "{shown}");
    view.resize(40, 10);
    let has_keys_last = |text: &str| text.lines().last().is_some_and(|line| line.starts_with(" sort: n name"));
    let shown = view.shows_that("the keys in the last line", has_keys_last);
    assert!(!shown.contains("TRUST") && shown.contains("beta"), "{shown}");
    view.resize(80, 24);

    view.type_text("m");
    view.shows("MEMORY▼");
    view.type_text("m");
    view.shows("MEMORY▲");

    view.type_text("q");
    let left = view.finish();
    assert_eq!(left.status.code(), Some(0));
    assert_restored(&left);
}

/// A new size and a key that are there at the same moment: readers of events that are told once of each lose the second.
#[test]
fn top_loses_no_key_that_comes_with_a_new_size() {
    let cluster = Cluster::new();
    let node = cluster.node("alpha").start();
    let view = top(&node, cluster.folder(), &[]);
    view.shows("NODE▼");
    for (columns, shown) in [(100, "MEMORY▼"), (80, "MEMORY▲"), (100, "MEMORY▼"), (80, "MEMORY▲")] {
        view.signal(Signal::STOP);
        view.resize(columns, 24);
        view.type_text("m");
        view.signal(Signal::CONT);
        view.shows(shown);
    }
    view.type_text("q");
    assert_restored(&view.finish());
}

#[test]
fn top_says_that_its_node_is_gone_and_finds_it_again() {
    let cluster = Cluster::new();
    let node = cluster.node("alpha").start();
    let rpc = node.rpc.clone();
    let view = top(&node, cluster.folder(), &[]);
    view.shows("alpha");
    node.process.signal(Signal::KILL);
    node.process.wait();
    let shown = view.shows("LOST, trying again");
    assert!(shown.contains("alpha"), "the last figures stay:\n{shown}");
    drop(node);
    let _again = cluster.node("alpha").rpc_addr(&rpc).start();
    view.shows_that("the node again", |text| !text.contains("LOST"));
    // Ctrl-C.
    view.type_text("\u{3}");
    let left = view.finish();
    assert_eq!(left.status.code(), Some(0));
    assert_restored(&left);
}

#[test]
fn a_signal_or_a_panic_gives_the_terminal_back() {
    let cluster = Cluster::new();
    let node = cluster.node("alpha").start();
    for signal in [Signal::TERM, Signal::HUP] {
        let view = top(&node, cluster.folder(), &[]);
        view.shows("alpha");
        view.signal(signal);
        let left = view.finish();
        assert_eq!(left.status.code(), Some(0), "{signal:?}");
        assert_restored(&left);
    }
    let left = top(&node, cluster.folder(), &["--panic-after", "2"]).finish();
    assert_eq!(left.status.code(), Some(101));
    assert_restored(&left);
    let shown = left.screen.contents();
    assert!(shown.contains("panic injected after screen 2"), "what happened cannot be read:\n{shown}");
}

#[test]
fn top_without_a_terminal_or_a_node_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = pangea(folder.path(), &["top"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("pangea status --json") && output.stdout.is_empty(), "{}", stderr(&output));

    let mut dumb = command(folder.path(), &["top"]);
    dumb.env("TERM", "dumb");
    let left = run_on_terminal(dumb);
    assert_eq!(left.status.code(), Some(2));
    assert!(left.screen.contents().contains("TERM"), "{}", left.screen.contents());
    assert!(!left.bytes.contains(&ESCAPE));

    // Nobody there: an error on the ordinary screen, with the code of every command.
    let left = run_on_terminal(command(folder.path(), &["top", "--rpc", "127.0.0.1:1"]));
    assert_eq!(left.status.code(), Some(3));
    assert!(
        left.screen.contents().contains("127.0.0.1:1") && !left.bytes.contains(&ESCAPE),
        "{}",
        left.screen.contents()
    );
}

/// Settings that forbid colours.
const COLOURLESS: [(&str, &str); 2] = [("NO_COLOR", "1"), ("TERM", "dumb")];

#[test]
fn help_and_errors_are_coloured_on_a_terminal_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let on_terminal = |arguments: &[&str], variable: Option<(&str, &str)>| {
        let mut command = command(folder.path(), arguments);
        command.envs(variable);
        run_on_terminal(command).bytes.contains(&ESCAPE)
    };
    for arguments in [&["--help"][..], &["frobnicate"]] {
        assert!(on_terminal(arguments, None), "{arguments:?} has no colours to switch off");
        let forced = command(folder.path(), arguments).env("CLICOLOR_FORCE", "1").output().unwrap();
        let said = [forced.stdout, forced.stderr].concat();
        assert!(said.contains(&ESCAPE), "{arguments:?} ignores CLICOLOR_FORCE");
    }
    for arguments in [&["--help"][..], &["frobnicate"], &["models", "list"], &["status", "--rpc", "127.0.0.1:1"]] {
        for variable in COLOURLESS {
            assert!(!on_terminal(arguments, Some(variable)), "{arguments:?} is coloured with {variable:?}");
        }
        let output = pangea(folder.path(), arguments);
        let said = [output.stdout, output.stderr].concat();
        assert!(!said.is_empty() && !said.contains(&ESCAPE), "{arguments:?} is coloured without a terminal");
    }
}

#[test]
fn log_lines_are_coloured_on_a_terminal_and_nowhere_else() {
    let cluster = Cluster::new();
    let log = |name: &str, variable: Option<(&str, &str)>| {
        let mut command = cluster.node(name).command();
        command.envs(variable);
        let node = Terminal::start(command, ORDINARY);
        node.shows("Listening on");
        node.signal(Signal::TERM);
        node.finish().bytes
    };
    assert!(log("coloured", None).contains(&ESCAPE), "there are no colours to switch off");
    for variable in COLOURLESS {
        assert!(!log(variable.0, Some(variable)).contains(&ESCAPE), "{variable:?}");
    }
    let node = cluster.node("piped").start();
    assert!(node.process.lines().iter().all(|line| !line.text.contains('\u{1b}')));
}

#[test]
fn top_obeys_no_color_and_still_draws() {
    let cluster = Cluster::new();
    let node = cluster.node("alpha").start();
    let coloured = |no_color: Option<&str>| {
        let mut command = command(cluster.folder(), &["top", "--rpc", &node.rpc]);
        command.envs(no_color.map(|value| ("NO_COLOR", value)));
        let view = Terminal::start(command, ORDINARY);
        view.shows("alpha");
        view.type_text("q");
        let left = view.finish();
        assert_restored(&left);
        // Select graphic rendition with a colour: 30 to 49.
        let text = String::from_utf8_lossy(&left.bytes).into_owned();
        text.split('\u{1b}').filter_map(|part| part.strip_prefix('[')?.split_once('m')).any(|(numbers, _)| {
            numbers.split(';').any(|number| matches!(number.parse(), Ok(30u8..=38 | 40..=48 | 90..=107)))
        })
    };
    assert!(coloured(None), "there is no colour to switch off");
    assert!(!coloured(Some("1")));
}

#[test]
fn scripts_colour_terminals_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let script = |arguments: &[&str]| {
        let mut command = Command::new(root.join("scripts/setup.sh"));
        command.args(arguments).current_dir(root).stdin(Stdio::null());
        command
    };
    // An unknown subcommand is an error in red.
    let wrong = ["frobnicate"];
    let on_terminal = |variable: Option<(&str, &str)>| {
        let mut command = script(&wrong);
        command.envs(variable);
        run_on_terminal(command).bytes
    };
    assert!(on_terminal(None).contains(&ESCAPE), "there are no colours to switch off");
    for variable in COLOURLESS {
        assert!(!on_terminal(Some(variable)).contains(&ESCAPE), "{variable:?}");
    }
    let output = script(&wrong).output().unwrap();
    assert!(!stderr(&output).is_empty() && !(stdout(&output) + &stderr(&output)).contains('\u{1b}'));
    // Standard error in a file is no terminal, whatever standard output is.
    let folder = tempfile::tempdir().unwrap();
    let errors = folder.path().join("errors");
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" frobnicate 2> \"$1\""]).arg(root.join("scripts/setup.sh")).arg(&errors);
    let left = run_on_terminal(shell);
    let said = std::fs::read(&errors).unwrap();
    assert!(
        !left.status.success() && !said.is_empty() && !said.contains(&ESCAPE),
        "{}",
        String::from_utf8_lossy(&said)
    );
}

#[test]
fn progress_is_drawn_on_a_terminal_after_a_second_unless_it_is_not_wanted() {
    let folder = tempfile::tempdir().unwrap();
    // Accepts connections and never answers: the command waits for it much longer than a second.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let start = |more: &[&str], variable: Option<(&str, &str)>| {
        let mut command = command(folder.path(), &[&["doctor", "--rpc", &address], more].concat());
        command.envs(variable);
        Terminal::start(command, ORDINARY)
    };
    // Moving the cursor is no colour.
    let shown = [start(&[], None), start(&[], Some(("NO_COLOR", "1")))];
    let hidden = [start(&["-q"], None), start(&["--json"], None), start(&[], Some(("TERM", "dumb")))];
    for terminal in shown {
        let left = terminal.finish();
        assert_eq!(left.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&left.bytes).contains("looking"));
        let screen = left.screen.contents();
        assert!(!screen.contains("looking"), "the line is still there at the end:\n{screen}");
    }
    for terminal in hidden {
        let left = terminal.finish();
        assert_eq!(left.status.code(), Some(3));
        assert!(!left.bytes.contains(&ESCAPE) && !String::from_utf8_lossy(&left.bytes).contains("looking"));
    }
    let output = pangea(folder.path(), &["doctor", "--rpc", &address]);
    assert!(!stderr(&output).contains("looking") && !stderr(&output).contains('\u{1b}'), "{}", stderr(&output));
}
