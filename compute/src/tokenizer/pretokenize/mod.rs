//! Cuts a text into words before byte-level BPE; no token crosses such a cut. Vocabularies are not needed.
//!
//! Source: the regular expressions that model families publish, each written as a scanner, with the Unicode version that
//! [`UnicodeClass`](super::unicode_class::UnicodeClass) pins. Names, and the expressions where llama.cpp keeps to the published
//! ones, are llama.cpp's. Every scanner takes linear time and recurses nowhere.
//!
//! | module | owns |
//! |---|---|
//! | `names` | which name asks for what |
//! | `scan` | pieces that several expressions share |
//! | `plain` | GPT-2, Llama 3, Qwen, the default |
//! | `cased` | words cut by case: `gpt-4o`, `tekken` |
//! | `deepseek` | DeepSeek's sequences of expressions |

mod cased;
mod deepseek;
mod names;
mod plain;
mod scan;

use cased::cased_word;
use plain::{gpt2_word, llama3_word};
use scan::{first, is, pieces, words};

use super::unicode_class::UnicodeClass::Number;

pub(super) use names::NamedPretokenizer;

/// A way to cut text. `CONTRACTION` is `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pretokenizer {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Every `\p{N}` alone, then [`Pretokenizer::Gpt2`] in between.
    Smollm,
    /// `CONTRACTION|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3,
    /// As [`Pretokenizer::Llama3`], but every `\p{N}` alone.
    Qwen2,
    /// As [`Pretokenizer::Qwen2`], but `[\p{L}\p{M}]+` for `\p{L}+` and `[^\s\p{L}\p{M}\p{N}]` for `[^\s\p{L}\p{N}]`.
    Qwen35,
    /// With `START` for `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]` and `END` for `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`:
    /// `[^\r\n\p{L}\p{N}]?START*END+CONTRACTION?|[^\r\n\p{L}\p{N}]?START+END*CONTRACTION?|\p{N}{1,3}|`
    /// ` ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Gpt4o,
    /// As [`Pretokenizer::Gpt4o`], but without contractions and every `\p{N}` alone.
    Tekken,
    /// See `deepseek::v3_words`.
    DeepseekV3,
    /// See `deepseek::llm_words`.
    DeepseekLlm,
    /// See `deepseek::coder_words`.
    DeepseekCoder,
    /// For files that name none: `[\p{P}$+<=>^~|]+`, then [`Pretokenizer::Gpt2`] in between, then every run of numbers
    /// alone, then `[0-9]{3}` in those runs.
    Default,
}

impl Pretokenizer {
    /// Calls `word` with every word of `text`, in order; the words together are the text.
    pub(super) fn split<'t>(self, text: &'t str, mut word: impl FnMut(&'t str)) {
        match self {
            Pretokenizer::Gpt2 => words(text, gpt2_word, word),
            Pretokenizer::Llama3 => words(text, |text| llama3_word(text, 3, false), word),
            Pretokenizer::Qwen2 => words(text, |text| llama3_word(text, 1, false), word),
            Pretokenizer::Qwen35 => words(text, |text| llama3_word(text, 1, true), word),
            Pretokenizer::Gpt4o => words(text, |text| cased_word(text, true, 3), word),
            Pretokenizer::Tekken => words(text, |text| cased_word(text, false, 1), word),
            Pretokenizer::Smollm => pieces(text, is(Number), &mut |piece, matched| {
                if matched {
                    words(piece, |piece| first(piece).map_or(0, char::len_utf8), &mut word);
                } else {
                    words(piece, gpt2_word, &mut word);
                }
            }),
            Pretokenizer::DeepseekV3 => deepseek::v3_words(text, &mut word),
            Pretokenizer::DeepseekLlm => deepseek::llm_words(text, &mut word),
            Pretokenizer::DeepseekCoder => deepseek::coder_words(text, &mut word),
            Pretokenizer::Default => plain::default_words(text, &mut word),
        }
    }
}

#[cfg(test)]
mod tests;
