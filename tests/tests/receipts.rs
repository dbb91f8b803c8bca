//! Receipts of real sessions on a small model, with stages on processors and GPUs: `pangea receipts` lists, shows and verifies them
//! without any node, detects every change of a receipt and every lie of a stage, and a node's HTTP API serves them.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::path::{Path, PathBuf};

use libp2p::identity::Keypair;
use pangea_compute::commit::merkle::{chosen_leaf, nothing_leaf, row_leaf, token_leaves};
use pangea_compute::commit::{Claim, Leaf, Profile, merkle_root};
use pangea_compute::engine::{Input, Logits, Step};
use pangea_compute::gpu::{Gpu, GpuChoice};
use pangea_compute::model::{Manifest, ModelFile, ModelPart, NUMERICS};
use pangea_compute::sample::grammar::GrammarVocabulary;
use pangea_compute::sample::{AnswerFormat, Choice, Sampling, choose};
use pangea_compute::{Cancel, Digest, Engine, Pool};
use pangea_control::trust::Verdict;
use pangea_node::trust::{
    Audit, CommitChain, Expected, OpenedRows, Receipt, ReceiptModel, ReceiptStage, ReceiptStore, Received, Segment,
    ToldToken, terms_digest,
};
use pangea_tests::cluster::Cluster;
use pangea_tests::command::{json, pangea, stderr, stdout};
use pangea_tests::http::get;
use pangea_tests::skip;
use pangea_tests::tiny_model::TinyModel;
use serde_json::{Value, json};

const LAYERS: [Range<u32>; 2] = [0..1, 1..2];

/// A wrong output of a stage: index of the stage, and position.
type Lie = Option<(usize, usize)>;

/// A data directory with a model in it.
struct Home {
    folder: tempfile::TempDir,
    file: ModelFile,
    digest: Digest,
    stages: [Keypair; 2],
    coordinator: Keypair,
}

/// A request and its sampling terms.
#[derive(Clone)]
struct Asked {
    prompt: Vec<u32>,
    answer: usize,
    sampling: Sampling,
    form: AnswerFormat,
    /// What computes each stage.
    engines: [Engine; 2],
}

/// One thread of the processor.
fn cpu() -> Engine {
    Engine::from(Pool::new(1).unwrap())
}

/// A GPU, software where there is no other; says that `test` does not run where there is none.
fn gpu(test: &str) -> Option<Engine> {
    Gpu::open(GpuChoice::BestOrSoftware).map_err(|why| skip::skip(test, &why.to_string())).ok().map(Engine::Gpu)
}

impl Default for Asked {
    fn default() -> Asked {
        let sampling = Sampling { seed: 7, logprobs: Some(2), repetition_penalty: 1.1, ..Sampling::default() };
        Asked {
            prompt: b"Tell me".iter().map(|byte| u32::from(*byte)).collect(),
            answer: 20,
            sampling,
            form: AnswerFormat::Text,
            engines: [cpu(), cpu()],
        }
    }
}

