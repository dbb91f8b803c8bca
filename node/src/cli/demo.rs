//! `pangea demo`: the main job without set-up, narrated in short sentences. It starts real nodes, computes real products and
//! kills a node; this process recomputes both products and compares. If a model is on the disk, one of the nodes
//! answers a question.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use pangea_client::{
    Client, ErrorKind, GenerationRequest, JobReport, MatmulOptions, Piece, Place, Prompt, Sampling, TensorInfo,
};
use pangea_compute::{Buffer, Cancel, DType, Pool, Tensor};
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs, StoreArgs};
use super::demo_node::DemoNode;
use super::failure::{Exit, Failure};
use super::matrix::Operand;
use super::table::{Align, Table, seconds, short_peer, shortened};
use super::{print, print_json};
use crate::host;
use crate::models;

/// Run three nodes, multiply across them, and kill one meanwhile
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct DemoArgs {
    /// Side length of the square matrices
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(512..=16384))]
    size: u64,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// Names of the nodes. The first accepts the jobs; the last is killed.
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

/// Time for the nodes to connect to each other.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Question to the model; even a small one knows the answer.
const QUESTION: &str = "What is the capital of France?";

/// System message of the question.
const SYSTEM: &str = "You are a helpful assistant.";

/// Maximum tokens of the answer.
const MAX_ANSWER_TOKENS: u64 = 48;

/// Attempts to kill a node during a product, each with a larger product than the one before.
const ATTEMPTS: usize = 3;

/// JSON output.
#[derive(Serialize)]
struct Outcome {
    nodes: Vec<NodeLine>,
    products: Vec<ProductLine>,
    /// Answer of a model, if one is on the disk.
    answer: Option<AnswerLine>,
    /// Seconds from the start of the first node to the last check.
    seconds: f64,
}

#[derive(Serialize)]
struct NodeLine {
    name: String,
    peer: String,
    pid: u32,
    threads: usize,
    /// Whether the node was killed during the second product.
    killed: bool,
}

/// A product and its comparison with the local one.
#[derive(Serialize)]
struct ProductLine {
    #[serde(flatten)]
    report: JobReport,
    /// The peer that was killed during the product.
    killed: Option<String>,
    /// Largest difference from the product that this process computed.
    largest_difference: f64,
    /// Largest difference that rounding can cause.
    tolerance: f64,
}

/// The question and the answer.
#[derive(Serialize)]
struct AnswerLine {
    model: String,
    /// Name of the node that answered.
    node: String,
    prompt: &'static str,
    text: String,
    tokens: u64,
    seconds: f64,
}

/// Narrates the demo for a person.
struct Story {
    told: bool,
    since: Instant,
}

impl Story {
    fn tell(&self, text: impl std::fmt::Display) -> Result<(), Failure> {
        if !self.told {
            return Ok(());
        }
        print(&format!("{:>5.1} s  {text}\n", self.since.elapsed().as_secs_f64()))
    }
}

pub(super) async fn run(args: DemoArgs, output: OutputArgs) -> Result<(), Failure> {
    let story = Story { told: !args.json.json && !output.quiet, since: Instant::now() };
    // Declared before the nodes, so that it is removed after they have ended.
    let folder = tempfile::Builder::new()
        .prefix("pangea-demo-")
        .tempdir()
        .map_err(|error| Failure::failed(format!("cannot create a temporary folder for the demo: {error}")))?;
    let threads = (host::cores() / NAMES.len()).max(1);
    let pool_key = make_pool_key(folder.path())?;
    story.tell(format!("Starting {} nodes on this machine: {}.", NAMES.len(), NAMES.join(", ")))?;
    let model = model_at_hand();
    let mut nodes = start_nodes(folder.path(), &pool_key, threads, model.as_deref()).await?;
    let client = Client::connect(&nodes[0].rpc, TIMEOUT).await?;
    for node in &nodes[1..] {
        client.connect_peer(&node.address, Some(TIMEOUT)).await?;
    }
    story.tell("They share a new pool key, and each has proved that it knows the key.")?;

    let mut lines: Vec<NodeLine> = nodes
        .iter()
        .map(|node| NodeLine {
            name: node.name.clone(),
            peer: node.peer.clone(),
            pid: node.pid(),
            threads,
            killed: false,
        })
        .collect();
    let size = args.size as usize;
    story.tell(format!("Multiplying two {size} × {size} matrices: {} asks, the others compute.", NAMES[0]))?;
    let (first, _) = multiply(&client, size, None, &story).await?;
    story.tell(after(&first))?;

    let victim = nodes.len() - 1;
    let (second, killed) = survive(&client, &mut nodes[victim], size + size / 2, &story).await?;
    lines[victim].killed = killed;
    story.tell(after(&second))?;

    let answer = match &model {
        Some(_) => Some(ask(&client, &story).await?),
        None => {
            story.tell(
                "There is no language model on this machine to ask: `pangea models pull smollm2` downloads one.",
            )?;
            None
        }
    };

    drop(client);
    drop(nodes);
    let total_seconds = story.since.elapsed().as_secs_f64();
    let outcome = Outcome { nodes: lines, products: vec![first, second], answer, seconds: total_seconds };
    if args.json.json {
        return print_json(&outcome);
    }
    if output.quiet {
        return Ok(());
    }
    print(&show(&outcome))
}

