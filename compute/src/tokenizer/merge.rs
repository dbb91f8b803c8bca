//! Merges neighbours: the best pair of a sequence first, the leftmost of equals, until no pair merges. Ranks are the
//! caller's.
//!
//! A heap holds every pair that was ever adjacent, so n symbols cost n·log n in any order of merges.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No token: for a symbol without one, the end of a chain, and the rank of a pair that does not merge.
pub(super) const NONE: u32 = u32::MAX;
/// Bytes of a text that is merged as one, at most: indices must stay below [`NONE`].
pub(super) const MAX_TEXT_BYTES: usize = 1 << 30;

/// A piece of the text, and its token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// The token, or [`NONE`].
    pub(super) token: u32,
    /// The start of its text, which ends where the next symbol's starts.
    pub(super) start: u32,
    next: u32,
    previous: u32,
    /// The rank of the pair of this symbol and the next, and the merged token; [`NONE`] where the pair does not merge.
    rank: u32,
    merged: u32,
}

/// The symbols of one word at a time; the memory is reused.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    /// Rank and index of the left symbol in one number, which is small because a long word has many entries.
    heap: BinaryHeap<Reverse<u64>>,
}

impl Merger {
    /// Removes all symbols.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Appends a symbol.
    pub(super) fn push(&mut self, token: u32, start: u32) {
        let index = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = index;
        }
        let previous = index.wrapping_sub(1);
        self.symbols.push(Symbol { token, start, next: NONE, previous, rank: NONE, merged: NONE });
    }

    /// Merges all pairs of a text of `end` bytes. For two neighbours and the end of their text, which begins at
    /// `left.start`, `pair` returns the rank (below [`NONE`], lower is better) and the merged token.
    pub(super) fn merge(&mut self, end: u32, pair: impl Fn(Symbol, Symbol, u32) -> Option<(u32, u32)>) {
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, end, &pair);
        }
        while let Some(Reverse(best)) = self.heap.pop() {
            let (rank, index) = ((best >> 32) as u32, best as u32);
            let left = self.symbols[index as usize];
            // A merged symbol has no rank; a symbol whose pair has changed has a newer entry.
            if left.rank != rank {
                continue;
            }
            let right = self.symbols[left.next as usize];
            self.symbols[left.next as usize].rank = NONE;
            let merged = &mut self.symbols[index as usize];
            merged.token = left.merged;
            merged.next = right.next;
            if right.next != NONE {
                self.symbols[right.next as usize].previous = index;
            }
            if left.previous != NONE {
                self.consider(left.previous, end, &pair);
            }
            self.consider(index, end, &pair);
        }
    }

    /// Ranks the pair that begins with `index`.
    fn consider(&mut self, index: u32, end: u32, pair: &impl Fn(Symbol, Symbol, u32) -> Option<(u32, u32)>) {
        let left = self.symbols[index as usize];
        let found = self.symbols.get(left.next as usize).and_then(|&right| {
            let end = self.symbols.get(right.next as usize).map_or(end, |after| after.start);
            pair(left, right, end)
        });
        let (rank, merged) = found.unwrap_or((NONE, NONE));
        let symbol = &mut self.symbols[index as usize];
        (symbol.rank, symbol.merged) = (rank, merged);
        if rank != NONE {
            self.heap.push(Reverse(u64::from(rank) << 32 | u64::from(index)));
        }
    }

    /// The remaining symbols, in order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = Symbol> {
        let mut next = if self.symbols.is_empty() { NONE } else { 0 };
        std::iter::from_fn(move || {
            let symbol = *self.symbols.get(next as usize)?;
            next = symbol.next;
            Some(symbol)
        })
    }

    /// Appends the tokens of the remaining symbols of `text` to `out`; a symbol without one becomes the tokens of its bytes.
    pub(super) fn write(&self, text: &str, bytes: &[u32; 256], out: &mut Vec<u32>) {
        let mut symbols = self.symbols().peekable();
        while let Some(symbol) = symbols.next() {
            if symbol.token != NONE {
                out.push(symbol.token);
                continue;
            }
            let end = symbols.peek().map_or(text.len(), |next| next.start as usize);
            let written = &text.as_bytes()[symbol.start as usize..end];
            out.extend(written.iter().map(|&byte| bytes[usize::from(byte)]));
        }
    }
}
