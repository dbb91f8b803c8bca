//! `pangea demo`: the main job without set-up, narrated in short sentences. It starts real nodes, computes real products and
//! kills a node; this process recomputes both products and compares. If a model is on the disk, the nodes that are left
//! answer a question together. With `--stay` they go on running, and the console is there to chat with them.

use std::cell::Cell;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use pangea_client::{Client, JobReport, MatmulOptions, Place, TensorInfo};
use pangea_compute::{Buffer, Cancel, DType, Pool, Tensor};
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs};
use super::demo_model::{AnswerLine, DemoModel, QUESTION};
use super::demo_node::{DemoNode, Offer};
use super::failure::{Exit, Failure};
use super::matrix::Operand;
use super::table::{Align, Table, seconds, short_peer, shortened};
use super::{print, print_json};
use crate::host;

/// Run three nodes, multiply across them, and kill one meanwhile
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct DemoArgs {
    /// Side length of the square matrices
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(512..=16384))]
    size: u64,

    /// Keep the nodes that are left running afterwards, with the console to chat with them in a browser, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    stay: bool,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// Names of the nodes. The first accepts the jobs; the last is killed.
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

/// Time for the nodes to connect to each other.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Interval at which the nodes that go on running are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

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

/// The last words, once the nodes have ended.
pub(super) const GONE: &str = "\
\x20 The demo's nodes have ended; nothing is left behind.
\x20 Next: `pangea node` on two machines, `pangea invite` on one; it says the rest.
";

/// `stays` becomes true once the demo is over and its nodes only wait for Ctrl-C.
pub(super) async fn run(args: DemoArgs, output: OutputArgs, stays: &Cell<bool>) -> Result<(), Failure> {
    let story = Story { told: !args.json.json && !output.quiet, since: Instant::now() };
    // Declared before the nodes, so that it is removed after they have ended.
    let folder = tempfile::Builder::new()
        .prefix("pangea-demo-")
        .tempdir()
        .map_err(|error| Failure::failed(format!("cannot create a temporary folder for the demo: {error}")))?;
    let threads = (host::cores() / NAMES.len()).max(1);
    let pool_key = make_pool_key(folder.path())?;
    story.tell(format!("Starting {} nodes on this machine: {}.", NAMES.len(), NAMES.join(", ")))?;
    let model = DemoModel::at_hand();
    let mut nodes = start_nodes(folder.path(), &pool_key, threads, model.as_ref(), args.stay).await?;
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
        Some(model) => {
            let answer = model.ask(&client, &nodes).await?;
            let (name, by) = (&answer.model, answer.by());
            story.tell(format!("Asked {name}, computed by {by}: {QUESTION} It says: {}", answer.text))?;
            Some(answer)
        }
        None => {
            story.tell(
                "There is no language model on this machine to ask: `pangea models pull smollm2` downloads one.",
            )?;
            None
        }
    };

    drop(client);
    let total_seconds = story.since.elapsed().as_secs_f64();
    let outcome = Outcome { nodes: lines, products: vec![first, second], answer, seconds: total_seconds };
    if args.json.json {
        return print_json(&outcome);
    }
    if !output.quiet {
        print(&show(&outcome))?;
    }
    if !args.stay {
        drop(nodes);
        return if output.quiet { Ok(()) } else { print(GONE) };
    }
    let running: Vec<DemoNode> = nodes.into_iter().filter(|node| !node.was_killed()).collect();
    print(&invitation(&running, outcome.answer.as_ref()))?;
    stays.set(true);
    watch(running).await
}

/// What to do with the nodes that go on running.
fn invitation(running: &[DemoNode], answer: Option<&AnswerLine>) -> String {
    let names: Vec<&str> = running.iter().map(|node| node.name.as_str()).collect();
    let what = match answer {
        Some(answer) => format!("to chat with {}, which they compute together", answer.model),
        None => "to watch them; its page Models downloads a model to chat with".to_owned(),
    };
    let address = running.iter().find_map(|node| node.api.as_deref()).unwrap_or_default();
    format!(
        "\n  {} go on running. Open this address in a browser {what}:\n\
         \n      http://{address}/\n\
         \n  Ctrl-C ends them and leaves nothing behind.\n",
        names.join(" and ")
    )
}

/// Returns only if a node ends by itself.
async fn watch(mut running: Vec<DemoNode>) -> Result<(), Failure> {
    loop {
        if let Some(node) = running.iter_mut().find_map(DemoNode::ended) {
            return Err(Failure::failed(format!("the node {node}")));
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
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

/// Starts all nodes at once: each measures itself when it starts. The first one has the model's file and lets all compute its
/// layers. `console`: whether the first one has the HTTP API.
async fn start_nodes(
    folder: &Path,
    pool_key: &Path,
    threads: usize,
    model: Option<&DemoModel>,
    console: bool,
) -> Result<Vec<DemoNode>, Failure> {
    let start = |name: &'static str| {
        let is_first = name == NAMES[0];
        let offer = Offer { model: model.filter(|_| is_first), console: console && is_first };
        DemoNode::start(name, folder, pool_key, threads, offer)
    };
    futures::future::try_join_all(NAMES.into_iter().map(start)).await
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
        let parts: Vec<String> =
            answer.stages.iter().map(|stage| format!("{} {}", stage.name, stage.count())).collect();
        table.row([
            format!("question to {}", shortened(&answer.model, 20)),
            seconds(answer.seconds),
            format!("{} layers", parts.join(", ")),
            answer.failovers.to_string(),
            answer.verdict.clone(),
        ]);
    }
    let mut text = format!("\n{}\n", table.render());
    for product in &outcome.products {
        for rejection in &product.report.verification.rejected {
            text.push_str(&format!("  A wrong result of {} was caught and redone.\n", short_peer(&rejection.peer)));
        }
    }
    let answer = if outcome.answer.is_some() { ", the answer too" } else { "" };
    let took = seconds(outcome.seconds);
    text.push_str(&format!("  Both products are right{answer}; the demo took {took}.\n"));
    text
}
