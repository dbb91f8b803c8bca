//! Products across nodes: right, accounted for, and the same over every API.

use std::time::Duration;

use half::f16;
use pangea_client::blocking::Client;
use pangea_client::{ErrorKind, JobReport, MatmulOptions, Result, VerifyPolicy};
use pangea_compute::{Buffer, Cancel, DType, NpyFile, NpyWriter, Operation, Pool, Tensor};
use pangea_tests::cluster::Cluster;
use pangea_tests::matrix::{assert_product, multiply, operands, reference, remote, upload};

fn write_npy(path: &std::path::Path, tensor: &Tensor) {
    let mut file = NpyWriter::create(path, tensor.dtype(), tensor.rows(), tensor.cols()).unwrap();
    file.write_block(0, 0, tensor).unwrap();
    file.finish().unwrap();
}

#[test]
fn a_remote_product_of_every_type_is_that_of_one_node_alone() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let client = star.one.client();
    for dtype in [DType::I8, DType::F32, DType::F64, DType::F16, DType::Bf16] {
        let (a, b) = operands(dtype, 300, 517, 260);
        let product = multiply(&client, &a, &b, &remote()).unwrap();
        assert_product(&a, &b, &product.c);
        let report = product.report;
        assert_eq!((report.mode.as_str(), report.tasks.local), ("remote", 0), "{dtype}");
        assert_eq!(report.workers.len(), 1);
        assert_eq!(report.workers[0].peer, star.workers[0].peer);
        let verdict = if dtype == DType::I8 { "verified" } else { "tolerance-checked" };
        assert_eq!(report.verification.verdict, verdict);
        assert!(report.verification.rejected.is_empty());
    }
    assert!(star.workers[0].status().tasks_served >= 5);
    drop(client);
    star.one.is_idle_again();
}

#[test]
fn a_large_product_is_shared_between_the_nodes() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker"), cluster.node("other")]);
    let client = star.one.client();
    // A worker that was measured while its cores were busy gets no task of a small product: the next one is larger.
    let side = [2048, 2560, 3072, 3584].into_iter().find(|side| {
        let (a, b) = operands(DType::F64, *side, *side, *side);
        let product = multiply(&client, &a, &b, &remote()).unwrap();
        assert_product(&a, &b, &product.c);
        let report = product.report;
        assert_eq!(report.tasks.remote, report.tasks.total);
        assert!(report.bytes_received >= product.c.size_bytes() as u64);
        assert!(report.bytes_sent >= (a.size_bytes() + b.size_bytes()) as u64);
        report.workers.len() == 2
    });
    assert!(side.is_some(), "every product went to one worker");
}

#[test]
fn operands_that_a_peer_has_are_not_sent_again() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let client = star.one.client();
    // Several tiles, so that the second product is cut like the first.
    let (a, b) = operands(DType::F32, 1500, 1500, 1500);
    let (a_there, b_there) =
        (pangea_tests::matrix::upload(&client, &a).unwrap(), pangea_tests::matrix::upload(&client, &b).unwrap());
    let sent: Vec<u64> = (0..2)
        .map(|_| {
            let (job, _product) = client.matmul(&a_there, &b_there, &remote());
            client.wait(&job, &mut |_| {}).unwrap().bytes_sent
        })
        .collect();
    assert_eq!(sent, [(a.size_bytes() + b.size_bytes()) as u64, 0]);
}

#[test]
fn one_operand_serves_products_of_different_types_on_one_worker() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let client = star.one.client();
    let a = Tensor::generate(DType::F32, 200, 300, 1).unwrap();
    for dtype in [DType::F32, DType::F64, DType::F32] {
        let b = Tensor::generate(dtype, 300, 220, 2).unwrap();
        let product = multiply(&client, &a, &b, &remote()).unwrap();
        assert_product(&a, &b, &product.c);
        let tasks = product.report.tasks;
        assert_eq!((tasks.local, tasks.retried), (0, 0), "{dtype}: {:?}", product.report);
    }
}