impl Home {
    fn new() -> Home {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        let path = folder.path().join("models/tiny.gguf");
        std::fs::write(&path, TinyModel::default().gguf()).unwrap();
        let file = ModelFile::open(path).unwrap();
        let digest = Manifest::of(file.gguf(), 1).unwrap().digest();
        let keypair = Keypair::generate_ed25519;
        Home { folder, file, digest, stages: [keypair(), keypair()], coordinator: keypair() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn peer(&self, stage: usize) -> String {
        self.stages[stage].public().to_peer_id().to_string()
    }

    /// Continues `tokens` (prompt and answer so far) over both stages until the answer is complete.
    fn segment(&self, asked: &Asked, tokens: &mut Vec<u32>, lie: Lie) -> Segment {
        let models = [0, 1].map(|stage| {
            let layers = LAYERS[stage].start as usize..LAYERS[stage].end as usize;
            asked.engines[stage].load(&self.file, ModelPart::of_layers(self.file.config(), layers)).unwrap()
        });
        let profiles = models.each_ref().map(|model| Profile::of(model.bits()).unwrap());
        let mut caches = models.each_ref().map(|model| model.cache(&model.page_budget(1 << 26)));
        let (mut values, mut told) = (Vec::new(), Vec::new());
        let mut grammar = asked.form.grammar(|| GrammarVocabulary::new(&self.file.tokenizer()?)).unwrap();
        let chosen_from = tokens.len() - 1;
        let positions = asked.prompt.len() + asked.answer - 1;
        let (mut rows, mut chosen): (Vec<Leaf>, Vec<Leaf>) = (Vec::new(), Vec::new());
        while caches[0].len() < positions {
            let next = caches[0].len()..tokens.len();
            let width = self.file.config().hidden_size;
            let step = Step { cache: &mut caches[0], rows: next.len(), logits: Logits::None };
            let output = models[0].forward(&mut [step], Input::Tokens(&tokens[next.clone()]), &Cancel::new()).unwrap();
            let mut activations = output.activations().to_vec();
            if let Some((0, position)) = lie.filter(|(_, position)| next.contains(position)) {
                let row = &mut activations[(position - next.start) * width..][..width];
                match profiles[0] {
                    Profile::Exact => pangea_node::fault::twist_row(row, 3),
                    Profile::Grid => row.rotate_left(width / 2),
                }
            }
            values.extend_from_slice(&activations);
            rows.extend(activations.chunks_exact(width).zip(next.start as u64..).map(|(row, at)| row_leaf(at, row)));
            let step = Step { cache: &mut caches[1], rows: next.len(), logits: Logits::Last };
            let mut output = models[1].forward(&mut [step], Input::Activations(&activations), &Cancel::new()).unwrap();
            chosen.extend((next.start..next.end - 1).map(|position| nothing_leaf(position as u64)));
            let allowed = grammar.as_mut().map(|grammar| grammar.mask().unwrap());
            let (prompt, answer) = tokens.split_at(asked.prompt.len());
            let mut choice: Choice =
                choose(&asked.sampling, prompt, answer, output.logits_mut(0), allowed.as_ref()).unwrap();
            if lie == Some((1, next.end - 1)) {
                choice.token = pangea_node::fault::twist_token(choice.token, 256, 5);
            }
            chosen.push(chosen_leaf(next.end as u64 - 1, &choice));
            told.push(ToldToken { token: choice.token, logprob: choice.logprob, top: choice.top.clone() });
            tokens.push(choice.token);
            if let Some(grammar) = &mut grammar {
                grammar.accept(choice.token).unwrap();
            }
        }
        let claim = |stage: usize, predecessor, output| Claim {
            profile: profiles[stage],
            session: [9; 16],
            epoch: 4,
            model: self.digest,
            numerics: NUMERICS,
            layers: LAYERS[stage].clone(),
            positions: positions as u64,
            chosen_from: chosen_from as u64,
            predecessor,
            sampling: terms_digest(asked.prompt.len() as u64, &asked.sampling, &asked.form, false),
            output,
        };
        let [input, between, end] =
            [merkle_root(&token_leaves(&tokens[..positions])), merkle_root(&rows), merkle_root(&chosen)];
        let mut chain = CommitChain::new();
        chain.pass(claim(0, input, between), &self.stages[0]).unwrap();
        let bytes = chain.encode();
        let mut chain = CommitChain::decode(&bytes).unwrap();
        chain.pass(claim(1, between, end), &self.stages[1]).unwrap();
        let stages: Vec<_> =
            (0..2).map(|stage| (self.stages[stage].public().to_peer_id(), LAYERS[stage].clone())).collect();
        let expected = Expected {
            session: [9; 16],
            epoch: 4,
            model: self.digest,
            numerics: NUMERICS,
            stages: &stages,
            positions: positions as u64,
            chosen_from: chosen_from as u64,
            sampling: terms_digest(asked.prompt.len() as u64, &asked.sampling, &asked.form, false),
            input,
            output: end,
        };
        chain.close(&expected, &self.coordinator).unwrap();
        Segment {
            session: [9; 16],
            epoch: 4,
            chosen_from: chosen_from as u64,
            scored: false,
            stages: (0..2)
                .map(|stage| ReceiptStage {
                    peer: self.peer(stage),
                    layers: [LAYERS[stage].start, LAYERS[stage].end],
                    profile: profiles[stage],
                })
                .collect(),
            claims: chain.links,
            ended: None,
            received: Some(Received { positions: positions as u64, root: end }),
            opened: match profiles[0] {
                Profile::Exact => Vec::new(),
                Profile::Grid => vec![OpenedRows { stage: 0, rows: values.into() }],
            },
            told: match profiles[1] {
                Profile::Grid if asked.sampling.logprobs.is_some() => told,
                _ => Vec::new(),
            },
        }
    }

    fn receipt(&self, asked: &Asked, lie: Lie) -> Receipt {
        let mut tokens = asked.prompt.clone();
        let segment = self.segment(asked, &mut tokens, lie);
        self.receipt_of(asked, &tokens, vec![segment])
    }

    fn receipt_of(&self, asked: &Asked, tokens: &[u32], segments: Vec<Segment>) -> Receipt {
        Receipt {
            version: 1,
            id: Receipt::new_id(),
            request: "chatcmpl-7".to_owned(),
            unix_ms: 1_790_000_000_000,
            coordinator: self.coordinator.public().to_peer_id().to_string(),
            model: ReceiptModel { name: "tiny".to_owned(), digest: self.digest, file: "tiny.gguf".to_owned() },
            numerics: NUMERICS,
            prompt_tokens: asked.prompt.clone(),
            answer_tokens: tokens[asked.prompt.len()..].to_vec(),
            sampling: (&asked.sampling).into(),
            form: asked.form.clone(),
            segments,
            verdict: Verdict::Unchecked,
            audits: Vec::new(),
        }
    }

    fn written(&self, name: &str, receipt: &Value) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, receipt.to_string()).unwrap();
        path
    }

