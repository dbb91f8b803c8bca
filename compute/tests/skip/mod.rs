//! What a test does that cannot run here.

use std::io::Write;

/// Says that `test` does not run, and why, past the capture of a passing test's output.
///
/// # Panics
/// Where `PANGEA_TESTS_NO_SKIP` is set.
pub(crate) fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("PANGEA_TESTS_NO_SKIP").is_none(), "{test} cannot run here: {why}");
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}
