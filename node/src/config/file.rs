//! `config.toml`: the same settings as the flags of `pangea node`, by the same names. Parsing only; a key that is not
//! known is an error, because a setting that is silently ignored is worse than none.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use libp2p::Multiaddr;
use serde::Deserialize;
use thiserror::Error;

use super::layer_range::LayerRange;
use super::log::LogFormat;
use super::raw::Bind;
use super::size::ByteSize;

/// What a `config.toml` may say; every key as the flag of that name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConfigFile {
    /// Addresses to listen on.
    pub listen: Option<Vec<Multiaddr>>,
    /// Address of the Cap'n Proto service.
    pub rpc_addr: Option<SocketAddr>,
    /// Address of the HTTP API.
    pub api_addr: Option<SocketAddr>,
    /// Its port alone.
    pub api_port: Option<u16>,
    /// Whether there is an HTTP API.
    pub api: Option<bool>,
    /// What its clients must show.
    pub api_key: Option<String>,
    /// Where it is offered.
    pub bind: Option<Bind>,
    /// Whether to be the master of the pool.
    pub force_master: Option<bool>,
    /// Models to serve.
    pub model: Option<Vec<String>>,
    /// Whether these are to be split over nodes.
    pub split: Option<bool>,
    /// Layers that this node is to have.
    pub layers: Option<LayerRange>,
    /// Peers to connect to.
    pub peer: Option<Vec<Multiaddr>>,
    /// A `peers.json`.
    pub peers_file: Option<PathBuf>,
    /// Whether to look for peers with mDNS.
    pub mdns: Option<bool>,
    /// Memory for tensors.
    pub max_memory: Option<ByteSize>,
    /// Compute threads.
    pub threads: Option<usize>,
    /// The share of sessions that are audited.
    pub audit: Option<f64>,
    /// The pool key file.
    pub pool_key: Option<PathBuf>,
    /// Whether the identity is new on every start.
    pub ephemeral: Option<bool>,
    /// The node's name.
    pub name: Option<String>,
    /// Form of log lines.
    pub log_format: Option<LogFormat>,
}

/// A `config.toml` that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigFileError {
    /// It cannot be read.
    #[error("the configuration {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It says something that is not known or not possible.
    #[error("{}:{line}:{column}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// 1-based column, in characters.
        column: usize,
        /// What is wrong there.
        why: String,
    },
}

impl ConfigFile {
    /// What `text` says; `path` is for messages, and relative paths inside are relative to its folder.
    ///
    /// # Errors
    /// [`ConfigFileError::Malformed`] with line and column.
    pub fn parse(text: &str, path: &Path) -> Result<ConfigFile, ConfigFileError> {
        let mut file: ConfigFile = toml::from_str(text).map_err(|error| {
            let (line, column) = place(text, error.span().map_or(0, |span| span.start));
            ConfigFileError::Malformed {
                path: path.to_owned(),
                line,
                column,
                why: error.message().trim_end().replace('\n', "; "),
            }
        })?;
        if let Some(folder) = path.parent() {
            for inside in [&mut file.peers_file, &mut file.pool_key].into_iter().flatten() {
                *inside = folder.join(&inside);
            }
        }
        Ok(file)
    }

    /// The configuration in `path`.
    ///
    /// # Errors
    /// [`ConfigFileError`].
    pub fn load(path: &Path) -> Result<ConfigFile, ConfigFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigFileError::Unreadable { path: path.to_owned(), source })?;
        ConfigFile::parse(&text, path)
    }

    /// As [`ConfigFile::load`]; empty where there is no such file.
    ///
    /// # Errors
    /// [`ConfigFileError`].
    pub fn load_if_there(path: &Path) -> Result<ConfigFile, ConfigFileError> {
        match ConfigFile::load(path) {
            Err(ConfigFileError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(ConfigFile::default())
            }
            result => result,
        }
    }
}

/// Line and column, both from 1, of byte `at`.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile, String> {
        ConfigFile::parse(text, Path::new("/etc/pangea/config.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_is_the_flag_of_that_name() {
        let file = parse(
            "listen = [\"/ip4/0.0.0.0/tcp/7777\"]\nrpc-addr = \"127.0.0.1:0\"\npeer = [\"/ip4/10.0.0.1/tcp/7777\"]\n\
             api-port = 1\nbind = \"lan\"\napi-key = \"k\"\nmodel = [\"m\"]\n\
             peers-file = \"p.json\"\nmdns = false\nmax-memory = \"2G\"\nthreads = 3\npool-key = \"/k\"\nephemeral = true\n\
             audit = 0.5\nname = \"mac2\"\nlog-format = \"json\"\n",
        )
        .unwrap();
        assert_eq!(file.max_memory, Some(ByteSize(2 << 30)));
        assert_eq!(file.peers_file, Some(PathBuf::from("/etc/pangea/p.json")));
        assert_eq!(file.pool_key, Some(PathBuf::from("/k")));
        assert_eq!(file.log_format, Some(LogFormat::Json));
        assert_eq!(file.mdns, Some(false));
        assert_eq!(file.audit, Some(0.5));
        assert_eq!((file.api_port, file.bind, file.model), (Some(1), Some(Bind::Lan), Some(vec!["m".to_owned()])));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, start) in [
            ("threads = 2\nthreds = 3\n", "/etc/pangea/config.toml:2:1: unknown field `threds`"),
            ("name = \"é\"\nmax-memory = \"lots\"\n", "/etc/pangea/config.toml:2:14: 'lots' is not a size"),
            ("listen = [\"/ip4/nowhere\"]\n", "/etc/pangea/config.toml:1:"),
            ("rpc-addr = \"localhost\"", "/etc/pangea/config.toml:1:12: "),
            ("threads = -1", "/etc/pangea/config.toml:1:11: "),
            ("threads = ", "/etc/pangea/config.toml:1:1"),
            ("threads = 1\nthreads = 2", "/etc/pangea/config.toml:2:1: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(start), "{text}: {error}");
        }
    }
}
