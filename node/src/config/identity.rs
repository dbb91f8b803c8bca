//! Flags of `pangea node` for its identity and its files.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::FalseyValueParser;

use super::log::LogFormat;
use super::node::ConfigError;
use crate::host;

/// Maximum length of a node's name in characters: names are shown in tables and sent in adverts.
const MAX_NAME_CHARS: usize = 64;

/// Identity and files, as given on the command line, in the environment or in `config.toml`; no defaults.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Identity and files")]
pub struct IdentityFlags {
    /// Use a new identity that is not stored
    #[arg(long, env = "PANGEA_EPHEMERAL_KEY", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub ephemeral: bool,

    /// Name of the node [default: this host's name]
    #[arg(long, env = "PANGEA_NAME", hide_env_values = true, value_parser = name)]
    pub name: Option<String>,

    /// Directory of the identity, peers.json and config.toml [default: ~/.pangea]
    #[arg(long, value_name = "DIR", env = "PANGEA_HOME", hide_env_values = true)]
    pub data_dir: Option<PathBuf>,

    /// File of settings, named as the flags [default: config.toml in the data directory]
    #[arg(long, value_name = "FILE", env = "PANGEA_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,

    /// Format of the log on standard error: text or json [default: text]
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        hide_possible_values = true,
        env = "PANGEA_LOG_FORMAT",
        hide_env_values = true
    )]
    pub log_format: Option<LogFormat>,
}

/// Identity and files of a node.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// Whether the node uses a new identity that is not stored.
    pub ephemeral: bool,
    /// Name of the node, for display.
    pub name: String,
    /// Directory of `node.key` and the node's other files; it may not exist yet.
    pub data_dir: PathBuf,
}

impl IdentityFlags {
    /// Fills in the defaults. `client`: whether the node is a lite client, whose identity is never stored.
    pub(super) fn resolve(self, data_dir: &Path, client: bool) -> IdentityConfig {
        // The host's name can be longer than MAX_NAME_CHARS.
        let name = self.name.unwrap_or_else(|| host::name().chars().take(MAX_NAME_CHARS).collect());
        let ephemeral = self.ephemeral || client;
        IdentityConfig { ephemeral, name, data_dir: data_dir.to_owned() }
    }
}

/// The data directory: `named`, or `~/.pangea` without it.
///
/// # Errors
/// [`ConfigError::NoHome`] if there is no `named` and no home directory.
pub fn data_dir(named: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    match named {
        Some(folder) => Ok(folder),
        None => Ok(host::home().ok_or(ConfigError::NoHome)?.join(".pangea")),
    }
}

fn name(text: &str) -> Result<String, String> {
    let name = text.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
        return Err(format!("a name has 1 to {MAX_NAME_CHARS} printable characters"));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::config::node::tests::{refusal, resolve};

    #[test]
    fn a_name_is_short_and_printable() {
        assert_eq!(resolve(&["--name", " mac2 "], "").identity.name, "mac2");
        assert!(!resolve(&[], "").identity.name.is_empty());
        for text in ["", "a\nb", &"x".repeat(65)] {
            assert!(refusal(&["--name", text], "").contains("1 to 64 printable characters"), "{text:?}");
        }
    }

    #[test]
    fn an_identity_is_stored_unless_it_is_ephemeral() {
        assert!(!resolve(&[], "").identity.ephemeral);
        assert!(resolve(&["--ephemeral"], "").identity.ephemeral);
        assert!(resolve(&["--client"], "").identity.ephemeral, "a lite client is nobody in particular");
    }
}
