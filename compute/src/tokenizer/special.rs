//! Special tokens that are written out in a text, and the plain text between them. Whether control tokens may be parsed
//! is the caller's decision.

use super::vocabulary::{TokenKind, Vocabulary};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

/// A part of a text.
pub(super) enum Fragment<'t> {
    /// A special token that is written out.
    Token(u32),
    /// Text between special tokens, never empty.
    Text(&'t str),
}

/// All special tokens of a vocabulary, indexed for search.
///
/// The longest tokens are matched first, anywhere in a text, then shorter ones in the rest, as in llama.cpp.
pub(super) struct SpecialTokens {
    /// One bit for each pair of bytes that begins a special token of two or more bytes.
    starts: Vec<u64>,
    /// The groups of each such pair, longest first.
    buckets: BTreeMap<[u8; 2], Range<usize>>,
    groups: Vec<Group>,
    /// The tokens, sorted by pair, then length, then text.
    tokens: Vec<u32>,
    /// Special tokens of one byte.
    single: BTreeMap<u8, u32>,
    /// All lengths of special tokens from 2 on, longest first.
    lengths: Vec<usize>,
}

/// Special tokens of one length that begin with the same pair of bytes: a range of all tokens.
struct Group {
    len: usize,
    tokens: Range<usize>,
}

impl SpecialTokens {
    pub(super) fn new(vocabulary: &Vocabulary) -> SpecialTokens {
        let mut single = BTreeMap::new();
        let mut texts = Vec::new();
        for (token, _, text) in vocabulary.iter().filter(|&(_, kind, _)| is_special(kind, true)) {
            match *text.as_bytes() {
                [] => {}
                [byte] => drop(single.insert(byte, token)),
                [first, second, ..] => texts.push(([first, second], Reverse(text.len()), text, token)),
            }
        }
        texts.sort_unstable();
        let mut special = SpecialTokens {
            starts: vec![0; (1 << 16) / 64],
            buckets: BTreeMap::new(),
            groups: Vec::new(),
            tokens: texts.iter().map(|&(.., token)| token).collect(),
            single,
            lengths: texts.iter().map(|&(_, Reverse(len), ..)| len).collect(),
        };
        special.lengths.sort_unstable_by_key(|&len| Reverse(len));
        special.lengths.dedup();
        let mut at = 0;
        for group in texts.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let (pair, Reverse(len), ..) = group[0];
            let index = u16::from_be_bytes(pair) as usize;
            special.starts[index / 64] |= 1 << (index % 64);
            let index = special.groups.len();
            special.buckets.entry(pair).or_insert(index..index).end += 1;
            special.groups.push(Group { len, tokens: at..at + group.len() });
            at += group.len();
        }
        special
    }

    fn may_start(&self, pair: [u8; 2]) -> bool {
        let index = u16::from_be_bytes(pair) as usize;
        self.starts[index / 64] >> (index % 64) & 1 == 1
    }

    /// Cuts `text` at its special tokens: user-defined ones, and with `control` also control tokens.
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

    /// Start, length and token of every special token, in order and without overlaps.
    fn find(&self, vocabulary: &Vocabulary, text: &str, control: bool) -> Vec<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        // Each place where a special token may start, with the groups that remain to be tried there.
        let mut starts: Vec<(usize, Range<usize>)> = Vec::new();
        for (start, pair) in bytes.windows(2).enumerate() {
            let pair = [pair[0], pair[1]];
            if self.may_start(pair) {
                starts.extend(self.buckets.get(&pair).map(|groups| (start, groups.clone())));
            }
        }
        let mut found = Vec::new();
        if starts.is_empty() && self.single.is_empty() {
            return found;
        }
        let mut taken = vec![false; bytes.len()];
        for &len in &self.lengths {
            for (start, groups) in &mut starts {
                // Lengths decrease, so earlier groups are not needed again.
                let Some(group) =
                    self.groups.get(groups.start).filter(|group| groups.start < groups.end && group.len == len)
                else {
                    continue;
                };
                groups.start += 1;
                let (start, end) = (*start, *start + len);
                // Earlier matches are at least as long, so none can lie between the first and the last byte.
                if end > bytes.len() || taken[start] || taken[end - 1] {
                    continue;
                }
                let tokens = &self.tokens[group.tokens.clone()];
                let text_of = |token: &u32| vocabulary.text(*token).unwrap_or_default().as_bytes();
                let Ok(at) = tokens.binary_search_by(|token| text_of(token).cmp(&bytes[start..end])) else { continue };
                if is_special(vocabulary.kind(tokens[at]), control) {
                    taken[start..end].fill(true);
                    found.push((start, len, tokens[at]));
                }
            }
        }
        for (start, byte) in bytes.iter().enumerate().filter(|_| !self.single.is_empty()) {
            if let Some(&token) = self.single.get(byte).filter(|&&token| is_special(vocabulary.kind(token), control))
                && !taken[start]
            {
                found.push((start, 1, token));
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
