//! The binary `pangea` as one process that ends by itself: started as a person would, without settings of the environment
//! that runs the tests. Judges nothing.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::cluster::binary;

/// A command of the binary with these arguments, in `folder`, which is also the home directory.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    for (variable, _) in std::env::vars_os() {
        if ["PANGEA_", "HF_"].iter().any(|prefix| variable.to_string_lossy().starts_with(prefix)) {
            command.env_remove(variable);
        }
    }
    command.args(arguments).current_dir(folder).env("HOME", folder).env("COLUMNS", "80").stdin(Stdio::null());
    command
}

/// Runs such a command to its end.
///
/// # Panics
/// Where the process cannot be started.
pub fn pangea(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// Standard error of a command.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output of a command.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The JSON document on standard output.
///
/// # Panics
/// Where the command failed, or wrote anything but one JSON document.
pub fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

/// The names in a folder, sorted.
///
/// # Panics
/// Where the folder cannot be read.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