fn make_pool_key(folder: &Path) -> Result<PathBuf, Failure> {
    let path = folder.join("pool.key");
    let digits: String = rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
    let written = std::fs::File::options().create_new(true).write(true).mode(0o600).open(&path);
    written
        .and_then(|mut file| file.write_all(digits.as_bytes()))
        .map_err(|error| Failure::failed(format!("cannot write the demo's pool key: {error}")))?;
    Ok(path)
}

/// The smallest supported model on this machine's disk.
fn model_at_hand() -> Option<PathBuf> {
    let folder =
        super::models::folder(&StoreArgs { data_dir: std::env::var_os("PANGEA_HOME").map(PathBuf::from) }).ok()?;
    let mut entries = models::list(&folder).unwrap_or_default();
    entries.sort_by_key(|entry| entry.size_bytes);
    entries.into_iter().find(|entry| entry.describe().is_ok()).map(|entry| entry.path)
}

/// Starts all nodes at once: each measures itself when it starts. The first one serves the model.
async fn start_nodes(
    folder: &Path,
    pool_key: &Path,
    threads: usize,
    model: Option<&Path>,
) -> Result<Vec<DemoNode>, Failure> {
    let start = |name: &'static str| {
        let model = model.filter(|_| name == NAMES[0]);
        DemoNode::start(name, folder, pool_key, threads, model)
    };
    futures::future::try_join_all(NAMES.into_iter().map(start)).await
}

