//! What is cached of a session: keys and values, in pages of [`Cache::PAGE_POSITIONS`] positions for all layers of one kind of a model's
//! part: those with a sliding window, whose old pages are evicted, and those without; and recurrent states (`states`). A budget bounds the pages; forks share pages until one of them writes; dropped pages are reused. The layout of
//! a page is the kernels' (`kernel::page`).

use crate::kernel::page::{PAGE_POSITIONS, PageShape};
use crate::kernel::transformer::{ChunkState, KINDS};
use crate::model::Model;
use crate::model::states::{self, States};
use crate::{Buffer, Error};
use pangea_units::ByteSize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bounds the memory of all caches that were made with it. A clone is the same budget.
#[derive(Clone)]
pub struct PageBudget(Arc<Mutex<Pages>>);

struct Pages {
    max_bytes: u64,
    used_bytes: u64,
    /// Dropped pages, kept for reuse. They do not count as used; together with used pages they stay within `max_bytes`.
    spare: Vec<Buffer>,
}

impl PageBudget {
    /// A budget of `max_bytes`.
    pub fn new(max_bytes: u64) -> PageBudget {
        PageBudget(Arc::new(Mutex::new(Pages { max_bytes, used_bytes: 0, spare: Vec::new() })))
    }

    /// Bytes of pages in use.
    pub fn used_bytes(&self) -> u64 {
        self.pages().used_bytes
    }

    /// Bytes of pages that may be in use.
    pub fn max_bytes(&self) -> u64 {
        self.pages().max_bytes
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, bytes: usize) -> Result<Page, Error> {
        let mut pages = self.pages();
        if pages.used_bytes + bytes as u64 > pages.max_bytes {
            return Err(Error::Busy {
                what: format!(
                    "session memory is full: a page needs {}; {} free of {}; end a session or raise the limit",
                    ByteSize(bytes as u64),
                    ByteSize(pages.max_bytes - pages.used_bytes),
                    ByteSize(pages.max_bytes)
                ),
            });
        }
        let memory = match pages.spare.iter().position(|page| page.len() == bytes) {
            Some(at) => pages.spare.swap_remove(at),
            None => {
                // Spare pages of another size are freed.
                while pages.used_bytes + pages.spare_bytes() + bytes as u64 > pages.max_bytes
                    && pages.spare.pop().is_some()
                {}
                Buffer::zeroed(bytes)?
            }
        };
        pages.used_bytes += bytes as u64;
        Ok(Page { memory: Some(memory), budget: self.clone() })
    }
}

impl Pages {
    fn spare_bytes(&self) -> u64 {
        self.spare.iter().map(|page| page.len() as u64).sum()
    }
}

impl std::fmt::Debug for PageBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pages = self.pages();
        write!(f, "PageBudget({} of {} bytes)", pages.used_bytes, pages.max_bytes)
    }
}

/// A piece of a budget's memory.
pub(super) struct Page {
    /// `None` only while the page is dropped.
    memory: Option<Buffer>,
    budget: PageBudget,
}

impl Page {
    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], Buffer::as_slice)
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().map_or(&mut [], Buffer::as_mut_slice)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            let mut pages = self.budget.pages();
            pages.used_bytes -= memory.len() as u64;
            pages.spare.push(memory);
        }
    }
}

/// The pages of one kind of a part's layers.
#[derive(Clone)]
struct PageTable {
    shape: PageShape,
    /// Positions that a row sees, its own included.
    window: usize,
    /// `None` where the page was evicted; all such pages are at the beginning.
    pages: Vec<Option<Arc<Page>>>,
}

impl PageTable {
    /// Positions at the beginning whose pages were evicted.
    fn evicted(&self) -> usize {
        self.pages.iter().take_while(|page| page.is_none()).count() * PAGE_POSITIONS
    }

    /// Whether the rows from `len` on have all positions before them that they see.
    fn reaches_back_from(&self, len: usize) -> bool {
        self.evicted() <= (len + 1).saturating_sub(self.window)
    }