#[test]
fn a_product_of_products_never_leaves_the_pool() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let client = star.one.client();
    let (a, b) = operands(DType::F32, 100, 400, 400);
    let c = Tensor::generate(DType::F32, 400, 100, 13).unwrap();
    let there: Vec<_> = [&a, &b, &c].iter().map(|t| pangea_tests::matrix::upload(&client, t).unwrap()).collect();
    let (before, _) = client.block_on(client.inner().counters()).unwrap();
    let (_, ab) = client.matmul(&there[0], &there[1], &remote());
    let (job, abc) = client.matmul(&ab, &there[2], &remote());
    client.wait(&job, &mut |_| {}).unwrap();
    let mut bytes = Vec::new();
    client.read_into(&abc, &mut bytes).unwrap();
    let (after, _) = client.block_on(client.inner().counters()).unwrap();
    assert_eq!(bytes.len(), 100 * 100 * 4);
    // a·b alone has 160 000 bytes.
    let moved = after.bytes_out - before.bytes_out + after.bytes_in - before.bytes_in;
    assert!(moved < 40_000 + 20_000, "{moved} bytes crossed the service");
    let right = reference(&reference(&a, &b), &c);
    let got = f32::from_le_bytes(bytes[..4].try_into().unwrap());
    assert!((f64::from(got) - right.get(0, 0).unwrap()).abs() < 0.05);
}

/// Two operands of a sum, whose elements fit i32 when added.
fn addends(dtype: DType, rows: usize, cols: usize) -> (Tensor, Tensor) {
    let operand = |seed| match dtype {
        DType::I32 => {
            let halves = Tensor::generate(dtype, rows, cols, seed).unwrap().to_array::<i32>().unwrap() / 2;
            Tensor::from_array(halves.view()).unwrap()
        }
        _ => Tensor::generate(dtype, rows, cols, seed).unwrap(),
    };
    (operand(1), operand(2))
}

/// The report of a sum that a node is asked for, which must be right.
fn add(client: &Client, a: &Tensor, b: &Tensor, options: &MatmulOptions) -> Result<JobReport> {
    let (job, sum) = client.add(&upload(client, a)?, &upload(client, b)?, options);
    let report = client.wait(&job, &mut |_| {})?;
    let mut bytes = Vec::new();
    client.read_into(&sum, &mut bytes)?;
    let right = Operation::Add.compute(a, b, &Pool::new(1).unwrap(), &Cancel::new()).unwrap();
    assert!(bytes == right.contiguous_bytes().unwrap(), "the sum of {a:?} and {b:?} has other bits");
    Ok(report)
}

#[test]
fn sums_are_shared_by_peers_on_demand_and_verified_to_the_bit() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker"), cluster.node("other")]);
    let client = star.one.client();
    for dtype in [DType::F32, DType::F64, DType::I32] {
        let (a, b) = addends(dtype, 4000, 1500);
        let options = MatmulOptions { verify: VerifyPolicy::Full, ..remote() };
        let report = add(&client, &a, &b, &options).unwrap();
        assert_eq!((report.mode.as_str(), report.tasks.local), ("remote", 0), "{report:?}");
        let check = (report.verification.verdict.as_str(), report.verification.method.as_str());
        assert_eq!(check, ("verified", "recomputed"), "{dtype}");
        assert_eq!(report.shape, [4000, 1, 1500]);
        assert!(report.bytes_sent >= (a.size_bytes() + b.size_bytes()) as u64);
    }
    // Its check reads as much as the sum itself: nothing is won by giving it away.
    let (a, b) = addends(DType::F32, 700, 300);
    assert_eq!(add(&client, &a, &b, &MatmulOptions::default()).unwrap().mode, "local");
    let jobs = client.jobs().unwrap();
    assert_eq!((jobs[0].kind.as_str(), jobs[0].subject.as_str()), ("sum", "700x300 f32"));
    drop(client);
    star.one.is_idle_again();
}

