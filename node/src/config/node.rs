//! The configuration that a node runs with: flags, environment and file brought together, defaults filled in, the pool
//! key read. After this nothing is checked again. It creates and binds nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use thiserror::Error;

use super::file::{ConfigFile, ConfigFileError};
use super::host;
use super::layer_range::LayerRange;
use super::log::{LogConfig, LogLevel};
use super::raw::{Bind, RawNodeConfig};
use crate::net::{PoolKey, PoolKeyError};
use crate::trust::AuditPolicy;
use crate::worker::fault::Fault;

/// The port of TCP and QUIC unless told otherwise.
const PORT: u16 = 7777;

/// The port of the Cap'n Proto service unless told otherwise.
const RPC_PORT: u16 = 8080;

/// The port of the HTTP API unless told otherwise.
const API_PORT: u16 = 52415;

/// A key that is shorter can be guessed.
const MIN_API_KEY_CHARS: usize = 8;

/// Memory of a host that does not say how much it has.
const UNKNOWN_MEMORY_BYTES: u64 = 4 << 30;

/// The least memory that a node can do anything with: a few tiles of a small product.
const MIN_MEMORY_BYTES: u64 = 16 << 20;

/// More threads than any machine has cores; beyond it is a typing error.
const MAX_THREADS: usize = 4096;

/// Characters of a name: it goes into tables and adverts.
const MAX_NAME_CHARS: usize = 64;

/// How a node runs.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// libp2p addresses to listen on; port 0 picks a free one.
    pub listen: Vec<Multiaddr>,
    /// Address of the Cap'n Proto service; port 0 picks a free one.
    pub rpc_addr: SocketAddr,
    /// The HTTP API, where there is one.
    pub api: Option<ApiConfig>,
    /// Models to serve: names or paths.
    pub models: Vec<String>,
    /// Whether these are to be split over nodes even where one alone would be faster for a single stream.
    pub split: bool,
    /// Layers, the end exclusive, that this node is to have and no others: of its models, or of every model of the pool where
    /// it serves none.
    pub layers: Option<Range<u32>>,
    /// Peers to connect to, and to connect to again whenever they are lost.
    pub peers: Vec<Multiaddr>,
    /// A `peers.json`, watched; one that was not named by the person may not be there yet.
    pub peers_file: Option<PathBuf>,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// The pool's key. Without one, anyone on the network can join.
    pub pool_key: Option<PoolKey>,
    /// Whether the identity is new and written nowhere.
    pub ephemeral: bool,
    /// The node's name, for people.
    pub name: String,
    /// Where `node.key` and the rest are; not created yet.
    pub data_dir: PathBuf,
    /// The most memory for tensors, in bytes.
    pub max_memory: u64,
    /// Compute threads, at least 1.
    pub threads: usize,
    /// Which of the sessions that it coordinates are audited.
    pub audit: AuditPolicy,
    /// Whether it takes tasks from peers.
    pub works: bool,
    /// Whether it is to be the master of its pool.
    pub force_master: bool,
    /// How this worker lies or fails, for tests.
    pub fault: Option<Fault>,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// Where the HTTP API is, and for whom.
#[derive(Clone)]
pub struct ApiConfig {
    /// Its address; port 0 picks a free one.
    pub address: SocketAddr,
    /// What clients must show; never absent where others than this host reach it.
    pub key: Option<String>,
}

impl std::fmt::Debug for ApiConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = if self.key.is_some() { "with a key" } else { "without a key" };
        write!(f, "ApiConfig({}, {key})", self.address)
    }
}

/// A configuration that cannot be used. All are bad usage.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// `config.toml` is wrong.
    #[error(transparent)]
    File(#[from] ConfigFileError),
    /// The pool key is missing or malformed.
    #[error(transparent)]
    PoolKey(#[from] PoolKeyError),
    /// There is nowhere to keep the identity.
    #[error("there is no home folder to keep this node's data in; name one with --data-dir or PANGEA_HOME")]
    NoHome,
    /// The peers file that was named is not there.
    #[error("the peers file {} does not exist; create it with {{\"peers\": []}}", .0.display())]
    NoPeersFile(PathBuf),
    /// Others could use the HTTP API.
    #[error(
        "the HTTP API at {0} is open to others: set a key of at least {MIN_API_KEY_CHARS} characters that clients must show, in PANGEA_API_KEY or as api-key in config.toml"
    )]
    NoApiKey(SocketAddr),
    /// A value outside what is possible.
    #[error("{setting} {value} is not possible: {why}")]
    Value {
        /// Flag of the setting.
        setting: &'static str,
        /// What was asked for.
        value: String,
        /// What must hold.
        why: String,
    },
}

