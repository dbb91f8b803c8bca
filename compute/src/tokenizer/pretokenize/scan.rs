//! Pieces of text that several pre-tokenizers look for. All take time linear in what they return and none recurses.

use crate::tokenizer::unicode_class::UnicodeClass::{self, Whitespace};

pub(super) fn is(class: UnicodeClass) -> impl Fn(char) -> bool {
    move |c| UnicodeClass::of(c) == class
}

/// `\p{L}`.
pub(super) fn is_letter(c: char) -> bool {
    UnicodeClass::of(c).is_letter()
}

/// `[\r\n]`.
pub(super) fn is_line_end(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

pub(super) fn first(text: &str) -> Option<char> {
    text.chars().next()
}

/// The length in bytes of the characters at the start of `text` for which `holds` is true.
pub(super) fn run(text: &str, holds: impl Fn(char) -> bool) -> usize {
    text.find(|c| !holds(c)).unwrap_or(text.len())
}

/// Cuts `text` into words; `len` returns the length of the first one, never 0 unless the text is empty.
pub(super) fn words<'t>(mut text: &'t str, len: impl Fn(&str) -> usize, mut word: impl FnMut(&'t str)) {
    while !text.is_empty() {
        let (head, tail) = text.split_at(len(text));
        word(head);
        text = tail;
    }
}

/// As [`words`] for an expression that does not match everywhere: `len` returns 0 where it does not. The text between two
/// matches is one word.
pub(super) fn words_and_gaps<'t>(text: &'t str, len: impl Fn(&str) -> usize, mut word: impl FnMut(&'t str)) {
    let (mut gap, mut at) = (0, 0);
    while let Some(c) = first(&text[at..]) {
        let matched = len(&text[at..]);
        if matched == 0 {
            at += c.len_utf8();
            continue;
        }
        if gap < at {
            word(&text[gap..at]);
        }
        word(&text[at..at + matched]);
        at += matched;
        gap = at;
    }
    if gap < at {
        word(&text[gap..at]);
    }
}

/// Cuts `text` into runs of characters that match and runs that do not; the callback learns which.
pub(super) fn pieces<'t>(mut text: &'t str, matches: impl Fn(char) -> bool, piece: &mut dyn FnMut(&'t str, bool)) {
    while let Some(c) = first(text) {
        let matched = matches(c);
        let (head, tail) = text.split_at(run(text, |c| matches(c) == matched));
        piece(head, matched);
        text = tail;
    }
}

/// The length of an English contraction's ending at the start of `text`, with its apostrophe; 0 if there is none.
pub(super) fn contraction(text: &str, lower: impl Fn(u8) -> u8) -> usize {
    let bytes = text.as_bytes();
    let at = |index: usize| bytes.get(index).copied().map_or(0, &lower);
    match (bytes.first(), at(1), at(2)) {
        (Some(b'\''), b's' | b't' | b'm' | b'd', _) => 2,
        (Some(b'\''), b'r' | b'v', b'e') | (Some(b'\''), b'l', b'l') => 3,
        _ => 0,
    }
}

/// `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])`.
pub(super) fn any_contraction(text: &str) -> usize {
    contraction(text, |byte| byte.to_ascii_lowercase())
}

/// `\p{N}{1,most}`; 0 if there is no number.
pub(super) fn numbers(text: &str, most: usize) -> usize {
    text.chars().take(most).take_while(|&c| UnicodeClass::of(c) == UnicodeClass::Number).map(char::len_utf8).sum()
}

/// ` ?SYMBOL+END*`; 0 if there is no such symbol.
pub(super) fn symbols(text: &str, symbol: impl Fn(char) -> bool, end: impl Fn(char) -> bool) -> usize {
    let after = text.strip_prefix(' ').unwrap_or(text);
    let found = run(after, symbol);
    if found == 0 { 0 } else { text.len() - after.len() + found + run(&after[found..], end) }
}

/// The length of the whitespace word at the start of `text`: `\s+(?!\S)|\s+`; 0 if there is none.
pub(super) fn spaces(text: &str) -> usize {
    let len = run(text, is(Whitespace));
    if len == text.len() {
        return len;
    }
    // The last whitespace character belongs to the word that follows, unless it is the only one.
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len > last { len - last } else { len }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+`; 0 if there is no whitespace.
pub(super) fn lines_or_spaces(text: &str) -> usize {
    let blank = &text[..run(text, is(Whitespace))];
    // Up to the last line end of the run of whitespace.
    match blank.rfind(is_line_end) {
        Some(end) => end + 1,
        None => spaces(text),
    }
}
