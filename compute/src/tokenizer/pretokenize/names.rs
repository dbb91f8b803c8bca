//! The names of pre-tokenizers in `tokenizer.ggml.pre`, and what a name says beyond how text is cut. Source: the names that
//! llama.cpp knows for models that generate text.

use super::Pretokenizer::{
    self, DeepseekCoder, DeepseekLlm, DeepseekV3, Default, Gpt2, Gpt4o, Llama3, Qwen2, Qwen35, Smollm, Tekken,
};
use crate::Error;

/// What a name asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tokenizer) struct NamedPretokenizer {
    pub(in crate::tokenizer) pretokenizer: Pretokenizer,
    /// Whether a word that is a token becomes that token without merging.
    pub(in crate::tokenizer) ignores_merges: bool,
    /// Whether a text begins with the beginning-of-sequence token if the file does not say.
    pub(in crate::tokenizer) adds_bos: bool,
}

/// Names that say nothing more, by what they ask for.
const NAMES: [(Pretokenizer, &[&str]); 10] = [
    (Default, &["default"]),
    (
        Gpt2,
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
        ],
    ),
    (Smollm, &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"]),
    (Llama3, &["glm4", "chatglm-bpe", "dbrx", "smaug-bpe"]),
    (
        Qwen2,
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
    ),
    (Qwen35, &["qwen35"]),
    (Gpt4o, &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"]),
    (DeepseekV3, &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"]),
    (DeepseekLlm, &["deepseek-llm"]),
    (DeepseekCoder, &["deepseek-coder"]),
];

/// Names that ask for whole words and for the beginning of a sequence, too.
const WHOLE_WORD_NAMES: [(Pretokenizer, &[&str]); 2] = [
    (Llama3, &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"]),
    (Tekken, &["tekken"]),
];

impl NamedPretokenizer {
    /// # Errors
    /// [`Error::Invalid`] for an unknown name.
    pub(in crate::tokenizer) fn of(name: &str) -> Result<NamedPretokenizer, Error> {
        let name = if name.is_empty() { "default" } else { name };
        let find = |lists: &[(Pretokenizer, &[&str])]| {
            lists.iter().find(|(_, names)| names.contains(&name)).map(|&(pretokenizer, _)| pretokenizer)
        };
        let plain = find(&NAMES).map(|pretokenizer| (pretokenizer, false));
        let found = plain.or_else(|| find(&WHOLE_WORD_NAMES).map(|pretokenizer| (pretokenizer, true)));
        let (pretokenizer, whole) = found.ok_or_else(|| {
            let known: Vec<&str> = names().collect();
            Error::invalid(
                "tokenizer",
                format!("the pre-tokenizer {name:?} is not supported: use a model with one of {}", known.join(", ")),
            )
        })?;
        Ok(NamedPretokenizer { pretokenizer, ignores_merges: whole, adds_bos: whole })
    }
}

/// All names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().chain(&WHOLE_WORD_NAMES).flat_map(|(_, names)| names.iter().copied())
}
