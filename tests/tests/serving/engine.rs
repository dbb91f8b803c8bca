//! The engine without a node: drafts, the model's own memory limits and a reader that disconnects change no answer.

use std::time::Duration;

use pangea_client::ErrorKind;
use pangea_compute::sample::Sampling;
use pangea_node::devices::{Devices, Kind};
use pangea_node::serve::{Draft, Drafts, Engine, EngineSettings, Event, Prompt, Request, Summary};

use pangea_tests::process::TIMEOUT;
use pangea_tests::test_model::GEMMA3;
use pangea_tests::tiny_model::TinyModel;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::*;

/// Memory for a few long sessions.
const SESSION_BYTES: u64 = 512 << 20;

fn engine(test: &str, drafts: Drafts) -> Option<Engine> {
    let file = file_of(SMOLLM2, test)?;
    let settings = EngineSettings { drafts, ..EngineSettings::new(SESSION_BYTES) };
    Some(Engine::load("model", &file, &Devices::new(1 << 30, 2), settings, None).unwrap())
}

fn generate(engine: &Engine, request: Request) -> (String, Vec<u32>, Summary) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut generation = engine.generate(request).await.unwrap();
        let (mut text, mut tokens) = (String::new(), Vec::new());
        loop {
            let event = tokio::time::timeout(TIMEOUT, generation.next()).await;
            match event.expect("the engine goes on").unwrap().unwrap() {
                Event::Prefill(_) | Event::Prompt(_) => {}
                Event::Delta(delta) => {
                    text.push_str(&delta.text);
                    tokens.extend(delta.tokens);
                }
                Event::Done(summary) => return (text, tokens, summary),
            }
        }
    })
}

/// A prompt whose continuation repeats it.
fn repetitive(sampling: Sampling) -> Request {
    let text = "one two three four five six seven eight nine ten\n".repeat(6);
    Request { sampling, max_tokens: Some(120), ..Request::new(Prompt::Text(text)) }
}

#[test]
fn drafts_change_when_tokens_arrive_but_not_which() {
    let Some(with) = engine("drafts_change_when", Drafts::Eager) else { return };
    let Some(without) = engine("drafts_change_when", Drafts::Off) else { return };
    let mut accepted = 0;
    for sampling in [
        Sampling::greedy(),
        Sampling { temperature: 0.7, seed: 3, ..Sampling::default() },
        Sampling { temperature: 1.5, seed: 4, repetition_penalty: 1.1, ..Sampling::default() },
    ] {
        let (text, tokens, summary) = generate(&with, repetitive(sampling.clone()));
        let (plain_text, plain_tokens, plain) = generate(&without, repetitive(sampling));
        assert_eq!((text, tokens), (plain_text, plain_tokens));
        assert_eq!(plain.drafted_tokens, 0);
        assert!(summary.accepted_tokens <= summary.drafted_tokens);
        accepted += summary.accepted_tokens;
    }
    assert!(accepted > 20, "only {accepted} drafted tokens were right: the test shows little");
}

/// The model drafts for itself: greedily, everything that it guesses is right.
#[test]
fn a_model_that_drafts_changes_when_tokens_arrive_but_not_which() {
    let Some(file) = file_of(SMOLLM2, "a_model_that_drafts") else { return };
    let Some(without) = engine("a_model_that_drafts", Drafts::Off) else { return };
    let devices = Devices::new(2 << 30, 2);
    let folder = file.parent().unwrap();
    let draft = Draft::load(file.to_str().unwrap(), folder, &devices).unwrap();
    let settings = EngineSettings { drafts: Drafts::Eager, ..EngineSettings::new(SESSION_BYTES) };
    let with = Engine::load("model", &file, &devices, settings, Some(&draft)).unwrap();
    let request = |sampling: Sampling| Request {
        sampling,
        max_tokens: Some(100),
        ..Request::new(Prompt::Text("The lighthouse keeper wrote in his diary that".to_owned()))
    };
    for (sampling, share) in [
        (Sampling::greedy(), 0.9),
        (Sampling { temperature: 0.8, seed: 3, ..Sampling::default() }, 0.02),
        (Sampling { temperature: 1.5, seed: 4, repetition_penalty: 1.1, ..Sampling::default() }, 0.0),
    ] {
        let (text, tokens, summary) = generate(&with, request(sampling.clone()));
        let (plain_text, plain_tokens, _) = generate(&without, request(sampling));
        assert_eq!((text, tokens), (plain_text, plain_tokens));
        let (drafted, accepted) = (summary.drafted_tokens, summary.accepted_tokens);
        assert!(drafted > 10 && accepted as f64 >= share * drafted as f64, "{accepted} of {drafted}");
    }
    let other = file_of(GEMMA3, "a_model_of_another_vocabulary");
    if let Some(other) = other {
        let other = Draft::load(other.to_str().unwrap(), folder, &devices).unwrap();
        let refused = Engine::load("model", &file, &devices, settings, Some(&other)).map(drop).unwrap_err();
        assert!(refused.kind() == ErrorKind::InvalidInput && refused.message().contains("vocabularies"), "{refused}");
    }
    let missing = Draft::load("nonesuch", folder, &devices).map(drop).unwrap_err();
    assert!(missing.kind() == ErrorKind::NotFound && missing.message().contains("which is to draft"), "{missing}");
}

