//! BPE over characters by a list of merges, as in Gemma 4: spaces are written as SentencePiece writes them, nothing but line ends
//! cuts a text, and characters without a token become bytes. Special tokens are handled before.

use super::merge::{Merger, NONE};
use super::merge_list::MergeList;
use super::sentence_piece::SPACE;
use super::vocabulary::Vocabulary;
use crate::Error;
use crate::gguf::Metadata;

pub(super) struct CharacterPair {
    /// The token of each byte, for characters without a token.
    bytes: [u32; 256],
    merges: MergeList,
}

impl CharacterPair {
    /// # Errors
    /// [`Error::Parse`] for values of another type; [`Error::Invalid`] where a byte has no token and there is no unknown
    /// token, and for merges that are missing or do not combine two tokens into a third.
    pub(super) fn from_gguf(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<CharacterPair, Error> {
        Ok(CharacterPair { bytes: vocabulary.byte_tokens()?, merges: MergeList::from_gguf(metadata, vocabulary)? })
    }

    /// Appends the tokens of `text` to `out`.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        let mut merger = Merger::default();
        let mut written = String::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let is_break = first == '\n';
            let end = rest.find(|c| (c == '\n') != is_break).unwrap_or(rest.len());
            let (line, after) = rest.split_at(end);
            rest = after;
            // Line ends in a row are one token where the vocabulary has it.
            if let Some(token) = Some(line).filter(|_| is_break).and_then(|line| vocabulary.find_piece(line)) {
                out.push(token);
                continue;
            }
            written.clear();
            written.extend(line.chars().map(|c| if c == ' ' { SPACE } else { c }));
            self.encode_line(vocabulary, &written, &mut merger, out);
        }
    }

    fn encode_line(&self, vocabulary: &Vocabulary, line: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        merger.clear();
        for (start, c) in line.char_indices() {
            let token = vocabulary.find_piece(&line[start..start + c.len_utf8()]).unwrap_or(NONE);
            merger.push(token, start as u32);
        }
        merger.merge(line.len() as u32, |left, right, _| self.merges.pair(left, right));
        merger.write(line, &self.bytes, out);
    }
}
