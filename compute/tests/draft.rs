//! Drafts of a small model: what it would choose itself, whatever becomes of the text; nothing where they do not pay.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

#[path = "exactness/tiny.rs"]
#[allow(dead_code, reason = "the other tests' own")]
mod tiny;

use pangea_compute::draft::{DraftModel, Drafter, MAX_DRAFT};
use pangea_compute::engine::{Input, Logits, Stage, Step};
use pangea_compute::gguf::{GgmlType, Gguf};
use pangea_compute::model::{ModelFile, ModelPart, PageBudget};
use pangea_compute::{Cancel, Engine, Pool};
use pangea_units::SplitMix64;
use std::sync::Arc;
use tiny::{Tiny, VOCABULARY};

/// Seconds of a pass of one row, and of one more row, of the model that is drafted for.
const SINGLE: f64 = 1e-3;
const ROW: f64 = 0.1;

/// A model that is sure of what it chooses.
fn model(architecture: &'static str, seed: u64) -> Arc<Stage> {
    let sure = |name: &str, elements: &mut [f32]| {
        if name == "output_norm.weight" {
            elements.iter_mut().for_each(|element| *element *= 100.0);
        }
    };
    let bytes = tiny::gguf_with(Tiny { architecture, weights: GgmlType::F32, seed }, sure);
    let file = ModelFile::from_bytes(bytes).unwrap();
    Arc::new(engine().load(&file, ModelPart::whole(file.config())).unwrap())
}

fn engine() -> Engine {
    Engine::from(Pool::new(1).unwrap())
}

/// Drafts by `model` for one whose passes take as long as those of `share` times its weights.
fn drafter(model: &Arc<Stage>, share: f64) -> Drafter {
    drafter_within(model, share, 64 << 20)
}

fn drafter_within(model: &Arc<Stage>, share: f64, budget: u64) -> Drafter {
    let of_bytes = (model.memory_bytes() as f64 / share) as u64;
    let draft = DraftModel::new(Arc::clone(model), PageBudget::new(budget), of_bytes).unwrap();
    Drafter::with_model(draft, VOCABULARY)
}

/// What a model chooses after a text, greedily.
struct Chooser {
    model: Arc<Stage>,
}

impl Chooser {
    fn continued(&self, text: &[u32], count: usize) -> Vec<u32> {
        let mut cache = self.model.cache(&PageBudget::new(64 << 20));
        let (mut given, mut chosen) = (text.to_vec(), Vec::new());
        while chosen.len() < count {
            let mut steps = [Step { cache: &mut cache, rows: given.len(), logits: Logits::Last }];
            let output = self.model.forward(&mut steps, Input::Tokens(&given), &Cancel::new()).unwrap();
            let logits = output.logits(0);
            let best = (0..logits.len()).reduce(|best, at| if logits[at] > logits[best] { at } else { best }).unwrap();
            chosen.push(best as u32);
            given = vec![best as u32];
        }
        chosen
    }
}

/// Lets passes go by of which a small part may be lost by drafts.
fn earn(drafter: &mut Drafter) {
    (0..100).for_each(|_| drafter.observe(1, 0, SINGLE));
}

/// A text that repeats nothing, so that prompt lookup finds nothing.
fn text(length: usize, seed: u64) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..VOCABULARY as u32).collect();
    let mut random = SplitMix64::new(seed);
    (1..tokens.len()).rev().for_each(|at| tokens.swap(at, random.index(at + 1)));
    tokens.truncate(length);
    tokens
}

/// Plays an answer of `count` tokens after `text`, of a model that would choose `truth`; gives the seconds that it took and those
/// without drafts, and how many tokens were drafted and right.
fn play(drafter: &mut Drafter, prompt: &[u32], truth: &[u32], share: f64) -> (f64, f64, usize, usize) {
    let (mut at, mut seconds, mut drafted, mut right) = (0, 0.0, 0, 0);
    let mut text = prompt.to_vec();
    while at < truth.len() {
        let draft = drafter.propose(&text, truth.len() - at - 1).to_vec();
        assert!(draft.len() <= MAX_DRAFT);
        let accepted = draft.iter().zip(&truth[at..]).take_while(|(a, b)| a == b).count();
        let pass = SINGLE * (1.0 + (ROW + share) * draft.len() as f64);
        drafter.observe(1 + draft.len(), accepted, pass);
        (seconds, drafted, right) = (seconds + pass, drafted + draft.len(), right + accepted);
        text.extend_from_slice(&truth[at..=at + accepted]);
        at += accepted + 1;
    }
    (seconds, SINGLE * truth.len() as f64, drafted, right)
}

