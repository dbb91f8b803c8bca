//! What is cached of a session: keys and values, in pages of [`Cache::PAGE_POSITIONS`] positions for all layers of one kind of
//! a part, those with a sliding window, whose old pages are evicted, and those without; and recurrent states. How keys and
//! values lie in a page is the kernels' (`kernel::page`).
//!
//! | file | owns |
//! |---|---|
//! | here | the cache of a session, and what it takes: [`CacheShape`] |
//! | `table` | which page holds which positions |
//! | `states` | the recurrent states, and to which of them a session goes back |
//! | `storage` | the memory of pages and states, its budget |

pub(super) mod states;
mod storage;
mod table;

pub(crate) use states::StateRows;
pub use storage::PageBudget;
pub(crate) use storage::{Page, PageStore};
pub(crate) use table::CacheRows;

use super::ModelConfig;
use crate::Error;
use crate::kernel::page::{KINDS, PAGE_POSITIONS, PageShape, kind_of};
use crate::kernel::state::StateShape;
use states::States;
use std::ops::Range;
use table::{PageTable, TableMemory};

/// What sessions of a part of a model take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Positions of a session, at most.
    context: usize,
    /// What pages hold of each kind of layers, in this machine's memory.
    pub(crate) pages: [PageShape; KINDS],
    /// The same of layers on a device with pages of its own.
    pub(crate) device_pages: [PageShape; KINDS],
    /// Positions that rows of each kind of layers see, at most; 0 without such layers.
    windows: [usize; KINDS],
    /// What states hold of the layers that have such.
    pub(crate) states: Option<StateShape>,
}

impl CacheShape {
    /// For layers `layers` of a model, in this machine's memory.
    pub fn of(config: &ModelConfig, layers: Range<usize>) -> CacheShape {
        CacheShape::split(config, layers, 0)
    }

    /// For layers `layers` of a model, the last `on_device` of them on a device with pages of its own.
    pub(crate) fn split(config: &ModelConfig, layers: Range<usize>, on_device: usize) -> CacheShape {
        let ModelConfig { kv_heads, head_dim, .. } = *config;
        let none = [PageShape { layers: 0, kv_heads, head_dim }; KINDS];
        let first_on_device = layers.end.saturating_sub(on_device);
        let mut shape =
            CacheShape { context: config.context, pages: none, device_pages: none, windows: [0; KINDS], states: None };
        // Layers that the model does not have are for the plan of a stage to refuse.
        for layer in layers.start..layers.end.min(config.layers) {
            match config.delta.filter(|_| config.is_delta[layer]) {
                Some(delta) => {
                    let before = shape.states.map_or(0, |states| states.layers);
                    shape.states = Some(StateShape { layers: before + 1, shape: delta });
                }
                None => {
                    let window = config.sliding_window[layer];
                    let kind = kind_of(window);
                    let pages = if layer < first_on_device { &mut shape.pages } else { &mut shape.device_pages };
                    pages[kind].layers += 1;
                    shape.windows[kind] = shape.windows[kind].max(window);
                }
            }
        }
        shape
    }

    /// Bytes of a session of `positions` positions, if none of them is evicted: what a pass over all of them takes.
    pub fn bytes_for(&self, positions: usize) -> u64 {
        positions.div_ceil(PAGE_POSITIONS) as u64 * self.page_bytes() + self.states.map_or(0, states::most_bytes)
    }

    /// Bytes of keys and values of [`Cache::PAGE_POSITIONS`] positions; 0 for a part without attention.
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes_by_kind().iter().sum()
    }

    /// The same apart: in layers that see all positions, and in those with a sliding window, whose old pages are evicted.
    pub fn page_bytes_by_kind(&self) -> [u64; 2] {
        std::array::from_fn(|kind| (self.pages[kind].bytes() + self.device_pages[kind].bytes()) as u64)
    }

    /// Of `bytes` for sessions, those that lie in a device's memory, as far as layers are there.
    pub fn device_bytes_of(&self, bytes: u64) -> u64 {
        let of_device: usize = self.device_pages.iter().map(|shape| shape.bytes()).sum();
        let share = u128::from(bytes) * of_device as u128 / u128::from(self.page_bytes().max(1));
        u64::try_from(share).unwrap_or(bytes)
    }

    /// Bytes of a session's recurrent states, whatever its number of positions, while a step of one pass is computed; 0 for a part
    /// without such layers.
    pub fn sequence_bytes(&self) -> u64 {
        self.states.map_or(0, states::bytes)
    }
}