    /// Result and exit code of verifying.
    fn verify(&self, receipt: &str) -> (Value, Option<i32>) {
        let data_dir = self.path().to_str().unwrap();
        let output = pangea(self.path(), &["receipts", "verify", receipt, "--data-dir", data_dir, "--json"]);
        let result = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| json!({"error": stderr(&output)}));
        (result, output.status.code())
    }
}

fn as_json(receipt: &Receipt) -> Value {
    serde_json::from_slice(&receipt.to_json().unwrap()).unwrap()
}

#[test]
fn an_honest_receipt_is_listed_shown_and_holds() {
    let home = Home::new();
    let mut receipt = home.receipt(&Asked::default(), None);
    receipt.audits =
        vec![Audit { segment: 0, stage: 1, by: home.peer(0), holds: true, position: None, unix_ms: 1_790_000_000_100 }];
    ReceiptStore::new(home.path()).put(&receipt).unwrap();
    let data_dir = home.path().to_str().unwrap();
    let run = |arguments: &[&str]| pangea(home.path(), &[arguments, &["--data-dir", data_dir]].concat());
    let listed = json(&run(&["receipts", "list", "--json"]));
    assert_eq!(listed[0]["id"], receipt.id.as_str());
    assert_eq!((&listed[0]["answer_tokens"], &listed[0]["verdict"]), (&json!(20), &json!("unchecked")));
    let shown = json(&run(&["receipts", "show", &receipt.id[..6], "--json"]));
    assert_eq!(shown, as_json(&receipt));
    let (found, code) = home.verify(&receipt.id);
    assert_eq!((code, &found["holds"]), (Some(0), &json!(true)), "{found}");
    assert_eq!(found["tokens"]["checked"], 20);
    assert_eq!(found["segments"][0]["stages"][1]["output"]["is"], "right");

    for arguments in
        [&["receipts", "list"][..], &["receipts", "show", &receipt.id], &["receipts", "verify", &receipt.id]]
    {
        let output = run(arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        let text = stdout(&output);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("tiny") || text.contains("holds"), "{text}");
    }
}

