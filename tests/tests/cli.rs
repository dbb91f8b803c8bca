//! The binary `pangea` as one process: refusals, exit codes, JSON, file formats, local runs.
//! The cluster tests cover several nodes.

#![allow(clippy::unwrap_used)] // The functions beside the tests are tests too.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use pangea_tests::cluster::binary;
use pangea_tests::command::{command, json, names_in, pangea, stderr, stdout};
use pangea_tests::http::get;
use pangea_tests::process::Process;
use pangea_tests::skip::skip;

/// An address without a listener: port 1 needs privileges, and no service uses it.
const NOBODY: &str = "127.0.0.1:1";

fn golden(name: &str) -> String {
    format!("{}/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn bad_input_is_refused_with_a_sentence_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let good = fs::read(golden("product_f32.npy")).unwrap();
    fs::write(path.join("short.npy"), &good[..good.len() - 3]).unwrap();
    fs::write(path.join("header.npy"), &good[..40]).unwrap();
    fs::write(path.join("noise.npy"), [0x93u8; 300]).unwrap();
    fs::write(path.join("huge.npy"), hostile_header()).unwrap();
    fs::write(path.join("ragged.csv"), "1,2,3\n4,5\n").unwrap();
    fs::write(path.join("words.csv"), "x,y,z\n1,2,3\n").unwrap();
    fs::write(path.join("strings.json"), "[[1, \"2\", 3]]").unwrap();
    fs::write(path.join("broken.json"), "[[1, 2").unwrap();
    fs::write(path.join("numbers.txt"), "1").unwrap();
    fs::write(path.join("fraction.csv"), "0.5,1,2\n").unwrap();
    fs::create_dir(path.join("folder.npy")).unwrap();
    let before = names_in(path);
    let b = golden("b_i8.npy");
    // The left operand, and text that the error must contain.
    for (a, said) in [
        (golden("b_i8.npy").as_str(), "A is 3 x 4 and B is 3 x 4"),
        (golden("three_dimensions.npy").as_str(), "3 dimensions"),
        (golden("vector.npy").as_str(), "reshape"),
        (golden("unsigned.npy").as_str(), "int8"),
        (golden("complex.npy").as_str(), "complex"),
        (golden("product_i32.npy").as_str(), "int32 operands are not supported"),
        ("missing.npy", "the file does not exist"),
        ("folder.npy", "not a regular file"),
        ("short.npy", "truncated"),
        ("header.npy", "short.npy|header"),
        ("noise.npy", "not a .npy file"),
        ("huge.npy", "larger than any file"),
        ("ragged.csv", "line 2, column 3"),
        ("words.csv", "line 1, column 1"),
        ("strings.json", "row 1, column 2"),
        ("broken.json", "line 1"),
        ("numbers.txt", ".npy, .csv or .json"),
    ] {
        let output = pangea(path, &["matmul", a, &b, "-o", "c.npy", "--json"]);
        assert_eq!(output.status.code(), Some(2), "{a}: {}", stderr(&output));
        assert!(said.split('|').any(|said| stderr(&output).contains(said)), "{a}: {}", stderr(&output));
        assert!(stderr(&output).lines().count() == 1 && stdout(&output).is_empty(), "{a}: {}", stderr(&output));
        assert_eq!(names_in(path), before, "{a}");
    }
    let output = pangea(path, &["matmul", "fraction.csv", &b, "-o", "c.npy", "--dtype", "i8"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot hold exactly"), "{}", stderr(&output));
}

/// A header that claims more elements than any file can hold.
fn hostile_header() -> Vec<u8> {
    let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4611686018427387904), }";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((dict.len() as u16 + 1).to_le_bytes());
    bytes.extend(dict.as_bytes());
    bytes.push(b'\n');
    bytes
}

#[test]
fn a_product_that_cannot_be_written_is_refused_before_it_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::copy(golden("b_i8.npy"), path.join("b.npy")).unwrap();
    fs::create_dir(path.join("folder.npy")).unwrap();
    let a = golden("a_i8.npy");
    for (output, said) in [
        ("nowhere/c.npy", "does not exist"),
        ("c.txt", ".npy, .csv or .json"),
        ("folder.npy", "is a folder"),
        ("b.npy", "the product would replace it"),
        ("./b.npy", "the product would replace it"),
    ] {
        let result = pangea(path, &["matmul", &a, "b.npy", "-o", output]);
        assert_eq!(result.status.code(), Some(2), "{output}: {}", stderr(&result));
        assert!(stderr(&result).contains(said), "{output}: {}", stderr(&result));
        assert!(!stderr(&result).contains("multiplying"), "{output} was noticed only after starting to work");
    }
    assert_eq!(names_in(path), ["b.npy", "folder.npy"]);
    assert_eq!(fs::read(path.join("b.npy")).unwrap(), fs::read(golden("b_i8.npy")).unwrap());
}

