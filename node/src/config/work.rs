//! Flags of `pangea node` for its work: models and layers, memory and threads, audits, its role in the pool. The limits of
//! memory and threads are also used by the commands that compute in their own process.

use std::ops::Range;
use std::time::Duration;

use clap::Args;
use clap::builder::FalseyValueParser;

use super::duration::duration;
use super::node::ConfigError;
use crate::devices::choice::{BitsChoice, DeviceChoice};
use crate::fault::Fault;
use crate::host;
use pangea_control::trust::AuditPolicy;
use pangea_units::{ByteSize, LayerRange, NotASize};

/// Memory that is assumed if the host does not report its memory.
const UNKNOWN_MEMORY_BYTES: u64 = 4 << 30;

/// Minimum of the memory limit: a few tiles of a small product.
const MIN_MEMORY_BYTES: u64 = 16 << 20;

/// Maximum number of threads. No machine has as many cores, so a larger number is a typing error.
const MAX_THREADS: usize = 4096;

/// The work, as given on the command line, in the environment or in `config.toml`; no defaults.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Work")]
pub struct WorkFlags {
    /// Models to serve: names, or paths of .gguf files
    #[arg(short, long, value_name = "MODEL", num_args = 1.., env = "PANGEA_MODEL", hide_env_values = true, value_delimiter = ',')]
    pub model: Vec<String>,

    /// Join as a lite client: use every model of the pool and serve none, with an identity that is not stored and that no
    /// node lists as a peer
    #[arg(long, env = "PANGEA_CLIENT", hide_env_values = true, value_parser = FalseyValueParser::new(), conflicts_with_all = ["model", "split", "layers", "force_master"])]
    pub client: bool,

    /// Split these models over all nodes that raise the total throughput, even where one node alone answers a single
    /// request faster
    #[arg(long, env = "PANGEA_SPLIT", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub split: bool,

    /// Layers that this node computes, first and last, counting from 0, such as 0-14: of the models of --model, else of
    /// every model of the pool
    #[arg(long, value_name = "A-B", env = "PANGEA_LAYERS", hide_env_values = true)]
    pub layers: Option<LayerRange>,

    /// Memory limit for tensors, such as 200M or 4GiB [default: half of what this machine or its control group has]
    #[arg(long, value_name = "SIZE", env = "PANGEA_MAX_MEMORY", hide_env_values = true, value_parser = memory_limit)]
    pub max_memory: Option<ByteSize>,

    /// Time for which a model that nobody uses stays in memory, such as 30m, or forever; the next request loads it again
    /// [default: forever]
    #[arg(long, value_name = "TIME", env = "PANGEA_KEEP_LOADED", hide_env_values = true, value_parser = keep_loaded)]
    pub keep_loaded: Option<KeepLoaded>,

    /// Small model of the same vocabulary that drafts answers of larger ones, a name or a path: the texts are the same, and come
    /// sooner where it guesses well
    #[arg(long, value_name = "MODEL", env = "PANGEA_DRAFT", hide_env_values = true)]
    pub draft: Option<String>,

    /// What computes layers of models: auto (the best GPU, else the processor), cpu, gpu, or gpu: and a part of a GPU's name
    /// [default: cpu]
    #[arg(long, value_name = "DEVICE", env = "PANGEA_DEVICE", hide_env_values = true)]
    pub device: Option<DeviceChoice>,

    /// Bits of what a GPU computes: those of the processor, as far as the GPU is certified for them when the node starts, or its
    /// own, which are faster for prompts and count within a tolerance [default: exact]
    #[arg(long, value_enum, value_name = "BITS", env = "PANGEA_GPU_BITS", hide_env_values = true)]
    pub gpu_bits: Option<BitsChoice>,

    /// Memory that layers on a GPU may take, such as 8GiB [default: seven eighths of its own memory, or what --max-memory
    /// allows where it shares this machine's]
    #[arg(long, value_name = "SIZE", env = "PANGEA_GPU_MEMORY", hide_env_values = true, value_parser = memory_limit)]
    pub gpu_memory: Option<ByteSize>,