impl NodeConfig {
    /// What `raw` and the `config.toml` it points to say, with defaults for the rest.
    ///
    /// # Errors
    /// [`ConfigError`], before anything is created or bound.
    pub fn resolve(raw: RawNodeConfig, level: LogLevel) -> Result<NodeConfig, ConfigError> {
        let data_dir = data_dir(raw.data_dir)?;
        let file = match &raw.config {
            Some(path) => ConfigFile::load(path)?,
            None => ConfigFile::load_if_there(&data_dir.join("config.toml"))?,
        };
        let pool_key = match raw.pool_key.or(file.pool_key) {
            Some(path) => Some(PoolKey::load(&path)?),
            None => None,
        };
        let log = LogConfig { level, format: raw.log_format.or(file.log_format).unwrap_or_default() };
        let models = models(typed_or_file(raw.model, file.model))?;
        let split = raw.split || file.split.unwrap_or(false);
        if split && models.is_empty() {
            return Err(ConfigError::Value {
                setting: "--split",
                value: "without --model".to_owned(),
                why: "say it at the node that serves the model, with --model NAME; others need no flag to take part"
                    .to_owned(),
            });
        }
        Ok(NodeConfig {
            listen: listen(raw.listen, file.listen)?,
            rpc_addr: raw.rpc_addr.or(file.rpc_addr).unwrap_or((Ipv4Addr::LOCALHOST, RPC_PORT).into()),
            api: api(
                !raw.no_api && file.api.unwrap_or(true),
                raw.api_addr.or(file.api_addr.filter(|_| raw.api_port.is_none() && raw.bind.is_none())),
                raw.api_port.or(file.api_port),
                raw.bind.or(file.bind),
                raw.api_key.or(file.api_key),
            )?,
            models,
            split,
            layers: raw.layers.or(file.layers).map(LayerRange::range),
            peers: typed_or_file(raw.peer, file.peer),
            peers_file: Some(peers_file(raw.peers_file.or(file.peers_file), &data_dir)?),
            mdns: !raw.no_mdns && file.mdns.unwrap_or(true),
            pool_key,
            ephemeral: raw.ephemeral || file.ephemeral.unwrap_or(false),
            name: name(raw.name.or(file.name))?,
            max_memory: max_memory(raw.max_memory.or(file.max_memory).map(|size| size.0))?,
            threads: threads(raw.threads.or(file.threads))?,
            audit: audit(raw.audit.or(file.audit))?,
            works: true,
            force_master: raw.force_master || file.force_master.unwrap_or(false),
            fault: raw.fault,
            log,
            data_dir,
        })
    }
}

/// Where the HTTP API is: at the whole address where one is given, else at a port of loopback or the private address.
fn api(
    wanted: bool,
    address: Option<SocketAddr>,
    port: Option<u16>,
    bind: Option<Bind>,
    key: Option<String>,
) -> Result<Option<ApiConfig>, ConfigError> {
    if !wanted {
        return Ok(None);
    }
    let address = address.unwrap_or_else(|| {
        let host = match bind {
            Some(Bind::Lan) => host::private_address().unwrap_or(Ipv4Addr::LOCALHOST.into()),
            Some(Bind::Loopback) | None => Ipv4Addr::LOCALHOST.into(),
        };
        (host, port.unwrap_or(API_PORT)).into()
    });
    let key = key.filter(|key| !key.is_empty());
    if let Some(key) =
        key.as_ref().filter(|key| key.len() < MIN_API_KEY_CHARS || !key.chars().all(|c| c.is_ascii_graphic()))
    {
        return Err(ConfigError::Value {
            setting: "PANGEA_API_KEY",
            value: format!("({} characters)", key.chars().count()),
            why: format!("a key has at least {MIN_API_KEY_CHARS} characters, all printable ASCII and no spaces"),
        });
    }
    // `--bind lan` asks for others, whatever address there is today.
    if key.is_none() && (bind == Some(Bind::Lan) || !address.ip().is_loopback()) {
        return Err(ConfigError::NoApiKey(address));
    }
    Ok(Some(ApiConfig { address, key }))
}

