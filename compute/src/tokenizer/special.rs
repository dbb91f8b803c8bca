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
    /// The control tokens, forwards and backwards, each sorted.
    control: [Vec<Box<[u8]>>; 2],
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
            control: [false, true].map(|backwards| control_texts(vocabulary, backwards)),
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

    /// Cuts `text` at its special tokens: user-defined ones, and control tokens as `control` allows.
    pub(super) fn fragments<'t>(
        &self,
        vocabulary: &Vocabulary,
        text: &'t str,
        control: ControlTokens<'_>,
    ) -> Vec<Fragment<'t>> {
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
    fn find(&self, vocabulary: &Vocabulary, text: &str, control: ControlTokens<'_>) -> Vec<(usize, usize, u32)> {
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
                if is_special(vocabulary.kind(tokens[at]), control.may_cover(start..end)) {
                    taken[start..end].fill(true);
                    found.push((start, len, tokens[at]));
                }
            }
        }
        for (start, byte) in bytes.iter().enumerate().filter(|_| !self.single.is_empty()) {
            let control = control.may_cover(start..start + 1);
            if let Some(&token) = self.single.get(byte).filter(|&&token| is_special(vocabulary.kind(token), control))
                && !taken[start]
            {
                found.push((start, 1, token));
            }
        }
        found.sort_unstable();
        found
    }

    /// The byte offsets of `text` that no control token may cover if all of `text` is plain: its own control tokens, and what
    /// could become one with text before or after it. In order; none for nearly all texts.
    pub(super) fn control_places(&self, vocabulary: &Vocabulary, text: &str) -> Vec<usize> {
        let mut places: Vec<usize> = Vec::new();
        // What a token covers may hide another one.
        loop {
            let found = self.find(vocabulary, text, ControlTokens::Except(&places));
            let control = found.into_iter().filter(|&(.., token)| !is_special(vocabulary.kind(token), false));
            let before = places.len();
            for (start, len, _) in control {
                places.push(start);
                // A template that cuts off the first character leaves the second one.
                let second = text[start..start + len].char_indices().nth(1);
                places.extend(second.map(|(at, _)| start + at));
            }
            if places.len() == before {
                break;
            }
            places.sort_unstable();
            places.dedup();
        }
        let [forwards, backwards] = &self.control;
        let longest = forwards.iter().map(|token| token.len()).max().unwrap_or(0).min(text.len());
        let bytes = text.as_bytes();
        let ends_one = |end: usize| begins_another(backwards, &bytes[..end].iter().rev().copied().collect::<Vec<u8>>());
        places.extend((1..=longest).any(ends_one).then_some(0));
        let starts = (text.len() - longest..text.len()).filter(|&at| text.is_char_boundary(at));
        places.extend(starts.filter(|&at| begins_another(forwards, &bytes[at..])));
        places.sort_unstable();
        places.dedup();
        places
    }
}

/// The texts of all control tokens, sorted.
fn control_texts(vocabulary: &Vocabulary, backwards: bool) -> Vec<Box<[u8]>> {
    let control = vocabulary.iter().filter(|&(_, kind, _)| is_special(kind, true) && !is_special(kind, false));
    let mut texts: Vec<Box<[u8]>> = control.map(|(.., text)| text.as_bytes().into()).collect();
    if backwards {
        texts.iter_mut().for_each(|text| text.reverse());
    }
    texts.sort_unstable();
    texts
}

/// Whether a longer text of a sorted list begins with `part`.
fn begins_another(sorted: &[Box<[u8]>], part: &[u8]) -> bool {
    let from = sorted.partition_point(|text| **text <= *part);
    sorted.get(from).is_some_and(|text| text.starts_with(part))
}

/// Where a text's control tokens are parsed.
#[derive(Clone, Copy)]
pub(super) enum ControlTokens<'a> {
    /// Nowhere.
    None,
    /// Where none of these byte offsets is covered; they are in order.
    Except(&'a [usize]),
}

impl ControlTokens<'_> {
    fn may_cover(self, bytes: Range<usize>) -> bool {
        match self {
            ControlTokens::None => false,
            ControlTokens::Except(plain) => {
                let first = plain.partition_point(|&at| at < bytes.start);
                plain.get(first).is_none_or(|&at| at >= bytes.end)
            }
        }
    }
}

fn is_special(kind: TokenKind, control: bool) -> bool {
    match kind {
        TokenKind::UserDefined => true,
        TokenKind::Control | TokenKind::Unknown => control,
        TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => false,
    }
}
