//! What a node's place in its pool needs across restarts: the file `certificate` of a node that joined a pool, and in `state.redb`
//! the open invitations, the revocations and whom this node admitted, each for its pool. An ephemeral node stores nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use libp2p::{Multiaddr, PeerId};
use pangea_client::{Error, ErrorKind, Result};
use pangea_control::membership::{Chain, Invitation, PoolId, Role, Terms};
use redb::{ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::storage::{State, whole_file};

/// Values by kind and pool.
const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("membership");

/// Maximum bytes of the file `certificate`: a chain and a few addresses take a tenth.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Peers that this node admitted and remembers by name; the latest ones. A list for people, which decides nothing.
pub const MAX_ADMITTED: usize = 1024;

/// Where a node keeps these things.
#[derive(Clone, Default)]
pub struct Stored {
    state: Option<State>,
    certificate: Option<PathBuf>,
}

/// The file `certificate`: the pool that this node joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptCertificate {
    /// The pool.
    pub pool: PoolId,
    /// This node's chain of certificates.
    pub chain: Chain,
    /// Name of the member that admitted this node.
    pub member: String,
    /// Addresses of members, to find the pool again.
    pub addresses: Vec<Multiaddr>,
}

/// A peer that this node admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Its peer id.
    pub peer: String,
    /// What it called itself.
    pub name: String,
    /// Its role.
    pub role: String,
    /// When its certificate expires, in seconds since 1970.
    pub expires_unix_s: u64,
}

#[derive(Serialize, Deserialize)]
struct CertificateFile {
    pool: String,
    chain: String,
    member: String,
    addresses: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredInvitation {
    secret_hash: String,
    role: String,
    member_for_s: u64,
    expires_unix_s: u64,
    uses: u32,
    used_by: Vec<String>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?, 16).ok())
        .collect()
}

/// The file `certificate` of a data directory.
pub fn certificate_path(data_dir: &Path) -> PathBuf {
    data_dir.join("certificate")
}

impl KeptCertificate {
    /// The certificate in `data_dir`; `None` if the node has joined no pool.
    ///
    /// # Errors
    /// `InvalidInput` if the file cannot be read or is damaged, with what to do.
    pub fn load(data_dir: &Path) -> Result<Option<KeptCertificate>> {
        let path = certificate_path(data_dir);
        let unusable = |why: &dyn std::fmt::Display| {
            let message = format!(
                "the certificate {} is unusable ({why}); restore it, or move it away to leave the pool that this node joined",
                path.display()
            );
            Error::new(ErrorKind::InvalidInput, message)
        };
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(&error)),
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => return Err(unusable(&"it is too long")),
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(&path).map_err(|error| unusable(&error))?;
        let file: CertificateFile = serde_json::from_str(&text).map_err(|error| unusable(&error))?;
        let pool = from_hex(&file.pool).and_then(|bytes| bytes.try_into().ok()).map(PoolId);
        let chain = from_hex(&file.chain).ok_or_else(|| unusable(&"its chain is not hex"))?;
        Ok(Some(KeptCertificate {
            pool: pool.ok_or_else(|| unusable(&"its pool is not 64 hex digits"))?,
            chain: Chain::parse(&chain).map_err(|error| unusable(&error))?,
            member: file.member,
            addresses: file.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
        }))
    }

    /// Writes the file; it is on disk when this returns.
    ///
    /// # Errors
    /// `Internal` if it cannot be written.
    pub fn save(&self, data_dir: &Path) -> Result<()> {
        let path = certificate_path(data_dir);
        let file = CertificateFile {
            pool: hex(&self.pool.0),
            chain: hex(&self.chain.encode()),
            member: self.member.clone(),
            addresses: self.addresses.iter().map(Multiaddr::to_string).collect(),
        };
        let failed = |why: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Internal, format!("cannot write the certificate {}: {why}", path.display()))
        };
        let text = serde_json::to_string_pretty(&file).map_err(|error| failed(&error))?;
        whole_file::replace(&path, text.as_bytes()).map_err(|error| failed(&error))
    }
}

impl Stored {
    /// Keeps things in `state` and the data directory; nowhere without them.
    pub fn new(state: Option<State>, data_dir: Option<&Path>) -> Stored {
        Stored { state, certificate: data_dir.map(Path::to_owned) }
    }

