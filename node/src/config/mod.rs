//! Configuration of a node, from the command line, the environment and `config.toml`. It is resolved once, at the start.
//!
//! * [`network`], [`service`], [`work`], [`identity`]: the flags of `pangea node` by concern. The name, help, effect and
//!   test of a flag are in one of these modules only; the help, `config.toml` and the errors are derived from it.
//!   Those of votes are in `federation`, those of traces in `traces`. `duration`: durations as people write them.
//! * [`raw`]: all flags together, as given on the command line, in the environment or in [`mod@file`]; all of them optional.
//! * [`node`]: [`NodeConfig`], the resolved configuration, with defaults. Verbosity is in [`mod@log`].
//!
//! A flag overrides the environment, and the environment overrides the file. Nothing here creates a file or binds a port.

mod duration;
mod federation;
pub mod file;
pub mod identity;
pub mod log;
pub mod network;
pub mod node;
pub mod raw;
pub mod service;
mod traces;
pub mod work;

pub use duration::duration;
pub use federation::FederationConfig;
pub use identity::{IdentityConfig, data_dir};
pub use log::{LogConfig, LogFormat, LogLevel};
pub use network::{PORT, PoolChoice};
pub use node::{ConfigError, NodeConfig};
pub use raw::RawNodeConfig;
pub use service::{API_PORT, ApiConfig};
pub use work::{WorkConfig, max_memory, memory_limit, thread_count, threads};