#[test]
fn every_order_type_and_form_gives_numpys_product() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let product = |name: &str| fs::read(golden(name)).unwrap();
    for (a, b, expected) in [
        ("a_f32_fortran.npy", "b_f32_big_endian.npy", "product_f32.npy"),
        ("a_f64_big_endian_fortran.npy", "b_f16.npy", "product_f64.npy"),
        ("a_i8.npy", "b_i8.npy", "product_i32.npy"),
        ("a_f32_fortran.npy", "b_i8.npy", "product_f32.npy"),
    ] {
        let output = pangea(path, &["matmul", &golden(a), &golden(b), "-o", "c.npy", "-q"]);
        assert!(output.status.success(), "{a} · {b}: {}", stderr(&output));
        assert_eq!(fs::read(path.join("c.npy")).unwrap(), product(expected), "{a} · {b}");
        assert!(output.stdout.is_empty());
    }
    // Converted to text and back: .npy → .csv, .json → .npy.
    let identity = "[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]";
    fs::write(path.join("one.json"), identity).unwrap();
    for (a, b, c) in [
        (golden("product_f64.npy").as_str(), "one.json", "c.csv"),
        ("c.csv", "one.json", "c.json"),
        ("c.json", "one.json", "back.npy"),
    ] {
        let output = pangea(path, &["matmul", a, b, "-o", c, "-q"]);
        assert!(output.status.success(), "{a}: {}", stderr(&output));
    }
    assert_eq!(fs::read(path.join("back.npy")).unwrap(), product("product_f64.npy"));
    let output = pangea(path, &["matmul", "c.csv", "one.json", "-o", "c8.csv", "--dtype", "i8", "-q"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let whole = fs::read_to_string(path.join("c.csv")).unwrap().replace(".0", "");
    assert_eq!(fs::read_to_string(path.join("c8.csv")).unwrap(), whole);
}

#[test]
fn nan_is_written_to_formats_that_support_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("a.csv"), "nan,1\n1,inf\n").unwrap();
    fs::write(path.join("b.csv"), "1\n1\n").unwrap();
    let output = pangea(path, &["matmul", "a.csv", "b.csv", "-o", "c.csv", "-q", "--verify"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(path.join("c.csv")).unwrap(), "nan\ninf\n");
    let output = pangea(path, &["matmul", "a.csv", "b.csv", "-o", "c.json", "-q"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(names_in(path), ["a.csv", "b.csv", "c.csv"]);
}

#[test]
fn empty_and_single_dimensions_work() {
    let folder = tempfile::tempdir().unwrap();
    for (shape, size) in [("0x3x4", 0), ("3x0x4", 48), ("3x4x0", 0), ("1x1x1", 4), ("1x1000x1", 4), ("7x1x9", 252)] {
        let output = pangea(folder.path(), &["matmul", "--shape", shape, "--generate", "-o", "c.npy", "--json"]);
        let report = json(&output);
        let expected: Vec<u64> = shape.split('x').map(|side| side.parse().unwrap()).collect();
        assert_eq!(report["shape"], serde_json::json!(expected));
        assert_eq!(fs::metadata(folder.path().join("c.npy")).unwrap().len(), 128 + size, "{shape}");
    }
}

#[test]
fn without_a_node_matmul_runs_locally_with_a_note_and_a_full_report() {
    let folder = tempfile::tempdir().unwrap();
    // If a node runs on the default address of the machine that tests, it computes the product.
    let nobody_there = std::net::TcpListener::bind("127.0.0.1:8080").is_ok();
    let output =
        pangea(folder.path(), &["matmul", "--size", "64", "--generate", "--dtype", "i8", "--verify", "--json"]);
    let report = json(&output);
    assert_eq!(report["shape"], serde_json::json!([64, 64, 64]));
    assert_eq!(report["dtype"], "i32");
    for field in ["seconds", "gflops", "bytes_sent", "bytes_received"] {
        assert!(report[field].is_number(), "{field}: {report}");
    }
    for field in ["total", "remote", "local", "retried", "hedged"] {
        assert!(report["tasks"][field].is_u64(), "{field}: {report}");
    }
    for field in ["peer", "tasks", "seconds"] {
        assert!(!report["workers"][0][field].is_null(), "{field}: {report}");
    }
    assert!(report["verification"]["method"].is_string() && report["verification"]["verdict"].is_string(), "{report}");
    if nobody_there {
        assert!(stderr(&output).contains("No node runs at 127.0.0.1:8080"), "{}", stderr(&output));
        assert_eq!(report["mode"], "local");
        assert_eq!(report["tasks"]["remote"], 0);
    }
}

#[test]
fn the_same_seed_gives_the_same_product_and_another_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let product = |seed: &str| {
        let output = pangea(
            folder.path(),
            &["matmul", "--size", "50", "--generate", "--dtype", "i8", "--seed", seed, "-o", "c.npy", "-q"],
        );
        assert!(output.status.success(), "{}", stderr(&output));
        fs::read(folder.path().join("c.npy")).unwrap()
    };
    assert_eq!(product("7"), product("7"));
    assert_ne!(product("7"), product("8"));
}

#[test]
fn a_product_larger_than_memory_is_the_same_as_one_that_fits() {
    let folder = tempfile::tempdir().unwrap();
    let product = |more: &[&str]| {
        let mut arguments =
            vec!["matmul", "--shape", "1500x2000x1700", "--generate", "--dtype", "i8", "-o", "c.npy", "--json"];
        arguments.extend(more);
        let report = json(&pangea(folder.path(), &arguments));
        (report["blocks"].as_u64().unwrap(), fs::read(folder.path().join("c.npy")).unwrap())
    };
    let (whole_blocks, whole) = product(&[]);
    let (blocks, streamed) = product(&["--max-memory", "16M"]);
    assert_eq!(whole_blocks, 1);
    assert!(blocks > 1, "{blocks}");
    assert!(whole == streamed);
    // Files in every order give the same result.
    let file = |name: &str, fortran: bool| {
        let (rows, cols) = (1400u32, 1500u32);
        let mut header = format!(
            "{{'descr': '|i1', 'fortran_order': {}, 'shape': ({rows}, {cols}), }}",
            if fortran { "True" } else { "False" }
        );
        header.push_str(&" ".repeat(128 - 10 - 1 - header.len()));
        let mut out = fs::File::create(folder.path().join(name)).unwrap();
        out.write_all(b"\x93NUMPY\x01\x00\x76\x00").unwrap();
        out.write_all(header.as_bytes()).unwrap();
        let element = |row: u32, col: u32| (row.wrapping_mul(31).wrapping_add(col * 17) % 251) as u8;
        let mut bytes = vec![b'\n'];
        match fortran {
            false => bytes.extend((0..rows).flat_map(|row| (0..cols).map(move |col| element(row, col)))),
            true => bytes.extend((0..cols).flat_map(|col| (0..rows).map(move |row| element(row, col)))),
        }
        out.write_all(&bytes).unwrap();
    };
    file("rows.npy", false);
    file("columns.npy", true);
    let other = "shape.npy";
    let generated =
        pangea(folder.path(), &["matmul", "--shape", "1500x1x1400", "--generate", "--dtype", "f32", "-o", other, "-q"]);
    assert!(generated.status.success(), "{}", stderr(&generated));
    let product = |a: &str, memory: &str| {
        let report = json(&pangea(
            folder.path(),
            &["matmul", a, other, "-o", "p.npy", "--dtype", "f64", "--max-memory", memory, "--json"],
        ));
        assert_eq!(report["blocks"].as_u64().unwrap() > 1, memory == "16M");
        fs::read(folder.path().join("p.npy")).unwrap()
    };
    let expected = elements(&product("rows.npy", "1G"));
    for (a, memory) in [("columns.npy", "1G"), ("rows.npy", "16M"), ("columns.npy", "16M")] {
        let got = elements(&product(a, memory));
        assert_eq!(got.len(), expected.len());
        let most = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f64::max);
        assert!(most < 1e-7, "{a}, {memory}: {most}");
    }
}

