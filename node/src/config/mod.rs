//! What a node runs with: typed by a person, read from the environment and from `config.toml`, resolved once.
//!
//! * [`network`], [`service`], [`work`], [`identity`]: the flags of `pangea node` by concern. A flag's name, help, effect and
//!   test stand together in one of them, and nowhere else: help, `config.toml` and errors follow.
//! * [`raw`]: all flags as typed, set in the environment or written in [`mod@file`]; everything optional.
//! * [`node`]: [`NodeConfig`], what runs; nothing optional but what truly is. Verbosity is in [`mod@log`].
//!
//! Flags win over the environment, the environment over the file. Nothing here creates or binds anything.

pub mod file;
pub mod identity;
pub mod log;
pub mod network;
pub mod node;
pub mod raw;
pub mod service;
pub mod work;

pub use identity::data_dir;
pub use log::{LogConfig, LogFormat, LogLevel};
pub use node::{ConfigError, NodeConfig};
pub use raw::RawNodeConfig;
pub use service::ApiConfig;
pub use work::{max_memory, memory_limit, thread_count, threads};
