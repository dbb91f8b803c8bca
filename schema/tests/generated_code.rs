//! The committed Rust is what the schemas generate. With `PANGEA_REGENERATE=1` in the
//! environment this renews it instead. Needs the `capnp` compiler (Debian: `apt-get install
//! capnproto`); without one it says so and compares nothing.
#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles every `*.capnp` directly in the crate's directory into `output`.
fn generate(crate_root: &Path, output: &Path) {
    let mut schemas: Vec<PathBuf> = std::fs::read_dir(crate_root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "capnp"))
        .collect();
    schemas.sort();
    let mut command = capnpc::CompilerCommand::new();
    command.src_prefix(crate_root).import_path(crate_root.join("import")).no_standard_import().output_path(output);
    for schema in &schemas {
        command.file(schema);
    }
    command.run().unwrap();
}

fn file_names(directory: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// The generated text without the line that names the compiler's version, which does not matter.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().filter(|line| !line.starts_with("// capnp binary version")).collect::<Vec<_>>().join("\n")
}

#[test]
fn committed_code_is_current() {
    let compiler = Command::new("capnp").arg("--version").output();
    if !compiler.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: no `capnp` compiler here, so the committed code cannot be compared with the schemas");
        return;
    }
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = crate_root.join("src/generated");
    if std::env::var_os("PANGEA_REGENERATE").is_some() {
        generate(crate_root, &committed);
        return;
    }
    let fresh = tempfile::tempdir().unwrap();
    generate(crate_root, fresh.path());
    assert_eq!(file_names(&committed), file_names(fresh.path()), "a schema was added or removed");
    for name in file_names(&committed) {
        let committed = committed.join(&name);
        assert!(
            code(&committed) == code(&fresh.path().join(&name)),
            "{} is not what its schema generates; renew it with \
             `PANGEA_REGENERATE=1 cargo test -p pangea-schema`",
            committed.display()
        );
    }
}
