//! Model files into memory: the weights of a part, and beside them the tokenizer and the chat template where the part ends in
//! the head. It decides neither which part nor what the memory is for.

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Pool;
use pangea_compute::model::{Model, ModelFile, ModelPart};

use crate::compute_error;
use crate::model_text::ModelText;

/// A part of a model in memory.
pub(crate) struct LoadedPart {
    /// Its weights, packed for the kernels.
    pub(crate) model: Model,
    /// Tokenizer and chat template; there where the part has the head, which chooses tokens.
    pub(crate) text: Option<ModelText>,
}

impl LoadedPart {
    /// Reads and packs `part` of `file` with the threads of `pool`. Blocks.
    ///
    /// # Errors
    /// `InvalidInput` for a file that no engine here runs, `Overloaded` where memory does not suffice.
    pub(crate) fn load(file: &ModelFile, part: ModelPart, pool: &Pool) -> Result<LoadedPart> {
        let has_head = part.head;
        // Tokenizer and weights have nothing to do with each other: both at once start sooner.
        let (text, model) = std::thread::scope(|scope| {
            let text = scope.spawn(|| has_head.then(|| ModelText::of(file)).transpose());
            (text.join(), Model::load(file, part, pool))
        });
        let broken = |_| Error::new(ErrorKind::Internal, "its tokenizer could not be read");
        let text = text.map_err(broken)??;
        Ok(LoadedPart { model: model.map_err(compute_error)?, text })
    }
}
