//! The two models that are tested with, where this machine has them. It fetches nothing.

use std::path::PathBuf;

use crate::skip::skip;

/// The folder that the models are in; `$HOME/.cache/pangea/test-models` where it is not set.
pub const FOLDER: &str = "PANGEA_TEST_MODELS";

/// SmolLM2-135M-Instruct: `llama`, Q4_1 and Q8_0, byte-level BPE, with a chat template.
pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Gemma 3 270M: `gemma3`, Q4_K_M, SentencePiece, without a chat template.
pub const GEMMA3: &str = "gemma-3-270m-q4_k_m.gguf";

/// The file of a model, or a line that says that `test` is skipped.
pub fn model(file: &str, test: &str) -> Option<PathBuf> {
    let cache = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/pangea/test-models"));
    let path = std::env::var_os(FOLDER).map(PathBuf::from).or_else(cache).map(|folder| folder.join(file));
    let path = path.filter(|path| path.is_file());
    if path.is_none() {
        skip(test, &format!("{file} is not there; `scripts/setup.sh test` fetches it, {FOLDER} names its folder"));
    }
    path
}
