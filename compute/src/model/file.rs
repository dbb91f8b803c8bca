//! A model file on disk: its GGUF, the model's configuration, tokenizer and chat template. Weights are loaded
//! elsewhere.

use crate::Error;
use crate::gguf::Gguf;
use crate::model::ModelConfig;
use crate::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

/// An opened model file; its tensors are mapped, not read.
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

    /// Opens and checks the files of one model in order, whatever their names; the first one's path is the model's.
    ///
    /// # Errors
    /// As [`Gguf::open_parts`] and [`ModelConfig::from_metadata`].
    pub fn open_parts(paths: &[PathBuf]) -> Result<ModelFile, Error> {
        ModelFile::new(paths.first().cloned().unwrap_or_default(), Gguf::open_parts(paths)?)
    }

    /// Opens and checks a GGUF file in memory.
    ///
    /// # Errors
    /// As [`Gguf::from_bytes`] and [`ModelConfig::from_metadata`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<ModelFile, Error> {
        ModelFile::new(PathBuf::from("a model in memory"), Gguf::from_bytes(bytes)?)
    }

    fn new(path: PathBuf, gguf: Gguf) -> Result<ModelFile, Error> {
        // The vocabulary's size is the number of embedding rows; the metadata's own count is not used.
        let vocabulary = match gguf.tensor("token_embd.weight")? {
            Some(embedding) => embedding.rows() as u64,
            None => 0,
        };
        let config = ModelConfig::from_metadata(gguf.metadata(), vocabulary)?;
        Ok(ModelFile { path, gguf, config })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parsed file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`].
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::from_gguf(self.gguf.metadata())
    }

    /// The model's chat template (Jinja), if the file has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.gguf.metadata().get_str("tokenizer.chat_template").ok().flatten()
    }
}