#[test]
fn a_sum_is_an_operand_of_a_product_before_it_is_computed() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let client = star.one.client();
    let (a, b) = addends(DType::F64, 120, 80);
    let c = Tensor::generate(DType::F64, 80, 60, 3).unwrap();
    let [a_there, b_there, c_there] = [&a, &b, &c].map(|tensor| upload(&client, tensor).unwrap());
    let (_, sum) = client.add(&a_there, &b_there, &remote());
    let (job, product) = client.matmul(&sum, &c_there, &remote());
    assert_eq!(client.wait(&job, &mut |_| {}).unwrap().mode, "remote");
    let mut bytes = Vec::new();
    client.read_into(&product, &mut bytes).unwrap();
    let got = Tensor::from_buffer(DType::F64, 120, 60, Buffer::copy_of(&bytes).unwrap()).unwrap();
    let sum = Operation::Add.compute(&a, &b, &Pool::new(1).unwrap(), &Cancel::new()).unwrap();
    assert_product(&sum, &c, &got);
}

#[test]
fn a_wrong_sum_is_caught_and_redone() {
    for (dtype, fault) in [(DType::F32, "corrupt-one"), (DType::I32, "corrupt-one"), (DType::F64, "corrupt-all")] {
        let cluster = Cluster::new();
        let star = cluster.star(vec![cluster.node("liar").fault(fault)]);
        let (a, b) = addends(dtype, 200, 300);
        let report = add(&star.one.client(), &a, &b, &remote()).unwrap();
        let rejected = &report.verification.rejected;
        assert!(rejected.len() == 1 && rejected[0].peer == star.workers[0].peer, "{report:?}");
        assert_eq!(report.mode, "local");
        assert!(star.one.status_of(&star.workers[0]).quarantined, "{dtype}");
    }
}

#[test]
fn what_cannot_be_added_is_refused_by_name_and_nobody_is_blamed() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let client = star.one.client();
    let refused = |a: &Tensor, b: &Tensor, names: &[&str]| {
        let error = add(&client, a, b, &remote()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(names.iter().all(|name| error.message().contains(name)), "{error}");
    };
    let tensor = |dtype, rows, cols| Tensor::generate(dtype, rows, cols, 1).unwrap();
    for dtype in [DType::F16, DType::Bf16, DType::I8] {
        refused(&tensor(dtype, 2, 2), &tensor(dtype, 2, 2), &[dtype.name(), "f32, f64 or i32"]);
    }
    refused(&tensor(DType::F32, 2, 2), &tensor(DType::F64, 2, 2), &["f32 with f64"]);
    refused(&tensor(DType::F32, 2, 3), &tensor(DType::F32, 3, 2), &["2 x 3", "3 x 2"]);
    let most = Tensor::from_slice(1, 2, &[5, i32::MAX]).unwrap();
    refused(&most, &most, &["2147483647 + 2147483647 does not fit i32"]);
    // The worker refused the last one, too, and was right.
    let (a, b) = addends(DType::I32, 20, 20);
    assert_eq!(add(&client, &a, &b, &remote()).unwrap().mode, "remote");
}

