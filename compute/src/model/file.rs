//! A model file on disk: its GGUF, what it says of the model, its tokenizer and chat template. It loads no weights.

use crate::Error;
use crate::gguf::Gguf;
use crate::model::ModelConfig;
use crate::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

/// An opened model file; the tensors are mapped, not read.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    gguf: Gguf,
    config: ModelConfig,
}

impl ModelFile {
    /// Opens and checks a GGUF file.
    ///
    /// # Errors
    /// As [`Gguf::open`] and [`ModelConfig::from_metadata`].
    pub fn open(path: impl AsRef<Path>) -> Result<ModelFile, Error> {
        let path = path.as_ref();
        ModelFile::new(path.to_owned(), Gguf::open(path)?)
    }

    /// The same for a file in memory.
    ///
    /// # Errors
    /// As [`Gguf::from_bytes`] and [`ModelConfig::from_metadata`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<ModelFile, Error> {
        ModelFile::new(PathBuf::from("a model in memory"), Gguf::from_bytes(bytes)?)
    }

    fn new(path: PathBuf, gguf: Gguf) -> Result<ModelFile, Error> {
        // The embedding's rows are the vocabulary; what the metadata says beside is not needed.
        let vocabulary = match gguf.tensor("token_embd.weight")? {
            Some(embedding) => embedding.rows() as u64,
            None => 0,
        };
        let config = ModelConfig::from_metadata(gguf.metadata(), vocabulary)?;
        Ok(ModelFile { path, gguf, config })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The file itself.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`].
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::from_gguf(self.gguf.metadata())
    }

    /// Its chat template (Jinja), where it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.gguf.metadata().get_str("tokenizer.chat_template").ok().flatten()
    }
}
