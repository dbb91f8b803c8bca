//! The resolved configuration of a node: flags, environment and file merged, defaults filled in, the pool key
//! read. All checks are made here. Nothing here creates a file or binds a port.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgMatches, Args, FromArgMatches};
use thiserror::Error;

use super::federation::FederationConfig;
use super::file::{ConfigFile, ConfigFileError};
use super::identity::{IdentityConfig, data_dir};
use super::log::{LogConfig, LogLevel};
use super::network::NetworkConfig;
use super::raw::{RawNodeConfig, given, with_value};
use super::service::ServiceConfig;
use super::work::WorkConfig;
use crate::api_keys::ApiKeys;
use crate::membership::PoolKeyError;
use crate::traces::TraceSettings;

/// Resolved configuration of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Addresses, peers and the pool key.
    pub network: NetworkConfig,
    /// The Cap'n Proto service and the HTTP API.
    pub service: ServiceConfig,
    /// Models, memory and threads, audits, role in the pool.
    pub work: WorkConfig,
    /// Votes on answers; `None` if the node takes no part in any.
    pub federation: Option<FederationConfig>,
    /// Identity and files.
    pub identity: IdentityConfig,
    /// Verbosity and format of the log.
    pub log: LogConfig,
    /// Where spans go; `None` without traces.
    pub traces: Option<TraceSettings>,
}

/// A configuration that cannot be used. Every case is a usage error.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// `config.toml` is wrong.
    #[error(transparent)]
    File(#[from] ConfigFileError),
    /// The command line cannot be parsed.
    #[error("{0}")]
    Typed(String),
    /// The pool key is missing or malformed.
    #[error(transparent)]
    PoolKey(#[from] PoolKeyError),
    /// There is no home directory for the identity, and no other directory is named.
    #[error("there is no home folder to keep this node's data in; name one with --data-dir or PANGEA_HOME")]
    NoHome,
    /// The file of `--peers-file` does not exist.
    #[error("the peers file {} does not exist; create it with {{\"peers\": []}}", .0.display())]
    NoPeersFile(PathBuf),
    /// The HTTP API can be reached from other hosts and has no key.
    #[error(
        "the HTTP API at {address} is open to others: set a key of at least {min_chars} characters that clients must show, in PANGEA_API_KEY or as api-key in config.toml, or create one with `pangea keys create NAME`"
    )]
    NoApiKey {
        /// Address of the API.
        address: SocketAddr,
        /// Minimum length of a key in characters.
        min_chars: usize,
    },
    /// The Cap'n Proto service can be reached from other hosts and has no key.
    #[error(
        "the Cap'n Proto service at {address} is open to others: set a key of at least {min_chars} characters that clients must show, in PANGEA_API_KEY or as api-key in config.toml, or leave out --rpc-addr"
    )]
    NoRpcKey {
        /// Address of the service.
        address: SocketAddr,
        /// Minimum length of a key in characters.
        min_chars: usize,
    },
    /// The API key is too short, or has characters that an HTTP header cannot carry.
    #[error("an API key has at least {min_chars} characters, all printable ASCII and no spaces")]
    ApiKey {
        /// Minimum length of a key in characters.
        min_chars: usize,
    },
    /// The API key was given on the command line.
    #[error("an API key that is typed shows in every list of processes; set PANGEA_API_KEY, or api-key in config.toml")]
    TypedApiKey,
    /// `--split` without a model.
    #[error("--split needs --model: say both at the node that serves the model; others need no flag to take part")]
    SplitWithoutModel,
    /// `--join` beside `--pool-key` or `--open`.
    #[error("--join needs a node without --pool-key and --open: such a node is in a pool already")]
    JoinedOtherwise,
    /// The value of a flag is invalid.
    #[error("--{flag} {value} is invalid: {why}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// The invalid value.
        value: String,
        /// Why the value is invalid.
        why: String,
    },
    /// The value of a variable of the environment that no flag has is invalid.
    #[error("the variable {name}={value} is invalid: {why}")]
    Variable {
        /// Name of the variable.
        name: &'static str,
        /// The invalid value.
        value: String,
        /// Why the value is invalid.
        why: String,
    },
    /// Another error about a value in `config.toml`.
    #[error("{place}: {error}")]
    At {
        /// `file:line:column`.
        place: String,
        /// The error.
        error: Box<ConfigError>,
    },
}

impl ConfigError {
    /// The flag that the error is about.
    fn flag(&self) -> Option<&'static str> {
        match self {
            ConfigError::PoolKey(_) => Some("pool-key"),
            ConfigError::NoPeersFile(_) => Some("peers-file"),
            ConfigError::ApiKey { .. } => Some("api-key"),
            ConfigError::SplitWithoutModel => Some("split"),
            ConfigError::JoinedOtherwise => Some("join"),
            ConfigError::Value { flag, .. } => Some(flag),
            ConfigError::File(_)
            | ConfigError::Typed(_)
            | ConfigError::NoHome
            | ConfigError::NoApiKey { .. }
            | ConfigError::NoRpcKey { .. }
            | ConfigError::TypedApiKey
            | ConfigError::Variable { .. }
            | ConfigError::At { .. } => None,
        }
    }
}

