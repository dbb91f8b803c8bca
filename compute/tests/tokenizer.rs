//! Tokenizers: the tokens of real models as llama.cpp gives them, what must hold for any vocabulary, and that no
//! hostile one does more than fail. Vocabularies that are not a model's are made here.

mod model_files;
mod skip;

use pangea_compute::gguf::{Gguf, Metadata, Strings, Value, ValueType};
use pangea_compute::tokenizer::{Detokenizer, Tokenizer};
use pangea_compute::{Error, ErrorKind};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GEMMA3: &str = "gemma-3-270m-q4_k_m.gguf";

fn model(test: &str, name: &str) -> Option<Tokenizer> {
    let path = model_files::find(test, name)?;
    let gguf = Gguf::open(path).expect("a GGUF file");
    Some(Tokenizer::from_gguf(gguf.metadata()).expect("a supported tokenizer"))
}

fn corpus() -> Vec<String> {
    serde_json::from_str(include_str!("golden/tokenizer/corpus.json")).expect("a list of texts")
}

/// LEB128 numbers.
fn numbers(mut bytes: &[u8]) -> impl FnMut() -> u32 {
    move || {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let (&byte, rest) = bytes.split_first().expect("another number");
            bytes = rest;
            number |= u32::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        number
    }
}

fn check_against_llama_cpp(tokenizer: &Tokenizer, golden: &'static [u8]) {
    let mut next = numbers(golden);
    for (index, text) in corpus().iter().enumerate() {
        let expected: Vec<u32> = (0..next()).map(|_| next()).collect();
        let special = index % 2 == 0;
        assert_eq!(tokenizer.encode(text, special, special), expected, "text {index}, {text:?}");
    }
}

#[test]
fn smollm2_gives_the_tokens_of_llama_cpp() {
    let Some(tokenizer) = model("smollm2_gives_the_tokens_of_llama_cpp", SMOLLM2) else { return };
    check_against_llama_cpp(&tokenizer, include_bytes!("golden/tokenizer/SmolLM2-135M-Instruct.Q4_1.ids"));
    assert_eq!((tokenizer.vocabulary(), tokenizer.bos(), tokenizer.eos()), (49152, Some(1), Some(2)));
    assert_eq!(tokenizer.added_bos(), None);
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.token_text(2), Some("<|im_end|>"));
    assert!(tokenizer.is_end_of_generation(2) && tokenizer.is_end_of_generation(0));
    assert!(!tokenizer.is_end_of_generation(1) && !tokenizer.is_end_of_generation(u32::MAX));
}

#[test]
fn gemma3_gives_the_tokens_of_llama_cpp() {
    let Some(tokenizer) = model("gemma3_gives_the_tokens_of_llama_cpp", GEMMA3) else { return };
    check_against_llama_cpp(&tokenizer, include_bytes!("golden/tokenizer/gemma-3-270m-q4_k_m.ids"));
    assert_eq!((tokenizer.vocabulary(), tokenizer.bos(), tokenizer.eos()), (262_144, Some(2), Some(1)));
    assert_eq!(tokenizer.added_bos(), tokenizer.bos());
    let turn = tokenizer.token_id("<end_of_turn>").expect("Gemma has turns");
    assert!(tokenizer.is_end_of_generation(turn) && tokenizer.is_end_of_generation(1));
    // A tag of web pages there, not the end of anything.
    let strike = tokenizer.token_id("</s>").expect("it is in the vocabulary");
    assert!(!tokenizer.is_end_of_generation(strike));
}

#[test]
fn what_was_encoded_is_decoded_whole_and_token_by_token() {
    const TEST: &str = "what_was_encoded_is_decoded_whole_and_token_by_token";
    for name in [SMOLLM2, GEMMA3] {
        let Some(tokenizer) = model(TEST, name) else { continue };
        for text in corpus() {
            // SmolLM2's vocabulary lacks a few control characters and bytes; Gemma's writes spaces as it writes U+2581.
            if text.contains('▁') || text.contains(|c| c < ' ' || c > '\u{ffff}' && name == SMOLLM2) {
                continue;
            }
            let ids = tokenizer.encode(&text, true, true);
            let body = if tokenizer.added_bos().is_some() { &ids[1..] } else { &ids[..] };
            assert_eq!(tokenizer.decode(body, true), text);
            let mut detokenizer = Detokenizer::new();
            let mut streamed: String = ids.iter().map(|&id| detokenizer.push(&tokenizer, id)).collect();
            streamed += &detokenizer.finish();
            assert_eq!(streamed, tokenizer.decode(&ids, false));
        }
    }
}