#[test]
fn a_product_too_large_for_any_memory_is_refused_before_allocation() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, said) in [
        ("--size 10000000", "need 1091 TiB"),
        ("--size 1000000 --max-memory 500M", "need 10.9 TiB; 500 MiB free"),
        ("--shape 3000000x1000x3000000 -o c.npy", "the product needs 32.7 TiB on disk"),
        ("--size 70000 -o c.csv --max-memory 1G", "need 54.8 GiB; 1.00 GiB free"),
        ("--size 9223372036854775807", "no machine has"),
    ] {
        // The limit makes any larger allocation fail, which ends the process.
        let script = format!("ulimit -v 6291456; exec \"$0\" matmul {arguments}");
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]).arg(binary()).current_dir(folder.path()).env("HOME", folder.path());
        let output = shell.output().unwrap();
        let told = stderr(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments}: {:?} {told}", output.status);
        assert!(said.split('|').any(|said| told.contains(said)), "{arguments}: {told}");
        assert!(names_in(folder.path()).is_empty(), "{arguments}: {:?}", names_in(folder.path()));
    }
}

#[test]
fn a_product_in_this_process_keeps_the_memory_limit() {
    let folder = tempfile::tempdir().unwrap();
    // Memory of the process without a product: code, threads, the measurement of its speed.
    let peak = |arguments: &[&str]| {
        let log = folder.path().join("log");
        let process = Process::start("matmul", command(folder.path(), arguments), &log);
        process.peak_memory_until_end()
    };
    let bare = peak(&["matmul", "--size", "4", "--max-memory", "256M"]);
    for size in ["5000", "7000"] {
        let with = peak(&["matmul", "--size", size, "--dtype", "f16", "--max-memory", "256M"]);
        assert!(with <= bare + (256 << 20), "{size}: {} MiB beside {} MiB", with >> 20, bare >> 20);
    }
}

