//! All settings of `pangea node`, from the command line, the environment and `config.toml`. A key of the
//! file has the name of its flag: the lines of the file are parsed as arguments. No defaults are filled in here.

use std::ffi::{OsStr, OsString};

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::federation::FederationFlags;
use super::file::{ConfigFile, ConfigFileError};
use super::identity::IdentityFlags;
use super::network::NetworkFlags;
use super::service::ServiceFlags;
use super::traces::TraceFlags;
use super::work::WorkFlags;

const EXAMPLES: &str = "\
Examples:
  pangea node
  pangea node --join TOKEN                 the token of `pangea invite`
  pangea node --pool-key ~/pool.key --max-memory 4GiB
  pangea node --peer 192.168.1.20:7777
  pangea node --listen /ip4/0.0.0.0/tcp/0 --rpc-addr 127.0.0.1:0 --ephemeral
  pangea node --model smollm2 --split      the other nodes: pangea node
  pangea node --model smollm2 --layers 0-14

Make a pool key with: openssl rand -hex 32 > pool.key
Flags win over the environment (PANGEA_HOME, PANGEA_THREADS, …), the
environment over config.toml, whose keys are the flags' names: no-mdns = true";

/// Run a node in the foreground
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = EXAMPLES)]
pub struct RawNodeConfig {
    /// Addresses, peers and the pool key.
    #[command(flatten)]
    pub network: NetworkFlags,
    /// The Cap'n Proto service and the HTTP API.
    #[command(flatten)]
    pub service: ServiceFlags,
    /// Models, memory and threads, audits, role in the pool.
    #[command(flatten)]
    pub work: WorkFlags,
    /// Votes on answers.
    #[command(flatten)]
    pub federation: FederationFlags,
    /// Identity and files.
    #[command(flatten)]
    pub identity: IdentityFlags,
    /// Traces of requests.
    #[command(flatten)]
    pub traces: TraceFlags,
}

impl RawNodeConfig {
    /// The settings of the command line and the environment, and of `file` for those that neither gives.
    ///
    /// # Errors
    /// [`ConfigFileError::Malformed`] for keys and values of the file that no flag takes.
    pub fn with_file(typed: &ArgMatches, file: &ConfigFile) -> Result<RawNodeConfig, ConfigFileError> {
        let flags = flags();
        // The arguments of the command line come last: of two flags that override each other, clap takes the last.
        let mut arguments = file.arguments(&flags, &|id| given(typed, id))?;
        arguments.extend(retyped(&flags, typed));
        let all = flags.try_get_matches_from(arguments);
        // Each argument has been accepted before, by `typed` or by `ConfigFile::arguments`.
        let raw = all.and_then(|all| RawNodeConfig::from_arg_matches(&all));
        raw.map_err(|error| ConfigFileError::Unusable { path: file.path().to_owned(), why: error.to_string() })
    }
}

/// The flags of `pangea node` without environment variables and without help.
pub(super) fn flags() -> Command {
    let command = Command::new("node").no_binary_name(true).disable_help_flag(true);
    RawNodeConfig::augment_args(command).mut_args(|flag| flag.env(None::<&'static str>))
}

/// Whether a flag was given on the command line or in the environment.
pub(super) fn given(typed: &ArgMatches, id: &str) -> bool {
    matches!(typed.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// The settings of the command line and the environment, as arguments.
fn retyped(flags: &Command, typed: &ArgMatches) -> Vec<OsString> {
    let mut arguments = Vec::new();
    for flag in flags.get_arguments() {
        let (id, Some(long)) = (flag.get_id().as_str(), flag.get_long()) else { continue };
        if !given(typed, id) {
            continue;
        }
        match flag.get_action() {
            ArgAction::SetTrue if typed.get_flag(id) => arguments.push(format!("--{long}").into()),
            ArgAction::SetTrue => {}
            _ => arguments.extend(typed.get_raw(id).into_iter().flatten().map(|value| with_value(long, value))),
        }
    }
    arguments
}

/// The argument `--long=value`.
pub(super) fn with_value(long: &str, value: &OsStr) -> OsString {
    let mut argument = OsString::from(format!("--{long}="));
    argument.push(value);
    argument
}
