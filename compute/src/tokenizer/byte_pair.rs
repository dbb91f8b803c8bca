//! Byte-level BPE, as in GPT-2: a text is cut into words, and the bytes of a word are merged by rank. Special tokens
//! are handled before.

use super::byte_level::CHARACTERS;
use super::merge::{Merger, NONE};
use super::merge_list::MergeList;
use super::pretokenize::NamedPretokenizer;
use super::vocabulary::Vocabulary;
use crate::Error;
use crate::gguf::Metadata;

pub(super) struct BytePair {
    named: NamedPretokenizer,
    /// The token of each byte; [`NONE`] where the vocabulary lacks it.
    bytes: [u32; 256],
    merges: MergeList,
}

impl BytePair {
    /// # Errors
    /// [`Error::Parse`] for values of another type; [`Error::Invalid`] for an unknown pre-tokenizer, and for merges
    /// that are missing or do not combine two tokens into a third.
    pub(super) fn from_gguf(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<BytePair, Error> {
        let named = NamedPretokenizer::of(metadata.get_str("tokenizer.ggml.pre")?.unwrap_or_default())?;
        let mut buffer = [0; 4];
        let bytes = CHARACTERS.map(|c| vocabulary.find(c.encode_utf8(&mut buffer)).unwrap_or(NONE));
        Ok(BytePair { named, bytes, merges: MergeList::from_gguf(metadata, vocabulary)? })
    }

    /// Whether a text begins with the beginning-of-sequence token if the file does not say.
    pub(super) fn adds_bos(&self) -> bool {
        self.named.adds_bos
    }

    /// Appends the tokens of `text` to `out`. Bytes that are not in the vocabulary are dropped, as in llama.cpp.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        let mut merger = Merger::default();
        let mut written = String::new();
        self.named.pretokenizer.split(text, |word| {
            if self.named.ignores_merges {
                written.clear();
                written.extend(word.bytes().map(|byte| CHARACTERS[usize::from(byte)]));
                if let Some(token) = vocabulary.find_piece(&written) {
                    return out.push(token);
                }
            }
            merger.clear();
            for (start, byte) in word.bytes().enumerate() {
                merger.push(self.bytes[usize::from(byte)], start as u32);
            }
            merger.merge(word.len() as u32, |left, right, _| self.merges.pair(left, right));
            out.extend(merger.symbols().map(|symbol| symbol.token).filter(|&token| token != NONE));
        });
    }
}