/// The elements of an f64 `.npy` file with a 128-byte header.
fn elements(file: &[u8]) -> Vec<f64> {
    file[128..].chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    // A file size limit has the same effect as a full disk.
    let folder = tempfile::tempdir().unwrap();
    let script = "ulimit -f 64; trap '' XFSZ; exec \"$0\" matmul --size 512 --generate -o c.npy";
    let mut shell = Command::new("bash");
    shell.args(["-c", script]).arg(binary()).current_dir(folder.path()).env("HOME", folder.path());
    let output = shell.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(names_in(folder.path()).is_empty(), "{:?}", names_in(folder.path()));
}

#[test]
fn ctrl_c_stops_the_work_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    // Far more work than can be done before the signal arrives.
    let mut child =
        command(folder.path(), &["matmul", "--size", "20000", "--generate", "-o", "c.npy", "--max-memory", "64M"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    // The product's temporary file exists before the work starts.
    while names_in(folder.path()).is_empty() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(names_in(folder.path()).is_empty(), "{:?}", names_in(folder.path()));
}

#[test]
fn an_unreachable_named_node_is_exit_code_3() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["peers", "--json"][..],
        &["topology", "--json"],
        &["jobs", "--json"],
        &["status"],
        &["matmul", "--size", "4", "--generate"],
        &["bench", "matmul", "--size", "4"],
        &["bench", "net", "12D3KooW"],
    ] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--rpc", NOBODY]);
        let output = pangea(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(NOBODY) && output.stdout.is_empty(), "{arguments:?}: {}", stderr(&output));
    }
    let output = command(folder.path(), &["status"]).env("PANGEA_RPC", NOBODY).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