#[test]
fn a_character_of_several_tokens_comes_out_whole() {
    let Some(tokenizer) = model("a_character_of_several_tokens_comes_out_whole", SMOLLM2) else { return };
    let ids = tokenizer.encode("🫶", false, false);
    assert!(ids.len() > 1);
    let mut detokenizer = Detokenizer::new();
    let pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(&tokenizer, id)).collect();
    assert_eq!(pieces.last().map(String::as_str), Some("🫶"));
    assert!(pieces[..ids.len() - 1].iter().all(String::is_empty));
    // Broken off in the middle.
    detokenizer.push(&tokenizer, ids[0]);
    assert_eq!((detokenizer.finish(), detokenizer.finish()), ("\u{fffd}".to_owned(), String::new()));
}

/// GPT-2's alphabet, written down once more.
fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + before).expect("it is below U+0200")
}

type Pairs = BTreeMap<&'static str, Value>;

fn strings<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Value {
    Value::Strings(texts.into_iter().collect::<Strings>())
}

fn i32s(values: impl IntoIterator<Item = i32>) -> Value {
    Value::Numbers { element: ValueType::I32, bytes: values.into_iter().flat_map(i32::to_le_bytes).collect() }
}

fn f32s(values: impl IntoIterator<Item = f32>) -> Value {
    Value::Numbers { element: ValueType::F32, bytes: values.into_iter().flat_map(f32::to_le_bytes).collect() }
}

/// Every byte, what the merges make, then `<|end|>` (control) and `<user>` (user-defined).
fn byte_level(merges: &[(String, String)]) -> Pairs {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_character(byte).to_string()).collect();
    for (left, right) in merges {
        let joined = format!("{left}{right}");
        if !tokens.contains(&joined) {
            tokens.push(joined);
        }
    }
    let normal = tokens.len();
    tokens.extend(["<|end|>".to_owned(), "<user>".to_owned()]);
    BTreeMap::from([
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("gpt-2".to_owned())),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.token_type", i32s((0..normal).map(|_| 1).chain([3, 4]))),
        ("tokenizer.ggml.merges", strings(merges.iter().map(|(left, right)| format!("{left} {right}")))),
        ("tokenizer.ggml.eos_token_id", Value::Integer(normal as i128)),
    ])
}

/// `<unk>`, `<s>`, `</s>`, every byte, then these pieces with their scores.
fn sentence_piece(pieces: &[(&str, f32)]) -> Pairs {
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>"]
        .map(str::to_owned)
        .into_iter()
        .chain((0..256).map(|byte| format!("<0x{byte:02X}>")))
        .chain(pieces.iter().map(|(text, _)| (*text).to_owned()))
        .collect();
    BTreeMap::from([
        ("tokenizer.ggml.model", Value::String("llama".to_owned())),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.scores", f32s([0.0; 259].into_iter().chain(pieces.iter().map(|(_, score)| *score)))),
        ("tokenizer.ggml.token_type", i32s([2, 3, 3].into_iter().chain([6; 256]).chain(pieces.iter().map(|_| 1)))),
    ])
}

fn tokenizer(pairs: &Pairs) -> Result<Tokenizer, Error> {
    let metadata: Metadata = pairs.iter().map(|(key, value)| (*key, value.clone())).collect();
    Tokenizer::from_gguf(&metadata)
}

fn pair(left: &str, right: &str) -> (String, String) {
    (left.to_owned(), right.to_owned())
}

#[test]
fn control_tokens_are_parsed_only_where_asked_and_user_defined_ones_always() {
    let tokenizer = tokenizer(&byte_level(&[pair("a", "b")])).expect("it fits together");
    let (ab, end, user) = (256, 257, 258);
    assert_eq!(tokenizer.encode("ab<|end|>ab<user>", false, true), [ab, end, ab, user]);
    let plain = tokenizer.encode("ab<|end|>ab<user>", false, false);
    assert!(!plain.contains(&end) && plain.ends_with(&[ab, user]));
    assert_eq!(tokenizer.decode(&plain, false), "ab<|end|>ab<user>");
    assert_eq!(tokenizer.decode(&[ab, end, user, 1 << 30], false), "ab<user>");
    assert_eq!(tokenizer.decode(&[ab, end], true), "ab<|end|>");
    assert_eq!(tokenizer.token_bytes(1 << 30, true), None);
    assert!(tokenizer.is_control(end) && !tokenizer.is_control(user) && !tokenizer.is_control(1 << 30));
}

