//! The data directory: who may read its secrets, whether its certificate counts, the disk that it is on, and the models in it.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use pangea_compute::model::ModelFile;
use pangea_units::ByteSize;

use super::Finding;
use crate::membership::{KeptCertificate, unix_s};
use crate::models;
use crate::net::identity::load_as_it_is;

/// Files that nobody but their owner may read.
const SECRETS: [&str; 3] = ["node.key", "pool.key", "keys.json"];

const JOIN_AGAIN: &str =
    "have a member invite this node (pangea invite), and join again: pangea join PIN, or pangea node --join TOKEN";

/// Seconds before the end of a certificate from which it is said: time enough to find whoever can invite.
const SOON_S: u64 = 7 * 24 * 3600;

/// Bytes that are written to measure the disk.
const MEASURED: usize = 16 << 20;

/// A disk that writes less in a second makes downloads and receipts wait.
const SLOW_BYTES_PER_S: f64 = 20e6;

/// Room below which a model does not fit.
const LITTLE_ROOM: u64 = 2 << 30;

pub(super) fn permissions(data_dir: &Path) -> Vec<Finding> {
    let shown = data_dir.display();
    if !data_dir.exists() {
        return vec![Finding::good("data directory", format!("{shown} does not exist yet; the first node makes it"))];
    }
    if let Err(error) = tempfile::tempfile_in(data_dir) {
        let advice = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                format!("give it to the user that runs the node: sudo chown -R \"$USER\" {shown}")
            }
            std::io::ErrorKind::ReadOnlyFilesystem => "use another folder: --data-dir says which".to_owned(),
            _ => "make room, or use another folder: --data-dir says which".to_owned(),
        };
        return vec![Finding::problem("data directory", format!("cannot write in {shown}: {error}"), advice)];
    }
    let mut findings = Vec::new();
    for name in SECRETS {
        let path = data_dir.join(name);
        let Ok(file) = std::fs::metadata(&path) else { continue };
        let shown = path.display();
        if file.permissions().mode() & 0o077 != 0 {
            let what = format!("others may read {shown}, which is a secret");
            findings.push(Finding::problem("data directory", what, format!("chmod 600 {shown}")));
        } else if let Err(error) = std::fs::File::open(&path) {
            let what = format!("cannot read {shown}: {error}");
            findings.push(Finding::problem("data directory", what, "run as the user that it belongs to"));
        }
    }
    if findings.is_empty() {
        findings
            .push(Finding::good("data directory", format!("{shown} can be written, and its secrets are its owner's")));
    }
    findings
}

/// The identity and the certificate of the pool that a node joined: each can be read, and they fit each other. Whether the
/// certificate was revoked is known to the node.
pub(super) fn membership(data_dir: &Path) -> Vec<Finding> {
    let key = match load_as_it_is(&data_dir.join("node.key")) {
        Ok(key) => key,
        Err(error) => return vec![Finding::problem("pool", error.to_string(), "a node does not start with it")],
    };
    let kept = match KeptCertificate::load(data_dir) {
        Ok(Some(kept)) => kept,
        Ok(None) => return vec![Finding::good("pool", "this node holds the key of a pool of its own")],
        Err(error) => return vec![Finding::problem("pool", error.to_string(), "a node does not start with it")],
    };
    let (member, Some(key)) = (&kept.member, key) else {
        let what = "there is a certificate of a pool, and no node.key that it is for";
        return vec![Finding::problem("pool", what, JOIN_AGAIN)];
    };
    let now = unix_s();
    match kept.chain.verify(&key.public().to_peer_id(), &kept.pool, now, |_| false) {
        Err(why) => {
            vec![Finding::problem("pool", format!("the certificate from {member} does not count: {why}"), JOIN_AGAIN)]
        }
        Ok(proven) if proven.expires_unix_s < now + SOON_S => {
            let hours = (proven.expires_unix_s - now) / 3600;
            vec![Finding::note("pool", format!("the certificate from {member} ends in {hours} hours"), JOIN_AGAIN)]
        }
        Ok(_) => vec![Finding::good("pool", format!("the certificate from {member} counts"))],
    }
}

pub(super) fn disk(data_dir: &Path) -> Vec<Finding> {
    // The folder that is there already, which the new one will be in.
    let Some(there) = data_dir.ancestors().find(|folder| folder.is_dir()) else { return Vec::new() };
    let free = rustix::fs::statvfs(there).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    vec![room(free), speed(write(there))]
}

fn room(free: Option<u64>) -> Finding {
    match free {
        Some(free) if free < LITTLE_ROOM => Finding::problem(
            "disk",
            format!("{} are free", ByteSize(free)),
            "remove models that you do not use (pangea models remove), or move the folder with --data-dir",
        ),
        Some(free) => Finding::good("disk", format!("{} are free", ByteSize(free))),
        None => Finding::good("disk", "the system does not say how much is free"),
    }
}

/// Seconds in which bytes are on the disk.
fn write(folder: &Path) -> std::io::Result<Duration> {
    let mut file = tempfile::tempfile_in(folder)?;
    let bytes = vec![0x5a; MEASURED];
    let began = Instant::now();
    file.write_all(&bytes)?;
    file.sync_all()?;
    Ok(began.elapsed())
}

fn speed(took: std::io::Result<Duration>) -> Finding {
    match took {
        Err(error) => {
            Finding::problem("disk", format!("cannot write: {error}"), "make room, or use another --data-dir")
        }
        Ok(took) => {
            let per_s = MEASURED as f64 / took.as_secs_f64().max(1e-6);
            let what = format!("{}/s are written", ByteSize(per_s as u64));
            match per_s < SLOW_BYTES_PER_S {
                true => Finding::note("disk", what, "a faster disk loads models sooner: --data-dir says where"),
                false => Finding::good("disk", what),
            }
        }
    }
}

pub(super) fn models(folder: &Path) -> Vec<Finding> {
    let of_model = |(name, path): (String, std::path::PathBuf)| match ModelFile::open(&path) {
        Ok(file) => Finding::good("model", format!("{name}, {}", ByteSize(file.gguf().size_bytes()))),
        Err(error) => Finding::problem(
            "model",
            format!("{name} cannot be read: {error}"),
            format!("fetch it again: pangea models remove {name}, then pangea models pull {name}"),
        ),
    };
    models::installed(folder).into_iter().map(of_model).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn problems(findings: &[Finding]) -> Vec<&Finding> {
        findings.iter().filter(|finding| finding.level == Level::Problem).collect()
    }

    #[test]
    fn a_secret_that_others_may_read_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("node.key");
        std::fs::write(&key, "secret").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let found = permissions(folder.path());
        assert!(problems(&found)[0].advice.contains("chmod 600"), "{found:?}");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(problems(&permissions(folder.path())).is_empty());
        assert!(problems(&permissions(&folder.path().join("new"))).is_empty());
    }

    #[test]
    fn a_full_or_slow_disk_and_a_damaged_model_are_found() {
        assert_eq!((room(Some(1 << 30)).level, room(Some(1 << 40)).level), (Level::Problem, Level::Good));
        assert_eq!(speed(Ok(Duration::from_secs(10))).level, Level::Note);
        assert_eq!(speed(Ok(Duration::from_millis(10))).level, Level::Good);
        assert_eq!(speed(Err(std::io::ErrorKind::StorageFull.into())).level, Level::Problem);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("broken.gguf"), b"GGUF and nothing more").unwrap();
        let found = models(folder.path());
        assert!(problems(&found)[0].advice.contains("pull broken"), "{found:?}");
    }
}
