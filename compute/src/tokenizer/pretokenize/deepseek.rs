//! DeepSeek's pre-tokenizers: expressions one after the other, each in the pieces that the ones before it left.

use super::scan::{
    first, is, is_letter, is_line_end, lines_or_spaces, numbers, pieces, run, symbols, words, words_and_gaps,
};
use crate::tokenizer::unicode_class::UnicodeClass::{self, Mark, Number, Punctuation, Symbol, Whitespace};

/// `\p{N}{1,3}`, then `[一-龥぀-ゟ゠-ヿ]+`, then [`v3_word`] in all pieces: the second takes in marks that the third cuts off again.
pub(super) fn v3_words<'t>(text: &'t str, word: &mut dyn FnMut(&'t str)) {
    pieces(text, is(Number), &mut |piece, matched| {
        if matched {
            return words(piece, |piece| numbers(piece, 3), &mut *word);
        }
        let is_chinese_or_japanese = |c| matches!(c, '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}');
        pieces(piece, is_chinese_or_japanese, &mut |piece, _| words_and_gaps(piece, v3_word, &mut *word));
    });
}

/// `[ASCII punctuation and symbols][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|`
/// `\s*[\r\n]+|\s+(?!\S)|\s+`; 0 where none matches: controls and the like before what is no letter.
fn v3_word(text: &str) -> usize {
    let mut characters = text.chars();
    let Some(c) = characters.next() else { return 0 };
    let ascii = run(characters.as_str(), |c| c.is_ascii_alphabetic());
    if c.is_ascii_punctuation() && ascii > 0 {
        return 1 + ascii;
    }
    let is_symbol = |c| matches!(UnicodeClass::of(c), Punctuation | Symbol);
    let in_word = |c| is_letter(c) || UnicodeClass::of(c) == Mark;
    if in_word(c) {
        return run(text, in_word);
    }
    let letters = run(characters.as_str(), in_word);
    if letters > 0 && !is_line_end(c) && !is_symbol(c) {
        return c.len_utf8() + letters;
    }
    match symbols(text, is_symbol, is_line_end) {
        0 => lines_or_spaces(text),
        len => len,
    }
}

/// Every `[\r\n]`, then `\s?[LETTERS]+`, `\s?[!-/:-~！-／：-～‘-‟　-。]+`, `\s+$`, `[一-龥ࠀ-一가-퟿]+` and `\p{N}+`.
pub(super) fn llm_words<'t>(text: &'t str, word: &mut dyn FnMut(&'t str)) {
    lines(text, &mut |piece| {
        runs_after_space(piece, is_llm_letter, &mut |piece| {
            runs_after_space(piece, is_llm_punctuation, &mut |piece| {
                space_at_end(piece, &mut |piece| {
                    pieces(piece, is_east_asian, &mut |piece, _| {
                        pieces(piece, is(Number), &mut |piece, _| word(piece))
                    });
                });
            });
        });
    });
}

/// Every `[\r\n]`, then `\s?\p{L}+`, `\s?\p{P}+`, `[一-龥ࠀ-一가-퟿]+` and every `\p{N}`.
pub(super) fn coder_words<'t>(text: &'t str, word: &mut dyn FnMut(&'t str)) {
    lines(text, &mut |piece| {
        runs_after_space(piece, is_letter, &mut |piece| {
            runs_after_space(piece, is(Punctuation), &mut |piece| {
                pieces(piece, is_east_asian, &mut |piece, _| {
                    pieces(piece, is(Number), &mut |piece, matched| {
                        if matched { words(piece, |piece| numbers(piece, 1), &mut *word) } else { word(piece) }
                    });
                });
            });
        });
    });
}

/// Cuts out every line end.
fn lines<'t>(text: &'t str, piece: &mut dyn FnMut(&'t str)) {
    pieces(text, is_line_end, &mut |part, matched| {
        if matched { words(part, |part| first(part).map_or(0, char::len_utf8), &mut *piece) } else { piece(part) }
    });
}

/// Cuts out every `\s?X+`, where `holds` says what is an X.
fn runs_after_space<'t>(mut text: &'t str, holds: impl Fn(char) -> bool, piece: &mut dyn FnMut(&'t str)) {
    while let Some(found) = text.find(&holds) {
        let before = text[..found].chars().next_back().filter(|&c| UnicodeClass::of(c) == Whitespace);
        let start = found - before.map_or(0, char::len_utf8);
        let end = found + run(&text[found..], &holds);
        if start > 0 {
            piece(&text[..start]);
        }
        piece(&text[start..end]);
        text = &text[end..];
    }
    if !text.is_empty() {
        piece(text);
    }
}

/// Cuts out the whitespace at the end.
fn space_at_end<'t>(text: &'t str, piece: &mut dyn FnMut(&'t str)) {
    let (head, space) = text.split_at(text.trim_end_matches(is(Whitespace)).len());
    [head, space].into_iter().filter(|part| !part.is_empty()).for_each(piece);
}

