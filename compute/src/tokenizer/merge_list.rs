//! The merges of a vocabulary, as its file lists them: which two tokens become which third one, and which goes first.

use super::merge::{NONE, Symbol};
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

pub(super) struct MergeList {
    /// All merges, sorted by left token, then right.
    merges: Vec<Merge>,
    /// The first merge of each left token; one more entry at the end.
    begins: Vec<u32>,
}

impl MergeList {
    /// # Errors
    /// [`Error::Parse`] for values of another type; [`Error::Invalid`] for merges that are missing or do not combine two
    /// tokens into a third.
    pub(super) fn from_gguf(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<MergeList, Error> {
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
        Ok(MergeList { merges: by_left.into_iter().map(|(_, merge)| merge).collect(), begins })
    }

    /// The rank of the pair and the merged token, if it merges.
    pub(super) fn pair(&self, left: Symbol, right: Symbol) -> Option<(u32, u32)> {
        if left.token == NONE {
            return None;
        }
        let left = left.token as usize;
        let merges = &self.merges[self.begins[left] as usize..self.begins[left + 1] as usize];
        let at = merges.binary_search_by_key(&right.token, |merge| merge.right).ok()?;
        Some((merges[at].rank, merges[at].merged))
    }
}