    /// Keeps the certificate of the pool that this node joined.
    ///
    /// # Errors
    /// `Internal` if it cannot be written.
    pub fn keep_certificate(&self, kept: &KeptCertificate) -> Result<()> {
        self.certificate.as_deref().map_or(Ok(()), |data_dir| kept.save(data_dir))
    }

    /// The open invitations of `pool`; those that cannot be read are lost, which opens nothing.
    pub fn invitations(&self, pool: &PoolId) -> Vec<Invitation> {
        let stored: Vec<StoredInvitation> = self.read_json("invitations", pool);
        let parse = |stored: &StoredInvitation| {
            Some(Invitation {
                secret_hash: from_hex(&stored.secret_hash)?.try_into().ok()?,
                terms: Terms { role: Role::named(&stored.role)?, member_for_s: stored.member_for_s },
                expires_unix_s: stored.expires_unix_s,
                uses: stored.uses,
                used_by: stored.used_by.iter().map(|peer| peer.parse().ok()).collect::<Option<BTreeSet<PeerId>>>()?,
            })
        };
        stored.iter().filter_map(parse).collect()
    }

    /// Keeps the open invitations of `pool`.
    ///
    /// # Errors
    /// `Internal` if they cannot be stored.
    pub fn keep_invitations(&self, pool: &PoolId, open: &[Invitation]) -> Result<()> {
        let stored = |invitation: &Invitation| StoredInvitation {
            secret_hash: hex(&invitation.secret_hash),
            role: invitation.terms.role.name().to_owned(),
            member_for_s: invitation.terms.member_for_s,
            expires_unix_s: invitation.expires_unix_s,
            uses: invitation.uses,
            used_by: invitation.used_by.iter().map(PeerId::to_string).collect(),
        };
        self.write_json("invitations", pool, &open.iter().map(stored).collect::<Vec<_>>())
    }

    /// Whom this node admitted to `pool`.
    pub fn admitted(&self, pool: &PoolId) -> Vec<Admitted> {
        self.read_json("admitted", pool)
    }

    /// Keeps whom this node admitted to `pool`.
    ///
    /// # Errors
    /// `Internal` if it cannot be stored.
    pub fn keep_admitted(&self, pool: &PoolId, admitted: &[Admitted]) -> Result<()> {
        self.write_json("admitted", pool, &admitted)
    }

    /// The encoded revocations of `pool`.
    ///
    /// # Errors
    /// `Internal` if they cannot be read: a node that does not know them must not admit anyone.
    pub fn revocations(&self, pool: &PoolId) -> Result<Vec<u8>> {
        Ok(self.read("revocations", pool)?.unwrap_or_default())
    }

    /// Keeps the encoded revocations of `pool`.
    ///
    /// # Errors
    /// `Internal` if they cannot be stored.
    pub fn keep_revocations(&self, pool: &PoolId, encoded: &[u8]) -> Result<()> {
        self.write("revocations", pool, encoded)
    }

    fn read_json<T: for<'a> Deserialize<'a>>(&self, kind: &str, pool: &PoolId) -> Vec<T> {
        let bytes = self.read(kind, pool).unwrap_or_else(|error| {
            tracing::warn!(event = "membership_unread", kind, %error, "cannot read this node's {kind}: {error}");
            None
        });
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn write_json<T: Serialize>(&self, kind: &str, pool: &PoolId, value: &T) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        self.write(kind, pool, &bytes)
    }

    fn read(&self, kind: &str, pool: &PoolId) -> Result<Option<Vec<u8>>> {
        let Some(state) = &self.state else { return Ok(None) };
        let key = format!("{kind} {}", hex(&pool.0));
        state.with(|database| {
            let reading = database.begin_read()?;
            let table = match reading.open_table(TABLE) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                table => table?,
            };
            Ok(table.get(key.as_str())?.map(|value| value.value().to_vec()))
        })
    }

    fn write(&self, kind: &str, pool: &PoolId, bytes: &[u8]) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        let key = format!("{kind} {}", hex(&pool.0));
        state.with(|database| {
            let writing = database.begin_write()?;
            writing.open_table(TABLE)?.insert(key.as_str(), bytes)?;
            Ok(writing.commit()?)
        })
    }
}
