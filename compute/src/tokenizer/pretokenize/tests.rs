use proptest::prelude::*;

use super::names::names;
use super::*;

/// Every pre-tokenizer, by one of its names.
const KINDS: [&str; 11] = [
    "default",
    "gpt-2",
    "smollm",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "gpt-4o",
    "tekken",
    "deepseek-v3",
    "deepseek-llm",
    "deepseek-coder",
];

fn named(name: &str) -> Pretokenizer {
    NamedPretokenizer::of(name).expect("it is supported").pretokenizer
}

fn split<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
    let mut words = Vec::new();
    named(name).split(text, |word| words.push(word));
    assert_eq!(words.concat(), text);
    assert!(words.iter().all(|word| !word.is_empty()));
    words
}

#[test]
fn each_kind_cuts_its_own_way() {
    let text = "I'LL've  12345\n\n x+";
    assert_eq!(split("gpt-2", text), ["I", "'", "LL", "'ve", " ", " 12345", "\n\n", " x", "+"]);
    assert_eq!(split("smollm", text), ["I", "'", "LL", "'ve", "  ", "1", "2", "3", "4", "5", "\n\n", " x", "+"]);
    assert_eq!(split("llama-bpe", text), ["I", "'LL", "'ve", " ", " ", "123", "45", "\n\n", " x", "+"]);
    assert_eq!(split("qwen2", text), ["I", "'LL", "'ve", " ", " ", "1", "2", "3", "4", "5", "\n\n", " x", "+"]);
    assert_eq!(split("gpt-4o", text), ["I'LL", "'ve", " ", " ", "123", "45", "\n\n", " x", "+"]);
    assert_eq!(split("tekken", text), ["I", "'LL", "'ve", " ", " ", "1", "2", "3", "4", "5", "\n\n", " x", "+"]);
    assert_eq!(split("deepseek-v3", text), ["I", "'LL", "'ve", "  ", "123", "45", "\n\n", " x", "+"]);
    assert_eq!(split("default", "a +12345=é"), ["a", " ", "+", "123", "45", "=", "é"]);
    let text = "HTTPServer日本ABCe\u{301}/\n/x";
    assert_eq!(split("gpt-4o", text), ["HTTPServer日本", "ABCe\u{301}", "/\n/", "x"]);
    assert_eq!(split("qwen35", text), ["HTTPServer日本ABCe\u{301}", "/\n", "/x"]);
    assert_eq!(split("qwen2", text), ["HTTPServer日本ABCe", "\u{301}/\n", "/x"]);
    assert_eq!(split("deepseek-v3", text), ["HTTPServer", "日本", "ABCe\u{301}", "/\n", "/x"]);
}

/// The lengths of the words of these texts, from a golden file.
fn lengths(mut bytes: &[u8], texts: usize) -> Vec<Vec<usize>> {
    let mut next = || {
        let len = bytes.iter().position(|&byte| byte < 128).expect("another number") + 1;
        let (number, rest) = bytes.split_at(len);
        bytes = rest;
        number.iter().rev().fold(0, |number, &byte| number << 7 | usize::from(byte & 127))
    };
    let lengths = (0..texts).map(|_| (0..next()).map(|_| next()).collect()).collect();
    assert!(bytes.is_empty(), "the golden file is for other texts");
    lengths
}

macro_rules! golden {
    ($file:literal) => {
        include_bytes!(concat!("../../../tests/golden/tokenizer/", $file))
    };
}

fn check(texts: &[u8], golden: &[(&str, &[u8])]) {
    let texts: Vec<String> = serde_json::from_slice(texts).expect("a list of texts");
    for (name, bytes) in golden {
        for (text, expected) in texts.iter().zip(lengths(bytes, texts.len())) {
            let found: Vec<usize> = split(name, text).iter().map(|word| word.len()).collect();
            assert_eq!(found, expected, "{name}: {text:?}");
        }
    }
}

