//! Byte-level BPE, as in GPT-2: a text is cut into words, and the bytes of a word are merged by rank. Special tokens
//! are handled before.

use super::byte_level::CHARACTERS;
use super::merge::{Merger, NONE, Symbol};
use super::pretokenize::Pretokenizer;
use super::vocabulary::{Vocabulary, invalid};
use crate::Error;
use crate::gguf::Metadata;

/// One merge: the right token, the rank, and the merged token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Merge {
    right: u32,
    rank: u32,
    merged: u32,
}

pub(super) struct BytePair {
    pretokenizer: Pretokenizer,
    /// Whether a word that is a token becomes that token without merging.
    whole_words: bool,
    /// The token of each byte; [`NONE`] where the vocabulary lacks it.
    bytes: [u32; 256],
    /// All merges, sorted by left token, then right.
    merges: Vec<Merge>,
    /// The first merge of each left token; one more entry at the end.
    begins: Vec<u32>,
}

impl BytePair {
    /// # Errors
    /// [`Error::Parse`] for values of another type; [`Error::Invalid`] for an unknown pre-tokenizer, and for merges
    /// that are missing or do not combine two tokens into a third.
    pub(super) fn from_gguf(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<BytePair, Error> {
        let pretokenizer = Pretokenizer::named(metadata.get_str("tokenizer.ggml.pre")?.unwrap_or("default"))?;
        let texts = metadata
            .get_strs("tokenizer.ggml.merges")?
            .ok_or_else(|| invalid("the file has no tokenizer.ggml.merges: the file is incomplete; fetch it again"))?;
        let mut by_left = Vec::with_capacity(texts.len());
        let mut joined = String::new();
        for (rank, text) in texts.iter().enumerate() {
            let bad = |why: &str| invalid(format!("merge {rank}, {text:?}, {why}: the file is corrupt"));
            // A token may begin with a space, but is never empty.
            let space = text.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(at, _)| at);
            let (left, right) =
                space.map(|at| (&text[..at], &text[at + 1..])).ok_or_else(|| bad("is not two tokens"))?;
            joined.clear();
            joined.extend([left, right]);
            let token = |text: &str| vocabulary.find(text);
            let (Some(left), Some(right), Some(merged)) = (token(left), token(right), token(&joined)) else {
                return Err(bad("names or makes a token that is not in the vocabulary"));
            };
            by_left.push((left, Merge { right, rank: rank as u32, merged }));
        }
        // Of duplicate merges the first counts.
        by_left.sort_unstable();
        by_left.dedup_by_key(|(left, merge)| (*left, merge.right));
        let mut begins = vec![0u32; vocabulary.len() + 1];
        for (left, _) in &by_left {
            begins[*left as usize + 1] += 1;
        }
        for left in 1..begins.len() {
            begins[left] += begins[left - 1];
        }
        let mut buffer = [0; 4];
        let bytes = CHARACTERS.map(|c| vocabulary.find(c.encode_utf8(&mut buffer)).unwrap_or(NONE));
        Ok(BytePair {
            pretokenizer,
            whole_words: pretokenizer == Pretokenizer::Llama3,
            bytes,
            merges: by_left.into_iter().map(|(_, merge)| merge).collect(),
            begins,
        })
    }

    /// Whether a text begins with the beginning-of-sequence token if the file does not say.
    pub(super) fn adds_bos(&self) -> bool {
        self.pretokenizer == Pretokenizer::Llama3
    }

    /// Appends the tokens of `text` to `out`. Bytes that are not in the vocabulary are dropped, as in llama.cpp.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        let mut merger = Merger::default();
        let mut written = String::new();
        self.pretokenizer.split(text, |word| {
            if self.whole_words {
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
            merger.merge(word.len() as u32, |left, right, _| self.pair(left, right));
            out.extend(merger.symbols().map(|symbol| symbol.token).filter(|&token| token != NONE));
        });
    }

    fn pair(&self, left: Symbol, right: Symbol) -> Option<(u32, u32)> {
        if left.token == NONE {
            return None;
        }
        let left = left.token as usize;
        let merges = &self.merges[self.begins[left] as usize..self.begins[left + 1] as usize];
        let at = merges.binary_search_by_key(&right.token, |merge| merge.right).ok()?;
        Some((merges[at].rank, merges[at].merged))
    }
}
