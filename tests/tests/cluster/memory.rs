//! Memory and disk: products larger than memory, results larger than the disk.

use std::path::Path;

use pangea_client::MatmulOptions;
use pangea_compute::check::ColumnProbe;
use pangea_compute::{DType, NpyFile, NpyWriter, Pool, Tensor};
use pangea_tests::cluster::{Cluster, output};
use pangea_tests::matrix::{multiply, operands, remote};
use pangea_tests::process::Process;
use pangea_tests::skip::{skip, unless_root};
use pangea_tests::small_disk::SmallDisk;

const MIB: u64 = 1 << 20;

/// What a process needs besides tensors: its code, its threads' stacks, the allocator, buffers of connections (windows of
/// tens of MiB in each direction between nodes), gossip, state that survives the process, the measurement of layers at
/// the start and while the node is idle (the allocator keeps what they used), threads that compile grammars and check
/// accusations, and packed operands.
const PROCESS_BYTES: u64 = 84 * MIB;

/// Answers that are queued longer than usual while other tests use the cores.
const WAITING_BYTES: u64 = 8 * MIB;

/// Writes a generated matrix block by block.
fn generate_npy(path: &Path, dtype: DType, rows: usize, cols: usize, seed: u64) {
    let mut file = NpyWriter::create(path, dtype, rows, cols).unwrap();
    for row in (0..rows).step_by(256) {
        let lines = row..rows.min(row + 256);
        file.write_block(row, 0, &Tensor::generate_block(dtype, rows, cols, lines, 0..cols, seed).unwrap()).unwrap();
    }
    file.finish().unwrap();
}

/// Checks three files with Freivalds' method.
fn is_product(a: &Path, b: &Path, c: &Path) {
    let [a, b, c] = [a, b, c].map(|path| NpyFile::open(path).unwrap().whole().unwrap());
    let pool = Pool::new(1).unwrap();
    let probe = ColumnProbe::new(&b, c.dtype(), [3; 32], &pool).unwrap();
    probe.check(&a, &b, &c, &pool).unwrap();
}

fn peak(process: &Process) -> Option<u64> {
    process.peak_memory_bytes()
}

#[test]
fn a_product_three_times_as_large_as_memory_completes_within_it() {
    const MAX_MEMORY: u64 = 64 * MIB;
    let cluster = Cluster::new();
    let one = cluster.node("one").max_memory("64M").start();
    let worker = cluster.node("worker").max_memory("64M").start();
    one.connect(&worker);
    // Three matrices of 64 MiB each: A, B and C.
    let side = 4096;
    let [a, b, c] = ["A.npy", "B.npy", "C.npy"].map(|name| cluster.folder().join(name));
    generate_npy(&a, DType::F32, side, side, 1);
    generate_npy(&b, DType::F32, side, side, 2);
    let before = [&one, &worker].map(|node| peak(&node.process));
    let command = cluster.start(&["matmul", "A.npy", "B.npy", "-o", "C.npy", "--rpc", &one.rpc, "--json"]);
    let command_peak = command.peak_memory_until_end();
    let json = output(&command).json();
    assert!(json["blocks"].as_u64().unwrap() > 1, "{json}");
    is_product(&a, &b, &c);
    let limit = MAX_MEMORY + MAX_MEMORY / 4 + PROCESS_BYTES;
    let after = [&one, &worker].map(|node| peak(&node.process));
    eprintln!("peaks: command {command_peak}, nodes {before:?} before and {after:?} after; {limit} are allowed");
    for bytes in after.into_iter().flatten().chain([command_peak]) {
        assert!(bytes <= limit, "{} MiB of memory, {} are allowed", bytes / MIB, limit / MIB);
    }
    one.is_idle_again();
}

/// Runs of which one must keep the promise: what waits between threads at the peak depends on how busy the machine is.
const RUNS: usize = 4;

/// Compares the peak memory of a node that accepts products of square f32 matrices with the promise.
fn an_accepting_node_stays_small(test: &str, side: usize, options: &MatmulOptions) {
    let tensors = 3 * (side * side * 4) as u64;
    let limit = tensors + tensors / 4 + PROCESS_BYTES + WAITING_BYTES;
    let mut peaks = Vec::new();
    while peaks.len() < RUNS {
        let Some(peak) = accepting_peak(side, options) else {
            return skip(test, "this system does not tell a process's memory");
        };
        eprintln!("{test}: peak {} MiB, tensors {} MiB, allowed {} MiB", peak / MIB, tensors / MIB, limit / MIB);
        if peak <= limit {
            return;
        }
        peaks.push(peak / MIB);
    }
    panic!("{peaks:?} MiB of memory, {} are allowed", limit / MIB);
}

/// Peak memory of a node that accepts two products.
fn accepting_peak(side: usize, options: &MatmulOptions) -> Option<u64> {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let (a, b) = operands(DType::F32, side, side, side);
    let client = star.one.client();
    // The second product finds the memory that the first has left.
    for _ in 0..2 {
        drop(multiply(&client, &a, &b, options).unwrap());
    }
    peak(&star.one.process)
}

#[test]
fn a_node_that_computes_with_its_peers_needs_little_more_than_operands_and_product() {
    let test = "a_node_that_computes_with_its_peers_needs_little_more_than_operands_and_product";
    an_accepting_node_stays_small(test, 3072, &MatmulOptions::default());
}

#[test]
fn a_node_that_delegates_everything_needs_little_more_than_operands_and_product() {
    let test = "a_node_that_delegates_everything_needs_little_more_than_operands_and_product";
    an_accepting_node_stays_small(test, 2048, &remote());
}

#[test]
fn a_full_disk_is_reported_and_nothing_is_left_on_it() {
    const TEST: &str = "a_full_disk_is_reported_and_nothing_is_left_on_it";
    if unless_root(TEST) {
        return;
    }
    let cluster = Cluster::new();
    let path = cluster.folder().join("disk");
    let disk = match SmallDisk::mount(&path, MIB) {
        Ok(disk) => disk,
        Err(why) => return skip(TEST, &format!("no small disk can be mounted: {why}")),
    };
    let one = cluster.node("one").start();
    for name in ["C.npy", "C.csv"] {
        let run =
            cluster.run(&["matmul", "--size", "800", "--generate", "-o", &format!("disk/{name}"), "--rpc", &one.rpc]);
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(run.err.contains("disk") && (run.err.contains("full") || run.err.contains("free")), "{run:?}");
        assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0, "something is left behind");
    }
    one.is_idle_again();
}
