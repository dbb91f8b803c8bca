//! `keys.json`: the API keys that the owner of a node gives to others, each with a name and limits. Only digests are stored. Who
//! shows which key, and what it costs, is not known here.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use pangea_client::{Error, ErrorKind, Result};
use pangea_control::net::allowance::KeyLimits;
use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};

use crate::storage::whole_file;

/// Keys of one node: more than a household has people and programs.
pub const MAX_KEYS: usize = 1024;

/// Bytes of a name: what fits into a table.
const MAX_NAME_BYTES: usize = 64;

/// Bytes of a `keys.json` that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What every key begins with, so that one that was published by mistake is found.
const PREFIX: &str = "pgk-";

/// A key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredKey {
    /// Name, chosen by the owner of the node.
    pub name: String,
    /// BLAKE3 of the key, in hexadecimal digits. The key has 256 random bits, so that nobody finds it by guessing.
    pub digest: String,
    /// When it was created, in seconds of Unix time.
    pub created_s: u64,
    /// Requests per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// Models that the holder may use; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
}

impl StoredKey {
    /// The limits.
    pub fn limits(&self) -> KeyLimits {
        KeyLimits { requests_per_minute: self.requests_per_minute, tokens_per_minute: self.tokens_per_minute }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    keys: Vec<StoredKey>,
}

/// The keys of one data directory.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    path: PathBuf,
}

impl ApiKeys {
    /// The keys of `data_dir`.
    pub fn of(data_dir: &Path) -> ApiKeys {
        ApiKeys { path: data_dir.join("keys.json") }
    }

    /// Where the keys are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a key was ever created: from then on the API requires one, also when all are revoked.
    pub fn exist(&self) -> bool {
        self.path.exists()
    }

    /// All keys; empty without a file.
    ///
    /// # Errors
    /// `InvalidInput` for a file that cannot be read or understood.
    pub fn read(&self) -> Result<Vec<StoredKey>> {
        let unusable = |why: String| {
            Error::new(ErrorKind::InvalidInput, format!("cannot use the API keys in {}: {why}", self.path.display()))
        };
        match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unusable(error.to_string())),
            Ok(about) if about.len() > MAX_FILE_BYTES => {
                return Err(unusable(format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20)));
            }
            Ok(_) => {}
        }
        let bytes = std::fs::read(&self.path).map_err(|error| unusable(error.to_string()))?;
        let content: Content = serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
        Ok(content.keys)
    }

    /// Creates a key with this name and these limits, and returns it; it is shown nowhere again.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is taken or unusable; `Internal` if the file cannot be written.
    pub fn create(&self, name: &str, limits: KeyLimits, models: Vec<String>, now_s: u64) -> Result<String> {
        let wrong = |why: String| Err(Error::new(ErrorKind::InvalidInput, why));
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
            return wrong(format!(
                "the name of a key has 1 to {MAX_NAME_BYTES} bytes, none of them a control character"
            ));
        }
        let _lock = self.lock()?;
        let mut keys = self.read()?;
        if keys.iter().any(|key| key.name == name) {
            return wrong(format!("there is a key named {name:?}; revoke it first, or choose another name"));
        }
        if keys.len() >= MAX_KEYS {
            return wrong(format!("there are {MAX_KEYS} keys; revoke one first"));
        }
        let mut secret = [0; 32];
        SysRng
            .try_fill_bytes(&mut secret)
            .map_err(|error| Error::new(ErrorKind::Internal, format!("the system gives no random bytes: {error}")))?;
        let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("{PREFIX}{digits}");
        keys.push(StoredKey {
            name: name.to_owned(),
            digest: digest(&key),
            created_s: now_s,
            requests_per_minute: limits.requests_per_minute,
            tokens_per_minute: limits.tokens_per_minute,
            models,
        });
        self.write(keys)?;
        Ok(key)
    }

    /// Removes the key with this name.
    ///
    /// # Errors
    /// `NotFound` without such a key; `Internal` if the file cannot be written.
    pub fn revoke(&self, name: &str) -> Result<()> {
        let _lock = self.lock()?;
        let mut keys = self.read()?;
        let count = keys.len();
        keys.retain(|key| key.name != name);
        if keys.len() == count {
            let message = format!("there is no key named {name:?}; `pangea keys list` lists them");
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        self.write(keys)
    }

    /// Held while the file is changed: two commands at once lose no key.
    fn lock(&self) -> Result<File> {
        let failed = |error: io::Error| self.failed(&error);
        if let Some(folder) = self.path.parent().filter(|folder| !folder.exists()) {
            whole_file::private_folder(folder).map_err(failed)?;
        }
        let lock = self.path.with_extension("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(lock).map_err(failed)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Ok(lock)
    }

    fn write(&self, keys: Vec<StoredKey>) -> Result<()> {
        let write = || whole_file::replace(&self.path, &serde_json::to_vec_pretty(&Content { keys })?);
        write().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::new(ErrorKind::Internal, format!("cannot write {}: {error}", self.path.display()))
    }
}

/// The digest under which a key is stored.
pub fn digest(key: &str) -> String {
    blake3::hash(key.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_stored_as_digests_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let keys = ApiKeys::of(&folder.path().join("data"));
        assert!(!keys.exist() && keys.read().unwrap().is_empty());
        let limits = KeyLimits { requests_per_minute: Some(5), tokens_per_minute: None };
        let key = keys.create("ada", limits, vec!["m".to_owned()], 7).unwrap();
        let other = keys.create("bob", KeyLimits::default(), Vec::new(), 8).unwrap();
        assert!(key.starts_with("pgk-") && key.len() == 68 && key != other);
        let text = std::fs::read_to_string(keys.path()).unwrap();
        assert!(!text.contains(&key["pgk-".len()..]) && text.contains(&digest(&key)));
        assert_eq!(std::fs::metadata(keys.path()).unwrap().permissions().mode() & 0o777, 0o600);
        let stored = keys.read().unwrap();
        assert_eq!((stored[0].name.as_str(), stored[0].limits(), stored[0].created_s), ("ada", limits, 7));
        assert_eq!(keys.create("ada", limits, Vec::new(), 9).unwrap_err().kind(), ErrorKind::InvalidInput);
        for name in ["", "a\nb", &"x".repeat(65)] {
            assert!(keys.create(name, limits, Vec::new(), 9).is_err(), "{name:?}");
        }
        keys.revoke("ada").unwrap();
        assert_eq!(keys.revoke("ada").unwrap_err().kind(), ErrorKind::NotFound);
        keys.revoke("bob").unwrap();
        assert!(keys.exist() && keys.read().unwrap().is_empty(), "revoking the last key opens nothing");
    }

    #[test]
    fn a_file_that_is_no_list_of_keys_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let keys = ApiKeys::of(folder.path());
        std::fs::write(keys.path(), b"{\"keys\": [{}]}").unwrap();
        assert_eq!(keys.read().unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(keys.exist());
    }
}