fn models(names: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in &names {
        let why = match name.trim() {
            "" => "a model has a name or a path",
            _ if !seen.insert(name) => "it is named twice",
            _ => continue,
        };
        return Err(ConfigError::Value { setting: "--model", value: format!("{name:?}"), why: why.to_owned() });
    }
    Ok(names)
}

fn typed_or_file<T>(typed: Vec<T>, file: Option<Vec<T>>) -> Vec<T> {
    if typed.is_empty() { file.unwrap_or_default() } else { typed }
}

fn listen(typed: Vec<Multiaddr>, file: Option<Vec<Multiaddr>>) -> Result<Vec<Multiaddr>, ConfigError> {
    let addresses = typed_or_file(typed, file);
    if addresses.is_empty() {
        let any = Multiaddr::from(Ipv4Addr::UNSPECIFIED);
        return Ok(vec![any.clone().with(Protocol::Tcp(PORT)), any.with(Protocol::Udp(PORT)).with(Protocol::QuicV1)]);
    }
    for address in &addresses {
        let mut parts = address.iter();
        let host = matches!(parts.next(), Some(Protocol::Ip4(_) | Protocol::Ip6(_)));
        let transport = match parts.next() {
            Some(Protocol::Tcp(_)) => true,
            Some(Protocol::Udp(_)) => parts.next() == Some(Protocol::QuicV1),
            _ => false,
        };
        if !host || !transport || parts.next().is_some() {
            return Err(ConfigError::Value {
                setting: "--listen",
                value: address.to_string(),
                why: "listen on /ip4/ADDRESS/tcp/PORT or /ip4/ADDRESS/udp/PORT/quic-v1 (or ip6)".to_owned(),
            });
        }
    }
    Ok(addresses)
}

/// The data directory: the named one, else `~/.pangea`.
///
/// # Errors
/// [`ConfigError::NoHome`] where neither is there.
pub fn data_dir(named: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    match named {
        Some(folder) => Ok(folder),
        None => Ok(host::home().ok_or(ConfigError::NoHome)?.join(".pangea")),
    }
}

/// A file that was named must be there; the default one may come later.
fn peers_file(named: Option<PathBuf>, data_dir: &Path) -> Result<PathBuf, ConfigError> {
    match named {
        Some(path) if path.exists() => Ok(path),
        Some(path) => Err(ConfigError::NoPeersFile(path)),
        None => Ok(data_dir.join("peers.json")),
    }
}

fn name(asked: Option<String>) -> Result<String, ConfigError> {
    let name = asked.unwrap_or_else(host::name);
    let trimmed = name.trim();
    if trimmed.is_empty() || trimmed.chars().count() > MAX_NAME_CHARS || trimmed.chars().any(char::is_control) {
        return Err(ConfigError::Value {
            setting: "--name",
            value: format!("{name:?}"),
            why: format!("a name has 1 to {MAX_NAME_CHARS} printable characters"),
        });
    }
    Ok(trimmed.to_owned())
}

/// The memory for tensors: what was asked for, else half of what the host has.
///
/// # Errors
/// [`ConfigError::Value`] for too little to work with.
pub fn max_memory(asked: Option<u64>) -> Result<u64, ConfigError> {
    let bytes = asked.unwrap_or_else(|| host::memory_bytes().unwrap_or(UNKNOWN_MEMORY_BYTES) / 2);
    if bytes < MIN_MEMORY_BYTES {
        return Err(ConfigError::Value {
            setting: "--max-memory",
            value: super::ByteSize(bytes).to_string(),
            why: format!("products need at least {}", super::ByteSize(MIN_MEMORY_BYTES)),
        });
    }
    Ok(bytes)
}

/// The compute threads: what was asked for, else every core.
///
/// # Errors
/// [`ConfigError::Value`] for none, or more than any machine has.
pub fn threads(asked: Option<usize>) -> Result<usize, ConfigError> {
    let threads = asked.unwrap_or_else(host::cores);
    if threads == 0 || threads > MAX_THREADS {
        return Err(ConfigError::Value {
            setting: "--threads",
            value: threads.to_string(),
            why: format!("use 1 to {MAX_THREADS}; this machine has {} cores", host::cores()),
        });
    }
    Ok(threads)
}