    /// Compute threads [default: fast physical cores]
    #[arg(long, value_name = "N", env = "PANGEA_THREADS", hide_env_values = true, value_parser = thread_count)]
    pub threads: Option<usize>,

    /// Share of sessions whose computation another node checks, 0 to 1 [default: 0.05]
    #[arg(long, value_name = "SHARE", env = "PANGEA_AUDIT", hide_env_values = true, value_parser = audit_share)]
    pub audit: Option<AuditPolicy>,

    /// Be the master of the pool: the node that places models
    #[arg(long, env = "PANGEA_FORCE_MASTER", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub force_master: bool,

    /// Make this worker lie or fail, for tests
    #[arg(long, value_enum, hide = true)]
    pub fault: Option<Fault>,
}

/// Value of `--keep-loaded`; `None`: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepLoaded(Option<Duration>);

/// Configuration of the work of a node.
#[derive(Clone, Debug)]
pub struct WorkConfig {
    /// Models to serve: names or paths.
    pub models: Vec<String>,
    /// Whether the models are split over nodes even if one node alone answers a single request faster.
    pub split: bool,
    /// The only layers that this node computes, of its own models or, if it serves none, of every model of the pool.
    /// The end of the range is exclusive; `None` means any layers.
    pub layers: Option<Range<u32>>,
    /// Memory limit for tensors, in bytes.
    pub max_memory: u64,
    /// Time for which a model that nobody uses stays in memory; `None`: for ever.
    pub keep_loaded: Option<Duration>,
    /// The small model that drafts: a name or a path.
    pub draft: Option<String>,
    /// What computes layers.
    pub device: DeviceChoice,
    /// Which bits a GPU is to compute.
    pub gpu_bits: BitsChoice,
    /// Memory that layers on a GPU may take, in bytes.
    pub gpu_memory: Option<u64>,
    /// Compute threads, at least 1.
    pub threads: usize,
    /// Which of the sessions are audited that this node coordinates.
    pub audit: AuditPolicy,
    /// Whether the node accepts tasks from peers.
    pub works: bool,
    /// Whether the node claims to be the master of its pool.
    pub force_master: bool,
    /// Fault that is injected into this worker in tests.
    pub fault: Option<Fault>,
}

impl WorkFlags {
    /// Checks the values and fills in the defaults.
    pub(super) fn resolve(self) -> Result<WorkConfig, ConfigError> {
        let mut seen = std::collections::BTreeSet::new();
        for name in &self.model {
            let why = match name.trim() {
                "" => "a model has a name or a path",
                _ if !seen.insert(name) => "it is named twice",
                _ => continue,
            };
            return Err(ConfigError::Value { flag: "model", value: format!("{name:?}"), why: why.to_owned() });
        }
        if self.split && self.model.is_empty() {
            return Err(ConfigError::SplitWithoutModel);
        }
        Ok(WorkConfig {
            models: self.model,
            split: self.split,
            layers: self.layers.map(LayerRange::range),
            max_memory: max_memory(self.max_memory),
            keep_loaded: self.keep_loaded.and_then(|keep| keep.0),
            draft: self.draft,
            device: self.device.unwrap_or_default(),
            gpu_bits: self.gpu_bits.unwrap_or_default(),
            gpu_memory: self.gpu_memory.map(|size| size.0),
            threads: threads(self.threads),
            audit: self.audit.unwrap_or_default(),
            works: !self.client,
            force_master: self.force_master,
            fault: self.fault,
        })
    }
}

/// The memory limit for tensors in bytes: `asked`, or half of the memory that this process may use.
pub fn max_memory(asked: Option<ByteSize>) -> u64 {
    match asked {
        Some(size) => size.0,
        None => (host::memory_bytes().unwrap_or(UNKNOWN_MEMORY_BYTES) / 2).max(MIN_MEMORY_BYTES),
    }
}

/// The number of compute threads: `asked`, or one per physical core of the fastest kind.
pub fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(host::compute_cores).clamp(1, MAX_THREADS)
}

