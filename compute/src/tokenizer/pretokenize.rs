//! Cuts a text into words before byte-level BPE; no token crosses such a cut. Vocabularies are not needed.
//!
//! Source: the regular expressions that llama.cpp lists per name, each written as a scanner; a text is matched exactly
//! as in llama.cpp, with the Unicode version that [`UnicodeClass`] pins.

use super::unicode_class::UnicodeClass::{self, Letter, Number, Other, Punctuation, Whitespace};
use crate::Error;

/// A way to cut text, named by `tokenizer.ggml.pre`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pretokenizer {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Every `\p{N}` alone, then [`Pretokenizer::Gpt2`] in between.
    Smollm,
    /// `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|`
    /// ` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3,
    /// As [`Pretokenizer::Llama3`], but every `\p{N}` alone.
    Qwen2,
    /// For files that name none: `[\p{P}$+<=>^~|]+`, then [`Pretokenizer::Gpt2`] in between, then every run of numbers
    /// alone, then `[0-9]{3}` in those runs.
    Default,
}

impl Pretokenizer {
    /// # Errors
    /// [`Error::Invalid`] for an unknown name.
    pub(super) fn named(name: &str) -> Result<Pretokenizer, Error> {
        Ok(match name {
            "gpt-2" | "phi-2" => Pretokenizer::Gpt2,
            "smollm" | "starcoder" => Pretokenizer::Smollm,
            "llama-bpe" | "llama3" | "llama-v3" => Pretokenizer::Llama3,
            "qwen2" | "deepseek-r1-qwen" => Pretokenizer::Qwen2,
            "default" | "" => Pretokenizer::Default,
            other => {
                return Err(Error::invalid(
                    "tokenizer",
                    format!(
                        "the pre-tokenizer {other:?} is not supported; supported are smollm, llama-bpe, qwen2, gpt-2 and default: \
                         use a model with one of these"
                    ),
                ));
            }
        })
    }

    /// Calls `word` with every word of `text`, in order; the words together are the text.
    pub(super) fn split<'t>(self, text: &'t str, mut word: impl FnMut(&'t str)) {
        match self {
            Pretokenizer::Gpt2 => words(text, gpt2_word, word),
            Pretokenizer::Llama3 => words(text, |text| llama3_word(text, 3), word),
            Pretokenizer::Qwen2 => words(text, |text| llama3_word(text, 1), word),
            Pretokenizer::Smollm => pieces(text, is(Number), &mut |piece, matched| {
                if matched {
                    words(piece, |piece| first(piece).map_or(0, char::len_utf8), &mut word);
                } else {
                    words(piece, gpt2_word, &mut word);
                }
            }),
            Pretokenizer::Default => pieces(text, is_punctuation_by_default, &mut |piece, matched| {
                if matched {
                    return word(piece);
                }
                words(piece, gpt2_word, |piece| {
                    pieces(piece, is(Number), &mut |piece, matched| {
                        if matched { triplets(piece, &mut word) } else { word(piece) }
                    });
                });
            }),
        }
    }
}

fn is(class: UnicodeClass) -> impl Fn(char) -> bool {
    move |c| UnicodeClass::of(c) == class
}

fn is_punctuation_by_default(c: char) -> bool {
    UnicodeClass::of(c) == Punctuation || "$+<=>^~|".contains(c)
}

fn first(text: &str) -> Option<char> {
    text.chars().next()
}

/// The length in bytes of the characters at the start of `text` for which `holds` is true.
fn run(text: &str, holds: impl Fn(char) -> bool) -> usize {
    text.find(|c| !holds(c)).unwrap_or(text.len())
}

/// Cuts `text` into words; `len` returns the length of the first one, never 0 unless the text is empty.
fn words<'t>(mut text: &'t str, len: impl Fn(&str) -> usize, mut word: impl FnMut(&'t str)) {
    while !text.is_empty() {
        let (head, tail) = text.split_at(len(text));
        word(head);
        text = tail;
    }
}

/// Cuts `text` into runs of characters that match and runs that do not; the callback learns which.
fn pieces<'t>(mut text: &'t str, matches: impl Fn(char) -> bool, piece: &mut dyn FnMut(&'t str, bool)) {
    while let Some(c) = first(text) {
        let matched = matches(c);
        let (head, tail) = text.split_at(run(text, |c| matches(c) == matched));
        piece(head, matched);
        text = tail;
    }
}

/// Cuts a run of numbers: every three ASCII digits are a word, and so is the text between them.
fn triplets<'t>(mut text: &'t str, word: &mut dyn FnMut(&'t str)) {
    let triplet = |text: &str| text.as_bytes().windows(3).position(|three| three.iter().all(u8::is_ascii_digit));
    while let Some(start) = triplet(text) {
        let (before, rest) = text.split_at(start);
        if !before.is_empty() {
            word(before);
        }
        let (three, rest) = rest.split_at(3);
        word(three);
        text = rest;
    }
    if !text.is_empty() {
        word(text);
    }
}

/// The length of an English contraction's ending at the start of `text`, with its apostrophe; 0 if there is none.
fn contraction(text: &str, lower: impl Fn(u8) -> u8) -> usize {
    let bytes = text.as_bytes();
    let at = |index: usize| bytes.get(index).copied().map_or(0, &lower);
    match (bytes.first(), at(1), at(2)) {
        (Some(b'\''), b's' | b't' | b'm' | b'd', _) => 2,
        (Some(b'\''), b'r' | b'v', b'e') | (Some(b'\''), b'l', b'l') => 3,
        _ => 0,
    }
}