#[test]
fn an_answer_ends_at_the_end_of_the_context() {
    let Some(file) = file_of(SMOLLM2, "an_answer_ends_where") else { return };
    // Memory for about a hundred tokens, fewer than the model's context.
    let engine = Engine::load("model", &file, &Devices::new(1 << 30, 2), EngineSettings::new(4 << 20), None).unwrap();
    let context = engine.model().context;
    assert!(context < 8192);
    let sampling = Sampling { logit_bias: vec![(2, -100.0)], ..Sampling::greedy() };
    let request = Request { sampling, ..Request::new(Prompt::Text("Once upon a time".to_owned())) };
    let (_, tokens, summary) = generate(&engine, request);
    assert_eq!(summary.prompt_tokens + tokens.len(), context);
}

/// Value of an engine's counter.
fn counted(engine: &Engine, name: &str) -> u64 {
    struct Counts(Engine);

    impl std::fmt::Debug for Counts {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Counts")
        }
    }

    impl Collector for Counts {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
            self.0.encode_metrics(&mut encoder)
        }
    }

    let mut registry = Registry::default();
    registry.register_collector(Box::new(Counts(engine.clone())));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name}_total{{")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_request_that_fails_at_a_stage_of_its_own_node_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    std::fs::write(&file, TinyModel::default().gguf()).unwrap();
    // No request may wait at all, so that the stage fails each one.
    let settings = EngineSettings { wait: Duration::ZERO, ..EngineSettings::new(8 << 20) };
    let engine = Engine::load("tiny", &file, &Devices::new(1 << 30, 1), settings, None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let request = Request { choices: 2, ..Request::new(Prompt::Text("once".to_owned())) };
        let mut generation = engine.generate(request).await.unwrap();
        let failed = tokio::time::timeout(TIMEOUT, generation.next()).await.unwrap().unwrap().unwrap_err();
        assert!(failed.message().contains("waited too long"), "{failed}");
        assert!(generation.next().await.is_none());
    });
    assert_eq!(counted(&engine, "requests_failed"), 1);
    assert_eq!(counted(&engine, "requests_cancelled"), 0);
}

#[test]
fn a_load_without_memory_for_reordering_rows_is_refused_with_the_numbers() {
    const LIMIT: u64 = 16 << 20;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    std::fs::write(&file, TinyModel::default().gguf()).unwrap();
    let settings = EngineSettings::new(4 << 20);
    let devices = Devices::new(LIMIT, 1);
    let engine = Engine::load("tiny", &file, &devices, settings, None).unwrap();
    // A loaded model holds its weights and the memory for its sessions.
    let loaded = engine.model().memory_bytes + (4 << 20);
    assert_eq!(devices.held(), loaded);
    let devices = Devices::new(LIMIT, 1);
    let products = devices.lease(Kind::Tensors, LIMIT - loaded).unwrap();
    let refused = Engine::load("tiny", &file, &devices, settings, None).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(refused.message().contains("needs 4.00 KiB; 0 B free of 16.0 MiB"), "{refused}");
    assert_eq!(devices.held(), products.bytes(), "a refused load keeps nothing");
}
