//! `pangea matmul`: multiplies two operands and reports. Everything that can be wrong is checked before anything is
//! computed; the multiplier does the work.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use libp2p::Multiaddr;
use pangea_client::out_of_core::{self, Plan, Shape, Side};
use pangea_client::{ErrorKind, JobReport, MatmulOptions, Place, VerifyPolicy};
use pangea_compute::{DType, MAX_K_I8};
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs, PlaceArg, RpcArgs, dtype, duration, side};
use super::failure::Failure;
use super::matrix::{Operand, wire_dtype};
use super::multiplier::Multiplier;
use super::node_names::NodeNames;
use super::product_file::{Destination, ProductFile};
use super::progress::Progress;
use super::session::local_fabric;
use super::table::{Align, Table, facts, seconds, short_peer, three_digits};
use super::{print, print_json};
use crate::config;
use crate::net::peer_address;
use pangea_units::ByteSize;

const EXAMPLES: &str = "\
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

/// Multiply two matrices on the nodes of the pool: C = A · B
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct MatmulArgs {
    /// Left operand: a .npy, .csv or .json file
    #[arg(value_name = "A", requires = "b", required_unless_present_any = ["size", "shape"])]
    a: Option<PathBuf>,

    /// Right operand
    #[arg(value_name = "B")]
    b: Option<PathBuf>,

    /// Output file; has a temporary name until it is complete
    #[arg(short, long, value_name = "C", required_unless_present_any = ["size", "shape"])]
    output: Option<PathBuf>,

    /// Multiply two N × N matrices of pseudo-random numbers
    #[arg(long, value_name = "N", conflicts_with_all = ["a", "b", "shape"], value_parser = side, help_heading = "Generated operands")]
    size: Option<usize>,

    /// Multiply pseudo-random M × K and K × N matrices
    #[arg(long, value_name = "MxKxN", conflicts_with_all = ["a", "b"], value_parser = shape, help_heading = "Generated operands")]
    shape: Option<[usize; 3]>,

    /// Generate the operands (implied by --size and --shape)
    #[arg(long, conflicts_with_all = ["a", "b"], help_heading = "Generated operands")]
    generate: bool,

    /// Seed of the pseudo-random numbers
    #[arg(long, value_name = "SEED", default_value_t = 1, conflicts_with_all = ["a", "b"], help_heading = "Generated operands")]
    seed: u64,

    /// Element type: f16, bf16, f32, f64 or i8; files are converted to it [default: f32, or what the files have]
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    dtype: Option<DType>,

    /// Check the whole product again on the accepting node
    #[arg(long)]
    verify: bool,

    /// Where to compute: auto (wherever it finishes soonest), local, remote (on peers; locally only where no peer can)
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    place: PlaceArg,

    /// Connect the node to this peer first, a multiaddr or HOST:PORT; may be repeated
    #[arg(long, value_name = "ADDR", value_parser = peer_address::parse)]
    peer: Vec<Multiaddr>,

    /// Products of higher priority go first, -128 to 127
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i8,

    /// Time limit, such as 30s or 500ms
    #[arg(long, value_name = "TIME", value_parser = duration)]
    deadline: Option<Duration>,

    /// Number of workers that compute each part
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    redundancy: u8,

    /// Retries of a failed part on other workers before the accepting node computes it
    #[arg(long, value_name = "N", default_value_t = 3)]
    retries: u8,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Memory limit for tensors [default: that of the node, or half of this machine's memory]
    #[arg(long, value_name = "SIZE", value_parser = config::memory_limit)]
    max_memory: Option<ByteSize>,

    /// Compute threads where no node runs [default: fast physical cores]
    #[arg(long, value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// Time for a node to connect to a peer named with `--peer`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest share of a node's free memory that whole operands and product may take.
const WHOLE_SHARE: f64 = 0.9;

/// Bytes that a fabric uses beside the blocks while it multiplies: packed operands of the current and the next blocks.
const BESIDE_BLOCKS_BYTES: f64 = (96 << 20) as f64;

/// Largest and smallest share of the free memory that blocks take; [`BESIDE_BLOCKS_BYTES`] is subtracted from the largest.
const BLOCKS_SHARES: (f64, f64) = (0.85, 0.25);

/// Characters of a worker's name in the table.
const NAME_CHARS: usize = 30;

/// Maximum blocks of one product. A block is a job of at least a few milliseconds, so that starting more jobs than this
/// takes hours.
const MAX_BLOCKS: u64 = 1 << 20;

/// JSON output.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    report: JobReport,
    /// The file that was written, if any.
    output: Option<PathBuf>,
    /// Number of blocks; 1 if operands and product fit into memory.
    blocks: u64,
    /// Seconds from reading the operands to writing the product.
    total_seconds: f64,
}

/// Two operands with compatible shapes and dtypes.
struct Product {
    a: Operand,
    b: Operand,
    dtype: DType,
    shape: Shape,
}

pub(super) async fn run(args: MatmulArgs, output: OutputArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let progress = Progress::waiting(&output, args.json, "reading");
    let product = operands(&args).await?;
    let inputs: Vec<&Path> = [&args.a, &args.b].into_iter().flatten().map(PathBuf::as_path).collect();
    let destination = match &args.output {
        Some(path) => Some(Destination::check(path, product.dtype, product.a.rows(), product.b.cols(), &inputs)?),
        None => None,
    };
    let multiplier = multiplier(&args, &progress).await?;
    let free = multiplier.free_bytes().await?;
    let free = args.max_memory.map_or(free, |cap| cap.0.min(free));
    let method = method(&product, free, matches!(multiplier, Multiplier::Local(_)), destination.as_ref())?;
    let mut file = destination.map(Destination::create).transpose()?;
    connect_peers(&multiplier, &args, &progress).await?;
    let options = options(&args);
    let (report, blocks) = match method {
        Method::Whole => (multiply_whole(&multiplier, &product, &options, file.as_mut(), &progress).await?, 1),
        Method::Blocks(plan) => {
            (multiply_blocks(&multiplier, &product, &plan, &options, file.as_mut(), &progress).await?, plan.count())
        }
    };
    let written = match file {
        Some(file) => {
            progress.phase("writing", 0);
            Some(file.finish().await?)
        }
        None => None,
    };
    drop(progress);
    let total_seconds = started.elapsed().as_secs_f64();
    if args.json.json {
        let output = written.map(|(path, _)| path);
        return print_json(&Outcome { report, output, blocks, total_seconds });
    }
    if output.quiet {
        return Ok(());
    }
    print(&show(&report, written, blocks, total_seconds))
}

/// Opens the operands and checks that they are compatible.
async fn operands(args: &MatmulArgs) -> Result<Product, Failure> {
    let generated = args.shape.or(args.size.map(|side| [side; 3]));
    let (a, b) = match (&args.a, &args.b, generated) {
        (Some(a), Some(b), _) => {
            let (a, b, dtype) = (a.clone(), b.clone(), args.dtype);
            let read = tokio::task::spawn_blocking(move || {
                Ok::<_, Failure>((Operand::file(&a, dtype)?, Operand::file(&b, dtype)?))
            });
            read.await.map_err(|error| Failure::failed(format!("cannot read the operands: {error}")))??
        }
        (_, _, Some([m, k, n])) => {
            let dtype = args.dtype.unwrap_or(DType::F32);
            let other_seed = args.seed.wrapping_add(1);
            (Operand::generated(m, k, dtype, args.seed), Operand::generated(k, n, dtype, other_seed))
        }
        _ => return Err(Failure::usage("name two files, or a --size or --shape to generate")),
    };
    fit(a, b)
}

fn fit(a: Operand, b: Operand) -> Result<Product, Failure> {
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    if k != b.rows() {
        return Err(Failure::usage(format!(
            "A is {m} x {k} and B is {} x {n}: A needs as many columns as B has rows",
            b.rows()
        )));
    }
    let dtype = DType::product(a.dtype(), b.dtype())?;
    if dtype == DType::I32 && k > MAX_K_I8 {
        return Err(Failure::usage(format!(
            "A is {m} x {k} and B is {k} x {n}: an i8 product with more than {MAX_K_I8} columns of A could overflow i32; \
             use --dtype f64"
        )));
    }
    let [a_type, b_type, c_type] = [a.dtype(), b.dtype(), dtype].map(wire_dtype);
    let shape = Shape { m: m as u64, k: k as u64, n: n as u64, a: a_type, b: b_type, c: c_type };
    if shape.size_bytes() > i64::MAX as u64 {
        return Err(Failure::usage(format!(
            "A is {m} x {k} and B is {k} x {n}: operands and product need more than {}, which no machine has",
            ByteSize(i64::MAX as u64)
        )));
    }
    Ok(Product { a, b, dtype, shape })
}

/// The node, or a fabric in this process if none was named and none is running.
async fn multiplier(args: &MatmulArgs, progress: &Progress) -> Result<Multiplier, Failure> {
    if let Some(client) = args.rpc.node_if_there().await? {
        return Ok(Multiplier::Node(client));
    }
    let threads = config::threads(args.threads);
    let max_memory = config::max_memory(args.max_memory);
    progress.note(format!("No node runs at {}: multiplying in this process.", args.rpc.address()));
    Ok(Multiplier::Local(Box::new(local_fabric(threads, max_memory).await?)))
}

/// Connects the node to the named peers. A peer that does not answer is reported and skipped.
async fn connect_peers(multiplier: &Multiplier, args: &MatmulArgs, progress: &Progress) -> Result<(), Failure> {
    for address in &args.peer {
        let Multiplier::Node(client) = multiplier else {
            progress.note(format!(
                "{address} is not connected: only a running node connects to peers (start one with `pangea node`)."
            ));
            continue;
        };
        match client.connect_peer(&address.to_string(), Some(CONNECT_TIMEOUT)).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error.into()),
            Err(error) => progress.note(format!("Continuing without {address}: {}.", error.message())),
        }
    }
    Ok(())
}