impl NodeConfig {
    /// Merges the flags of `pangea node`, the environment and the `config.toml` that they name, and fills in the
    /// defaults.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing has been created or bound by then.
    pub fn resolve(typed: &ArgMatches, level: LogLevel) -> Result<NodeConfig, ConfigError> {
        if typed.value_source("api_key") == Some(clap::parser::ValueSource::CommandLine) {
            return Err(ConfigError::TypedApiKey);
        }
        let alone = RawNodeConfig::from_arg_matches(typed).map_err(|error| ConfigError::Typed(error.to_string()))?;
        let data_dir = data_dir(alone.identity.data_dir)?;
        let file = match &alone.identity.config {
            Some(path) => ConfigFile::load(path)?,
            None => ConfigFile::load_if_there(&data_dir.join("config.toml"))?,
        };
        let raw = RawNodeConfig::with_file(typed, &file)?;
        NodeConfig::with_defaults(raw, data_dir, level).map_err(|error| {
            let from_file = error.flag().filter(|flag| !given(typed, &flag.replace('-', "_")));
            match from_file.and_then(|flag| file.place_of(flag)) {
                Some(place) => ConfigError::At { place, error: Box::new(error) },
                None => error,
            }
        })
    }

    /// The configuration that `pangea node` has with this data directory and no flags: that of the environment and `config.toml`.
    ///
    /// # Errors
    /// Those of [`NodeConfig::resolve`].
    pub fn of_data_dir(data_dir: Option<PathBuf>) -> Result<NodeConfig, ConfigError> {
        let flags = RawNodeConfig::augment_args(clap::Command::new("node").no_binary_name(true));
        let arguments = data_dir.map(|folder| with_value("data-dir", folder.as_os_str()));
        let typed = flags.try_get_matches_from(arguments).map_err(|error| ConfigError::Typed(error.to_string()))?;
        NodeConfig::resolve(&typed, LogLevel::Error)
    }

    fn with_defaults(raw: RawNodeConfig, data_dir: PathBuf, level: LogLevel) -> Result<NodeConfig, ConfigError> {
        let client = raw.work.client;
        Ok(NodeConfig {
            network: raw.network.resolve(&data_dir)?,
            service: raw.service.resolve(ApiKeys::of(&data_dir).exist())?,
            work: raw.work.resolve()?,
            federation: raw.federation.resolve()?,
            log: LogConfig { level, format: raw.identity.log_format.unwrap_or_default() },
            identity: raw.identity.resolve(&data_dir, client),
            traces: raw.traces.resolve(|name| std::env::var(name).ok())?,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::raw::flags;

    /// The configuration of a command line and a `config.toml` in the data directory, with an empty environment.
    fn resolved(typed: &[&str], file: &str) -> Result<NodeConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        if !file.is_empty() {
            std::fs::create_dir(&home).unwrap();
            std::fs::write(home.join("config.toml"), file).unwrap();
        }
        let mut arguments = vec!["--data-dir", home.to_str().unwrap()];
        arguments.extend(typed);
        let typed = flags().try_get_matches_from(arguments).map_err(|error| error.to_string())?;
        let result = NodeConfig::resolve(&typed, LogLevel::Info).map_err(|error| error.to_string());
        assert!(!file.is_empty() || !home.exists(), "nothing may be created");
        result
    }

    /// The configuration of a valid command line and `config.toml`.
    pub(in crate::config) fn resolve(typed: &[&str], file: &str) -> NodeConfig {
        resolved(typed, file).unwrap()
    }

    /// The error message of an invalid command line and `config.toml`.
    pub(in crate::config) fn refusal(typed: &[&str], file: &str) -> String {
        resolved(typed, file).unwrap_err()
    }

    #[test]
    fn a_flag_overrides_the_file_and_the_file_the_default() {
        let config =
            resolve(&["--name", "typed"], "threads = 3\nname = \"filed\"\nmax-memory = \"64M\"\nno-mdns = true\n");
        assert_eq!(
            (config.identity.name.as_str(), config.work.threads, config.work.max_memory),
            ("typed", 3, 64 << 20)
        );
        assert!(!config.network.mdns);
        assert_eq!(config.service.rpc_addr.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn a_list_on_the_command_line_replaces_the_list_of_the_file() {
        let config = resolve(&["--peer", "10.0.0.1:1"], "peer = [\"10.0.0.2:2\", \"10.0.0.3:3\"]\nmodel = [\"m\"]");
        assert_eq!((config.network.peers.len(), config.work.models.len()), (1, 1));
        assert_eq!(config.network.peers[0].to_string(), "/ip4/10.0.0.1/tcp/1");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.toml"), "no-mdns = false\nname = \"filed\"").unwrap();
        // A variable that is set wherever tests run stands for the flag's own.
        let with_variable = flags().mut_arg("no_mdns", |flag| flag.env("PATH"));
        let typed = with_variable.try_get_matches_from(["--data-dir", folder.path().to_str().unwrap()]).unwrap();
        let config = NodeConfig::resolve(&typed, LogLevel::Info).unwrap();
        assert!(!config.network.mdns);
        assert_eq!(config.identity.name, "filed");
    }

    #[test]
    fn an_error_found_after_parsing_names_its_place_in_the_file_too() {
        for (file, place, why) in [
            ("threads = 2\npool-key = \"none.key\"\n", "config.toml:2:12: ", "64 hex digits"),
            ("peers-file = \"none.json\"\n", "config.toml:1:14: ", "does not exist"),
            ("api-key = \"short\"\n", "config.toml:1:11: ", "at least 8"),
            ("split = true\n", "config.toml:1:9: ", "--split needs --model"),
            ("model = [\"m\", \"m\"]\n", "config.toml:1:9: ", "named twice"),
        ] {
            let error = refusal(&[], file);
            assert!(error.contains(place) && error.contains(why), "{file}: {error}");
        }
        let typed = refusal(&["--split"], "threads = 2");
        assert!(typed.starts_with("--split needs --model"), "{typed}");
        assert!(refusal(&["--config", "/nowhere/c.toml"], "").contains("cannot be read"));
    }
}
