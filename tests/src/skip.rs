//! Tests that cannot run on this machine: each prints a visible line, and fails where every test must run.
//! Never decides what a test needs.

use std::io::Write;

/// Environment variable that makes a test fail that cannot run, with any value.
pub const FORBIDDEN: &str = "PANGEA_TESTS_NO_SKIP";

/// Prints that `test` is skipped, and why.
///
/// # Panics
/// Where [`FORBIDDEN`] is set.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os(FORBIDDEN).is_none(), "{test} cannot run here: {why}");
    // Bypasses the capture of a passing test's output, so that every summary shows the line.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// Whether this process may create namespaces and mounts; if not, prints that `test` is skipped.
pub fn unless_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "it needs root");
    }
    !root
}
