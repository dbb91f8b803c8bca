//! `peers.json`: the user's list of peers. Parsing is pure; the watch detects changes by the file's time, size and inode and
//! keeps the last valid list. This file dials nobody.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use libp2p::Multiaddr;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

/// Maximum bytes of the file; no list written by hand is larger.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Maximum peers in the file: each is dialled repeatedly.
const MAX_PEERS: usize = 1024;

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ListedPeer {
    /// Name that the user gave the peer.
    #[serde(default)]
    pub name: Option<String>,
    /// Address of the peer; with `/p2p/…` only that peer is accepted there.
    #[serde(deserialize_with = "multiaddr")]
    pub address: Multiaddr,
}

#[derive(Deserialize)]
struct PeersFile {
    peers: Vec<ListedPeer>,
}

fn multiaddr<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Multiaddr, D::Error> {
    struct Text;
    impl Visitor<'_> for Text {
        type Value = Multiaddr;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an address such as \"/ip4/192.168.1.20/tcp/7777/p2p/12D3…\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Multiaddr, E> {
            super::peer_address::parse(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text)
}

/// Why a peers file is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PeersFileError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The content is invalid at a line and column.
    #[error("line {line}, column {column}: {why}")]
    Malformed {
        /// 1-based line.
        line: usize,
        /// 1-based column.
        column: usize,
        /// What is wrong there.
        why: String,
    },
}

/// Parses the text of a `peers.json`.
///
/// # Errors
/// [`PeersFileError::Malformed`] with line and column.
pub fn parse(text: &str) -> Result<Vec<ListedPeer>, PeersFileError> {
    let malformed = |error: &serde_json::Error| {
        // serde_json appends the position to its message; it is separated here.
        let why = error.to_string();
        let why = why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why).to_owned();
        PeersFileError::Malformed { line: error.line(), column: error.column(), why }
    };
    let file: PeersFile = serde_json::from_str(text).map_err(|error| malformed(&error))?;
    if file.peers.len() > MAX_PEERS {
        return Err(malformed(&serde_json::Error::custom(format!(
            "{} peers; the maximum is {MAX_PEERS}",
            file.peers.len()
        ))));
    }
    Ok(file.peers)
}

/// Result of checking the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// A new valid list.
    Loaded(Vec<ListedPeer>),
    /// The file is invalid; the last valid list stays in force.
    Broken(PeersFileError),
}

/// Distinguishes two versions of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    seconds: i64,
    nanoseconds: i64,
}

/// Watches one peers file.
#[derive(Debug)]
pub(super) struct Watch {
    path: PathBuf,
    seen: Option<Stamp>,
    missing: bool,
}

impl Watch {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None, missing: false }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What changed since the last check. The file is read only if it changed; an invalid version is reported once.
    pub(super) async fn check(&mut self) -> Option<Change> {
        let stamp = match tokio::fs::metadata(&self.path).await {
            Ok(metadata) => Stamp {
                inode: metadata.ino(),
                bytes: metadata.len(),
                seconds: metadata.mtime(),
                nanoseconds: metadata.mtime_nsec(),
            },
            Err(error) => return self.unreadable(&error),
        };
        if self.seen == Some(stamp) {
            return None;
        }
        self.seen = Some(stamp);
        self.missing = false;
        if stamp.bytes > MAX_FILE_BYTES {
            return Some(Change::Broken(PeersFileError::Unreadable(format!(
                "{} bytes; the maximum is {MAX_FILE_BYTES}",
                stamp.bytes
            ))));
        }
        match tokio::fs::read_to_string(&self.path).await {
            Ok(text) => Some(match parse(&text) {
                Ok(peers) => Change::Loaded(peers),
                Err(error) => Change::Broken(error),
            }),
            Err(error) => self.unreadable(&error),
        }
    }

    fn unreadable(&mut self, error: &io::Error) -> Option<Change> {
        let never_there = self.seen.take().is_none() && error.kind() == io::ErrorKind::NotFound;
        let first = !std::mem::replace(&mut self.missing, true);
        // A file that never existed is not reported; one that disappeared is.
        (first && !never_there).then(|| Change::Broken(PeersFileError::Unreadable(error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"peers": [{"name": "mac2", "address": "/ip4/192.168.1.20/tcp/7777"}, {"address": "/ip4/10.0.0.1/udp/7777/quic-v1"}]}"#;

    #[test]
    fn names_are_optional_and_addresses_are_parsed() {
        let peers = parse(GOOD).unwrap();
        assert_eq!(peers[0].name.as_deref(), Some("mac2"));
        assert_eq!(peers[1].address, "/ip4/10.0.0.1/udp/7777/quic-v1".parse().unwrap());
        assert_eq!(parse(r#"{"peers": []}"#).unwrap(), []);
    }

    #[test]
    fn errors_name_line_and_column() {
        let error = parse("{\n  \"peers\": [\n    {\"address\": \"/ip4/300.1.1.1/tcp/1\"}\n  ]\n}").unwrap_err();
        let PeersFileError::Malformed { line: 3, why, .. } = &error else { panic!("{error:?}") };
        assert!(why.contains("300.1.1.1"), "{why}");
        let error = parse("{\"peers\": [\n{\"address\": \"/ip4/1.1.1.1/tcp/1\"},\n]}").unwrap_err();
        assert!(matches!(error, PeersFileError::Malformed { line: 3, column: 1, .. }), "{error:?}");
        assert!(matches!(parse("").unwrap_err(), PeersFileError::Malformed { line: 1, .. }));
        assert!(matches!(parse("[]").unwrap_err(), PeersFileError::Malformed { line: 1, .. }));
    }

    #[tokio::test]
    async fn every_version_is_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peers.json");
        let mut watch = Watch::new(path.clone());
        assert_eq!(watch.check().await, None, "a file that does not exist yet is not reported");
        std::fs::write(&path, GOOD).unwrap();
        assert!(matches!(watch.check().await, Some(Change::Loaded(peers)) if peers.len() == 2));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(watch.check().await, Some(Change::Broken(PeersFileError::Unreadable(_)))));
        assert_eq!(watch.check().await, None);
        std::fs::write(&path, GOOD).unwrap();
        assert!(matches!(watch.check().await, Some(Change::Loaded(peers)) if peers.len() == 2));
        assert_eq!(watch.check().await, None);
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(watch.check().await, Some(Change::Broken(PeersFileError::Malformed { .. }))));
        assert_eq!(watch.check().await, None);
        // The same size, and possibly the same time, but another inode.
        let other = folder.path().join("other.json");
        std::fs::write(&other, "}").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(matches!(watch.check().await, Some(Change::Broken(PeersFileError::Malformed { .. }))));
        std::fs::write(&path, GOOD).unwrap();
        assert!(matches!(watch.check().await, Some(Change::Loaded(_))));
    }
}