#[test]
fn a_model_drafts_what_it_would_choose_itself() {
    for (architecture, seed) in [("llama", 1), ("gemma3", 2), ("qwen3moe", 3)] {
        let model = model(architecture, seed);
        let chooser = Chooser { model: Arc::clone(&model) };
        let prompt = text(12, seed);
        let truth = chooser.continued(&prompt, 120);
        let mut drafter = drafter(&model, 0.02);
        earn(&mut drafter);
        let (seconds, without, drafted, right) = play(&mut drafter, &prompt, &truth, 0.02);
        // Where the text repeats itself, it drafts as well.
        assert!(right * 10 > drafted * 9, "{architecture}: {right} of {drafted} are what the same model chooses");
        assert!(
            drafted > 60 && seconds < 0.6 * without,
            "{architecture}: {drafted} drafted, {seconds} s of {without} s"
        );
    }
}

/// A text that goes on otherwise than drafted, and another text, leave nothing of the earlier one in the drafts.
#[test]
fn a_draft_is_of_the_text_as_it_is() {
    let model = model("llama", 1);
    let chooser = Chooser { model: Arc::clone(&model) };
    let mut drafter = drafter(&model, 0.001);
    earn(&mut drafter);
    let mut random = SplitMix64::new(5);
    let (mut tokens, mut drafts) = (text(20, 1), 0);
    for round in 0..60 {
        drafter.observe(1, 0, SINGLE);
        let draft = drafter.propose(&tokens, 4).to_vec();
        assert_eq!(draft, chooser.continued(&tokens, draft.len()), "round {round}");
        drafts += draft.len();
        match random.index(6) {
            // A wrong guess: what follows is anything.
            0 => tokens.push(random.index(VOCABULARY) as u32),
            1 => tokens = text(20 + random.index(40), round),
            2 => tokens.truncate(tokens.len() - 3),
            _ => tokens.extend(draft.first()),
        }
    }
    assert!(drafts > 30, "{drafts}");
}

#[test]
fn a_long_prompt_is_read_only_once_the_answer_has_taken_its_time() {
    let model = model("llama", 1);
    let budget = PageBudget::new(64 << 20);
    let of_bytes = model.memory_bytes() * 50;
    let draft = DraftModel::new(Arc::clone(&model), budget.clone(), of_bytes).unwrap();
    let mut drafter = Drafter::with_model(draft, VOCABULARY);
    let mut told = text(VOCABULARY, 1);
    // Reading 300 tokens takes 0.9 passes of one row, a fiftieth of the time of 45 tokens; more with those of the answer.
    for (at, token) in random(60, 2).into_iter().enumerate() {
        assert!(drafter.propose(&told, 8).len() <= 8);
        drafter.observe(1, 0, SINGLE);
        let (has_read, may_read) = (budget.used_bytes() > 0, at >= 45);
        assert!(!has_read || may_read, "it reads at token {at} of the answer");
        told.push(token);
    }
    assert!(budget.used_bytes() > 0, "it never reads");
    // Another text is a prompt.
    drafter.propose(&text(VOCABULARY, 5), 8);
    drafter.observe(1, 0, SINGLE);
}

/// Tokens that no n-gram predicts.
fn random(length: usize, seed: u64) -> Vec<u32> {
    let mut random = SplitMix64::new(seed);
    (0..length).map(|_| random.index(VOCABULARY) as u32).collect()
}