/// Parses the value of `--max-memory`.
///
/// # Errors
/// A message if `text` is not a size, or a size below the minimum.
pub fn memory_limit(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error: NotASize| error.to_string())?;
    if size.0 < MIN_MEMORY_BYTES {
        return Err(format!("products need at least {}", ByteSize(MIN_MEMORY_BYTES)));
    }
    Ok(size)
}

/// Parses the value of `--threads`.
///
/// # Errors
/// A message if `text` is not a number from 1 to the maximum.
pub fn thread_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=MAX_THREADS) => Ok(threads),
        _ => Err(format!("use a whole number from 1 to {MAX_THREADS}; this machine has {} cores", host::cores())),
    }
}

fn keep_loaded(text: &str) -> Result<KeepLoaded, String> {
    match text {
        "forever" => Ok(KeepLoaded(None)),
        time => duration(time).map(|time| KeepLoaded(Some(time))).map_err(|why| format!("{why}, or forever")),
    }
}

fn audit_share(text: &str) -> Result<AuditPolicy, String> {
    let share = text.parse().map_err(|_| "use a number from 0 (no session) to 1 (every session)".to_owned())?;
    AuditPolicy::new(share).map_err(|_| "--audit must be between 0 (no session) and 1 (every session)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::node::tests::{refusal, resolve};

    #[test]
    fn a_model_may_be_named_only_once_by_either_flag() {
        assert_eq!(resolve(&["-m", "a", "b", "--model", "c,d"], "").work.models, ["a", "b", "c", "d"]);
        assert!(refusal(&["-m", "a", "-m", "a"], "").contains("--model \"a\""));
        assert!(refusal(&["--split"], "").contains("--split needs --model"));
        assert!(resolve(&["--split", "-m", "a"], "").work.split);
    }

    #[test]
    fn layers_are_given_as_the_first_and_the_last() {
        assert_eq!(resolve(&["--layers", "0-14"], "").work.layers, Some(0..15));
        assert!(refusal(&["--layers", "14-0"], "").contains("such as 0-14"));
    }

    #[test]
    fn limits_are_checked_when_the_command_line_is_parsed() {
        let work = resolve(&["--threads", "3", "--max-memory", "64M", "--audit", "1"], "").work;
        assert_eq!((work.threads, work.max_memory, work.audit.is_all()), (3, 64 << 20, true));
        for (flag, value, why) in [
            ("--threads", "0", "1 to 4096"),
            ("--threads", "many", "whole number"),
            ("--max-memory", "5", "at least 16.0 MiB"),
            ("--max-memory", "lots", "not a size"),
            ("--device", "tpu", "auto, cpu, gpu"),
            ("--gpu-memory", "5", "at least 16.0 MiB"),
            ("--keep-loaded", "0", "at least 1ms, such as 30s, or forever"),
            ("--keep-loaded", "5 weeks", "or forever"),
            ("--audit", "1.5", "between 0"),
            ("--audit", "often", "0 (no session)"),
        ] {
            assert!(refusal(&[flag, value], "").contains(why), "{flag} {value}: {}", refusal(&[flag, value], ""));
        }
    }

    #[test]
    fn unused_models_stay_for_a_time_or_for_ever() {
        let keep = |arguments: &[&str]| resolve(arguments, "").work.keep_loaded;
        assert_eq!(keep(&[]), None);
        assert_eq!(keep(&["--keep-loaded", "forever"]), None);
        assert_eq!(keep(&["--keep-loaded", "30m"]), Some(Duration::from_secs(1800)));
        assert_eq!(resolve(&[], "keep-loaded = \"90s\"").work.keep_loaded, Some(Duration::from_secs(90)));
    }

    #[test]
    fn only_the_long_flag_claims_mastership() {
        assert!(resolve(&["--force-master"], "").work.force_master);
        assert!(!resolve(&["-m", "a"], "").work.force_master);
    }

    #[test]
    fn the_default_memory_is_half_of_what_this_process_may_use() {
        let available = host::memory_bytes().unwrap_or(UNKNOWN_MEMORY_BYTES);
        assert_eq!(max_memory(None), (available / 2).max(MIN_MEMORY_BYTES));
    }
}