fn options(args: &MatmulArgs) -> MatmulOptions {
    MatmulOptions {
        place: place(args.place),
        verify: if args.verify { VerifyPolicy::Full } else { VerifyPolicy::Standard },
        priority: args.priority,
        deadline: args.deadline,
        redundancy: args.redundancy,
        max_retries: args.retries,
    }
}

/// Converts the flag to the client's type.
pub(super) fn place(place: PlaceArg) -> Place {
    match place {
        PlaceArg::Auto => Place::Auto,
        PlaceArg::Local => Place::Local,
        PlaceArg::Remote => Place::Remote,
    }
}

/// Multiplies whole operands as one job.
async fn multiply_whole(
    multiplier: &Multiplier,
    product: &Product,
    options: &MatmulOptions,
    file: Option<&mut ProductFile>,
    progress: &Progress,
) -> Result<JobReport, Failure> {
    let Product { a, b, .. } = product;
    progress.byte_phase("sending A", a.size_bytes());
    let held_a = multiplier.put(a, 0..a.rows(), 0..a.cols(), &mut |bytes| progress.done(bytes)).await?;
    progress.byte_phase("sending B", b.size_bytes());
    let held_b = multiplier.put(b, 0..b.rows(), 0..b.cols(), &mut |bytes| progress.done(bytes)).await?;
    let running = multiplier.start(&held_a, &held_b, options)?;
    progress.phase("multiplying", 0);
    let mut planned = false;
    let (held, report) = running
        .finish(&mut |now| {
            if !planned && now.tasks_total > 0 {
                planned = true;
                progress.phase("multiplying", now.tasks_total.into());
            }
            progress.done(now.tasks_done.into());
        })
        .await?;
    if let Some(file) = file {
        let bytes = (a.rows() * b.cols() * product.dtype.size_bytes()) as u64;
        progress.byte_phase("writing", bytes);
        held.write_to(file, product.dtype, (0, 0), b.cols(), &mut |bytes| progress.done(bytes)).await?;
    }
    Ok(report)
}

