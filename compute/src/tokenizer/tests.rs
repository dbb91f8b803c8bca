//! What families of models want beyond how a text is cut: Gemma 4's BPE over characters, whole words, the ends of answers.

use super::*;
use crate::gguf::{Strings, Value, ValueType};
use serde_json::Value as Json;

fn strings<'t>(texts: impl IntoIterator<Item = &'t str>) -> Value {
    Value::Strings(texts.into_iter().map(str::to_owned).collect::<Strings>())
}

/// A file's metadata with these tokens: `<…>` are control tokens, `<0x…>` bytes, all others normal.
fn metadata(model: &str, tokens: &[&str], merges: &[&str], more: &[(&'static str, Value)]) -> Metadata {
    let kind = |token: &&str| match token {
        byte if byte.starts_with("<0x") => 6,
        control if control.starts_with('<') && control.ends_with('>') => 3,
        _ => 1i32,
    };
    let kinds = tokens.iter().flat_map(|token| kind(token).to_le_bytes()).collect();
    let pairs = [
        ("tokenizer.ggml.model", Value::String(model.to_owned())),
        ("tokenizer.ggml.tokens", strings(tokens.iter().copied())),
        ("tokenizer.ggml.token_type", Value::Numbers { element: ValueType::I32, bytes: kinds }),
        ("tokenizer.ggml.merges", strings(merges.iter().copied())),
    ];
    pairs.into_iter().chain(more.iter().cloned()).collect()
}

fn id(value: i128) -> Value {
    Value::Integer(value)
}

/// The vocabulary and the ids are those of `make_gemma4.py`.
#[test]
fn gemma4_gives_the_tokens_of_an_independent_engine() {
    let made: Json = serde_json::from_str(include_str!("../../tests/golden/tokenizer/gemma4.json")).unwrap();
    let list = |key: &str| -> Vec<&str> { made[key].as_array().unwrap().iter().filter_map(Json::as_str).collect() };
    let roles = [
        ("tokenizer.ggml.bos_token_id", id(2)),
        ("tokenizer.ggml.eos_token_id", id(1)),
        ("tokenizer.ggml.unknown_token_id", id(3)),
        // Wrong in some files.
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
    ];
    let tokenizer = Tokenizer::from_gguf(&metadata("gemma4", &list("tokens"), &list("merges"), &roles)).unwrap();
    let mut golden = include_bytes!("../../tests/golden/tokenizer/gemma4.ids").iter();
    let mut next = || {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let byte = *golden.next().expect("another number");
            number |= u32::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        number
    };
    let texts: Vec<String> = serde_json::from_str(include_str!("../../tests/golden/tokenizer/classes.json")).unwrap();
    for text in &texts {
        let expected: Vec<u32> = (0..next()).map(|_| next()).collect();
        let found = tokenizer.encode(text, false, false);
        assert_eq!(found, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&found, false), *text);
    }
    assert!(golden.next().is_none());
    assert_eq!(tokenizer.encode("", true, false), [2], "the model needs it, whatever the file says");
}

/// Rows of line ends are one token where the vocabulary has it, even if no merge makes it.
#[test]
fn gemma4_takes_line_ends_in_a_row_whole() {
    let tokens = ["<unk>", "<bos>", "a", "b", "▁", "\n", "\n\n\n", "a▁", "▁b"];
    let more = [("tokenizer.ggml.bos_token_id", id(1)), ("tokenizer.ggml.unknown_token_id", id(0))];
    let made = Tokenizer::from_gguf(&metadata("gemma4", &tokens, &["▁ b", "a ▁"], &more)).unwrap();
    assert_eq!(made.encode("a b\n\n\na\n\nz", true, false), [1, 2, 8, 6, 2, 5, 5, 0]);
    let error = Tokenizer::from_gguf(&metadata("gemma4", &tokens, &["▁ b"], &more[1..])).unwrap_err().to_string();
    assert!(error.contains("bos_token_id"), "{error}");
    let error = Tokenizer::from_gguf(&metadata("gemma4", &tokens, &["▁ b"], &more[..1])).unwrap_err().to_string();
    assert!(error.contains("byte 0 has no token"), "{error}");
}

/// A megabyte without a line end is one text to merge.
#[test]
fn gemma4_takes_a_long_line() {
    let tokens = ["<unk>", "<bos>", "a", "▁", "aa", "a▁"];
    let more = [("tokenizer.ggml.bos_token_id", id(1)), ("tokenizer.ggml.unknown_token_id", id(0))];
    let made = Tokenizer::from_gguf(&metadata("gemma4", &tokens, &["a a", "a ▁"], &more)).unwrap();
    assert_eq!(made.encode(&"a".repeat(1 << 20), false, false).len(), 1 << 19);
    assert_eq!(made.encode(&"a ".repeat(1 << 19), false, false).len(), 1 << 19);
}

/// Tekken, as Llama 3, has words that its merges do not make.
#[test]
fn words_that_are_tokens_need_no_merges_where_the_family_says_so() {
    let tokens = ["<s>", "a", "b", "c", "ab", "abc"];
    for (name, expected) in [("tekken", &[0, 5, 1, 1][..]), ("llama-bpe", &[0, 5, 1, 1]), ("gpt-4o", &[4, 3, 1, 1])] {
        let more = [("tokenizer.ggml.pre", Value::String(name.to_owned())), ("tokenizer.ggml.bos_token_id", id(0))];
        let made = Tokenizer::from_gguf(&metadata("gpt2", &tokens, &["a b"], &more)).unwrap();
        // A space has no token here.
        assert_eq!(made.encode("abc aa", true, false), expected, "{name}");
    }
}

/// Which of these control tokens end an answer.
fn ends<'t>(model: &str, tokens: &[&'t str]) -> Vec<&'t str> {
    let more = [("tokenizer.ggml.bos_token_id", id(0)), ("tokenizer.ggml.unknown_token_id", id(0))];
    let made = Tokenizer::from_gguf(&metadata(model, tokens, &[], &more)).unwrap();
    let ends = |token: &&&str| made.is_end_of_generation(made.token_id(token).expect("it was given"));
    tokens.iter().filter(ends).copied().collect()
}

#[test]
fn a_message_of_many_does_not_end_an_answer() {
    let harmony = ["<|startoftext|>", "<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|message|>"];
    assert_eq!(ends("gpt2", &harmony), ["<|return|>", "<|call|>"]);
    // Phi has one message an answer.
    assert_eq!(ends("gpt2", &["<s>", "<|end|>"]), ["<|end|>"]);
    assert_eq!(ends("gpt2", &["<s>", "<|end|>", "<|calls|>", "<|flush|>"]), ["<|calls|>", "<|flush|>"]);
    assert_eq!(
        ends("gemma4", &["<bos>", "<turn|>", "<|turn>", "<|tool_response>", "</s>"]),
        ["<turn|>", "<|tool_response>"]
    );
    assert_eq!(ends("gpt2", &["<s>", "</s>"]), ["</s>"]);
}
