//! Merging neighbours: the best pair of a sequence first, the leftmost of equals, until no pair merges. It never knows
//! why one pair is better than another.
//!
//! A heap holds every pair that was ever adjacent, so n symbols cost n·log n, however they merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No token: a symbol that has none, and the end of a chain.
pub(super) const NONE: u32 = u32::MAX;
/// What follows a symbol that was merged into the one before it.
const GONE: u32 = u32::MAX - 1;
/// The longest text that is merged as one, in bytes: indices must stay below the two above.
pub(super) const MAX_TEXT_BYTES: usize = 1 << 30;

/// A part of the text, and the token it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// The token, or [`NONE`].
    pub(super) token: u32,
    /// Where its text starts; it goes on to where the next symbol's starts.
    pub(super) start: u32,
    next: u32,
    previous: u32,
}

/// A pair that may merge; smaller ones first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    right: u32,
    /// What the two were when the pair was seen: if they are that no more, the pair is gone.
    tokens: (u32, u32),
    merged: u32,
}

/// The symbols of one word after the other; keeps its memory from word to word.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Forgets the last word.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Adds a symbol behind the others.
    pub(super) fn push(&mut self, token: u32, start: u32) {
        let index = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = index;
        }
        self.symbols.push(Symbol { token, start, next: NONE, previous: index.wrapping_sub(1) });
    }

    /// Merges all there is to merge in a text of `end` bytes. `pair` gives the rank, lower being better, and the token of
    /// two neighbours, which are the text from `left.start` to the `usize`.
    pub(super) fn merge(&mut self, end: u32, pair: impl Fn(Symbol, Symbol, u32) -> Option<(u32, u32)>) {
        for left in 1..self.symbols.len() as u32 {
            self.consider(left - 1, end, &pair);
        }
        while let Some(Reverse(best)) = self.heap.pop() {
            let (left, right) = (self.symbols[best.left as usize], self.symbols[best.right as usize]);
            if (left.token, right.token) != best.tokens || left.next != best.right {
                continue;
            }
            let merged = &mut self.symbols[best.left as usize];
            merged.token = best.merged;
            merged.next = right.next;
            self.symbols[best.right as usize].next = GONE;
            if right.next != NONE {
                self.symbols[right.next as usize].previous = best.left;
            }
            if left.previous != NONE {
                self.consider(left.previous, end, &pair);
            }
            self.consider(best.left, end, &pair);
        }
    }

    fn consider(&mut self, left_index: u32, end: u32, pair: &impl Fn(Symbol, Symbol, u32) -> Option<(u32, u32)>) {
        let left = self.symbols[left_index as usize];
        if left.next == NONE {
            return;
        }
        let right = self.symbols[left.next as usize];
        let end = self.symbols.get(right.next as usize).map_or(end, |after| after.start);
        if let Some((rank, merged)) = pair(left, right, end) {
            self.heap.push(Reverse(Candidate {
                rank,
                left: left_index,
                right: left.next,
                tokens: (left.token, right.token),
                merged,
            }));
        }
    }

    /// What is left, in order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = Symbol> {
        let mut next = if self.symbols.is_empty() { NONE } else { 0 };
        std::iter::from_fn(move || {
            let symbol = *self.symbols.get(next as usize)?;
            next = symbol.next;
            Some(symbol)
        })
    }
}