fn is_east_asian(c: char) -> bool {
    matches!(c, '\u{800}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7ff}')
}

/// The letters stand here once more: these ASCII ranges hold them all.
fn is_llm_punctuation(c: char) -> bool {
    matches!(c, '!'..='/' | ':'..='~' | '！'..='／' | '：'..='～' | '‘'..='‟' | '\u{3000}'..='。')
}

/// Letters with case, as the expression lists them.
fn is_llm_letter(c: char) -> bool {
    let after = LLM_LETTERS.partition_point(|&(start, _)| start <= c);
    after > 0 && c <= LLM_LETTERS[after - 1].1
}

/// First and last code point of each range, in order.
#[rustfmt::skip]
const LLM_LETTERS: [(char, char); 84] = [
    ('\u{41}', '\u{5a}'), ('\u{61}', '\u{7a}'), ('\u{b5}', '\u{b5}'), ('\u{c0}', '\u{d6}'), ('\u{d8}', '\u{f6}'),
    ('\u{f8}', '\u{1ba}'), ('\u{1bc}', '\u{1bf}'), ('\u{1c4}', '\u{293}'), ('\u{295}', '\u{2af}'),
    ('\u{370}', '\u{373}'), ('\u{376}', '\u{377}'), ('\u{37b}', '\u{37d}'), ('\u{37f}', '\u{37f}'),
    ('\u{386}', '\u{386}'), ('\u{388}', '\u{38a}'), ('\u{38c}', '\u{38c}'), ('\u{38e}', '\u{3a1}'),
    ('\u{3a3}', '\u{3f5}'), ('\u{3f7}', '\u{481}'), ('\u{48a}', '\u{52f}'), ('\u{531}', '\u{556}'),
    ('\u{10a0}', '\u{10c5}'), ('\u{13a0}', '\u{13f5}'), ('\u{13f8}', '\u{13fd}'), ('\u{1c90}', '\u{1cba}'),
    ('\u{1cbd}', '\u{1cbf}'), ('\u{1d00}', '\u{1d2b}'), ('\u{1d6b}', '\u{1d77}'), ('\u{1d79}', '\u{1d9a}'),
    ('\u{1e00}', '\u{1f15}'), ('\u{1f18}', '\u{1f1d}'), ('\u{1f20}', '\u{1f45}'), ('\u{1f48}', '\u{1f4d}'),
    ('\u{1f50}', '\u{1f57}'), ('\u{1f59}', '\u{1f59}'), ('\u{1f5b}', '\u{1f5b}'), ('\u{1f5d}', '\u{1f5d}'),
    ('\u{1f5f}', '\u{1f7d}'), ('\u{1f80}', '\u{1fb4}'), ('\u{1fb6}', '\u{1fbc}'), ('\u{1fbe}', '\u{1fbe}'),
    ('\u{1fc2}', '\u{1fc4}'), ('\u{1fc6}', '\u{1fcc}'), ('\u{1fd0}', '\u{1fd3}'), ('\u{1fd6}', '\u{1fdb}'),
    ('\u{1fe0}', '\u{1fec}'), ('\u{1ff2}', '\u{1ff4}'), ('\u{1ff6}', '\u{1ffc}'), ('\u{2102}', '\u{2102}'),
    ('\u{2107}', '\u{2107}'), ('\u{210a}', '\u{2113}'), ('\u{2115}', '\u{2115}'), ('\u{2119}', '\u{211d}'),
    ('\u{2124}', '\u{2124}'), ('\u{2126}', '\u{2126}'), ('\u{2128}', '\u{2128}'), ('\u{212a}', '\u{212d}'),
    ('\u{212f}', '\u{2134}'), ('\u{2139}', '\u{2139}'), ('\u{213c}', '\u{213f}'), ('\u{2145}', '\u{2149}'),
    ('\u{214e}', '\u{214e}'), ('\u{2183}', '\u{2184}'), ('\u{2c00}', '\u{2c7b}'), ('\u{2c7e}', '\u{2ce4}'),
    ('\u{2ceb}', '\u{2cee}'), ('\u{2cf2}', '\u{2cf3}'), ('\u{a640}', '\u{a66d}'), ('\u{a680}', '\u{a69b}'),
    ('\u{a722}', '\u{a76f}'), ('\u{a771}', '\u{a787}'), ('\u{a78b}', '\u{a78e}'), ('\u{ab70}', '\u{abbf}'),
    ('\u{fb00}', '\u{fb06}'), ('\u{fb13}', '\u{fb17}'), ('\u{ff21}', '\u{ff3a}'), ('\u{ff41}', '\u{ff5a}'),
    ('\u{10400}', '\u{1044f}'), ('\u{104b0}', '\u{104d3}'), ('\u{104d8}', '\u{104fb}'), ('\u{10c80}', '\u{10cb2}'),
    ('\u{10cc0}', '\u{10cf2}'), ('\u{118a0}', '\u{118df}'), ('\u{1e900}', '\u{1e943}'),
];