#[test]
fn a_lie_of_any_stage_is_found_and_the_stage_is_named() {
    let home = Home::new();
    let prompt = Asked::default().prompt.len();
    for (stage, position) in [(0, 0), (0, prompt + 3), (1, prompt - 1), (1, prompt + 11)] {
        let receipt = home.receipt(&Asked::default(), Some((stage, position)));
        ReceiptStore::new(home.path()).put(&receipt).unwrap();
        let (found, code) = home.verify(&receipt.id);
        assert_eq!(code, Some(4), "{found}");
        assert_eq!(found["holds"], false);
        let stages = &found["segments"][0]["stages"];
        assert_eq!(stages[stage]["output"]["is"], "wrong", "{found}");
        match stage {
            0 => assert_ne!(stages[1]["output"]["is"], "wrong", "it only followed: {found}"),
            _ => {
                assert_eq!(stages[0]["output"]["is"], "right");
                assert_eq!(stages[1]["output"]["position"], position);
                assert_eq!(found["tokens"]["wrong_at"], position + 1);
            }
        }
        // The signatures are valid: only the numbers are wrong.
        for check in ["signed", "received", "asked", "linked"] {
            assert!((0..2).all(|stage| stages[stage][check] == true), "{found}");
        }
        let data_dir = home.path().to_str().unwrap();
        let output = pangea(home.path(), &["receipts", "verify", &receipt.id, "--data-dir", data_dir]);
        assert_eq!(output.status.code(), Some(4));
        assert!(stdout(&output).contains(&home.peer(stage)), "{}", stdout(&output));
    }
}

/// Every order of processor and GPU, and two GPUs.
fn mixed(test: &str) -> Vec<[Engine; 2]> {
    let Some(gpu) = gpu(test) else { return Vec::new() };
    vec![[gpu.clone(), cpu()], [cpu(), gpu.clone()], [gpu.clone(), gpu]]
}

fn samplings() -> Vec<Sampling> {
    let drawn = Asked::default().sampling;
    vec![
        Sampling::greedy(),
        Sampling { logprobs: Some(3), ..Sampling::greedy() },
        Sampling { temperature: 1.5, ..drawn },
    ]
}

/// No honest node is ever accused, whatever its engine is.
#[test]
fn answers_of_processors_and_gpus_hold_within_what_their_bits_differ_by() {
    let home = Home::new();
    for engines in mixed("answers_of_processors_and_gpus_hold_within_what_their_bits_differ_by") {
        for (sampling, seed) in
            samplings().into_iter().flat_map(|sampling| (0..3).map(move |seed| (sampling.clone(), seed)))
        {
            let sampling = Sampling { seed, ..sampling };
            let asked = Asked { sampling, engines: engines.clone(), answer: 40, ..Asked::default() };
            let receipt = home.receipt(&asked, None);
            let path = home.written("mixed.json", &as_json(&receipt));
            let (found, code) = home.verify(path.to_str().unwrap());
            assert_eq!((code, &found["verdict"]), (Some(0), &json!("tolerance-checked")), "{found}");
            assert_eq!(found["tokens"]["checked"], 40, "{found}");
            let expected = |stage: usize| match (stage, &engines[stage]) {
                (_, Engine::Cpu(_)) => "right",
                (0, _) => "close",
                _ => "close-tokens",
            };
            for stage in 0..2 {
                let output = &found["segments"][0]["stages"][stage]["output"];
                assert_eq!(output["is"], expected(stage), "{found}");
                if let Some(difference) = output["difference"].as_f64() {
                    assert!(difference * 2.0 < output["allowed"].as_f64().unwrap(), "near to the bound: {found}");
                }
            }
        }
    }
}

#[test]
fn a_lie_of_a_stage_without_exact_bits_is_found_and_does_not_touch_the_others() {
    let home = Home::new();
    let test = "a_lie_of_a_stage_without_exact_bits_is_found_and_does_not_touch_the_others";
    let prompt = Asked::default().prompt.len();
    for engines in mixed(test) {
        for (stage, position) in [(0, prompt + 3), (1, prompt + 11)] {
            let asked = Asked { sampling: Sampling::greedy(), engines: engines.clone(), ..Asked::default() };
            let receipt = home.receipt(&asked, Some((stage, position)));
            let path = home.written("lie.json", &as_json(&receipt));
            let (found, code) = home.verify(path.to_str().unwrap());
            assert_eq!((code, &found["verdict"]), (Some(4), &json!("unchecked")), "{found}");
            let stages = &found["segments"][0]["stages"];
            assert_eq!(stages[stage]["output"]["is"], "wrong", "{found}");
            if stage == 1 {
                assert!(matches!(stages[0]["output"]["is"].as_str(), Some("right" | "close")), "{found}");
            }
            if matches!(engines[stage], Engine::Gpu(_)) {
                assert_eq!(stages[stage]["output"]["position"], position, "{found}");
            }
            assert!((0..2).all(|stage| stages[stage]["signed"] == true), "{found}");
        }
    }
}