#[test]
fn text_is_never_merged_into_a_control_token() {
    let mut pairs = sentence_piece(&[("a", 0.0), ("b", 0.0), ("ab", 1.0)]);
    let b = tokenizer(&pairs).expect("it fits together").encode("ab", false, false);
    assert_eq!(b.last(), Some(&261));
    pairs.insert("tokenizer.ggml.token_type", i32s([2, 3, 3].into_iter().chain([6; 256]).chain([1, 1, 3])));
    let tokenizer = tokenizer(&pairs).expect("it fits together");
    assert!(tokenizer.encode("ab", false, false).ends_with(&[259, 260]));
    assert!(tokenizer.encode("ab", false, true).ends_with(&[261]));
}

#[test]
fn sentence_piece_prefers_high_scores_falls_back_to_bytes_and_prefixes_a_space() {
    let pieces = [("▁", -1.0), ("a", -1.0), ("b", -1.0), ("c", -1.0), ("ab", -3.0), ("bc", -2.0), ("▁a", -9.0)];
    let mut pairs = sentence_piece(&pieces);
    let made = tokenizer(&pairs).expect("it fits together");
    // bc scores higher than ab; the space is put in front, and é is two bytes.
    let ids = made.encode("abcé", true, false);
    assert_eq!(ids, [1, 265, 264, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(made.decode(&ids, false), "abcé");
    assert_eq!(made.encode("", true, false), [1]);
    assert_eq!(made.encode("<s>a</s>a", false, true), [1, 265, 2, 265]);
    assert!(made.is_end_of_generation(2));
    pairs.insert("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    pairs.insert("tokenizer.ggml.add_bos_token", Value::Bool(false));
    pairs.insert("tokenizer.ggml.add_eos_token", Value::Bool(true));
    let made = tokenizer(&pairs).expect("it fits together");
    assert_eq!(made.encode("abc", true, false), [260, 264, 2]);
}

#[test]
fn a_word_of_a_megabyte_is_soon_done() {
    let doubled: Vec<(String, String)> = (0..6).map(|n| pair(&"a".repeat(1 << n), &"a".repeat(1 << n))).collect();
    let text = "a".repeat(1 << 20);
    let made = tokenizer(&byte_level(&doubled)).expect("it fits together");
    assert_eq!(made.encode(&text, false, false).len(), 1 << 14);
    let made = tokenizer(&sentence_piece(&[("a", 0.0), ("aa", 1.0), ("aaaa", 2.0)])).expect("it fits together");
    assert_eq!(made.encode(&text, false, false).len(), (1 << 18) + 3);
    // Nor are runs of special tokens, nor what almost is one.
    let mut pairs = byte_level(&[]);
    let runs: Vec<String> = (1..32).map(|len| "\n".repeat(len)).collect();
    let Some(Value::Strings(tokens)) = pairs.get("tokenizer.ggml.tokens") else { unreachable!("it was just made") };
    let all: Vec<String> = tokens.iter().map(str::to_owned).chain(runs).collect();
    pairs.insert("tokenizer.ggml.token_type", i32s((0..all.len()).map(|id| if id < 258 { 1 } else { 4 })));
    pairs.insert("tokenizer.ggml.tokens", strings(&all));
    let made = tokenizer(&pairs).expect("it fits together");
    assert_eq!(made.encode(&"\n".repeat(31 << 15), false, false).len(), 1 << 15);
    assert_eq!(made.encode(&"<user".repeat(1 << 18), false, false).len(), 5 << 18);
}

/// What is put into metadata, and what the error must say.
#[test]
fn metadata_that_does_not_fit_together_is_an_error() {
    let bpe = || byte_level(&[pair("a", "b")]);
    let spm = || sentence_piece(&[("a", 0.0)]);
    let with = |mut pairs: Pairs, key, value| {
        pairs.insert(key, value);
        pairs
    };
    let without = |mut pairs: Pairs, key| {
        pairs.remove(key);
        pairs
    };
    let text = |text: &str| Value::String(text.to_owned());
    let cases = [
        (BTreeMap::new(), "no tokenizer.ggml.model"),
        (with(bpe(), "tokenizer.ggml.model", text("bert")), "\"bert\""),
        (with(bpe(), "tokenizer.ggml.model", Value::Bool(true)), "metadata tokenizer.ggml.model"),
        (with(bpe(), "tokenizer.ggml.pre", text("viking")), "\"viking\""),
        (without(bpe(), "tokenizer.ggml.tokens"), "no tokenizer.ggml.tokens"),
        (with(bpe(), "tokenizer.ggml.tokens", strings::<&str>([])), "0 tokens"),
        (with(bpe(), "tokenizer.ggml.tokens", strings(["x"; 259])), "are both \"x\""),
        (with(bpe(), "tokenizer.ggml.tokens", strings(["x".repeat(5000)])), "5000 bytes"),
        (with(bpe(), "tokenizer.ggml.token_type", i32s([1; 7])), "7 entries"),
        (with(bpe(), "tokenizer.ggml.token_type", i32s([9; 259])), "is 9"),
        (without(bpe(), "tokenizer.ggml.merges"), "no tokenizer.ggml.merges"),
        (with(bpe(), "tokenizer.ggml.merges", strings(["ab"])), "is not two tokens"),
        (with(bpe(), "tokenizer.ggml.merges", strings([""])), "is not two tokens"),
        (with(bpe(), "tokenizer.ggml.merges", strings(["b a"])), "merge 0"),
        (with(bpe(), "tokenizer.ggml.merges", strings(["a b", "zz a"])), "merge 1"),
        (with(bpe(), "tokenizer.ggml.eos_token_id", Value::Integer(259)), "only 259 tokens"),
        (with(bpe(), "tokenizer.ggml.eos_token_id", Value::Integer(-1)), "metadata tokenizer.ggml.eos_token_id"),
        (with(bpe(), "tokenizer.ggml.eot_token_id", Value::Integer(1 << 40)), "eot_token_id"),
        (with(bpe(), "tokenizer.ggml.add_bos_token", Value::Bool(true)), "bos_token_id"),
        (without(spm(), "tokenizer.ggml.scores"), "no tokenizer.ggml.scores"),
        (with(spm(), "tokenizer.ggml.scores", f32s([0.0; 3])), "3 entries"),
        (with(spm(), "tokenizer.ggml.scores", f32s([f32::NAN; 260])), "token 0 is not a number"),
    ];
    for (pairs, expected) in cases {
        let error = tokenizer(&pairs).expect_err(expected);
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(expected), "{error} should contain {expected:?}");
    }
}

/// The merges of some words over a, b and c, in an order that makes each possible.
fn merges() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40).prop_map(|choices| {
        let mut known: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut merges = Vec::new();
        for (left, right) in choices {
            let (left, right) = (left.get(&known).clone(), right.get(&known).clone());
            let joined = format!("{left}{right}");
            if joined.len() <= 12 && !merges.contains(&(left.clone(), right.clone())) {
                merges.push((left, right));
                if !known.contains(&joined) {
                    known.push(joined);
                }
            }
        }
        merges
    })
}