/// The length of the whitespace word at the start of `text`: `\s+(?!\S)|\s+`.
fn spaces(text: &str) -> usize {
    let len = run(text, is(Whitespace));
    if len == text.len() {
        return len;
    }
    // The last whitespace character belongs to the word that follows, unless it is the only one.
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len > last { len - last } else { len }
}

fn gpt2_word(text: &str) -> usize {
    let ending = contraction(text, |byte| byte);
    if ending > 0 {
        return ending;
    }
    let after = text.strip_prefix(' ').unwrap_or(text);
    let space = text.len() - after.len();
    let same = |c| match UnicodeClass::of(c) {
        Punctuation => Other,
        class => class,
    };
    match first(after).map(same) {
        Some(class @ (Letter | Number | Other)) => space + run(after, |c| same(c) == class),
        _ => spaces(text),
    }
}

/// `numbers`: numbers of a word, at most.
fn llama3_word(text: &str, numbers: usize) -> usize {
    let ending = contraction(text, |byte| byte.to_ascii_lowercase());
    if ending > 0 {
        return ending;
    }
    let mut characters = text.chars();
    let Some(c) = characters.next() else { return 0 };
    let class = UnicodeClass::of(c);
    // [^\r\n\p{L}\p{N}]?\p{L}+
    if class == Letter {
        return run(text, is(Letter));
    }
    let letters = run(characters.as_str(), is(Letter));
    if letters > 0 && class != Number && !matches!(c, '\r' | '\n') {
        return c.len_utf8() + letters;
    }
    if class == Number {
        return text.chars().take(numbers).take_while(|&c| UnicodeClass::of(c) == Number).map(char::len_utf8).sum();
    }
    //  ?[^\s\p{L}\p{N}]+[\r\n]*
    let after = text.strip_prefix(' ').unwrap_or(text);
    let symbols = run(after, |c| matches!(UnicodeClass::of(c), Punctuation | Other));
    if symbols > 0 {
        return text.len() - after.len() + symbols + run(&after[symbols..], |c| matches!(c, '\r' | '\n'));
    }
    // \s*[\r\n]+ up to the last line end of the run of whitespace.
    let blank = &text[..run(text, is(Whitespace))];
    match blank.rfind(['\r', '\n']) {
        Some(end) => end + 1,
        None => spaces(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pretokenizer: Pretokenizer, text: &str) -> Vec<&str> {
        let mut words = Vec::new();
        pretokenizer.split(text, |word| words.push(word));
        assert_eq!(words.concat(), text);
        assert!(words.iter().all(|word| !word.is_empty()));
        words
    }

    #[test]
    fn each_kind_cuts_its_own_way() {
        let text = "I'LL've  12345\n\n x+";
        assert_eq!(split(Pretokenizer::Gpt2, text), ["I", "'", "LL", "'ve", " ", " 12345", "\n\n", " x", "+"]);
        assert_eq!(
            split(Pretokenizer::Smollm, text),
            ["I", "'", "LL", "'ve", "  ", "1", "2", "3", "4", "5", "\n\n", " x", "+"]
        );
        assert_eq!(split(Pretokenizer::Llama3, text), ["I", "'LL", "'ve", " ", " ", "123", "45", "\n\n", " x", "+"]);
        assert_eq!(
            split(Pretokenizer::Qwen2, text),
            ["I", "'LL", "'ve", " ", " ", "1", "2", "3", "4", "5", "\n\n", " x", "+"]
        );
        assert_eq!(split(Pretokenizer::Default, "a +12345=é"), ["a", " ", "+", "123", "45", "=", "é"]);
    }

    /// The words that an independent engine finds with the regular expressions themselves.
    #[test]
    fn each_kind_cuts_a_large_corpus_as_its_regular_expressions_do() {
        let corpus = include_str!("../../tests/golden/tokenizer/corpus.json");
        let corpus: Vec<String> = serde_json::from_str(corpus).expect("a list of texts");
        let golden: [(&str, &[u8]); 5] = [
            ("gpt-2", include_bytes!("../../tests/golden/tokenizer/gpt-2.words")),
            ("smollm", include_bytes!("../../tests/golden/tokenizer/smollm.words")),
            ("llama-bpe", include_bytes!("../../tests/golden/tokenizer/llama-bpe.words")),
            ("qwen2", include_bytes!("../../tests/golden/tokenizer/qwen2.words")),
            ("default", include_bytes!("../../tests/golden/tokenizer/default.words")),
        ];
        for (name, mut bytes) in golden {
            let mut next = || {
                let len = bytes.iter().position(|&byte| byte < 128).expect("another number") + 1;
                let (number, rest) = bytes.split_at(len);
                bytes = rest;
                number.iter().rev().fold(0, |number, &byte| number << 7 | usize::from(byte & 127))
            };
            let pretokenizer = Pretokenizer::named(name).expect("it is supported");
            for text in &corpus {
                let expected: Vec<usize> = (0..next()).map(|_| next()).collect();
                let found: Vec<usize> = split(pretokenizer, text).iter().map(|word| word.len()).collect();
                assert_eq!(found, expected, "{name}: {text:?}");
            }
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_says_what_is_known() {
        let error = Pretokenizer::named("tekken").expect_err("not one of them").to_string();
        assert!(error.contains("tekken") && error.contains("smollm") && error.contains("qwen2"), "{error}");
    }
}