#[test]
fn without_the_rows_that_were_signed_a_receipt_says_what_cannot_be_checked() {
    let home = Home::new();
    let test = "without_the_rows_that_were_signed_a_receipt_says_what_cannot_be_checked";
    let Some(gpu) = gpu(test) else { return };
    let asked = Asked { engines: [gpu.clone(), gpu], ..Asked::default() };
    let whole = home.receipt(&asked, None);
    let unopened = |change: &dyn Fn(&mut Receipt), expected: [&str; 2]| {
        let mut receipt = whole.clone();
        change(&mut receipt);
        let path = home.written("unopened.json", &as_json(&receipt));
        let (found, code) = home.verify(path.to_str().unwrap());
        assert_eq!((code, &found["verdict"]), (Some(4), &json!("unchecked")), "{found}");
        let stages = &found["segments"][0]["stages"];
        assert_eq!([0, 1].map(|stage| stages[stage]["output"]["is"].as_str().unwrap()), expected, "{found}");
        let data_dir = home.path().to_str().unwrap();
        let output = pangea(home.path(), &["receipts", "verify", path.to_str().unwrap(), "--data-dir", data_dir]);
        assert!(stdout(&output).contains("cannot be checked"), "{}", stdout(&output));
        assert!(stdout(&output).lines().all(|line| line.chars().count() <= 80), "{}", stdout(&output));
    };
    unopened(&|receipt| receipt.segments[0].opened.clear(), ["unopened", "unopened"]);
    // Rows that have not the signed root are none.
    let change_row = |receipt: &mut Receipt| {
        let mut rows = receipt.segments[0].opened[0].rows.to_vec();
        rows[5] += 1e-3;
        receipt.segments[0].opened[0].rows = rows.into();
    };
    unopened(&change_row, ["unopened", "unopened"]);
    let cut = |receipt: &mut Receipt| {
        let rows = receipt.segments[0].opened[0].rows[..16].into();
        receipt.segments[0].opened[0].rows = rows;
    };
    unopened(&cut, ["unopened", "unopened"]);
    // The log-probabilities that the last stage signed are not there, or others.
    unopened(&|receipt| receipt.segments[0].told.clear(), ["close", "unopened"]);
    unopened(&|receipt| receipt.segments[0].told[3].logprob = Some(-9.0), ["close", "unopened"]);
}

#[test]
fn any_change_of_computed_or_signed_values_is_detected() {
    let home = Home::new();
    let honest = as_json(&home.receipt(&Asked::default(), None));
    let flipped = |text: &Value| {
        let text = text.as_str().unwrap();
        let other = if text.starts_with('0') { "1" } else { "0" };
        json!(format!("{other}{}", &text[1..]))
    };
    let pointers = [
        "/prompt_tokens/0",
        "/answer_tokens/0",
        "/answer_tokens/19",
        "/sampling/seed",
        "/sampling/top_k",
        "/sampling/logprobs",
        "/coordinator",
        "/segments/0/session",
        "/segments/0/epoch",
        "/segments/0/chosen_from",
        "/segments/0/stages/0/peer",
        "/segments/0/claims/0/output",
        "/segments/0/claims/1/predecessor",
        "/segments/0/claims/1/sampling",
        "/segments/0/claims/0/positions",
        "/segments/0/claims/0/signed/signature",
        "/segments/0/claims/0/received/signature",
        "/segments/0/claims/1/received/signature",
        "/segments/0/claims/0/signed/peer",
    ];
    for pointer in pointers {
        let mut changed = honest.clone();
        let field = changed.pointer_mut(pointer).unwrap();
        *field = match &*field {
            Value::String(text) if text.starts_with("12D3") => {
                json!(Keypair::generate_ed25519().public().to_peer_id().to_string())
            }
            text @ Value::String(_) => flipped(text),
            number => json!(number.as_u64().unwrap() + 1),
        };
        let path = home.written("changed.json", &changed);
        let (found, code) = home.verify(path.to_str().unwrap());
        assert!(matches!(code, Some(4) | Some(2)) && found["holds"] != true, "{pointer}: {code:?} {found}");
    }
    let mut cut = honest.clone();
    cut["segments"][0]["claims"] = json!([]);
    let path = home.written("cut.json", &cut);
    assert_eq!(home.verify(path.to_str().unwrap()).1, Some(4));
    let mut empty = honest;
    empty["form"] = json!({"type": "json_object"});
    let path = home.written("form.json", &empty);
    assert_eq!(home.verify(path.to_str().unwrap()).1, Some(4));
}

