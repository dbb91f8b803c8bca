//! Tests that cannot run on this machine: they say so where it is seen, and fail where everything must run.
//! It never decides what a test needs.

use std::io::Write;

/// Set to anything, it makes a test that cannot run fail.
pub const FORBIDDEN: &str = "PANGEA_TESTS_NO_SKIP";

/// Says that `test` does not run and why.
///
/// # Panics
/// Where [`FORBIDDEN`] is set.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os(FORBIDDEN).is_none(), "{test} cannot run here: {why}");
    // Past the capture of a passing test's output, so that it stands in every summary.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// Whether this process may make namespaces and mounts; if not, says that `test` is skipped.
pub fn unless_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "it needs root");
    }
    !root
}