#[test]
fn errors_of_a_newcomer_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("a.csv"), "1,2,3\n").unwrap();
    fs::write(path.join("receipt.json"), "[1]").unwrap();
    for (arguments, code, advice) in [
        // No node, or not there.
        (&["status", "--rpc", NOBODY][..], 3, "start one there with `pangea node`"),
        (&["top", "--rpc", NOBODY], 2, "use `pangea status --json`"),
        (&["chat", "--api", NOBODY, "hi"], 3, "pangea node --model NAME"),
        (&["launch", "llm", "--api", NOBODY], 3, "pangea node --model NAME"),
        (&["status", "--rpc", "no..host:8080"], 3, "check its name"),
        (&["status", "--rpc", "localhost"], 2, "use HOST:PORT"),
        (&["status", "--rpc", "http://127.0.0.1:8080"], 2, "such as 127.0.0.1:8080"),
        (&["join", "12"], 2, "a PIN has six digits"),
        // Models and files that are not there.
        (&["chat", "--model", "nosuch", "hi"], 2, "`pangea models pull` downloads smollm2"),
        (&["chat", "--model", "nosuch.gguf", "hi"], 2, "`pangea models list`"),
        (&["models", "pull", "hf:foo"], 2, "hf:OWNER/REPO/FILE.gguf"),
        (&["perplexity", "smollm2", "missing.txt"], 2, "check the path"),
        (&["receipts", "show", "abc"], 2, "--data-dir"),
        (&["receipts", "verify", "missing.json"], 2, "pangea receipts list"),
        (&["receipts", "verify", "receipt.json"], 2, "pangea receipts show ID --json"),
        // Operands that do not fit.
        (&["matmul", "a.csv", "missing.csv", "-o", "c.csv"], 2, "check the path"),
        (&["matmul", "a.csv", "a.csv", "-o", "c.csv"], 2, "A needs as many columns as B has rows"),
        (&["matmul", "a.csv", "a.csv", "-o", "no/c.csv"], 2, "as many columns|create it first"),
        (&["matmul", "--size", "many"], 2, "use a whole number, such as 1024"),
        (&["man", "a.csv/man"], 1, "name another folder"),
        (&["keys", "revoke", "nobody"], 2, "`pangea keys list`"),
    ] {
        let output = pangea(path, arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(advice.split('|').any(|advice| said.contains(advice)), "{arguments:?} does not say {advice:?}: {said}");
        assert!(said.starts_with("error: ") && !said.contains("panicked"), "{arguments:?}: {said}");
    }
}

#[test]
fn bad_usage_is_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["frobnicate"][..],
        &["matmul"],
        &["matmul", "a.npy", "b.npy"],
        &["matmul", "--size", "-3", "--generate"],
        &["matmul", "--shape", "3x4", "--generate"],
        &["matmul", "--size", "4", "--dtype", "u8"],
        &["matmul", "--size", "4", "--deadline", "soon"],
        &["matmul", "--size", "4", "--redundancy", "0"],
        &["matmul", "--size", "4", "--rpc", "nonsense"],
        &["matmul", "--size", "4", "--peer", "192.168.1.20"],
        &["matmul", "--size", "4", "--max-memory", "lots"],
        &["matmul", "--size", "4", "-v", "-q"],
        &["node", "--listen", "/ip4/127.0.0.1"],
        &["node", "--threads", "0"],
        &["node", "--peers-file", "nowhere.json"],
        &["node", "--config", "nowhere.toml"],
        &["completions", "tcl"],
    ] {
        let output = pangea(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
        assert!(names_in(folder.path()).is_empty(), "{arguments:?}: {:?}", names_in(folder.path()));
    }
}

#[test]
fn a_bad_pool_key_is_exit_code_2_before_anything_is_created_or_bound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("short.key"), "abc123").unwrap();
    fs::write(path.join("words.key"), "not a key at all, whatever its length may be, 64 digits or more").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    for key in ["missing.key", "short.key", "words.key", "."] {
        // A port in use would give exit code 1: the key is checked first.
        let output = pangea(path, &["node", "--pool-key", key, "--data-dir", "home", "--rpc-addr", &taken.to_string()]);
        assert_eq!(output.status.code(), Some(2), "{key}: {}", stderr(&output));
        assert!(stderr(&output).contains("64 hex digits"), "{key}: {}", stderr(&output));
        assert!(!stderr(&output).contains("abc123"), "a key must never be shown");
        assert_eq!(names_in(path), ["short.key", "words.key"]);
    }
}

