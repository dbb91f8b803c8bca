//! The caches of sequences that have ended, kept for requests that begin alike: which there are, how large, and which is
//! the oldest. It holds their token ids, not the caches.

use crate::Time;

use super::{BatchLimits, SequenceId};

/// One kept cache.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) id: SequenceId,
    /// The tokens that the cache holds.
    pub(super) tokens: Vec<u32>,
    /// When it last served.
    pub(super) used: Time,
}

/// All of them, the least recently used first where moments are equal.
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

    pub(super) fn remove(&mut self, id: SequenceId) {
        self.kept.retain(|kept| kept.id != id);
    }

    pub(super) fn touch(&mut self, id: SequenceId, now: Time) {
        self.kept.iter_mut().filter(|kept| kept.id == id).for_each(|kept| kept.used = now);
    }

    /// Pages of all of them, as if none were shared: too many rather than too few.
    pub(super) fn pages(&self, limits: &BatchLimits) -> usize {
        self.kept.iter().map(|kept| limits.pages_of(kept.tokens.len())).sum()
    }

    pub(super) fn remove_oldest(&mut self) -> Option<SequenceId> {
        let oldest = self.kept.iter().enumerate().min_by_key(|(at, kept)| (kept.used, *at))?.0;
        Some(self.kept.remove(oldest).id)
    }

    /// Those whose tokens are all at the beginning of `tokens`.
    pub(super) fn beginnings_of(&self, tokens: &[u32]) -> Vec<SequenceId> {
        self.kept.iter().filter(|kept| tokens.starts_with(&kept.tokens)).map(|kept| kept.id).collect()
    }
}

/// How many tokens two sequences have in common at their beginning.
pub(super) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
