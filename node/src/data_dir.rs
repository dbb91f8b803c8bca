//! The data directory of a node: locked by one node at a time, with `node.json`, where other programs on this host find
//! the running node. This file knows nothing of the directory's other content.

use std::fs::File;
use std::path::{Path, PathBuf};

use pangea_client::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::storage::whole_file;

/// Maximum bytes of a `node.json` that is read: a few addresses take far less.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Content of `node.json`: a running node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// Process id of the node.
    pub pid: u32,
    /// Peer id of the node.
    pub peer: String,
    /// Multiaddrs of the node, with the peer id.
    pub listening: Vec<String>,
    /// The one of `listening` that other devices can most likely reach.
    #[serde(default)]
    pub reachable: Option<String>,
    /// Address of the Cap'n Proto service.
    pub rpc: String,
    /// Address of the HTTP API; `None` if it is disabled.
    #[serde(default)]
    pub api: Option<String>,
    /// Path of the Cap'n Proto service's socket for the node's own user.
    #[serde(default)]
    pub socket: Option<PathBuf>,
}

impl NodeFile {
    /// The node that runs with the data directory `folder`, if any; a file left by a killed node is ignored. If another
    /// process has its process id now, connecting fails.
    pub fn of_running(folder: &Path) -> Option<NodeFile> {
        let path = folder.join("node.json");
        if std::fs::metadata(&path).ok()?.len() > MAX_FILE_BYTES {
            return None;
        }
        let node: NodeFile = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let pid = rustix::process::Pid::from_raw(i32::try_from(node.pid).ok()?)?;
        match rustix::process::test_kill_process(pid) {
            // A process of another user exists as well.
            Ok(()) | Err(rustix::io::Errno::PERM) => Some(node),
            Err(_) => None,
        }
    }
}

/// A data directory, locked by one node at a time.
pub struct DataDir {
    /// Path of `node.json`; `None` if another node owns it.
    node_file: Option<PathBuf>,
    /// The lock, held while the file is open.
    _lock: Option<File>,
}

impl DataDir {
    /// Creates the directory if needed and locks it. An ephemeral node shares it with another node.
    ///
    /// # Errors
    /// `InvalidInput` if it cannot be used, `Unavailable` if another node runs with it.
    pub fn claim(path: &Path, ephemeral: bool) -> Result<DataDir> {
        let unusable = |error: std::io::Error| {
            let why =
                format!("cannot use the data directory {} ({error}); choose another with --data-dir", path.display());
            Error::new(ErrorKind::InvalidInput, why)
        };
        if !path.exists() {
            // One that exists may be a folder that others are to read; its secrets have their own permissions.
            whole_file::private_folder(path).map_err(unusable)?;
        }
        let lock =
            File::options().create(true).truncate(false).write(true).open(path.join("lock")).map_err(unusable)?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() {
            // A crash while a file was written leaves its beginning.
            [path.to_owned(), path.join("evidence"), path.join("receipts")]
                .iter()
                .for_each(|folder| whole_file::sweep(folder));
            return Ok(DataDir { node_file: Some(path.join("node.json")), _lock: Some(lock) });
        }
        if ephemeral {
            return Ok(DataDir { node_file: None, _lock: None });
        }
        let why = format!(
            "another node runs with the data directory {}; stop it, or start this one with --data-dir DIR or --ephemeral",
            path.display()
        );
        Err(Error::new(ErrorKind::Unavailable, why))
    }

    /// Path of the Cap'n Proto service's socket; `None` if another node owns the directory.
    pub fn socket(&self) -> Option<PathBuf> {
        let path = self.node_file.as_ref()?.with_file_name("rpc.sock");
        // Other programs find it in `node.json`, from whatever folder they run in.
        std::path::absolute(path).ok()
    }

    /// Replaces `node.json` atomically. Does nothing if another node owns it.
    ///
    /// # Errors
    /// `Internal` if it cannot be written.
    pub fn write(&self, node: &NodeFile) -> Result<()> {
        let Some(path) = &self.node_file else { return Ok(()) };
        let write = || whole_file::replace(path, &serde_json::to_vec_pretty(node)?);
        write().map_err(|error| Error::new(ErrorKind::Internal, format!("cannot write {}: {error}", path.display())))
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if let Some(path) = &self.node_file {
            // A file that is gone already needs no removal.
            let _ = std::fs::remove_file(path);
            let _ = std::fs::remove_file(path.with_file_name("rpc.sock"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(pid: u32) -> NodeFile {
        NodeFile {
            pid,
            peer: "12D3KooW".to_owned(),
            listening: vec!["/ip4/127.0.0.1/tcp/7777".to_owned()],
            reachable: None,
            rpc: "127.0.0.1:8181".to_owned(),
            api: Some("192.168.7.7:52415".to_owned()),
            socket: None,
        }
    }

    #[test]
    fn a_running_node_is_found_through_its_directory() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(NodeFile::of_running(folder.path()), None);
        let claimed = DataDir::claim(folder.path(), false).unwrap();
        claimed.write(&node(std::process::id())).unwrap();
        assert_eq!(NodeFile::of_running(folder.path()), Some(node(std::process::id())));
        drop(claimed);
        assert_eq!(NodeFile::of_running(folder.path()), None, "a node removes its file when it ends");
    }

    #[test]
    fn the_file_of_a_killed_node_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let claimed = DataDir::claim(folder.path(), false).unwrap();
        // Ended and waited for: no process has its id.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        for pid in [pid, 0, u32::MAX] {
            claimed.write(&node(pid)).unwrap();
            assert_eq!(NodeFile::of_running(folder.path()), None, "{pid}");
        }
        for text in ["", "{", "{\"pid\": 1}", "[]"] {
            std::fs::write(folder.path().join("node.json"), text).unwrap();
            assert_eq!(NodeFile::of_running(folder.path()), None, "{text}");
        }
    }

    #[test]
    fn one_node_locks_a_directory_and_an_ephemeral_one_may_share_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::claim(folder.path(), false).unwrap();
        first.write(&node(std::process::id())).unwrap();
        assert!(DataDir::claim(folder.path(), false).is_err());
        let guest = DataDir::claim(folder.path(), true).unwrap();
        guest.write(&node(1)).unwrap();
        drop(guest);
        assert_eq!(NodeFile::of_running(folder.path()), Some(node(std::process::id())));
    }
}
