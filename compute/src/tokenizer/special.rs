//! Special tokens that are written out in a text: where they are, and the plain text between them.
//! It never decides whether control tokens may be parsed: the caller does.

use super::vocabulary::{TokenKind, Vocabulary};

/// A part of a text.
pub(super) enum Fragment<'t> {
    /// A special token that was written out.
    Token(u32),
    /// What lies between. Never empty.
    Text(&'t str),
}

/// The texts of all special tokens of a vocabulary, and how to find them quickly.
///
/// The longest are found first, anywhere in a text, then shorter ones in what is left, as llama.cpp does it.
pub(super) struct SpecialTokens {
    /// All lengths in bytes that occur, the longest first.
    lengths: Vec<usize>,
    /// One bit for each pair of bytes with which a special token starts; a token of one byte has all pairs.
    starts: Vec<u64>,
    /// Whether a token has one byte: only such a one can be the last byte of a text.
    single: bool,
}

impl SpecialTokens {
    pub(super) fn new(vocabulary: &Vocabulary) -> SpecialTokens {
        let mut tokens = SpecialTokens { lengths: Vec::new(), starts: vec![0; (1 << 16) / 64], single: false };
        for (_, kind, text) in vocabulary.iter() {
            if !is_special(kind, true) {
                continue;
            }
            let seconds = match *text.as_bytes() {
                [] => continue,
                [_] => 0..=255,
                [_, second, ..] => second..=second,
            };
            tokens.single |= text.len() == 1;
            tokens.lengths.push(text.len());
            for second in seconds {
                let pair = usize::from(text.as_bytes()[0]) << 8 | usize::from(second);
                tokens.starts[pair / 64] |= 1 << (pair % 64);
            }
        }
        tokens.lengths.sort_unstable_by(|a, b| b.cmp(a));
        tokens.lengths.dedup();
        tokens
    }

    fn may_start(&self, pair: [u8; 2]) -> bool {
        let pair = usize::from(pair[0]) << 8 | usize::from(pair[1]);
        self.starts[pair / 64] >> (pair % 64) & 1 == 1
    }

    /// Cuts `text` at its special tokens: user-defined ones, and control tokens too where `control` says so.
    pub(super) fn fragments<'t>(&self, vocabulary: &Vocabulary, text: &'t str, control: bool) -> Vec<Fragment<'t>> {
        let found = self.find(vocabulary, text, control);
        let mut fragments = Vec::with_capacity(found.len() * 2 + 1);
        let mut at = 0;
        for (start, len, token) in found {
            if start > at {
                fragments.push(Fragment::Text(&text[at..start]));
            }
            fragments.push(Fragment::Token(token));
            at = start + len;
        }
        if at < text.len() {
            fragments.push(Fragment::Text(&text[at..]));
        }
        fragments
    }

    /// Start, length and token of every special token, in order; none overlaps another.
    fn find(&self, vocabulary: &Vocabulary, text: &str, control: bool) -> Vec<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        let mut starts: Vec<usize> =
            (1..bytes.len()).filter(|&i| self.may_start([bytes[i - 1], bytes[i]])).map(|i| i - 1).collect();
        if self.single {
            starts.extend(bytes.len().checked_sub(1));
        }
        let mut found = Vec::new();
        if starts.is_empty() {
            return found;
        }
        let mut taken = vec![false; bytes.len()];
        for &len in &self.lengths {
            for &start in &starts {
                let end = start + len;
                // What was taken before is at least as long: it cannot lie between the first and the last byte.
                if end > bytes.len() || taken[start] || taken[end - 1] {
                    continue;
                }
                let token = text.get(start..end).and_then(|candidate| vocabulary.find(candidate));
                if let Some(token) = token.filter(|&token| is_special(vocabulary.kind(token), control)) {
                    taken[start..end].fill(true);
                    found.push((start, len, token));
                }
            }
        }
        found.sort_unstable();
        found
    }
}

fn is_special(kind: TokenKind, control: bool) -> bool {
    match kind {
        TokenKind::UserDefined => true,
        TokenKind::Control | TokenKind::Unknown => control,
        TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => false,
    }
}