#[test]
fn an_invalid_configuration_is_exit_code_2_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    for (text, said) in [
        ("threads = 2\nthreds = 3\n", "config.toml:2:1"),
        ("max-memory = \"many\"\n", "config.toml:1:14"),
        ("listen = \n", "config.toml:1:"),
    ] {
        fs::write(home.join("config.toml"), text).unwrap();
        let output = pangea(folder.path(), &["node", "--data-dir", "home"]);
        assert_eq!(output.status.code(), Some(2), "{text}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{text}: {}", stderr(&output));
        assert_eq!(names_in(&home), ["config.toml"]);
    }
}

#[test]
fn help_is_complete_and_fits_80_columns() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &[][..],
        &["--help"],
        &["node", "--help"],
        &["demo", "--help"],
        &["matmul", "--help"],
        &["chat", "--help"],
        &["peers", "--help"],
        &["topology", "--help"],
        &["status", "--help"],
        &["jobs", "--help"],
        &["top", "--help"],
        &["keys", "--help"],
        &["keys", "create", "--help"],
        &["launch", "--help"],
        &["invite", "--help"],
        &["token", "--help"],
        &["join", "--help"],
        &["load", "--help"],
        &["drop", "--help"],
        &["members", "--help"],
        &["members", "list", "--help"],
        &["members", "accept", "--help"],
        &["members", "revoke", "--help"],
        &["bench", "matmul", "--help"],
        &["bench", "net", "--help"],
        &["bench", "llm", "--help"],
        &["models", "--help"],
        &["models", "list", "--help"],
        &["models", "pull", "--help"],
        &["models", "rm", "--help"],
        &["receipts", "--help"],
        &["receipts", "list", "--help"],
        &["receipts", "show", "--help"],
        &["receipts", "verify", "--help"],
        &["perplexity", "--help"],
        &["completions", "--help"],
    ] {
        let output = pangea(folder.path(), arguments);
        assert!(output.status.success(), "{arguments:?}");
        let text = stdout(&output);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{arguments:?}: {line}");
        }
        let name = [&["help"], arguments].concat().join("_").replace("_--help", "");
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn completions_are_scripts_that_name_the_commands() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = pangea(folder.path(), &["completions", shell]);
        assert!(output.status.success(), "{shell}");
        assert!(stdout(&output).contains("matmul") && output.stderr.is_empty(), "{shell}");
    }
}

#[test]
fn the_demo_multiplies_survives_a_kill_and_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path(), &["demo", "--json"]).env("TMPDIR", folder.path()).output().unwrap();
    let result = json(&output);
    assert_eq!(result["products"].as_array().unwrap().len(), 2, "{result}");
    for product in result["products"].as_array().unwrap() {
        assert!(product["tasks"]["remote"].as_u64().unwrap() > 0, "{product}");
        assert_eq!(product["verification"]["verdict"], "tolerance-checked");
    }
    assert!(result["products"][0]["killed"].is_null());
    assert!(result["products"][1]["killed"].is_string(), "{result}");
    assert!(result["answer"].is_null(), "there is no model: {result}");
    assert!(names_in(folder.path()).is_empty(), "{:?}", names_in(folder.path()));
    for node in result["nodes"].as_array().unwrap() {
        let pid = node["pid"].as_u64().unwrap();
        let alive = Command::new("kill").args(["-0", &pid.to_string()]).stderr(Stdio::null()).status().unwrap();
        assert!(!alive.success(), "{node} is still running");
    }
}

#[test]
fn a_demo_that_stays_shows_where_its_console_is_and_ends_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), &["demo", "--size", "512", "--stay"]);
    command.env("TMPDIR", folder.path()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut demo = command.spawn().unwrap();
    let mut text = String::new();
    let mut out = BufReader::new(demo.stdout.take().unwrap());
    while !text.contains("Ctrl-C ends") {
        assert!(out.read_line(&mut text).unwrap() > 0, "it ended: {text}");
    }
    let address = text.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap().to_owned();
    let page = get(&address, "/").text();
    assert!(page.contains("/console/app.js"), "{page}");
    let pool = get(&address, "/api/pangea/pool").json();
    assert_eq!(pool["nodes"].as_array().unwrap().len(), 2, "{pool}");
    let told = Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap();
    assert!(told.success());
    out.read_to_string(&mut text).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(0), "{text}");
    assert!(text.contains("nothing is left behind"), "{text}");
    assert!(names_in(folder.path()).is_empty(), "{:?}", names_in(folder.path()));
    assert!(std::net::TcpStream::connect(&address).is_err(), "a node is still running");
}

