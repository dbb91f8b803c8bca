//! What a node runs with: typed by a person, read from the environment and from `config.toml`, resolved once.
//!
//! * [`raw`]: what was typed or set in the environment; everything optional.
//! * [`mod@file`]: `config.toml`; everything optional.
//! * [`node`]: [`NodeConfig`], what runs; nothing optional but what truly is.
//! * [`mod@log`], [`size`], [`layer_range`], [`host`]: verbosity; sizes in bytes; ranges of layers; what this host has.
//!
//! Flags win over the environment, the environment over the file. Nothing here creates or binds anything.

pub mod file;
pub mod host;
pub mod layer_range;
pub mod log;
pub mod node;
pub mod raw;
pub mod size;

pub use layer_range::LayerRange;
pub use log::{LogConfig, LogFormat, LogLevel};
pub use node::{ApiConfig, ConfigError, NodeConfig};
pub use raw::{Bind, RawNodeConfig};
pub use size::ByteSize;
