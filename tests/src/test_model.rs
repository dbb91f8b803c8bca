//! The models that tests use, where this machine has them. Fetches no model.

use std::path::PathBuf;

use crate::skip::skip;

/// Environment variable that names the folder of the models.
const FOLDER: &str = "PANGEA_TEST_MODELS";

/// SmolLM2-135M-Instruct, 98 MB, with a chat template.
pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1";

/// Gemma 3 270M, 253 MB, without a chat template.
pub const GEMMA3: &str = "gemma-3-270m-q4_k_m";

/// The file of a model by its name without `.gguf`; where it does not exist, prints that `test` is skipped.
pub fn file_of(model: &str, test: &str) -> Option<PathBuf> {
    let usual = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/pangea/test-models"));
    let folder = std::env::var_os(FOLDER).map(PathBuf::from).or_else(usual)?;
    let file = folder.join(format!("{model}.gguf"));
    if file.is_file() {
        return Some(file);
    }
    skip(test, &format!("{} does not exist; `scripts/setup.sh test` fetches it where it can", file.display()));
    None
}