/// How a product is computed.
#[derive(Debug)]
enum Method {
    /// Operands and product are in memory at once.
    Whole,
    /// Operands and product are loaded block by block.
    Blocks(Plan),
}

/// Chooses how to compute a product with `free_bytes` free for tensors. Arithmetic only: nothing is allocated before it is
/// known to fit. `here`: whether this process computes, so that memory beside operands and product counts as well.
fn method(
    product: &Product,
    free_bytes: u64,
    here: bool,
    destination: Option<&Destination>,
) -> Result<Method, Failure> {
    let Shape { m, n, c, .. } = product.shape;
    let needed = product.shape.size_bytes();
    let free = free_bytes as f64;
    let budget = (free * BLOCKS_SHARES.0 - BESIDE_BLOCKS_BYTES).max(free * BLOCKS_SHARES.1);
    let gathered = match destination {
        // Text is written at the end from a second copy of the product.
        Some(destination) if here && !destination.takes_blocks() => m.saturating_mul(n).saturating_mul(c.size_bytes()),
        _ => 0,
    };
    let whole_budget = if here { budget } else { free * WHOLE_SHARE };
    if needed.saturating_add(gathered) as f64 <= whole_budget || product.shape.is_empty() {
        return Ok(Method::Whole);
    }
    let sizes = format!("operands and product need {}; {} free for tensors", ByteSize(needed), ByteSize(free_bytes));
    if destination.is_some_and(|destination| !destination.takes_blocks()) {
        return Err(Failure::usage(format!("{sizes}: such a product is written as .npy")));
    }
    let plan = Plan::new(product.shape, budget as u64)
        .map_err(|_| Failure::usage(format!("{sizes}: not even single rows and columns fit; raise --max-memory")))?;
    if plan.count() > MAX_BLOCKS {
        return Err(Failure::usage(format!(
            "{sizes}: the product would take {} blocks; the maximum is {MAX_BLOCKS}; \
             use smaller matrices or raise --max-memory",
            plan.count()
        )));
    }
    Ok(Method::Blocks(plan))
}

