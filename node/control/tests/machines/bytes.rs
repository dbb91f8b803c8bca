//! Decodes bytes into the choices of a run: every input is a run, and a small change of it is a small change of the run.

/// What is left of an input.
pub(crate) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// All of an input.
    pub(crate) fn new(bytes: &'a [u8]) -> Bytes<'a> {
        Bytes(bytes)
    }

    /// Whether the run is over.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte; 0 at the end.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `limit`, which is at most 256.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    /// Whether the next byte is one of the lower `share` of 256.
    pub(crate) fn is_rare(&mut self, share: u8) -> bool {
        // The end of an input is no rarity.
        !self.is_empty() && self.byte() < share
    }

    /// A small number, and now and then one of the largest.
    pub(crate) fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX - u64::from(self.byte()),
            254 => u64::from(u32::MAX) + u64::from(self.byte()),
            253 => u64::from(u32::MAX) - u64::from(self.byte()),
            252 => 1 << self.below(64),
            small => u64::from(small),
        }
    }
}
