//! `pangea bench matmul`: products of several sizes, each with fresh operands (cold: sent to the peers) and with the
//! same operands again (resident: stored by the peers). It reports the jobs' own figures and computes nothing itself.

use clap::Args;
use pangea_client::{JobReport, MatmulOptions};
use pangea_compute::{DType, product_bytes};
use pangea_units::ByteSize;
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs, PlaceArg, RpcArgs, dtype};
use super::failure::Failure;
use super::matmul::place;
use super::matrix::Operand;
use super::multiplier::{LoadedMatrix, Multiplier};
use super::progress::Progress;
use super::session::{local_fabric, note};
use super::table::{Align, Table, seconds, three_digits};
use super::{print, print_json};
use crate::config;

/// Measure products of several sizes, with fresh and with resident operands
#[derive(Args, Clone, Debug)]
pub(super) struct BenchMatmulArgs {
    /// Side lengths of the square matrices
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [256, 1024, 2048, 4096], value_parser = side)]
    size: Vec<usize>,

    /// Element type: f16, bf16, f32, f64 or i8
    #[arg(long, value_name = "DTYPE", value_parser = dtype, default_value = "f32")]
    dtype: DType,

    /// Runs of each test; the median is reported
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Where to compute: auto (wherever it finishes soonest), local, remote (on peers; locally only where no peer can)
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    place: PlaceArg,

    /// Compute threads where no node runs [default: fast physical cores]
    #[arg(long, value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// One line of the result: the median run.
#[derive(Serialize)]
struct Line {
    /// `cold` or `resident`.
    test: &'static str,
    /// Side of the square matrices.
    size: usize,
    /// Element type of the operands.
    dtype: String,
    /// Seconds from the operands being on the node to the checked product being there.
    seconds: f64,
    gflops: f64,
    /// `local`, `remote` or `mixed`.
    mode: String,
    remote_tasks: u32,
    local_tasks: u32,
    /// Tensor bytes sent to peers.
    bytes_sent: u64,
    predicted_seconds: f64,
    runs: u32,
}

pub(super) async fn run(args: BenchMatmulArgs, output: OutputArgs) -> Result<(), Failure> {
    let multiplier = match args.rpc.node_if_there().await? {
        Some(client) => Multiplier::Node(client),
        None => {
            note(&output, format!("No node runs at {}: multiplying in this process.", args.rpc.address()));
            let threads = config::threads(args.threads);
            Multiplier::Local(Box::new(local_fabric(threads, config::max_memory(None)).await?))
        }
    };
    let free_bytes = multiplier.free_bytes().await?;
    for &size in &args.size {
        check_fits(size, args.dtype, free_bytes)?;
    }
    let progress = Progress::new(&output, args.json);
    let total = u64::from(args.runs) * 2 * args.size.len() as u64;
    progress.phase("measuring", total);
    let options = MatmulOptions { place: place(args.place), ..MatmulOptions::default() };
    let mut lines = Vec::new();
    let mut done = 0;
    for &size in &args.size {
        let mut cold = Vec::new();
        let mut resident = Vec::new();
        let mut operands = None;
        for run in 0..args.runs {
            // The old operands are released first: memory for one pair is enough.
            drop(operands.take());
            let pair = fresh(&multiplier, &args, size, u64::from(run) * 2 + 1).await?;
            cold.push(multiply(&multiplier, &pair, &options).await?);
            operands = Some(pair);
            done += 1;
            progress.done(done);
        }
        let Some(pair) = operands else { continue };
        for _ in 0..args.runs {
            resident.push(multiply(&multiplier, &pair, &options).await?);
            done += 1;
            progress.done(done);
        }
        lines.push(line("cold", size, &args, cold));
        lines.push(line("resident", size, &args, resident));
    }
    drop(progress);
    if args.json.json {
        return print_json(&lines);
    }
    print(&show(&lines))
}

/// Refuses a size whose operands and product do not fit, before anything is allocated.
fn check_fits(size: usize, dtype: DType, free_bytes: u64) -> Result<(), Failure> {
    let needed = product_bytes((size, size), (size, size), dtype, dtype)?.total();
    if needed <= free_bytes {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--size {size}: operands and product need {}; {} free for tensors",
        ByteSize(needed),
        ByteSize(free_bytes)
    )))
}

async fn fresh(
    multiplier: &Multiplier,
    args: &BenchMatmulArgs,
    size: usize,
    seed: u64,
) -> Result<(LoadedMatrix, LoadedMatrix), Failure> {
    let a = Operand::generated(size, size, args.dtype, seed);
    let b = Operand::generated(size, size, args.dtype, seed + 1);
    let a = multiplier.put(&a, 0..size, 0..size, &mut |_| {}).await?;
    let b = multiplier.put(&b, 0..size, 0..size, &mut |_| {}).await?;
    Ok((a, b))
}

async fn multiply(
    multiplier: &Multiplier,
    (a, b): &(LoadedMatrix, LoadedMatrix),
    options: &MatmulOptions,
) -> Result<JobReport, Failure> {
    let (_, report) = multiplier.start(a, b, options)?.finish(&mut |_| {}).await?;
    Ok(report)
}

fn line(test: &'static str, size: usize, args: &BenchMatmulArgs, mut runs: Vec<JobReport>) -> Line {
    runs.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
    let median = runs.swap_remove(runs.len() / 2);
    Line {
        test,
        size,
        dtype: args.dtype.name().to_owned(),
        seconds: median.seconds,
        gflops: median.gflops,
        mode: median.mode,
        remote_tasks: median.tasks.remote,
        local_tasks: median.tasks.local,
        bytes_sent: median.bytes_sent,
        predicted_seconds: median.predicted_seconds,
        runs: args.runs,
    }
}

fn show(lines: &[Line]) -> String {
    let mut table = Table::new([
        ("size", Align::Right),
        ("dtype", Align::Left),
        ("operands", Align::Left),
        ("time", Align::Right),
        ("predicted", Align::Right),
        ("GFLOP/s", Align::Right),
        ("mode", Align::Left),
        ("remote", Align::Right),
    ]);
    for line in lines {
        table.row([
            line.size.to_string(),
            line.dtype.clone(),
            line.test.to_owned(),
            seconds(line.seconds),
            seconds(line.predicted_seconds),
            three_digits(line.gflops),
            line.mode.clone(),
            format!("{} of {}", line.remote_tasks, line.remote_tasks + line.local_tasks),
        ]);
    }
    table.render()
}

fn side(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(side @ 1..=65536) => Ok(side),
        _ => Err("use 1 to 65536".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_does_not_fit_is_refused_with_the_bytes_needed() {
        assert!(check_fits(4096, DType::F32, 3 << 26).is_ok());
        let failure = check_fits(4096, DType::F32, (3 << 26) - 1).unwrap_err();
        assert!(failure.message.contains("need 192 MiB; 192 MiB free"), "{failure}");
        assert!(check_fits(65536, DType::F64, 16 << 30).unwrap_err().message.contains("need 96.0 GiB; 16.0 GiB free"));
    }
}