#[test]
fn sides_of_zero_and_one_work_across_nodes() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let client = star.one.client();
    let shapes = [
        (0, 5, 3),
        (5, 0, 3),
        (5, 3, 0),
        (0, 0, 0),
        (1, 1, 1),
        (1, 900, 1),
        (900, 1, 900),
        (1, 700, 300),
        (300, 700, 1),
    ];
    for (m, k, n) in shapes {
        for dtype in [DType::F32, DType::I8] {
            let (a, b) = operands(dtype, m, k, n);
            let product =
                multiply(&client, &a, &b, &remote()).unwrap_or_else(|error| panic!("{m}x{k}x{n} {dtype}: {error}"));
            assert_product(&a, &b, &product.c);
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused_by_kind() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let a = Tensor::generate(DType::F32, 3, 4, 1).unwrap();
    let error = multiply(&one.client(), &a, &a, &MatmulOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("3") && error.message().contains("4"), "{error}");
}

#[test]
fn nan_and_infinity_flow_through_a_checked_remote_product_as_ieee_says() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let (m, k, n) = (150, 70, 140);
    let mut a: Vec<f32> = (0..m * k).map(|i| ((i * 7 % 13) as f32) - 6.0).collect();
    let mut b: Vec<f32> = (0..k * n).map(|i| ((i * 5 % 11) as f32) - 5.0).collect();
    a[3 * k + 2] = f32::NAN;
    a[5 * k + 7] = f32::INFINITY;
    a[9 * k + 1] = f32::NEG_INFINITY;
    a[9 * k + 4] = f32::INFINITY;
    b[20 * n + 11] = f32::NAN;
    b[7 * n + 30] = 0.0;
    let right: Vec<f32> = (0..m * n).map(|at| (0..k).map(|i| a[at / n * k + i] * b[i * n + at % n]).sum()).collect();
    let (a, b) = (Tensor::from_slice(m, k, &a).unwrap(), Tensor::from_slice(k, n, &b).unwrap());
    let product = multiply(&star.one.client(), &a, &b, &remote()).unwrap();
    assert_eq!(product.report.mode, "remote");
    assert!(product.report.verification.rejected.is_empty(), "{:?}", product.report.verification);
    for (at, want) in right.iter().enumerate() {
        let got = product.c.get(at / n, at % n).unwrap();
        // Small integers: every finite sum is exact.
        assert!(
            got == f64::from(*want) || (got.is_nan() && want.is_nan()),
            "({}, {}): {got}, not {want}",
            at / n,
            at % n
        );
    }
    assert!(!star.one.status_of(&star.workers[0]).quarantined);
}

#[test]
fn redundant_tasks_are_computed_by_two_workers_each() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker"), cluster.node("other")]);
    let (a, b) = operands(DType::I8, 600, 600, 600);
    let options = MatmulOptions { redundancy: 2, ..remote() };
    let product = multiply(&star.one.client(), &a, &b, &options).unwrap();
    assert_product(&a, &b, &product.c);
    let total = u64::from(product.report.tasks.total);
    let served: Vec<u64> = star.workers.iter().map(|worker| worker.status().tasks_served).collect();
    assert_eq!(served, [total, total]);
}

#[test]
fn a_full_check_covers_what_was_computed_locally() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let (a, b) = operands(DType::F32, 300, 300, 300);
    let options = MatmulOptions { verify: VerifyPolicy::Full, ..MatmulOptions::default() };
    let report = multiply(&one.client(), &a, &b, &options).unwrap().report;
    assert_ne!(report.verification.method, "none");
    assert_eq!(report.mode, "local");
}

#[test]
fn a_passed_deadline_has_its_error_kind_and_ends_the_work() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker").fault("slow")]);
    let (a, b) = operands(DType::F64, 1500, 1500, 1500);
    let options = MatmulOptions { deadline: Some(Duration::from_millis(100)), ..remote() };
    let client = star.one.client();
    let error = multiply(&client, &a, &b, &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    drop(client);
    star.one.is_idle_again();
}

