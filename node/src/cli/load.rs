//! `pangea load` and `pangea drop`: which models are served, while nodes run.

use std::time::Duration;

use clap::Args;
use pangea_client::{ErrorKind, ModelStatus};
use pangea_units::ByteSize;

use super::args::{JsonArgs, OutputArgs, RpcArgs, duration};
use super::failure::Failure;
use super::progress::Progress;
use super::session::note;
use super::{print, print_json};

/// Serve a model on a running node, besides the models that it serves
///
/// The model is read from the node's disk, fetched from other nodes of the pool, or downloaded. A model that does not fit into
/// the node's memory is refused.
#[derive(Args, Clone, Debug)]
#[command(after_help = LOAD_EXAMPLES)]
pub(super) struct LoadArgs {
    /// A name, a path on the node, hf:OWNER/REPO/FILE.gguf or https://…/FILE.gguf
    #[arg(value_name = "MODEL")]
    model: String,

    /// Time to wait until the model is loaded; it goes on loading afterwards
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    timeout: Duration,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// Stop serving a model, on every node of the pool
///
/// The nodes go on with their other models, and running answers have 10 s to end. The model is served again once it is loaded,
/// or once a node is started with it. Its files stay on the disks.
#[derive(Args, Clone, Debug)]
#[command(after_help = DROP_EXAMPLES)]
pub(super) struct DropArgs {
    /// Name of the model, as the node lists it
    #[arg(value_name = "MODEL")]
    model: String,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

const LOAD_EXAMPLES: &str = "\
Examples:
  pangea load smollm2
  pangea load ~/models/qwen3-0.6b.gguf
  pangea load gemma3-270m --rpc 192.168.1.20:8080";

const DROP_EXAMPLES: &str = "\
Examples:
  pangea drop smollm2
  pangea drop smollm2@1f3a52c0     one of several models with this name";

pub(super) async fn run_load(args: LoadArgs, output: OutputArgs) -> Result<(), Failure> {
    let node = args.rpc.node().await?;
    note(&output, format!("Loading {}.", args.model));
    let progress = Progress::waiting(&output, args.json, "loading");
    let loaded = node.load_model(&args.model, Some(args.timeout)).await?;
    drop(progress);
    let ModelStatus { name, layers, memory_bytes, .. } = &loaded;
    let memory = ByteSize(*memory_bytes);
    conclude(&loaded, args.json, &format!("Serving {name}: {layers} layers, {memory} in memory.\n"))
}

pub(super) async fn run_drop(args: DropArgs, output: OutputArgs) -> Result<(), Failure> {
    let node = args.rpc.node().await?;
    let progress = Progress::waiting(&output, args.json, "dropping");
    let dropped = node.drop_model(&args.model).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::from(error).hint("`pangea status` lists the models that it knows"),
        _ => error.into(),
    })?;
    drop(progress);
    let text = format!("Dropped {}. Serve it again with: pangea load {0}\n", dropped.name);
    conclude(&dropped, args.json, &text)
}

fn conclude(model: &ModelStatus, json: JsonArgs, text: &str) -> Result<(), Failure> {
    if json.json { print_json(model) } else { print(text) }
}