#[test]
fn an_answer_with_a_schema_is_replayed_with_its_grammar() {
    let home = Home::new();
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]});
    let asked = Asked { form: AnswerFormat::JsonSchema(schema.to_string()), ..Asked::default() };
    let receipt = home.receipt(&asked, None);
    let text: Vec<u8> = receipt.answer_tokens.iter().map(|token| *token as u8).collect();
    assert!(text.starts_with(b"{"), "{text:?}");
    ReceiptStore::new(home.path()).put(&receipt).unwrap();
    let (found, code) = home.verify(&receipt.id);
    assert_eq!((code, &found["holds"]), (Some(0), &json!(true)), "{found}");
    // A token that the grammar forbids.
    let mut other = receipt;
    other.answer_tokens[0] = u32::from(b'[');
    let path = home.written("other.json", &as_json(&other));
    let (found, code) = home.verify(path.to_str().unwrap());
    assert_eq!((code, &found["tokens"]["wrong_at"]), (Some(4), &json!(asked.prompt.len())), "{found}");
}

#[test]
fn after_a_failover_both_parts_are_checked() {
    let home = Home::new();
    let asked = Asked::default();
    let whole = home.receipt(&asked, None);
    let prompt = asked.prompt.len();
    // Eight tokens came from stages that died without signing.
    let mut tokens = [&asked.prompt[..], &whole.answer_tokens[..8]].concat();
    let eight = home.segment(&Asked { answer: 8, ..asked.clone() }, &mut asked.prompt.clone(), None);
    let died = Segment { claims: Vec::new(), ended: Some("peer 12D3 is gone".to_owned()), ..eight };
    let went_on = home.segment(&asked, &mut tokens, None);
    assert_eq!(went_on.chosen_from as usize, prompt + 7);
    let receipt = home.receipt_of(&asked, &tokens, vec![died.clone(), went_on]);
    assert_eq!(receipt.answer_tokens, whole.answer_tokens);
    let path = home.written("whole.json", &as_json(&receipt));
    let (found, code) = home.verify(path.to_str().unwrap());
    assert_eq!((code, &found["holds"]), (Some(0), &json!(true)), "{found}");
    assert_eq!(found["segments"][0]["received"], true, "{found}");
    // Nobody signed what the dead stages said of their tokens' probabilities, and a lie about them is found all the same.
    let mut lied = receipt.clone();
    lied.segments[0].received.as_mut().unwrap().root[0] ^= 1;
    let path = home.written("probabilities.json", &as_json(&lied));
    let (found, code) = home.verify(path.to_str().unwrap());
    assert_eq!((code, &found["segments"][0]["received"]), (Some(4), &json!(false)), "{found}");
    // Receipts of earlier versions do not say what was received.
    let mut earlier = as_json(&receipt);
    for segment in earlier["segments"].as_array_mut().unwrap() {
        segment.as_object_mut().unwrap().remove("received");
    }
    let path = home.written("earlier.json", &earlier);
    assert_eq!(home.verify(path.to_str().unwrap()).1, Some(0));
    // Token numbers are counted from the start of the answer.
    ReceiptStore::new(home.path()).put(&receipt).unwrap();
    let data_dir = home.path().to_str().unwrap();
    let shown = stdout(&pangea(home.path(), &["receipts", "show", &receipt.id, "--data-dir", data_dir]));
    let (first, second) = shown.split_once("The segment ended early: peer 12D3 is gone.").unwrap();
    assert!(first.contains("From token 1 of the answer on:"), "{shown}");
    assert!(second.contains("From token 9 of the answer on:"), "{shown}");

    // The dead stages lied in their third token: nobody signed it, and the lie is still found.
    let mut tokens = [&asked.prompt[..], &whole.answer_tokens[..8]].concat();
    tokens[prompt + 2] ^= 1;
    let went_on = home.segment(&asked, &mut tokens, None);
    let receipt = home.receipt_of(&asked, &tokens, vec![died, went_on]);
    let path = home.written("half.json", &as_json(&receipt));
    let (found, code) = home.verify(path.to_str().unwrap());
    assert_eq!((code, &found["tokens"]["wrong_at"]), (Some(4), &json!(prompt + 2)), "{found}");
    assert_eq!(found["segments"][1]["stages"][1]["output"]["is"], "right", "{found}");
}