/// Keys, values and recurrent states of one session for the layers of one stage. Of layers with a sliding window, pages that
/// no further row sees are dropped when the next pass begins.
pub struct Cache {
    shape: CacheShape,
    /// Of each kind of layers, in this machine's memory.
    tables: [PageTable; KINDS],
    /// Of each kind of layers, on a device.
    device_tables: [PageTable; KINDS],
    /// Where layers have recurrent states.
    states: Option<States>,
    len: usize,
    budget: PageBudget,
}

/// What a pass over some positions of a session reads and writes.
pub(crate) struct SessionRows<'a> {
    /// The first of these positions.
    pub(crate) position: usize,
    /// The pages of each kind of layers in this machine's memory, in order, up to those of these positions.
    pub(crate) pages: [Vec<CacheRows<'a>>; KINDS],
    /// Those of layers on a device.
    pub(crate) device_pages: [Vec<CacheRows<'a>>; KINDS],
    /// Where layers have recurrent states.
    pub(crate) state: Option<StateRows<'a>>,
}

/// What a cache held before a step.
pub(crate) struct Before {
    len: usize,
    states: Option<States>,
}

impl Cache {
    /// Positions of one page: the granularity in which memory is taken.
    pub const PAGE_POSITIONS: usize = PAGE_POSITIONS;

    /// Positions before those that the last pass's first row saw, which stay: a session can go back by that many, to where an
    /// answer is asked for again or a conversation forks. Half a window of the models that have small ones.
    pub const KEPT_BEHIND: usize = 256;

    /// An empty cache for sessions of stages of this shape.
    pub(crate) fn new(shape: CacheShape, budget: &PageBudget) -> Cache {
        let table = |kind: usize, pages: &[PageShape; KINDS], memory| {
            PageTable::new(kind, memory, pages[kind].bytes(), shape.windows[kind])
        };
        Cache {
            shape,
            tables: std::array::from_fn(|kind| table(kind, &shape.pages, TableMemory::Host)),
            device_tables: std::array::from_fn(|kind| table(kind, &shape.device_pages, TableMemory::Device)),
            states: shape.states.map(States::new),
            len: 0,
            budget: budget.clone(),
        }
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
        let reaches_back = self.all_tables().all(|table| table.reaches_back_from(len));
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
        self.tables.iter_mut().chain(&mut self.device_tables).for_each(|table| table.truncate(self.len));
    }

    fn all_tables(&self) -> impl Iterator<Item = &PageTable> {
        self.tables.iter().chain(&self.device_tables)
    }

    /// What the cache holds, for [`Cache::restore`].
    pub(crate) fn before(&self) -> Before {
        Before { len: self.len, states: self.states.clone() }
    }

    /// Goes back to what the cache held before a step, which added positions at most.
    pub(crate) fn restore(&mut self, before: Before) {
        (self.len, self.states) = (before.len, before.states);
        self.drop_reserved();
    }

    /// A second session with the same positions. Pages are shared until one of the two writes, states always.
    pub fn fork(&self) -> Cache {
        Cache {
            shape: self.shape,
            tables: self.tables.clone(),
            device_tables: self.device_tables.clone(),
            states: self.states.clone(),
            len: self.len,
            budget: self.budget.clone(),
        }
    }

    /// What the cache is for.
    pub(crate) fn shape(&self) -> CacheShape {
        self.shape
    }

    /// What its memory is taken from.
    pub(crate) fn budget(&self) -> &PageBudget {
        &self.budget
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
        if end > self.shape.context {
            return Err(Error::Invalid {
                operation: "context",
                what: format!(
                    "{end} positions do not fit the model's context of {}; shorten the prompt or ask for fewer tokens",
                    self.shape.context
                ),
            });
        }
        for table in self.tables.iter_mut().chain(&mut self.device_tables) {
            table.evict(self.len, Cache::KEPT_BEHIND);
            table.reserve(self.len, end, &self.budget)?;
        }
        if let Some(states) = &mut self.states {
            states.begin();
        }
        Ok(())
    }

    /// What a pass over the next `rows` reserved positions reads and writes. Takes the memory for its recurrent states.
    ///
    /// # Errors
    /// As [`Cache::reserve`].
    pub(crate) fn begin_pass(&mut self, rows: usize) -> Result<SessionRows<'_>, Error> {
        let state = self.states.as_mut().map(|states| states.rows(rows, &self.budget)).transpose()?;
        let pages = self.tables.each_mut().map(|table| table.rows(self.len));
        let device_pages = self.device_tables.each_mut().map(|table| table.rows(self.len));
        Ok(SessionRows { position: self.len, pages, device_pages, state })
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
        let held = self.all_tables().map(PageTable::held).sum::<usize>();
        let states = self.states.as_ref().map_or(0, States::count);
        write!(f, "Cache({} positions, {held} pages, {states} states)", self.len)
    }
}
