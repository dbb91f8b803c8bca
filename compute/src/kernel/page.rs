//! How cached keys and values lie in a page, which holds [`PAGE_POSITIONS`] positions of one session for all layers of one
//! kind, of a model's part: those with a sliding window, or those without. Only offsets and sizes are defined here; the memory
//! belongs to the model's cache.

use super::simd::LANES;

/// Positions of one page. Keys of [`LANES`] positions lie together, so it is a multiple of that.
pub(crate) const PAGE_POSITIONS: usize = 32;

/// Kinds of layers that attend. Each has rotary frequencies and pages of its own.
pub(crate) const KINDS: usize = 2;

/// The kind of a layer whose rows see `window` positions: 0 where it is all of them (`usize::MAX`), 1 with a sliding window.
pub(crate) fn kind_of(window: usize) -> usize {
    usize::from(window != usize::MAX)
}

const _: () = assert!(PAGE_POSITIONS.is_multiple_of(LANES));

/// What a page holds: for each of its layers the keys of every key-value head, then the values, as f16. Keys of one head:
/// `[PAGE_POSITIONS / 16][head_dim][16]`, a lane being a position. Values of one head: `[PAGE_POSITIONS][head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl PageShape {
    /// Elements of one layer's keys; its values are as many.
    fn layer_len(self) -> usize {
        self.kv_heads * PAGE_POSITIONS * self.head_dim
    }

    /// Bytes of a page.
    pub(crate) fn bytes(self) -> usize {
        2 * self.layers * self.layer_len() * size_of::<half::f16>()
    }

    /// The first element of the keys of a layer's head.
    pub(crate) fn key_offset(self, layer: usize, head: usize) -> usize {
        2 * layer * self.layer_len() + head * PAGE_POSITIONS * self.head_dim
    }

    /// The first element of the values of a layer's head.
    pub(crate) fn value_offset(self, layer: usize, head: usize) -> usize {
        self.key_offset(layer, head) + self.layer_len()
    }
}
