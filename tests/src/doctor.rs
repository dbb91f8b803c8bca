//! Runs `pangea doctor` and finds what it found.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::command::stdout;

/// The findings of `pangea doctor --json` about the data directory `home`, and whether nothing is a problem.
///
/// # Panics
/// Where the exit code says something else.
pub fn doctor(mut command: Command, home: &Path) -> (Vec<Value>, bool) {
    let output = command.args(["doctor", "--json", "--data-dir"]).arg(home).output().unwrap();
    let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let ok = found["ok"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!ok)), "{found}");
    (found["findings"].as_array().unwrap().clone(), ok)
}

/// The finding of a check whose sentence contains this, which must say what to do.
///
/// # Panics
/// Where there is none.
pub fn found<'a>(findings: &'a [Value], check: &str, what: &str) -> &'a Value {
    let fits = |finding: &&Value| finding["check"] == check && finding["what"].as_str().unwrap().contains(what);
    let finding = findings.iter().find(fits).unwrap_or_else(|| panic!("no {check}: {what} in {findings:?}"));
    assert!(finding["level"] == "good" || finding["advice"] != "", "{finding}");
    finding
}
