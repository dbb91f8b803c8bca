//! Words of letters in any case: GPT-2's expression, Llama 3's and those made from it, and what llama.cpp does by default.

use super::scan::{
    any_contraction, contraction, first, is, is_letter, is_line_end, lines_or_spaces, numbers, pieces, run, spaces,
    symbols, words,
};
use crate::tokenizer::unicode_class::UnicodeClass::{self, Mark, Number, Punctuation, Whitespace};

/// What a run of GPT-2's expression is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letters,
    Numbers,
    Whitespace,
    Others,
}

fn kind(c: char) -> Kind {
    match UnicodeClass::of(c) {
        class if class.is_letter() => Kind::Letters,
        Number => Kind::Numbers,
        Whitespace => Kind::Whitespace,
        _ => Kind::Others,
    }
}

pub(super) fn gpt2_word(text: &str) -> usize {
    let ending = contraction(text, |byte| byte);
    if ending > 0 {
        return ending;
    }
    let after = text.strip_prefix(' ').unwrap_or(text);
    let space = text.len() - after.len();
    match first(after).map(kind) {
        None | Some(Kind::Whitespace) => spaces(text),
        Some(found) => space + run(after, |c| kind(c) == found),
    }
}

/// `most_numbers`: numbers of a word, at most; `marks`: whether marks are parts of words, as letters are.
pub(super) fn llama3_word(text: &str, most_numbers: usize, marks: bool) -> usize {
    let ending = any_contraction(text);
    if ending > 0 {
        return ending;
    }
    let mut characters = text.chars();
    let Some(c) = characters.next() else { return 0 };
    let in_word = |c: char| is_letter(c) || (marks && UnicodeClass::of(c) == Mark);
    // [^\r\n\p{L}\p{N}]?\p{L}+ or [^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+
    if in_word(c) {
        return run(text, in_word);
    }
    let class = UnicodeClass::of(c);
    let letters = run(characters.as_str(), in_word);
    if letters > 0 && class != Number && !is_line_end(c) {
        return c.len_utf8() + letters;
    }
    if class == Number {
        return numbers(text, most_numbers);
    }
    //  ?[^\s\p{L}\p{N}]+[\r\n]* or  ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*
    let symbol = |c: char| !in_word(c) && !matches!(UnicodeClass::of(c), Number | Whitespace);
    match symbols(text, symbol, is_line_end) {
        0 => lines_or_spaces(text),
        len => len,
    }
}

/// What llama.cpp does for files that name no pre-tokenizer.
pub(super) fn default_words<'t>(text: &'t str, word: &mut dyn FnMut(&'t str)) {
    let is_punctuation = |c| UnicodeClass::of(c) == Punctuation || "$+<=>^~|".contains(c);
    pieces(text, is_punctuation, &mut |piece, matched| {
        if matched {
            return word(piece);
        }
        words(piece, gpt2_word, |piece| {
            pieces(piece, is(Number), &mut |piece, matched| {
                if matched { triplets(piece, word) } else { word(piece) }
            });
        });
    });
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
