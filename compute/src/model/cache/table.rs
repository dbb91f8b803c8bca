//! Which page holds which positions of a session: eviction behind sliding windows, pages that forks share until one of them
//! writes. What a page is made of is `storage`'s.

use super::storage::{Page, PageBudget};
use crate::Error;
use crate::kernel::page::PAGE_POSITIONS;
use std::sync::Arc;

/// Whose memory the pages of a table lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableMemory {
    /// This machine's.
    Host,
    /// That of the budget's store.
    Device,
}

/// The pages of one kind of a part's layers, in one memory.
#[derive(Clone)]
pub(super) struct PageTable {
    kind: usize,
    memory: TableMemory,
    /// Bytes of a page; 0 for a part without such layers.
    page_bytes: usize,
    /// Positions that a row sees, its own included.
    window: usize,
    /// `None` where the page was evicted; all such pages are at the beginning.
    pages: Vec<Option<Arc<Page>>>,
}

/// A page during a pass.
pub(crate) enum CacheRows<'a> {
    /// No row of the pass sees its positions.
    Evicted,
    /// Its positions are complete, and other sessions may share it.
    Read(&'a Page),
    /// Positions of the pass belong to it. No other session has it.
    Write(&'a mut Page),
}

impl PageTable {
    pub(super) fn new(kind: usize, memory: TableMemory, page_bytes: usize, window: usize) -> PageTable {
        PageTable { kind, memory, page_bytes, window, pages: Vec::new() }
    }

    /// Pages that are in memory.
    pub(super) fn held(&self) -> usize {
        self.pages.iter().flatten().count()
    }

    /// Positions at the beginning whose pages were evicted.
    fn evicted(&self) -> usize {
        self.pages.iter().take_while(|page| page.is_none()).count() * PAGE_POSITIONS
    }

    /// Whether the rows from `len` on have all positions before them that they see.
    pub(super) fn reaches_back_from(&self, len: usize) -> bool {
        self.evicted() <= (len + 1).saturating_sub(self.window)
    }

    /// Drops pages that no row from `len` on sees, but for the `kept_behind` positions before those.
    pub(super) fn evict(&mut self, len: usize, kept_behind: usize) {
        let seen_from = (len + 1).saturating_sub(self.window.saturating_add(kept_behind));
        self.pages.iter_mut().take(seen_from / PAGE_POSITIONS).for_each(|page| *page = None);
    }

    /// Drops pages of which no position lies before `len`.
    pub(super) fn truncate(&mut self, len: usize) {
        self.pages.truncate(len.div_ceil(PAGE_POSITIONS));
    }

    /// Makes room for positions `len` to `end` in pages that are not shared.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::OutOfMemory`].
    pub(super) fn reserve(&mut self, len: usize, end: usize, budget: &PageBudget) -> Result<(), Error> {
        if self.page_bytes == 0 {
            return Ok(());
        }
        for index in len / PAGE_POSITIONS..end.div_ceil(PAGE_POSITIONS) {
            let Some(page) = self.pages.get_mut(index) else {
                self.pages.push(Some(Arc::new(self.page(budget)?)));
                continue;
            };
            if let Some(shared) = page
                && Arc::get_mut(shared).is_none()
            {
                let shared = Arc::clone(shared);
                let mut own = self.page(budget)?;
                own.copy_from(&shared)?;
                self.pages[index] = Some(Arc::new(own));
            }
        }
        Ok(())
    }

    /// A page that holds nothing yet.
    fn page(&self, budget: &PageBudget) -> Result<Page, Error> {
        match self.memory {
            TableMemory::Host => budget.take(self.page_bytes),
            TableMemory::Device => budget.take_place(self.kind, self.page_bytes),
        }
    }

    /// All pages, in order, for a pass over reserved positions from `len` on.
    pub(super) fn rows(&mut self, len: usize) -> Vec<CacheRows<'_>> {
        let writable = len / PAGE_POSITIONS;
        self.pages.iter_mut().enumerate().map(|(index, page)| CacheRows::of(page, index >= writable)).collect()
    }
}

impl CacheRows<'_> {
    fn of(page: &mut Option<Arc<Page>>, is_reserved: bool) -> CacheRows<'_> {
        let Some(page) = page else { return CacheRows::Evicted };
        // What is reserved is not shared; it is asked all the same, because kernels write there.
        match is_reserved && Arc::get_mut(page).is_some() {
            true => Arc::get_mut(page).map_or(CacheRows::Evicted, CacheRows::Write),
            false => CacheRows::Read(page),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::storage::PageStore;
    use super::*;
    use std::sync::Mutex;

    /// A device's memory, of which only what was asked is kept.
    #[derive(Default)]
    struct Asked {
        reserved: Mutex<Vec<(usize, u32, u32)>>,
        copied: Mutex<Vec<(usize, u32, u32)>>,
    }

    impl PageStore for Asked {
        fn reserve(&self, kind: usize, places: u32, most: u32) -> Result<(), Error> {
            self.reserved.lock().unwrap().push((kind, places, most));
            Ok(())
        }

        fn copy(&self, kind: usize, from: u32, to: u32) -> Result<(), Error> {
            self.copied.lock().unwrap().push((kind, from, to));
            Ok(())
        }
    }

    fn places(table: &mut PageTable, len: usize) -> Vec<Option<u32>> {
        let place = |page: CacheRows<'_>| match page {
            CacheRows::Evicted => None,
            CacheRows::Read(page) => page.place(),
            CacheRows::Write(page) => page.place(),
        };
        table.rows(len).into_iter().map(place).collect()
    }

    fn on_device() -> PageTable {
        PageTable::new(1, TableMemory::Device, 100, usize::MAX)
    }

    #[test]
    fn pages_of_a_device_have_places_that_are_taken_again_and_copied_when_shared() {
        let store = Arc::new(Asked::default());
        let budget = PageBudget::with_store(400, 400, Arc::clone(&store) as Arc<dyn PageStore>);
        let mut table = on_device();
        table.reserve(0, 2 * PAGE_POSITIONS, &budget).unwrap();
        assert_eq!(places(&mut table, 0), [Some(0), Some(1)]);
        assert_eq!((budget.used_bytes(), &*store.reserved.lock().unwrap()), (200, &vec![(1, 1, 4), (1, 2, 4)]));

        // A fork writes into the second page, which becomes its own.
        let mut fork = table.clone();
        fork.reserve(PAGE_POSITIONS + 3, PAGE_POSITIONS + 4, &budget).unwrap();
        assert_eq!(places(&mut fork, PAGE_POSITIONS + 3), [Some(0), Some(2)]);
        assert_eq!(*store.copied.lock().unwrap(), [(1, 1, 2)]);

        // What one session gives up, another one takes; no more than the budget has.
        drop(table);
        let mut next = on_device();
        next.reserve(0, 2 * PAGE_POSITIONS, &budget).unwrap();
        assert_eq!(places(&mut next, 0), [Some(1), Some(3)]);
        let error = next.reserve(2 * PAGE_POSITIONS, 3 * PAGE_POSITIONS, &budget).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        assert!(budget.lies_in(Some(&(store as Arc<dyn PageStore>))) && !budget.lies_in(None));
        drop((fork, next));
        assert_eq!(budget.used_bytes(), 0);
    }
}