#[test]
fn the_command_multiplies_files_across_nodes_and_accounts_for_it() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let (a, b) = operands(DType::F32, 200, 330, 270);
    write_npy(&cluster.folder().join("A.npy"), &a);
    write_npy(&cluster.folder().join("B.npy"), &b);
    let rpc = star.one.rpc.as_str();
    let run = cluster.run(&["matmul", "A.npy", "B.npy", "-o", "C.npy", "--place", "remote", "--rpc", rpc, "--json"]);
    let json = run.json();
    assert_eq!(json["shape"], serde_json::json!([200, 330, 270]));
    assert_eq!(json["dtype"], "f32");
    assert_eq!(json["mode"], "remote");
    assert_eq!(json["verification"]["verdict"], "tolerance-checked");
    assert!(json["verification"]["method"].is_string());
    assert!(json["seconds"].as_f64().unwrap() > 0.0 && json["gflops"].as_f64().unwrap() > 0.0);
    for count in ["total", "remote", "local", "retried", "hedged"] {
        assert!(json["tasks"][count].is_u64(), "{json}");
    }
    assert_eq!(json["workers"][0]["peer"], star.workers[0].peer);
    assert!(json["workers"][0]["tasks"].as_u64().unwrap() > 0 && json["workers"][0]["seconds"].is_number());
    assert!(json["bytes_sent"].as_u64().unwrap() > 0 && json["bytes_received"].as_u64().unwrap() > 0);
    let c = NpyFile::open(cluster.folder().join("C.npy")).unwrap().whole().unwrap();
    assert_product(&a, &b, &c);
    let peers = cluster.run(&["peers", "--rpc", rpc, "--json"]).json();
    for field in ["peer", "name", "state", "addresses", "trust", "quarantined"] {
        assert!(!peers[0][field].is_null(), "{peers}");
    }
}

#[test]
fn integers_by_the_command_have_the_bits_of_a_local_product() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let rpc = star.one.rpc.as_str();
    let shape = ["--shape", "400x300x500", "--generate", "--seed", "5", "--dtype", "i8", "--rpc", rpc, "--json"];
    for (place, file) in [("remote", "remote.npy"), ("local", "local.npy")] {
        let run = cluster.run(&[&["matmul", "-o", file, "--place", place][..], &shape].concat());
        assert_eq!(run.json()["mode"], place);
    }
    let bytes = |name| std::fs::read(cluster.folder().join(name)).unwrap();
    assert!(bytes("remote.npy") == bytes("local.npy"));
}

#[test]
fn files_in_fortran_order_and_big_endian_work_across_nodes() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let (m, k, n) = (130, 90, 110);
    let value = |row: usize, col: usize| ((row * 31 + col * 17) % 23) as f64 - 11.0;
    let npy = |name: &str, descr: &str, rows: usize, cols: usize, bytes: Vec<u8>| {
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': True, 'shape': ({rows}, {cols}), }}");
        header.push_str(&" ".repeat(117 - header.len()));
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(bytes);
        std::fs::write(cluster.folder().join(name), file).unwrap();
    };
    let by_columns =
        |rows: usize, cols: usize| (0..cols).flat_map(move |col| (0..rows).map(move |row| value(row, col)));
    npy("A.npy", "<f4", m, k, by_columns(m, k).flat_map(|v| (v as f32).to_le_bytes()).collect());
    npy("B.npy", ">f4", k, n, by_columns(k, n).flat_map(|v| (v as f32).to_be_bytes()).collect());
    let rpc = star.one.rpc.as_str();
    let run = cluster.run(&["matmul", "A.npy", "B.npy", "-o", "C.npy", "--place", "remote", "--rpc", rpc, "--json"]);
    assert_eq!(run.json()["mode"], "remote");
    let c = NpyFile::open(cluster.folder().join("C.npy")).unwrap().whole().unwrap();
    for (row, col) in (0..m).flat_map(|row| (0..n).map(move |col| (row, col))) {
        let want: f64 = (0..k).map(|i| value(row, i) * value(i, col)).sum();
        assert_eq!(c.get(row, col), Some(want), "({row}, {col})");
    }
}

#[test]
fn half_precision_operands_give_half_precision_products_across_nodes() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let ones = vec![f16::from_f32(0.5); 64 * 64];
    let a = Tensor::from_slice(64, 64, &ones).unwrap();
    let product = multiply(&star.one.client(), &a, &a, &remote()).unwrap();
    assert_eq!(product.c.dtype(), DType::F16);
    assert_eq!(product.c.get(63, 0), Some(16.0));
}