#[test]
fn drafts_that_do_not_pay_are_rare_and_those_that_cannot_are_none() {
    let model = model("llama", 1);
    let prompt = text(12, 3);
    // The text goes on otherwise than any model says.
    let truth = random(450, 7);
    let mut drafter_of_wrong = drafter(&model, 0.05);
    let (seconds, without, drafted, right) = play(&mut drafter_of_wrong, &prompt, &truth, 0.05);
    assert!(drafted > 0 && right * 4 < drafted, "{right} of {drafted}");
    assert!(seconds < 1.015 * without + SINGLE, "{seconds} s of {without} s");
    // As large as the model that it drafts for.
    let budget = PageBudget::new(64 << 20);
    let draft = DraftModel::new(Arc::clone(&model), budget.clone(), model.memory_bytes()).unwrap();
    let (_, _, drafted, _) = play(&mut Drafter::with_model(draft, VOCABULARY), &prompt, &truth, 1.0);
    assert!(budget.used_bytes() == 0 && drafted < 20, "{drafted}");
}

#[test]
fn without_memory_the_text_itself_drafts_on() {
    let model = model("llama", 1);
    let mut drafter = drafter_within(&model, 0.02, 1);
    let mut told = text(40, 3);
    earn(&mut drafter);
    for token in &text(40, 3)[..12] {
        assert!(drafter.propose(&told, 4).len() <= 4);
        drafter.observe(1, 0, SINGLE);
        told.push(*token);
    }
    assert_eq!(drafter.propose(&told, 3), &text(40, 3)[12..15], "by lookup");
}

#[test]
fn vocabularies_that_differ_are_refused_by_the_first_token_that_does() {
    let metadata = |architecture: &'static str, change: &dyn Fn(&str) -> String, count: usize| {
        let tokens: Vec<String> = (0..count).map(|at| change(&format!("t{at}"))).collect();
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let mut pairs = text("general.architecture");
        pairs.extend([&8u32.to_le_bytes()[..], &text(architecture)].concat());
        pairs.extend([&text("tokenizer.ggml.tokens")[..], &9u32.to_le_bytes(), &8u32.to_le_bytes()].concat());
        pairs.extend((count as u64).to_le_bytes());
        tokens.iter().for_each(|token| pairs.extend(text(token)));
        let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &2u64.to_le_bytes(), &pairs].concat();
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        Gguf::from_bytes(bytes).unwrap()
    };
    let same = |token: &str| token.to_owned();
    let (own, of) = (metadata("llama", &same, 1000), metadata("qwen3", &same, 1100));
    DraftModel::check_vocabulary(own.metadata(), of.metadata()).unwrap();
    let said = |other: &Gguf| DraftModel::check_vocabulary(own.metadata(), other.metadata()).unwrap_err().to_string();
    let other = metadata("llama", &|token| if token == "t7" { "u".to_owned() } else { token.to_owned() }, 1000);
    assert!(said(&other).contains("token 7 is \"t7\" in the model that drafts and \"u\" in the other one"));
    assert!(said(&metadata("llama", &same, 2000)).contains("1000 tokens, the other one 2000"));
    let none = Gguf::from_bytes([&b"GGUF"[..], &3u32.to_le_bytes(), &[0; 20]].concat()).unwrap();
    assert!(said(&none).contains("has no tokenizer.ggml.tokens"));
}

/// Some files of small models have padding after their last token.
#[test]
fn tokens_that_the_large_model_does_not_have_are_not_drafted() {
    let model = model("llama", 1);
    let prompt = text(12, 1);
    let first = Chooser { model: Arc::clone(&model) }.continued(&prompt, 1)[0];
    for (vocabulary, is_drafted) in [(first as usize, false), (first as usize + 1, true)] {
        let budget = PageBudget::new(64 << 20);
        let draft = DraftModel::new(Arc::clone(&model), budget, model.memory_bytes() * 50).unwrap();
        let mut drafter = Drafter::with_model(draft, vocabulary);
        earn(&mut drafter);
        let draft = drafter.propose(&prompt, 8);
        assert_eq!(draft.first() == Some(&first), is_drafted, "{draft:?}");
        assert!(draft.iter().all(|token| (*token as usize) < vocabulary), "{draft:?}");
    }
}

#[test]
fn a_part_of_a_model_drafts_nothing() {
    let bytes = tiny::gguf(Tiny { architecture: "llama", weights: GgmlType::F32, seed: 1 });
    let file = ModelFile::from_bytes(bytes).unwrap();
    let part = ModelPart::of_layers(file.config(), 0..2);
    let model = Arc::new(engine().load(&file, part).unwrap());
    assert!(DraftModel::new(model, PageBudget::new(1 << 20), 1 << 20).is_err());
}