/// Asks the first node's model the question.
async fn ask(client: &Client, story: &Story) -> Result<AnswerLine, Failure> {
    let began = Instant::now();
    let model = client.model("", None).await?;
    let name = model.status().await?.name;
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut messages = vec![("system".to_owned(), SYSTEM.to_owned()), ("user".to_owned(), QUESTION.to_owned())];
    let mut text = String::new();
    let took = loop {
        let request = GenerationRequest {
            sampling: sampling.clone(),
            max_tokens: Some(MAX_ANSWER_TOKENS),
            ..GenerationRequest::new(Prompt::Messages(messages.clone()))
        };
        let mut say = |piece: Piece| {
            text.push_str(&piece.text);
            Ok(())
        };
        match model.generate(&request, &mut say).await {
            // Some templates accept no system message.
            Err(error) if error.kind() == ErrorKind::InvalidInput && messages.len() > 1 => drop(messages.remove(0)),
            took => break took?,
        }
    };
    let text = text.trim().to_owned();
    story.tell(format!("Asked {name} on {}: {QUESTION} It says: {text}", NAMES[0]))?;
    Ok(AnswerLine {
        model: name,
        node: NAMES[0].to_owned(),
        prompt: QUESTION,
        text,
        tokens: took.answer_tokens,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// Computes a product and kills a node once the first part is done. If the product completes before that, a larger
/// one is tried.
async fn survive(
    client: &Client,
    victim: &mut DemoNode,
    size: usize,
    story: &Story,
) -> Result<(ProductLine, bool), Failure> {
    let mut size = size;
    story.tell(format!("Multiplying {size} × {size}, and killing {} while it computes.", victim.name))?;
    for _ in 1..ATTEMPTS {
        let (product, killed) = multiply(client, size, Some(&mut *victim), story).await?;
        if killed {
            return Ok((product, true));
        }
        size *= 2;
        story.tell(format!("The product was done before a node could be killed; trying {size} × {size}."))?;
    }
    multiply(client, size, Some(victim), story).await
}

/// Multiplies on the peers of the node behind `client`, kills `victim` once the first part is done, and checks every
/// number. Returns whether the victim was killed.
async fn multiply(
    client: &Client,
    size: usize,
    mut victim: Option<&mut DemoNode>,
    story: &Story,
) -> Result<(ProductLine, bool), Failure> {
    let a = Operand::generated(size, size, DType::F32, 1);
    let b = Operand::generated(size, size, DType::F32, 2);
    let held_a = client.upload(&mut a.upload(0..size, 0..size, &mut |_| {})).await?;
    let held_b = client.upload(&mut b.upload(0..size, 0..size, &mut |_| {})).await?;
    let options = MatmulOptions { place: Place::Remote, ..MatmulOptions::default() };
    let (job, product) = client.matmul(&held_a, &held_b, &options);
    let mut killed = None;
    let mut told = Ok(());
    job.watch(&mut |progress| {
        let in_the_middle = progress.tasks_done > 0 && progress.tasks_done < progress.tasks_total;
        if in_the_middle && let Some(victim) = victim.take() {
            victim.kill();
            killed = Some(victim.peer.clone());
            let done = format!("{} of {} parts", progress.tasks_done, progress.tasks_total);
            told = story.tell(format!("Killed {} after {done}; the others take over its part.", victim.name));
        }
    })
    .await?;
    told?;
    let report = job.report().await?;
    let mut bytes = Vec::new();
    let TensorInfo { rows, cols, .. } = product.read_into(&mut bytes).await?;
    let (a, b) = (a.whole().await?, b.whole().await?);
    let compared = tokio::task::spawn_blocking(move || {
        let got = Tensor::from_buffer(DType::F32, rows as usize, cols as usize, Buffer::copy_of(&bytes)?)?;
        let expected = pangea_compute::matmul(&a, &b, &Pool::new(host::cores())?, &Cancel::new())?;
        Ok::<_, Failure>(largest_difference(&got, &expected))
    });
    let largest_difference = compared.await.map_err(|error| Failure::failed(error.to_string()))??;
    // Elements are below 1: the largest difference between sums of `size` products in different orders.
    let tolerance = size as f64 * f64::from(f32::EPSILON);
    if largest_difference.is_nan() || largest_difference > tolerance {
        return Err(Failure::new(
            Exit::Untrusted,
            format!("the product is wrong: it differs by {largest_difference:e} from the one computed here"),
        ));
    }
    let was_killed = killed.is_some();
    Ok((ProductLine { report, killed, largest_difference, tolerance }, was_killed))
}

/// The largest difference between two products of one shape; NaN if their shapes differ.
fn largest_difference(one: &Tensor, other: &Tensor) -> f64 {
    match (one.view::<f32>(), other.view::<f32>()) {
        (Ok(one), Ok(other)) if one.dim() == other.dim() => {
            let differences = one.iter().zip(other.iter()).map(|(one, other)| f64::from((one - other).abs()));
            differences.fold(0.0, |most, next| if next > most || next.is_nan() { next } else { most })
        }
        _ => f64::NAN,
    }
}

fn after(product: &ProductLine) -> String {
    let report = &product.report;
    let [side, ..] = report.shape;
    format!(
        "Done in {}: {} of {} parts elsewhere; all {} numbers are right.",
        seconds(report.seconds),
        report.tasks.remote,
        report.tasks.total,
        grouped(side * side)
    )
}

/// A number with a separator between thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn show(outcome: &Outcome) -> String {
    let mut table = Table::new([
        ("product", Align::Left),
        ("time", Align::Right),
        ("parts", Align::Left),
        ("redone", Align::Right),
        ("verdict", Align::Left),
    ]);
    for product in &outcome.products {
        let report = &product.report;
        let [side, ..] = report.shape;
        let shares = report.workers.iter().filter(|share| share.tasks > 0);
        let parts: Vec<String> = shares.map(|share| format!("{} {}", share.name, share.tasks)).collect();
        table.row([
            format!("{side} × {side}{}", if product.killed.is_some() { ", one killed" } else { "" }),
            seconds(report.seconds),
            parts.join(", "),
            report.tasks.retried.to_string(),
            report.verification.verdict.clone(),
        ]);
    }
    if let Some(answer) = &outcome.answer {
        table.row([
            format!("question to {}", shortened(&answer.model, 20)),
            seconds(answer.seconds),
            format!("{} {} tokens", answer.node, answer.tokens),
            "0".to_owned(),
            "answered".to_owned(),
        ]);
    }
    let mut text = format!("\n{}\n", table.render());
    for product in &outcome.products {
        for rejection in &product.report.verification.rejected {
            text.push_str(&format!("  A wrong result of {} was caught and redone.\n", short_peer(&rejection.peer)));
        }
    }
    text.push_str(&format!(
        "  Both products are right; the demo took {}. Nothing is left behind.\n\
         \x20 Next: `pangea node` on two machines, `pangea invite` on one; it says the rest.\n",
        seconds(outcome.seconds)
    ));
    text
}