    /// Drops pages that no row from `len` on sees, but for those that [`Cache::KEPT_BEHIND`] keeps.
    fn evict(&mut self, len: usize) {
        let seen_from = (len + 1).saturating_sub(self.window.saturating_add(Cache::KEPT_BEHIND));
        self.pages.iter_mut().take(seen_from / PAGE_POSITIONS).for_each(|page| *page = None);
    }

    /// Makes room for positions `len` to `end` in pages that are not shared.
    fn reserve(&mut self, len: usize, end: usize, budget: &PageBudget) -> Result<(), Error> {
        let bytes = self.shape.bytes();
        if bytes == 0 {
            return Ok(());
        }
        for index in len / PAGE_POSITIONS..end.div_ceil(PAGE_POSITIONS) {
            let Some(page) = self.pages.get_mut(index) else {
                self.pages.push(Some(Arc::new(budget.take(bytes)?)));
                continue;
            };
            if let Some(page) = page
                && Arc::get_mut(page).is_none()
            {
                let mut own = budget.take(bytes)?;
                own.bytes_mut().copy_from_slice(page.bytes());
                *page = Arc::new(own);
            }
        }
        Ok(())
    }

    fn starts(&mut self, len: usize) -> Vec<*mut u16> {
        let writable = len / PAGE_POSITIONS;
        let start = |(index, page): (usize, &mut Option<Arc<Page>>)| match page {
            None => std::ptr::null_mut(),
            Some(page) => match Arc::get_mut(page) {
                Some(own) if index >= writable => own.bytes_mut().as_mut_ptr().cast(),
                _ => page.bytes().as_ptr().cast_mut().cast(),
            },
        };
        self.pages.iter_mut().enumerate().map(start).collect()
    }
}

/// Keys, values and recurrent states of one session for the layers of one [`Model`]. Of layers with a sliding window, pages that no further row
/// sees are dropped when the next pass begins.
pub struct Cache {
    context: usize,
    /// Of each kind of layers.
    tables: [PageTable; KINDS],
    /// Where layers have recurrent states.
    states: Option<States>,
    len: usize,
    budget: PageBudget,
}

/// What a cache held before a step.
pub(super) struct Before {
    len: usize,
    states: Option<States>,
}

impl Cache {
    /// Positions of one page: the granularity in which memory is taken.
    pub const PAGE_POSITIONS: usize = PAGE_POSITIONS;

    /// Positions before those that the last pass's first row saw, which stay: a session can go back by that many, to where an
    /// answer is asked for again or a conversation forks. Half a window of the models that have small ones.
    pub const KEPT_BEHIND: usize = 256;

    /// An empty cache for sessions of this model.
    pub fn new(model: &Model, budget: &PageBudget) -> Cache {
        let (shapes, windows) = (model.page_shapes(), model.windows());
        let tables =
            std::array::from_fn(|kind| PageTable { shape: shapes[kind], window: windows[kind], pages: Vec::new() });
        let states = model.state_shape().map(States::new);
        Cache { context: model.config().context, tables, states, len: 0, budget: budget.clone() }
    }

    /// The number of positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no positions are held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops the positions from `len` on. Where what a next row would see was evicted, drops all: a cache can always go back
    /// to where its last pass began, and [`Cache::KEPT_BEHIND`] positions further. Recurrent states go back to any of the last
    /// positions of the latest step, and else to the nearest earlier position whose state was kept
    /// ([`Rewind`](pangea_units::Rewind)): the positions from [`Cache::len`] to `len` are then to be computed again.
    pub fn truncate(&mut self, len: usize) {
        let len = self.states.as_ref().map_or(len, |states| states.reach(len));
        let reaches_back = self.tables.iter().all(|table| table.reaches_back_from(len));
        if len < self.len {
            self.len = if reaches_back { len } else { 0 };
        }
        if let Some(states) = &mut self.states {
            states.truncate(self.len);
        }
        self.drop_reserved();
    }

    /// Pages that were reserved for a pass that failed go.
    fn drop_reserved(&mut self) {
        let pages = self.len.div_ceil(PAGE_POSITIONS);
        self.tables.iter_mut().for_each(|table| table.pages.truncate(pages));
    }