/// Computes one job per block of the product.
async fn multiply_blocks(
    multiplier: &Multiplier,
    product: &Product,
    plan: &Plan,
    options: &MatmulOptions,
    mut file: Option<&mut ProductFile>,
    progress: &Progress,
) -> Result<JobReport, Failure> {
    progress.phase("multiplying", plan.count());
    let Product { a, b, .. } = product;
    let report = out_of_core::multiply_blocks(
        plan,
        options,
        async |side, lines| {
            let lines = lines.start as usize..lines.end as usize;
            match side {
                Side::A => multiplier.put(a, lines, 0..a.cols(), &mut |_| {}).await,
                Side::B => multiplier.put(b, 0..b.rows(), lines, &mut |_| {}).await,
            }
        },
        async |a, b, options| multiplier.start(a, b, &options)?.finish(&mut |_| {}).await,
        async |held, block| {
            let Some(file) = file.as_deref_mut() else { return Ok(()) };
            let at = (block.rows.start as usize, block.cols.start as usize);
            let cols = (block.cols.end - block.cols.start) as usize;
            held.write_to(file, product.dtype, at, cols, &mut |_| {}).await
        },
        &mut |now| progress.done(now.blocks_done),
    )
    .await?;
    report.ok_or_else(|| Failure::failed("the product was cut into no blocks"))
}