/// A folder with a program `systemctl` that writes its arguments into `calls` and succeeds.
fn with_systemctl(folder: &Path) -> Command {
    let programs = folder.join("programs");
    fs::create_dir_all(&programs).unwrap();
    let program = programs.join("systemctl");
    let script = format!("#!/bin/sh\necho \"$*\" >> '{}'\n", folder.join("calls").display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = command(folder, &["service"]);
    command.env("PATH", programs);
    command
}

#[test]
#[cfg(target_os = "linux")]
fn a_service_is_written_started_and_removed_and_its_arguments_are_checked_first() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join(".config/systemd/user/pangea.service");
    let calls = || fs::read_to_string(folder.path().join("calls")).unwrap_or_default();
    let refused = with_systemctl(folder.path()).args(["install", "--", "--threads", "0"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("1 to 4096") && !unit.exists() && calls().is_empty(), "{}", stderr(&refused));
    let twice = with_systemctl(folder.path()).args(["install", "--", "--log-format", "text"]).output().unwrap();
    assert_eq!((twice.status.code(), unit.exists()), (Some(2), false), "{}", stderr(&twice));
    let missing = with_systemctl(folder.path()).arg("uninstall").output().unwrap();
    assert!(
        missing.status.code() == Some(1) && stderr(&missing).contains("there is no service"),
        "{}",
        stderr(&missing)
    );

    let installed = with_systemctl(folder.path()).args(["install", "--", "--name", "a \"b\" $c %d"]).output().unwrap();
    assert!(installed.status.success(), "{}", stderr(&installed));
    let text = fs::read_to_string(&unit).unwrap();
    assert!(text.contains(r#""--name" "a \"b\" $$c %%d""#), "{text}");
    assert_eq!(calls(), "--user daemon-reload\n--user enable --now pangea.service\n");
    assert!(stdout(&installed).contains("journalctl --user -u pangea"), "{}", stdout(&installed));
    let status = with_systemctl(folder.path()).arg("status").output().unwrap();
    assert!(status.status.success(), "{}", stderr(&status));
    let removed = with_systemctl(folder.path()).arg("uninstall").output().unwrap();
    assert!(removed.status.success() && !unit.exists(), "{}", stderr(&removed));
    assert!(calls().ends_with("--user disable --now pangea.service\n--user daemon-reload\n"), "{}", calls());
    let without = command(folder.path(), &["service", "install"]).env("PATH", "/nowhere").output().unwrap();
    assert!(stderr(&without).contains("cannot run systemctl"), "{}", stderr(&without));
}

#[test]
#[cfg(target_os = "linux")]
fn systemd_accepts_both_units() {
    let test = "systemd_accepts_both_units";
    if !Command::new("systemd-analyze").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip(test, "systemd-analyze is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["service", "install", "--dry-run"][..], &["service", "install", "--system", "--dry-run"]] {
        let output = pangea(folder.path(), arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        let unit = folder.path().join("pangea.service");
        fs::write(&unit, &output.stdout).unwrap();
        let checked = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(&unit)
            .output()
            .unwrap();
        let said = format!("{}{}", stdout(&checked), stderr(&checked));
        assert!(checked.status.success() && !said.contains("pangea.service"), "{said}\n{}", stdout(&output));
    }
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let output = pangea(folder.path(), &["man", pages.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let names = names_in(&pages);
    for wanted in ["pangea.1", "pangea-node.1", "pangea-models-pull.1", "pangea-doctor.1", "pangea-top.1"] {
        assert!(names.iter().any(|name| name == wanted), "{wanted} in {names:?}");
    }
    let page = fs::read_to_string(pages.join("pangea-node.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("device"), "{page}");
}