    /// What the cache holds, for [`Cache::restore`].
    pub(super) fn before(&self) -> Before {
        Before { len: self.len, states: self.states.clone() }
    }

    /// Goes back to what the cache held before a step, which added positions at most.
    pub(super) fn restore(&mut self, before: Before) {
        (self.len, self.states) = (before.len, before.states);
        self.drop_reserved();
    }

    /// A second session with the same positions. Pages are shared until one of the two writes, states always.
    pub fn fork(&self) -> Cache {
        Cache {
            context: self.context,
            tables: self.tables.clone(),
            states: self.states.clone(),
            len: self.len,
            budget: self.budget.clone(),
        }
    }

    /// Bytes of a session of `positions` positions, if none of them is evicted: what a pass over all of them takes.
    pub fn bytes_for(model: &Model, positions: usize) -> u64 {
        let states = model.state_shape().map_or(0, states::most_bytes);
        positions.div_ceil(PAGE_POSITIONS) as u64 * Cache::page_bytes(model) + states
    }

    /// Bytes of keys and values of [`Cache::PAGE_POSITIONS`] positions; 0 for a part without attention.
    pub fn page_bytes(model: &Model) -> u64 {
        Cache::page_bytes_by_kind(model).iter().sum()
    }

    /// [`Cache::page_bytes`] of the layers that see all positions, and of those with a sliding window, which keep the pages of a
    /// window and [`Cache::KEPT_BEHIND`] positions before where the last pass began.
    pub fn page_bytes_by_kind(model: &Model) -> [u64; KINDS] {
        model.page_shapes().map(|shape| shape.bytes() as u64)
    }

    /// Bytes of a session's recurrent states, whatever its number of positions, while a step of one pass is computed; 0 for a part
    /// without such layers.
    pub fn sequence_bytes(model: &Model) -> u64 {
        model.state_shape().map_or(0, states::bytes)
    }

    /// Whether the cache is for a part like this one.
    pub(crate) fn is_for(&self, model: &Model) -> bool {
        let shapes = self.tables.each_ref().map(|table| table.shape);
        shapes == model.page_shapes() && self.states.as_ref().map(States::shape) == model.state_shape()
    }

    /// Makes room for `rows` more positions in pages that are not shared; the length does not change. Evicts what these rows do
    /// not see.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the positions exceed the model's context, [`Error::Busy`] where pages exceed the
    /// budget,
    /// [`Error::OutOfMemory`].
    pub(crate) fn reserve(&mut self, rows: usize) -> Result<(), Error> {
        let end = self.len + rows;
        if end > self.context {
            return Err(Error::Invalid {
                operation: "context",
                what: format!(
                    "{end} positions do not fit the model's context of {}; shorten the prompt or ask for fewer tokens",
                    self.context
                ),
            });
        }
        for table in &mut self.tables {
            table.evict(self.len);
            table.reserve(self.len, end, &self.budget)?;
        }
        if let Some(states) = &mut self.states {
            states.begin();
        }
        Ok(())
    }

    /// Takes the memory for the recurrent states of a pass over the next `rows` reserved positions, and says where they are.
    ///
    /// # Errors
    /// As [`Cache::reserve`].
    pub(crate) fn chunk_state(&mut self, rows: usize) -> Result<Option<ChunkState>, Error> {
        self.states.as_mut().map(|states| states.chunk(rows, &self.budget)).transpose()
    }

    /// Of each kind of layers, the start of every page, in order; pages with reserved positions may be written through these
    /// pointers. Null where the page was evicted.
    pub(crate) fn page_starts(&mut self) -> [Vec<*mut u16>; KINDS] {
        self.tables.each_mut().map(|table| table.starts(self.len))
    }

    /// Adds `rows` reserved positions, now written, to the length.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.len += rows;
        if let Some(states) = &mut self.states {
            states.advance(rows);
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = self.tables.iter().map(|table| table.pages.iter().flatten().count()).sum::<usize>();
        let states = self.states.as_ref().map_or(0, States::count);
        write!(f, "Cache({} positions, {held} pages, {states} states)", self.len)
    }
}
