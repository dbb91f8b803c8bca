//! SentencePiece's BPE: the characters of a text are merged by the scores of the merged tokens; characters without a
//! token become bytes. Special tokens are handled before.

use super::merge::{Merger, NONE};
use super::vocabulary::{TokenKind, Vocabulary, invalid};
use crate::Error;
use crate::gguf::Metadata;
use std::collections::BTreeSet;

/// Stands for a space in tokens.
pub(super) const SPACE: char = '▁';

pub(super) struct SentencePiece {
    /// The rank of each token, lower being better: the score's bits in order.
    ranks: Vec<u32>,
    /// The token of each byte, for characters without a token.
    bytes: [u32; 256],
    /// The token of each ASCII character, or [`NONE`].
    ascii: [u32; 128],
    /// The characters that occur before a space inside some token. A text is cut before a space after any other
    /// character, since no token spans that place.
    before_space: BTreeSet<char>,
}

impl SentencePiece {
    /// # Errors
    /// [`Error::Parse`] for values of another type; [`Error::Invalid`] for scores that are missing, too few or not
    /// numbers, and where a byte has no token and there is no unknown token.
    pub(super) fn from_gguf(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<SentencePiece, Error> {
        let scores = metadata
            .get_f32s("tokenizer.ggml.scores")?
            .ok_or_else(|| invalid("the file has no tokenizer.ggml.scores: the file is incomplete; fetch it again"))?;
        if scores.len() != vocabulary.len() {
            return Err(invalid(format!(
                "tokenizer.ggml.scores has {} entries for {} tokens: the file is corrupt",
                scores.len(),
                vocabulary.len()
            )));
        }
        if let Some(token) = scores.iter().position(|score| score.is_nan()) {
            return Err(invalid(format!("the score of token {token} is not a number: the file is corrupt")));
        }
        let bytes = vocabulary.byte_tokens()?;
        let mut before_space = BTreeSet::new();
        for (_, kind, text) in vocabulary.iter() {
            if !matches!(kind, TokenKind::Control | TokenKind::Unknown) {
                let pairs = text.chars().zip(text.chars().skip(1));
                before_space.extend(pairs.filter(|&(_, after)| after == SPACE).map(|(before, _)| before));
            }
        }
        before_space.insert(SPACE);
        let ascii = std::array::from_fn(|c| {
            let c = char::from(c as u8);
            vocabulary.find_piece(c.encode_utf8(&mut [0; 4])).unwrap_or(NONE)
        });
        Ok(SentencePiece { ranks: scores.into_iter().map(rank).collect(), bytes, ascii, before_space })
    }

    /// Appends the tokens of `text` to `out`, with a space before it if `prefix` is set.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, prefix: bool, out: &mut Vec<u32>) {
        let mut written = String::with_capacity(text.len() + text.len() / 4 + SPACE.len_utf8());
        if prefix {
            written.push(SPACE);
        }
        written.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let mut merger = Merger::default();
        let mut part = 0;
        let mut before = SPACE;
        for (at, c) in written.char_indices() {
            if c == SPACE && !self.before_space.contains(&before) {
                self.encode_part(vocabulary, &written[part..at], &mut merger, out);
                part = at;
            }
            before = c;
        }
        self.encode_part(vocabulary, &written[part..], &mut merger, out);
    }

    fn encode_part(&self, vocabulary: &Vocabulary, text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        merger.clear();
        for (start, c) in text.char_indices() {
            let token = match self.ascii.get(c as usize) {
                Some(&token) => token,
                None => vocabulary.find_piece(&text[start..start + c.len_utf8()]).unwrap_or(NONE),
            };
            merger.push(token, start as u32);
        }
        let end = text.len() as u32;
        merger.merge(end, |left, _, end| {
            let token = vocabulary.find_piece(&text[left.start as usize..end as usize])?;
            Some((self.ranks[token as usize], token))
        });
        merger.write(text, &self.bytes, out);
    }
}

/// Higher scores become lower ranks; both zeros are one.
fn rank(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    // Negative floats order in reverse, below all others.
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn a_higher_score_is_a_better_rank() {
        let scores = [f32::INFINITY, 3.5, 1e-40, 0.0, -1e-40, -1.0, -1000.0, f32::NEG_INFINITY];
        for pair in scores.windows(2) {
            assert!(rank(pair[0]) < rank(pair[1]), "{pair:?}");
        }
        assert_eq!(rank(0.0), rank(-0.0));
    }
}