/// The words that an independent engine finds with the regular expressions themselves.
#[test]
fn each_kind_cuts_a_large_corpus_as_its_regular_expressions_do() {
    check(
        golden!("corpus.json"),
        &[
            ("gpt-2", golden!("gpt-2.words")),
            ("smollm", golden!("smollm.words")),
            ("llama-bpe", golden!("llama-bpe.words")),
            ("qwen2", golden!("qwen2.words")),
            ("default", golden!("default.words")),
            ("qwen35", golden!("qwen35.words")),
            ("gpt-4o", golden!("gpt-4o.words")),
            ("tekken", golden!("tekken.words")),
            ("deepseek-v3", golden!("deepseek-v3.words")),
            ("deepseek-llm", golden!("deepseek-llm.words")),
            ("deepseek-coder", golden!("deepseek-coder.words")),
        ],
    );
}

#[test]
fn each_kind_tells_every_class_of_characters_apart_as_its_regular_expressions_do() {
    check(
        golden!("classes.json"),
        &[
            ("glm4", golden!("glm4-classes.words")),
            ("qwen35", golden!("qwen35-classes.words")),
            ("gpt-4o", golden!("gpt-4o-classes.words")),
            ("tekken", golden!("tekken-classes.words")),
            ("deepseek-v3", golden!("deepseek-v3-classes.words")),
            ("deepseek-llm", golden!("deepseek-llm-classes.words")),
            ("deepseek-coder", golden!("deepseek-coder-classes.words")),
        ],
    );
}

#[test]
fn every_name_is_known_once_and_families_say_what_else_they_want() {
    let all: Vec<&str> = names().collect();
    for (at, name) in all.iter().enumerate() {
        assert!(!all[..at].contains(name), "{name} is listed twice");
        NamedPretokenizer::of(name).expect("it is listed");
    }
    for name in ["tekken", "llama-bpe", "pixtral"] {
        let found = NamedPretokenizer::of(name).expect("it is supported");
        assert!(found.ignores_merges && found.adds_bos, "{name}");
    }
    let glm = NamedPretokenizer::of("glm4").expect("it is supported");
    assert!(glm.pretokenizer == Pretokenizer::Llama3 && !glm.ignores_merges && !glm.adds_bos);
    assert_eq!(named("llama4"), Pretokenizer::Gpt4o);
    assert_eq!(named(""), Pretokenizer::Default);
}

#[test]
fn an_unknown_name_is_an_error_that_says_what_is_known() {
    let error = NamedPretokenizer::of("viking").expect_err("not one of them").to_string();
    for name in ["\"viking\"", "smollm", "qwen2", "tekken", "gpt-4o", "deepseek-v3"] {
        assert!(error.contains(name), "{error}");
    }
}

/// A megabyte of one class, or of two by turns, must not take a second look at what was read: it would take hours here.
#[test]
fn a_megabyte_of_one_class_is_soon_cut() {
    let hostile = [
        "A",
        "a",
        "日",
        "\u{301}",
        "1",
        "!",
        "`",
        " ",
        "\n",
        "\u{200d}",
        "'",
        "/",
        "日A",
        "A日",
        "\u{301}A",
        "a ",
        "é!",
        "\u{200d}1",
        " \n",
        "' ",
    ];
    for part in hostile {
        let text = part.repeat((1 << 20) / part.len());
        for name in KINDS {
            let mut count = 0;
            named(name).split(&text, |_| count += 1);
            assert!(count > 0, "{name} {part:?}");
        }
    }
}

/// Characters of every class, and what expressions look for.
fn mixture() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        any::<char>().prop_map(String::from),
        prop::sample::select(vec![
            "A", "É", "ǅ", "a", "é", "ʰ", "日", "한", "ا", "\u{301}", "\u{93e}", "1", "٣", "'", "'s", "'LL", "!", "/",
            "$", "😀", "\u{200d}", "\0", " ", "\t", "\r", "\n", "\u{3000}", "123",
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    /// `split` asserts that the words are the text and that none is empty.
    #[test]
    fn the_words_of_any_text_are_that_text(text in mixture()) {
        for name in KINDS {
            split(name, &text);
        }
    }

    /// What comes after a line does not change how it is cut, if the line ends with a letter and the next begins with no space.
    #[test]
    fn lines_are_cut_apart(before in mixture(), after in mixture()) {
        let (before, after) = (format!("{before}x\n"), after.trim_start());
        let whole = format!("{before}{after}");
        for name in KINDS {
            let apart = [split(name, &before), split(name, after)].concat();
            prop_assert_eq!(split(name, &whole), apart, "{}", name);
        }
    }
}