/// `1 task`, `2 tasks`.
fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn show(report: &JobReport, written: Option<(PathBuf, u64)>, blocks: u64, total_seconds: f64) -> String {
    let [m, k, n] = report.shape;
    let mut text = format!("C [{m}, {n}] {} = A [{m}, {k}] · B [{k}, {n}]\n", report.dtype);
    let tasks = &report.tasks;
    let mut how = format!("{}: {} remote, {} local", counted(tasks.total, "task"), tasks.remote, tasks.local);
    for (count, what) in [(tasks.retried, "retried"), (tasks.hedged, "hedged")] {
        if count > 0 {
            how.push_str(&format!(", {count} {what}"));
        }
    }
    let verification = &report.verification;
    let checked = match verification.method.as_str() {
        "none" => verification.verdict.clone(),
        method => format!("{} ({method}, {})", verification.verdict, seconds(verification.seconds)),
    };
    let mut lines = vec![
        ("time", format!("{}, {} GFLOP/s", seconds(report.seconds), three_digits(report.gflops))),
        ("where", format!("{}; {how}", report.mode)),
        ("verdict", checked),
    ];
    if report.bytes_sent + report.bytes_received > 0 {
        let (sent, received) = (ByteSize(report.bytes_sent), ByteSize(report.bytes_received));
        lines.push(("traffic", format!("{sent} sent to peers, {received} received")));
    }
    if blocks > 1 {
        lines.push(("memory", format!("larger than memory: computed in {blocks} blocks")));
    }
    if let Some((path, size_bytes)) = &written {
        let size = ByteSize(*size_bytes);
        lines.push(("written", format!("{} ({size}), {} in all", path.display(), seconds(total_seconds))));
    }
    text.push_str(&facts(&lines));
    if report.workers.len() > 1 || tasks.remote > 0 {
        let mut table = Table::new([
            ("worker", Align::Left),
            ("peer", Align::Left),
            ("tasks", Align::Right),
            ("computing", Align::Right),
        ]);
        let named = report.workers.iter().map(|share| (share.peer.as_str(), share.name.as_str()));
        let names = NodeNames::new(named, NAME_CHARS);
        for share in &report.workers {
            table.row([
                names.label(&share.peer),
                short_peer(&share.peer),
                share.tasks.to_string(),
                seconds(share.seconds),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render());
    }
    for rejection in &verification.rejected {
        text.push_str(&format!(
            "\nA wrong result of {} was caught and computed again: {}\n",
            short_peer(&rejection.peer),
            rejection.why
        ));
    }
    text
}

fn shape(text: &str) -> Result<[usize; 3], String> {
    let numbers: Result<Vec<usize>, _> = text.split(['x', 'X', '×']).map(|number| number.trim().parse()).collect();
    match numbers.as_deref() {
        Ok([m, k, n]) => Ok([*m, *k, *n]),
        _ => Err("use MxKxN, such as 1000x2000x500".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::failure::Exit;

    fn generated(side: usize) -> Product {
        let operand = || Operand::generated(side, side, DType::F32, 1);
        fit(operand(), operand()).unwrap()
    }

    #[test]
    fn a_product_too_large_for_memory_is_refused_with_the_sizes() {
        let gib = 1u64 << 30;
        assert!(matches!(method(&generated(1000), gib, false, None), Ok(Method::Whole)));
        assert!(matches!(method(&generated(40_000), gib, false, None), Ok(Method::Blocks(_))));
        for (side, free, sizes) in [
            (1_000_000, 500 << 20, "need 10.9 TiB; 500 MiB free"),
            (10_000_000, 12 * gib, "need 1091 TiB; 12.0 GiB free"),
            (10_000_000, 1 << 20, "not even single rows"),
        ] {
            let failure = method(&generated(side), free, false, None).unwrap_err();
            assert!(failure.exit == Exit::Usage && failure.message.contains(sizes), "{side}: {failure}");
        }
        let operand = || Operand::generated(1 << 40, 1 << 40, DType::F32, 1);
        let failure = fit(operand(), operand()).err().unwrap();
        assert!(failure.message.contains("8388608 TiB"), "{failure}");
    }

    #[test]
    fn a_local_product_counts_packed_operands_and_text() {
        let product = generated(6000);
        assert!(matches!(method(&product, 500 << 20, false, None), Ok(Method::Whole)));
        assert!(matches!(method(&product, 500 << 20, true, None), Ok(Method::Blocks(_))));
        assert!(matches!(method(&product, 1 << 30, true, None), Ok(Method::Whole)));
        let text = Destination::check(Path::new("c.csv"), DType::F32, 6000, 6000, &[]).unwrap();
        assert!(matches!(method(&product, 2 << 30, true, Some(&text)), Ok(Method::Whole)));
        assert!(method(&product, 640 << 20, true, Some(&text)).unwrap_err().message.contains("written as .npy"));
    }

    #[test]
    fn shapes_are_parsed() {
        assert_eq!(shape("2x3x4"), Ok([2, 3, 4]));
        for text in ["2x3", "2x3x4x5", "axbxc", "-1x2x3", ""] {
            assert!(shape(text).is_err(), "{text}");
        }
    }
}
