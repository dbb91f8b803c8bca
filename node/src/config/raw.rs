//! What a person typed after `pangea node`, or set in the environment: the raw side of [`NodeConfig`](super::NodeConfig).
//! Everything is optional here; no defaults, no files read.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;
use libp2p::Multiaddr;

use super::layer_range::LayerRange;
use super::log::LogFormat;
use super::size::ByteSize;
use crate::worker::fault::Fault;

/// Where the HTTP API is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bind {
    /// On this host only.
    Loopback,
    /// At this host's private address; on loopback where it has none.
    Lan,
}

const EXAMPLES: &str = "\
Examples:
  pangea node
  pangea node --pool-key ~/pool.key --max-memory 4GiB
  pangea node --peer /ip4/192.168.1.20/tcp/7777
  pangea node --listen /ip4/0.0.0.0/tcp/0 --rpc-addr 127.0.0.1:0 --ephemeral
  pangea node --model smollm2 --split      the other nodes: pangea node
  pangea node --model smollm2 --layers 0-14

Make a pool key with: openssl rand -hex 32 > pool.key
Flags win over the environment (PANGEA_HOME, PANGEA_THREADS, …), the
environment over config.toml.";

/// Run a node until it is stopped
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = EXAMPLES)]
pub struct RawNodeConfig {
    /// libp2p addresses to listen on; port 0 picks a free one [default: TCP and QUIC on port 7777]
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., help_heading = "Network")]
    pub listen: Vec<Multiaddr>,

    /// Address of the Cap'n Proto service; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", env = "PANGEA_RPC_ADDR", hide_env_values = true, help_heading = "Network")]
    pub rpc_addr: Option<SocketAddr>,

    /// Address of the HTTP API; port 0 picks a free one [default: 127.0.0.1:52415]
    #[arg(long, value_name = "ADDR", env = "PANGEA_API_ADDR", hide_env_values = true, conflicts_with_all = ["api_port", "bind"], help_heading = "Network")]
    pub api_addr: Option<SocketAddr>,

    /// Only its port
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    pub api_port: Option<u16>,

    /// lan: offer the HTTP API at this host's private address; needs a key in PANGEA_API_KEY or config.toml
    #[arg(long, value_name = "WHERE", value_enum, hide_possible_values = true, help_heading = "Network")]
    pub bind: Option<Bind>,

    /// No HTTP API
    #[arg(long, env = "PANGEA_NO_API", hide_env_values = true, value_parser = FalseyValueParser::new(), conflicts_with_all = ["api_addr", "api_port", "bind"], help_heading = "Network")]
    pub no_api: bool,

    /// What clients of the HTTP API must show; from the environment only, so that it stands in no list of processes.
    #[arg(skip = std::env::var("PANGEA_API_KEY").ok())]
    pub api_key: Option<String>,

    /// Peers to connect to, and to connect to again whenever they are lost
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., help_heading = "Network")]
    pub peer: Vec<Multiaddr>,

    /// A list of peers, read again whenever it changes [default: peers.json in the data directory]
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub peers_file: Option<PathBuf>,

    /// Do not look for peers on the local network
    #[arg(long, env = "PANGEA_NO_MDNS", hide_env_values = true, value_parser = FalseyValueParser::new(), help_heading = "Network")]
    pub no_mdns: bool,

    /// File with 64 hex digits, the same on every node of the pool; strangers are refused
    #[arg(long, value_name = "FILE", env = "PANGEA_POOL_KEY", hide_env_values = true, help_heading = "Network")]
    pub pool_key: Option<PathBuf>,

    /// Be the master of the pool: the node that places models
    #[arg(short = 'm', long, env = "PANGEA_FORCE_MASTER", hide_env_values = true, value_parser = FalseyValueParser::new(), help_heading = "Work")]
    pub force_master: bool,

    /// Models to serve: names, or paths of .gguf files
    #[arg(long, value_name = "MODEL", num_args = 1.., env = "PANGEA_MODEL", hide_env_values = true, value_delimiter = ',', help_heading = "Work")]
    pub model: Vec<String>,

    /// Split these models over all nodes that make them faster for many at once, even where one node alone would be faster for one
    #[arg(long, env = "PANGEA_SPLIT", hide_env_values = true, value_parser = FalseyValueParser::new(), help_heading = "Work")]
    pub split: bool,

    /// Layers that this node computes and no others, first and last counting from 0, such as 0-14: of the models of --model, else of every model of the pool that has them
    #[arg(long, value_name = "A-B", env = "PANGEA_LAYERS", hide_env_values = true, help_heading = "Work")]
    pub layers: Option<LayerRange>,

    /// The most memory for tensors, such as 200M or 4GiB [default: half of this machine's]
    #[arg(long, value_name = "SIZE", env = "PANGEA_MAX_MEMORY", hide_env_values = true, help_heading = "Work")]
    pub max_memory: Option<ByteSize>,

    /// Compute threads [default: all cores]
    #[arg(long, value_name = "N", env = "PANGEA_THREADS", hide_env_values = true, help_heading = "Work")]
    pub threads: Option<usize>,

    /// The share of sessions whose computation is checked by another node, 0 to 1 [default: 0.05]
    #[arg(long, value_name = "SHARE", env = "PANGEA_AUDIT", hide_env_values = true, help_heading = "Work")]
    pub audit: Option<f64>,

    /// Use a new identity that is written nowhere
    #[arg(long, env = "PANGEA_EPHEMERAL_KEY", hide_env_values = true, value_parser = FalseyValueParser::new(), help_heading = "Identity and files")]
    pub ephemeral: bool,

    /// The node's name, for people [default: this host's]
    #[arg(long, env = "PANGEA_NAME", hide_env_values = true, help_heading = "Identity and files")]
    pub name: Option<String>,

    /// Where the identity, peers.json and config.toml are [default: ~/.pangea]
    #[arg(long, value_name = "DIR", env = "PANGEA_HOME", hide_env_values = true, help_heading = "Identity and files")]
    pub data_dir: Option<PathBuf>,

    /// Settings, by the flags' names [default: config.toml in the data directory]
    #[arg(
        long,
        value_name = "FILE",
        env = "PANGEA_CONFIG",
        hide_env_values = true,
        help_heading = "Identity and files"
    )]
    pub config: Option<PathBuf>,

    /// Form of the log on standard error: text or json [default: text]
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        hide_possible_values = true,
        env = "PANGEA_LOG_FORMAT",
        hide_env_values = true,
        help_heading = "Identity and files"
    )]
    pub log_format: Option<LogFormat>,

    /// Makes this worker lie or fail, for tests
    #[arg(long, value_enum, hide = true)]
    pub fault: Option<Fault>,
}
