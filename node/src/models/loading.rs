//! Model files into memory: the weights of a part, and beside them the tokenizer and the chat template where the part ends in
//! the head. It decides neither which part nor what the memory is for.

use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::engine::{Engine, Stage};
use pangea_compute::model::{ModelFile, ModelPart};

use crate::compute_error;
use crate::devices::{Devices, Kind};
use crate::model_text::ModelText;

/// Longest wait of a load for memory beside its weights: products release theirs within seconds, or keep it for good.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(5);

/// A part of a model in memory.
pub(crate) struct LoadedPart {
    /// Its weights, as the engine has them.
    pub(crate) model: Stage,
    /// Tokenizer and chat template; there where the part has the head, which chooses tokens.
    pub(crate) text: Option<ModelText>,
}

impl LoadedPart {
    /// Reads and packs `part` of `file` by `engine`; the memory of the weights is the caller's to lease. Blocks.
    ///
    /// # Errors
    /// `InvalidInput` for a file that no engine here runs, `Overloaded` where memory does not suffice, with the numbers.
    pub(crate) fn load(file: &ModelFile, part: ModelPart, engine: &Engine, devices: &Devices) -> Result<LoadedPart> {
        let has_head = part.head;
        if has_head && file.chat_template().is_none() {
            let file = file.path().file_name().unwrap_or_default().display();
            tracing::warn!(
                event = "no_chat_template",
                %file,
                "{file} has no chat template: it may be a base model, which goes on with a text and does not answer; models that answer have 'instruct', 'chat' or 'it' in their names"
            );
        }
        let scratch = engine.load_bytes(file, &part).map_err(compute_error)?.scratch;
        let _scratch = devices.lease_within(Kind::Loading, scratch, MEMORY_TIMEOUT)?;
        // Tokenizer and weights have nothing to do with each other: both at once start sooner.
        let (text, model) = std::thread::scope(|scope| {
            let text = scope.spawn(|| has_head.then(|| ModelText::of(file)).transpose());
            (text.join(), engine.load(file, part))
        });
        let broken = |_| Error::new(ErrorKind::Internal, "its tokenizer could not be read");
        let text = text.map_err(broken)??;
        Ok(LoadedPart { model: model.map_err(compute_error)?, text })
    }
}
