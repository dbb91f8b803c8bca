//! How much memory the cache of a sequence takes. Layers that see all positions keep a page for every few tokens; layers with a
//! sliding window give up the pages that no further row sees.

/// What a cache takes on the stage that admits sequences.
#[derive(Clone, Copy, Debug)]
pub struct CacheBytes {
    /// Tokens per page.
    pub page_tokens: usize,
    /// Bytes of a page that stays as long as the sequence.
    pub page: u64,
    /// Bytes of a page of layers that give up what is far behind.
    pub windowed_page: u64,
    /// Positions that a row of a layer with a sliding window sees; `usize::MAX` where no layer has one.
    pub window: usize,
    /// Positions by which a cache can go back from the start of its last step, whose window is the last that is kept.
    pub kept_behind: usize,
    /// Bytes of recurrent states, whatever the length.
    pub states: u64,
}

impl CacheBytes {
    /// Bytes of a cache of `tokens` tokens whose steps began at `deepest` at most. A step that begins further on takes no more than
    /// this while it is computed: it gives up pages before it takes new ones.
    pub(super) fn of(&self, tokens: usize, deepest: usize) -> u64 {
        let pages = tokens.div_ceil(self.page_tokens);
        let seen_from = (deepest + 1).saturating_sub(self.window.saturating_add(self.kept_behind));
        self.of_pages(pages, pages.saturating_sub(seen_from / self.page_tokens))
    }

    /// The most bytes that a cache takes until it has `tokens` tokens, in steps of at most `rows` rows.
    pub(super) fn at_most(&self, tokens: usize, rows: usize) -> u64 {
        let pages = tokens.div_ceil(self.page_tokens);
        self.of_pages(pages, pages.min(self.windowed_pages(rows)))
    }

    /// The most tokens for which [`CacheBytes::at_most`] is no more than `bytes`.
    pub(super) fn longest(&self, bytes: u64, rows: usize) -> usize {
        let left = bytes.saturating_sub(self.states);
        let of_all = left / (self.page.saturating_add(self.windowed_page)).max(1);
        let windowed = self.windowed_pages(rows) as u64;
        let pages = match of_all < windowed {
            true => of_all,
            // From here on only the pages that stay grow in number.
            false => (left - windowed.saturating_mul(self.windowed_page)) / self.page.max(1),
        };
        usize::try_from(pages).unwrap_or(usize::MAX).saturating_mul(self.page_tokens)
    }

    /// Bytes by which a cache may grow with one more token.
    pub(super) fn one_page(&self) -> u64 {
        self.page.saturating_add(self.windowed_page)
    }

    /// Pages that layers with a sliding window have at most, in steps of at most `rows` rows: what the first row of the last step
    /// saw and what is kept behind that, the rows of that step and of the next one.
    fn windowed_pages(&self, rows: usize) -> usize {
        let seen = self.window.saturating_add(self.kept_behind).saturating_add(2 * rows);
        // The first page and the last one may be seen in part.
        (seen / self.page_tokens).saturating_add(2)
    }

    fn of_pages(&self, pages: usize, windowed: usize) -> u64 {
        let bytes = |pages: usize, page: u64| page.saturating_mul(pages as u64);
        bytes(pages, self.page).saturating_add(bytes(windowed, self.windowed_page)).saturating_add(self.states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: CacheBytes =
        CacheBytes { page_tokens: 16, page: 100, windowed_page: 500, window: 64, kept_behind: 32, states: 7 };

    /// Pages of layers with a window, given up and taken as `compute` does it.
    #[test]
    fn a_cache_takes_no_more_at_any_time_than_is_reckoned() {
        for rows in [1, 5, 16, 40] {
            let (mut evicted, mut len, mut deepest) = (0, 0usize, 0);
            let mut bytes_before = CACHE.states;
            while len < 1000 {
                let end = len + rows;
                let reckoned = CACHE.of(end, deepest);
                assert!(bytes_before <= reckoned, "before the step at {len}");
                evicted = evicted.max((len + 1).saturating_sub(64 + 32) / 16);
                let pages = end.div_ceil(16);
                let bytes = pages as u64 * 100 + (pages - evicted) as u64 * 500 + 7;
                deepest = len;
                assert!(bytes <= reckoned && bytes == CACHE.of(end, deepest), "in the step at {len}");
                assert!(reckoned <= CACHE.at_most(end, rows), "{rows} rows at {len}");
                (len, bytes_before) = (end, bytes);
            }
        }
    }

    #[test]
    fn the_longest_sequence_is_the_longest_that_fits() {
        let full = CacheBytes { page: 600, windowed_page: 0, window: usize::MAX, ..CACHE };
        let all_windowed = CacheBytes { page: 0, ..CACHE };
        for cache in [CACHE, full] {
            for bytes in (0..40_000).step_by(93) {
                let longest = cache.longest(bytes, 10);
                assert!(longest == 0 || cache.at_most(longest, 10) <= bytes, "{longest} in {bytes}");
                assert!(cache.at_most(longest + 1, 10) > bytes, "{longest} in {bytes}");
            }
        }
        assert_eq!(full.longest(6000 + 7, 10), 160);
        assert!(CACHE.longest(40_000, 10) > 3 * full.longest(40_000, 10));
        assert!(all_windowed.longest(40_000, 10) > 1 << 16, "its memory does not grow");
        assert_eq!(all_windowed.longest(600, 10), 16);
    }
}
