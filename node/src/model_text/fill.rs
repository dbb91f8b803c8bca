//! Prompts for a gap between two texts, in the control tokens of the families that were trained to fill gaps.

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::tokenizer::Tokenizer;

/// The tokens before the first text, before the second, and before the answer; whether the second text comes first.
struct Marks {
    before: &'static str,
    after: &'static str,
    middle: &'static str,
    after_first: bool,
}

const FAMILIES: [Marks; 5] = [
    // Qwen.
    Marks { before: "<|fim_prefix|>", after: "<|fim_suffix|>", middle: "<|fim_middle|>", after_first: false },
    // StarCoder, Granite.
    Marks { before: "<fim_prefix>", after: "<fim_suffix>", middle: "<fim_middle>", after_first: false },
    // DeepSeek: the answer's place is marked in the middle.
    Marks {
        before: "<｜fim▁begin｜>", after: "<｜fim▁hole｜>", middle: "<｜fim▁end｜>", after_first: false
    },
    // Code Llama.
    Marks { before: "▁<PRE>", after: "▁<SUF>", middle: "▁<MID>", after_first: false },
    // Codestral: the first text ends the prompt.
    Marks { before: "[PREFIX]", after: "[SUFFIX]", middle: "", after_first: true },
];

/// The token ids of the prompt.
///
/// # Errors
/// `InvalidInput` if the model has no tokens for gaps.
pub(super) fn tokens(tokenizer: &Tokenizer, before: &str, after: &str) -> Result<Vec<u32>> {
    let plain = |text: &str| tokenizer.encode(text, false, false);
    written(|mark| tokenizer.token_id(mark), plain, tokenizer.added_bos(), before, after).ok_or_else(|| {
        let message = "suffix: this model was not trained to fill gaps (its vocabulary has no tokens for them)";
        Error::new(ErrorKind::InvalidInput, message)
    })
}

fn written(
    id: impl Fn(&str) -> Option<u32>,
    plain: impl Fn(&str) -> Vec<u32>,
    bos: Option<u32>,
    before: &str,
    after: &str,
) -> Option<Vec<u32>> {
    for marks in &FAMILIES {
        let (Some(prefix), Some(suffix)) = (id(marks.before), id(marks.after)) else { continue };
        let middle = if marks.middle.is_empty() { None } else { Some(id(marks.middle)?) };
        let mut parts = [(prefix, plain(before)), (suffix, plain(after))];
        if marks.after_first {
            parts.reverse();
        }
        let texts = parts.into_iter().flat_map(|(mark, text)| std::iter::once(mark).chain(text));
        return Some(bos.into_iter().chain(texts).chain(middle).collect());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_written_as_the_family_was_trained() {
        let plain = |text: &str| text.bytes().map(u32::from).collect();
        let qwen = |mark: &str| match mark {
            "<|fim_prefix|>" => Some(1001),
            "<|fim_suffix|>" => Some(1002),
            "<|fim_middle|>" => Some(1003),
            _ => None,
        };
        let codestral = |mark: &str| match mark {
            "[PREFIX]" => Some(1001),
            "[SUFFIX]" => Some(1002),
            _ => None,
        };
        assert_eq!(written(qwen, plain, None, "a", "b"), Some(vec![1001, 97, 1002, 98, 1003]));
        assert_eq!(written(codestral, plain, Some(1), "a", "b"), Some(vec![1, 1002, 98, 1001, 97]));
        assert_eq!(written(|_| None, plain, None, "a", "b"), None);
    }
}