fn audit(asked: Option<f64>) -> Result<AuditPolicy, ConfigError> {
    let Some(share) = asked else { return Ok(AuditPolicy::default()) };
    AuditPolicy::new(share).map_err(|error| ConfigError::Value {
        setting: "--audit",
        value: share.to_string(),
        why: error.message().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ByteSize;

    fn in_folder(folder: &Path) -> RawNodeConfig {
        RawNodeConfig { data_dir: Some(folder.to_owned()), ..RawNodeConfig::default() }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.toml"), "threads = 3\nname = \"filed\"\nmax-memory = \"64M\"\n")
            .unwrap();
        let raw = RawNodeConfig { name: Some("typed".into()), ..in_folder(folder.path()) };
        let config = NodeConfig::resolve(raw, LogLevel::Info).unwrap();
        assert_eq!((config.name.as_str(), config.threads, config.max_memory), ("typed", 3, 64 << 20));
        assert_eq!(config.rpc_addr.to_string(), "127.0.0.1:8080");
        assert_eq!(
            config.listen.iter().map(Multiaddr::to_string).collect::<Vec<_>>(),
            ["/ip4/0.0.0.0/tcp/7777", "/ip4/0.0.0.0/udp/7777/quic-v1"]
        );
    }

    #[test]
    fn the_api_is_on_loopback_unless_a_private_address_is_asked_for_with_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let api = |raw: RawNodeConfig| NodeConfig::resolve(raw, LogLevel::Info).unwrap().api;
        let raw = in_folder(folder.path());
        assert_eq!(api(raw.clone()).unwrap().address.to_string(), "127.0.0.1:52415");
        let port = RawNodeConfig { api_port: Some(9), ..raw.clone() };
        assert_eq!(api(port).unwrap().address.to_string(), "127.0.0.1:9");
        let lan =
            RawNodeConfig { bind: Some(Bind::Lan), api_key: Some("long enough".replace(' ', "-")), ..raw.clone() };
        let address = api(lan).unwrap().address.ip();
        assert!(address.is_loopback() || host::is_private(address), "{address}");
        assert!(api(RawNodeConfig { no_api: true, ..raw }).is_none());
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_is_created() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let raw = in_folder(&home);
        let refused = |raw: RawNodeConfig| NodeConfig::resolve(raw, LogLevel::Info).unwrap_err().to_string();
        let missing = Some(folder.path().join("none"));
        for (raw, say) in [
            (RawNodeConfig { pool_key: missing.clone(), ..raw.clone() }, "64 hex digits"),
            (RawNodeConfig { peers_file: missing.clone(), ..raw.clone() }, "does not exist"),
            (RawNodeConfig { config: missing, ..raw.clone() }, "cannot be read"),
            (RawNodeConfig { threads: Some(0), ..raw.clone() }, "--threads 0"),
            (RawNodeConfig { audit: Some(1.5), ..raw.clone() }, "--audit 1.5"),
            (RawNodeConfig { max_memory: Some(ByteSize(5)), ..raw.clone() }, "--max-memory 5 B"),
            (RawNodeConfig { name: Some("a\nb".into()), ..raw.clone() }, "--name"),
            (RawNodeConfig { bind: Some(Bind::Lan), ..raw.clone() }, "PANGEA_API_KEY"),
            (RawNodeConfig { api_addr: Some("0.0.0.0:0".parse().unwrap()), ..raw.clone() }, "PANGEA_API_KEY"),
            (RawNodeConfig { api_key: Some("short".into()), ..raw.clone() }, "at least 8"),
            (RawNodeConfig { model: vec!["m".into(), "m".into()], ..raw.clone() }, "--model"),
            (RawNodeConfig { split: true, ..raw.clone() }, "--split without --model"),
            (RawNodeConfig { listen: vec!["/ip4/127.0.0.1".parse().unwrap()], ..raw.clone() }, "--listen"),
            (RawNodeConfig { listen: vec!["/ip4/0.0.0.0/udp/1".parse().unwrap()], ..raw.clone() }, "quic-v1"),
        ] {
            let error = refused(raw);
            assert!(error.contains(say), "{error}");
        }
        assert!(!home.exists());
    }
}