#[test]
fn an_unverifiable_receipt_is_an_error_and_no_accusation() {
    let home = Home::new();
    let receipt = home.receipt(&Asked::default(), None);
    let data_dir = home.path().to_str().unwrap();
    let path = home.written("receipt.json", &as_json(&receipt));
    let path = path.to_str().unwrap();
    let run = |arguments: &[&str]| {
        pangea(home.path(), &[&["receipts", "verify"], arguments, &["--data-dir", data_dir]].concat())
    };
    let other = home.path().join("other.gguf");
    std::fs::write(&other, TinyModel { seed: 2, ..TinyModel::default() }.gguf()).unwrap();
    std::fs::write(home.path().join("broken.json"), "{").unwrap();
    for (arguments, said) in [
        (&[path, "--model", other.to_str().unwrap()][..], "is not the receipt's model"),
        (&[path, "--model", "nothing"], "no model nothing"),
        (&["0123"], "no receipts in"),
        (&["none.json"], "none.json does not exist"),
        (&["broken.json"], "not a receipt"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
    }
    std::fs::rename(home.path().join("models/tiny.gguf"), home.path().join("moved.gguf")).unwrap();
    let output = run(&[path]);
    assert!(output.status.code() == Some(2) && stderr(&output).contains("--model"), "{}", stderr(&output));
    ReceiptStore::new(home.path()).put(&receipt).unwrap();
    for command in ["show", "verify"] {
        let output = pangea(home.path(), &["receipts", command, "0123", "--data-dir", data_dir]);
        let list = format!("see `pangea receipts list --data-dir {data_dir}`");
        assert!(output.status.code() == Some(2) && stderr(&output).contains(&list), "{}", stderr(&output));
    }
    let moved = home.path().join("moved.gguf");
    assert!(run(&[path, "--model", moved.to_str().unwrap()]).status.success());
}

#[test]
fn a_node_serves_its_receipts() {
    let home = Home::new();
    let receipt = home.receipt(&Asked::default(), None);
    let cluster = Cluster::new();
    let node = cluster.node("one").start();
    assert_eq!(get(&node.api, "/api/receipts").json(), json!({"receipts": []}));
    ReceiptStore::new(&node.data_dir).put(&receipt).unwrap();
    let listed = get(&node.api, "/api/receipts").json();
    assert_eq!(listed["receipts"][0]["id"], receipt.id.as_str());
    let one = get(&node.api, &format!("/api/receipts/{}", receipt.id)).json();
    assert_eq!(one, as_json(&receipt));
    let none = get(&node.api, "/api/receipts/ffffffffffff");
    assert_eq!(none.status, 404);
    assert_eq!(none.json()["error"]["kind"], "NotFound");
}

#[test]
fn an_answer_that_its_last_stage_did_not_sign_does_not_hold() {
    let home = Home::new();
    for lie in [None, Some((1, Asked::default().prompt.len() + 3))] {
        let mut receipt = home.receipt(&Asked::default(), lie);
        receipt.segments[0].claims.pop();
        receipt.segments[0].ended = Some("it did not sign a claim".to_owned());
        let path = home.written("unsigned.json", &as_json(&receipt));
        let (found, code) = home.verify(path.to_str().unwrap());
        assert_eq!((code, &found["holds"]), (Some(4), &json!(false)), "{found}");
        // What was received is compared with the model, signed or not.
        assert_eq!(found["segments"][0]["received"], lie.is_none(), "{found}");
        assert_eq!(found["segments"][0]["stages"][0]["output"]["is"], "right", "{found}");
        assert_eq!(found["segments"][0]["stages"][1]["output"]["is"], "unclaimed", "{found}");
    }
}
