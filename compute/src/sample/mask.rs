//! Sets of tokens, one bit each: grammars make masks, [`choose`](super::choose) applies them.

const WORD: usize = u32::BITS as usize;

/// A set of token ids. Ids at or above its size are not in the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `id % 32` of word `id / 32`; bits at or above `size` are 0.
    words: Vec<u32>,
    size: usize,
}

impl TokenMask {
    /// The empty set, for ids below `size`.
    pub fn none(size: usize) -> TokenMask {
        TokenMask { words: vec![0; size.div_ceil(WORD)], size }
    }

    /// All ids below `size`.
    pub fn all(size: usize) -> TokenMask {
        TokenMask::from_words(vec![u32::MAX; size.div_ceil(WORD)], size)
    }

    /// A set from words; the lowest id is the lowest bit of the first word.
    pub(crate) fn from_words(mut words: Vec<u32>, size: usize) -> TokenMask {
        words.resize(size.div_ceil(WORD), 0);
        if !size.is_multiple_of(WORD)
            && let Some(last) = words.last_mut()
        {
            *last &= u32::MAX >> (WORD - size % WORD);
        }
        TokenMask { words, size }
    }

    /// Adds an id; returns `false` for an id at or above the size, which is not added.
    pub fn allow(&mut self, token: u32) -> bool {
        let inside = (token as usize) < self.size;
        if inside {
            self.words[token as usize / WORD] |= 1 << (token as usize % WORD);
        }
        inside
    }

    /// Whether the id is in the set.
    pub fn allows(&self, token: u32) -> bool {
        self.words.get(token as usize / WORD).is_some_and(|word| word >> (token as usize % WORD) & 1 == 1)
    }

    /// The number of ids in the set.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Sets the logits of all other tokens to −∞.
    pub fn apply(&self, logits: &mut [f32]) {
        let words = self.words.iter().copied().chain(std::iter::repeat(0));
        for (block, word) in logits.chunks_mut(WORD).zip(words) {
            match word {
                0 => block.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    for (bit, logit) in block.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_tokens_keep_their_logits() {
        let mut mask = TokenMask::none(70);
        for token in [0, 31, 32, 69] {
            assert!(mask.allow(token));
        }
        assert!(!mask.allow(70));
        let mut logits = vec![1.0; 100];
        mask.apply(&mut logits);
        for (token, logit) in logits.into_iter().enumerate() {
            assert_eq!(logit == 1.0, [0, 31, 32, 69].contains(&token), "{token}");
            assert_eq!(mask.allows(token as u32), logit == 1.0);
        }
        assert_eq!(mask.count(), 4);
        assert_eq!(TokenMask::all(70).count(), 70);
        assert!(!TokenMask::all(70).allows(70));
        assert!(TokenMask::all(0).words.is_empty());
    }
}