proptest! {
    /// Merging as its definition says: the best pair of all, the leftmost of these, until there is none.
    #[test]
    fn merging_with_a_heap_is_merging_one_by_one(merges in merges(), text in "[abc]{0,60}") {
        let made = tokenizer(&byte_level(&merges)).expect("it fits together");
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        let rank = |pair: &[String]| merges.iter().position(|(left, right)| *left == pair[0] && *right == pair[1]);
        while let Some((_, at)) = parts.windows(2).enumerate().filter_map(|(at, pair)| Some((rank(pair)?, at))).min() {
            let right = parts.remove(at + 1);
            parts[at] += &right;
        }
        let expected: Vec<u32> = parts.iter().map(|part| made.token_id(part).expect("it was merged")).collect();
        prop_assert_eq!(made.encode(&text, false, false), expected);
    }

    #[test]
    fn any_text_survives_encoding_and_decoding(text in any::<String>(), merges in merges(), parse in any::<bool>()) {
        let made = tokenizer(&byte_level(&merges)).expect("it fits together");
        prop_assert_eq!(made.decode(&made.encode(&text, true, parse), true), &*text);
        let made = tokenizer(&sentence_piece(&[("▁", 0.0), ("a", 0.0), ("▁a", 1.0), ("a▁", 2.0)])).expect("it fits together");
        prop_assert_eq!(made.decode(&made.encode(&text, true, parse)[1..], true), text.replace('▁', " "));
    }

    /// However bytes are cut, whole characters come out, and together they are what all bytes at once would be.
    #[test]
    fn streamed_bytes_are_the_text_of_all_bytes(
        parts in prop::collection::vec(
            prop_oneof![any::<char>().prop_map(|c| c.to_string().into_bytes()), prop::collection::vec(any::<u8>(), 0..4)], 0..12),
        cut in 1usize..5,
    ) {
        let bytes = parts.concat();
        let mut detokenizer = Detokenizer::new();
        let mut text = String::new();
        for piece in bytes.chunks(cut) {
            text += &detokenizer.push_bytes(piece);
        }
        text += &detokenizer.finish();
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }
}
