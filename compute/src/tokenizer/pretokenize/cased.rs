//! Words that are cut where upper case follows lower case: OpenAI's `o200k` and Mistral's Tekken.

use super::scan::{any_contraction, is_line_end, lines_or_spaces, numbers, run, symbols};
use crate::tokenizer::unicode_class::UnicodeClass::{self, Lower, Mark, Number, OtherLetter, Upper, Whitespace};

/// `contractions`: whether a word ends with its contraction; `most_numbers`: numbers of a word, at most.
pub(super) fn cased_word(text: &str, contractions: bool, most_numbers: usize) -> usize {
    let Some(c) = text.chars().next() else { return 0 };
    let class = UnicodeClass::of(c);
    if class == Number {
        return numbers(text, most_numbers);
    }
    // [^\r\n\p{L}\p{N}]? before letters. A mark there is a part of the letters as well, with the same end.
    let lead = if starts(class) || ends(class) || is_line_end(c) { 0 } else { c.len_utf8() };
    let letters = if is_line_end(c) { 0 } else { letters(&text[lead..]) };
    if letters > 0 {
        let end = lead + letters;
        return end + if contractions { any_contraction(&text[end..]) } else { 0 };
    }
    //  ?[^\s\p{L}\p{N}]+[\r\n/]*
    let symbol = |c| !matches!(UnicodeClass::of(c), Upper | Lower | OtherLetter | Number | Whitespace);
    match symbols(text, symbol, |c| is_line_end(c) || c == '/') {
        0 => lines_or_spaces(text),
        len => len,
    }
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`.
fn starts(class: UnicodeClass) -> bool {
    matches!(class, Upper | OtherLetter | Mark)
}

/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`.
fn ends(class: UnicodeClass) -> bool {
    matches!(class, Lower | OtherLetter | Mark)
}

/// `START*END+|START+END*` for the two classes above; 0 without a match.
///
/// The first alternative takes all it can of `START`. Where lower case follows, that and what else is in `END` is the rest;
/// otherwise it gives back up to the last character that is in both, so that upper case after it is a word of its own. Without
/// such a character the second alternative takes the upper case.
fn letters(text: &str) -> usize {
    let (mut start, mut shared) = (0, 0);
    for c in text.chars() {
        let class = UnicodeClass::of(c);
        if !starts(class) {
            break;
        }
        start += c.len_utf8();
        if ends(class) {
            shared = start;
        }
    }
    match run(&text[start..], |c| ends(UnicodeClass::of(c))) {
        0 if shared > 0 => shared,
        end => start + end,
    }
}
