//! The starts of prompts and the servers that have read them. A prompt is compared in blocks; the table is bounded, and a wrong
//! entry costs time and never an answer.

use std::collections::BTreeMap;

use libp2p_identity::PeerId;
use pangea_units::Digest;

/// Tokens of a block: shorter than what is worth a detour, longer than a greeting.
pub const BLOCK_TOKENS: usize = 64;

/// Bytes of a text that count as one token: tokens of most texts have about as many.
const TOKEN_BYTES: usize = 4;

/// Blocks of a prompt that are compared: an agent's instructions and a long conversation.
const BLOCKS_MAX: usize = 512;

/// Remembered blocks of all models and servers: a few hundred conversations.
const REMEMBERED_MAX: usize = 16_384;

/// The start of a prompt: a number for each whole block, which depends on all tokens up to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// The numbers of the blocks, from the first.
    blocks: Vec<u64>,
    /// Tokens of the whole prompt.
    tokens: usize,
}

impl Prefix {
    /// The prefix of a prompt. `key` is drawn by each node at random, so that nobody can choose prompts with equal numbers.
    pub fn of(prompt: &[u32], key: u64) -> Prefix {
        let mut state = key;
        let blocks = prompt.chunks_exact(BLOCK_TOKENS).take(BLOCKS_MAX).map(|block| {
            for token in block {
                state = mixed(state ^ u64::from(*token));
            }
            state
        });
        Prefix { blocks: blocks.collect(), tokens: prompt.len() }
    }

    /// The prefix of a prompt whose tokens are not known, from its text: each few bytes count as a token.
    pub fn of_text(prompt: &[u8], key: u64) -> Prefix {
        let token = |bytes: &[u8]| bytes.iter().fold(0, |token, byte| token << 8 | u32::from(*byte));
        let tokens: Vec<u32> = prompt.chunks(TOKEN_BYTES).take(BLOCKS_MAX * BLOCK_TOKENS).map(token).collect();
        // Another key, so that a text and its tokens have no block in common.
        Prefix { tokens: prompt.len().div_ceil(TOKEN_BYTES), ..Prefix::of(&tokens, mixed(key)) }
    }

    /// Tokens of the whole prompt.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// The finalizer of SplitMix64, a bijection whose every output bit depends on every input bit.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Which servers have read which prompts.
#[derive(Debug, Default)]
pub struct ReadPrefixes {
    /// When each block of a model was last read at a server, as a count of readings.
    read: BTreeMap<(Digest, PeerId, u64), u64>,
    /// The same by that count, the oldest first.
    order: BTreeMap<u64, (Digest, PeerId, u64)>,
    readings: u64,
}

impl ReadPrefixes {
    /// Tokens of a prompt that a server has read before.
    pub fn known_tokens(&self, model: Digest, server: PeerId, prefix: &Prefix) -> usize {
        let known = prefix.blocks.iter().take_while(|block| self.read.contains_key(&(model, server, **block)));
        known.count() * BLOCK_TOKENS
    }

    /// Records that a server reads a prompt.
    pub fn reads(&mut self, model: Digest, server: PeerId, prefix: &Prefix) {
        // The first blocks are the newest: a prefix without its start is worth nothing.
        for block in prefix.blocks.iter().rev() {
            self.readings += 1;
            let key = (model, server, *block);
            if let Some(before) = self.read.insert(key, self.readings) {
                self.order.remove(&before);
            }
            self.order.insert(self.readings, key);
        }
        while self.read.len() > REMEMBERED_MAX {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.read.remove(&oldest);
        }
    }

    /// Forgets a server that is gone: its caches are lost.
    pub fn forget(&mut self, server: &PeerId) {
        self.read.retain(|(_, reader, _), _| reader != server);
        self.order.retain(|_, (_, reader, _)| reader != server);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_peers::peer;

    const MODEL: Digest = Digest([1; 32]);

    #[test]
    fn a_prompt_is_known_up_to_its_first_block_that_differs() {
        let mut read = ReadPrefixes::default();
        let prompt: Vec<u32> = (0..1000).collect();
        read.reads(MODEL, peer(1), &Prefix::of(&prompt, 7));
        let known = |prompt: &[u32]| read.known_tokens(MODEL, peer(1), &Prefix::of(prompt, 7));
        assert_eq!(known(&prompt), 960, "whole blocks only");
        let mut longer = prompt.clone();
        longer.extend(0..100);
        assert_eq!(known(&longer), 960);
        let mut other = prompt.clone();
        other[200] = 7777;
        assert_eq!(known(&other), 192);
        other[0] = 7777;
        assert_eq!(known(&other), 0);
        assert_eq!(read.known_tokens(MODEL, peer(2), &Prefix::of(&prompt, 7)), 0, "another server");
        assert_eq!(read.known_tokens(Digest([2; 32]), peer(1), &Prefix::of(&prompt, 7)), 0, "another model");
        read.forget(&peer(1));
        assert_eq!(read.known_tokens(MODEL, peer(1), &Prefix::of(&prompt, 7)), 0);
        assert!(read.order.is_empty());
    }

    #[test]
    fn a_text_is_known_up_to_its_first_block_that_differs_and_is_no_prompt_of_tokens() {
        let mut read = ReadPrefixes::default();
        let text: Vec<u8> = (0..2000u32).map(|at| (at % 251) as u8).collect();
        let prefix = Prefix::of_text(&text, 7);
        assert_eq!(prefix.tokens(), 500);
        read.reads(MODEL, peer(1), &prefix);
        let known = |text: &[u8]| read.known_tokens(MODEL, peer(1), &Prefix::of_text(text, 7));
        assert_eq!(known(&text), 448, "whole blocks only");
        assert_eq!(known(&[&text[..], b"and more, a few words of the next turn"].concat()), 448);
        let mut other = text.clone();
        other[600] ^= 1;
        assert_eq!(known(&other), 128);
        let tokens: Vec<u32> = text.chunks(4).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap())).collect();
        assert_eq!(read.known_tokens(MODEL, peer(1), &Prefix::of(&tokens, 7)), 0);
    }

    proptest! {
        #[test]
        fn the_table_stays_bounded_and_knows_what_was_read_last(lengths in prop::collection::vec(1usize..40_000, 1..60)) {
            let mut read = ReadPrefixes::default();
            for (at, length) in lengths.iter().enumerate() {
                let prompt: Vec<u32> = (0..*length as u32).map(|token| token ^ (at as u32) << 20).collect();
                let prefix = Prefix::of(&prompt, 3);
                read.reads(MODEL, peer(at as u64 % 3), &prefix);
                prop_assert!(read.read.len() <= REMEMBERED_MAX && read.order.len() == read.read.len());
                let whole = (length / BLOCK_TOKENS).min(BLOCKS_MAX) * BLOCK_TOKENS;
                prop_assert_eq!(read.known_tokens(MODEL, peer(at as u64 % 3), &prefix), whole);
            }
        }
    }
}
