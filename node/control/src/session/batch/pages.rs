//! Caches of ended sequences, kept for requests with the same prefix: which exist, how large they are, and which is
//! the oldest. Token ids only, not the caches themselves.

use pangea_units::Rewind;

use crate::Time;

use super::{CacheBytes, SequenceId};

/// One kept cache.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) id: SequenceId,
    /// Tokens in the cache.
    pub(super) tokens: Vec<u32>,
    /// Where the latest of its steps began.
    pub(super) deepest: usize,
    /// Where it can go back to, as far as recurrent states count.
    pub(super) rewind: Rewind,
    /// The kept cache that its first positions were copied from.
    pub(super) copied_from: Option<SequenceId>,
    /// Time of its last use.
    pub(super) used: Time,
}

/// Every kept cache; among equal times of use the least recently added is first.
#[derive(Debug, Default)]
pub(super) struct KeptCaches {
    kept: Vec<Kept>,
}

impl KeptCaches {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.kept.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub(super) fn push(&mut self, kept: Kept) {
        self.kept.push(kept);
    }

    /// Removes a cache, where it is kept.
    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Kept> {
        let at = self.kept.iter().position(|kept| kept.id == id)?;
        Some(self.kept.remove(at))
    }

    pub(super) fn touch(&mut self, id: SequenceId, now: Time) {
        self.kept.iter_mut().filter(|kept| kept.id == id).for_each(|kept| kept.used = now);
    }

    /// Bytes of all kept caches, as if no page were shared: an upper bound.
    pub(super) fn bytes(&self, cache: &CacheBytes) -> u64 {
        self.kept.iter().map(|kept| cache.of(kept.tokens.len(), kept.deepest)).fold(0, u64::saturating_add)
    }

    pub(super) fn remove_oldest(&mut self) -> Option<SequenceId> {
        let oldest = self.kept.iter().enumerate().min_by_key(|(at, kept)| (kept.used, *at))?.0;
        Some(self.kept.remove(oldest).id)
    }

    /// Caches whose tokens are a prefix of `tokens`, with their lengths.
    pub(super) fn beginnings_of(&self, tokens: &[u32]) -> Vec<(SequenceId, usize)> {
        let beginnings = self.kept.iter().filter(|kept| tokens.starts_with(&kept.tokens));
        beginnings.map(|kept| (kept.id, kept.tokens.len())).collect()
    }
}

/// Length of the common prefix of two sequences.
pub(super) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
