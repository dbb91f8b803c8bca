//! Cached keys and values of a session, in pages of [`Cache::PAGE_POSITIONS`] positions for all layers of a model's
//! part. A budget bounds the pages; forks share pages until one of them writes; dropped pages are reused. The layout of
//! a page is the kernels' (`kernel::page`).

use crate::kernel::page::{PAGE_POSITIONS, PageShape};
use crate::model::Model;
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

    fn take(&self, bytes: usize) -> Result<Page, Error> {
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

struct Page {
    /// `None` only while the page is dropped.
    memory: Option<Buffer>,
    budget: PageBudget,
}

impl Page {
    fn bytes(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], Buffer::as_slice)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
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

/// Keys and values of one session for the layers of one [`Model`].
pub struct Cache {
    shape: PageShape,
    context: usize,
    pages: Vec<Arc<Page>>,
    len: usize,
    budget: PageBudget,
}

impl Cache {
    /// Positions of one page: the granularity in which memory is taken.
    pub const PAGE_POSITIONS: usize = PAGE_POSITIONS;

    /// An empty cache for sessions of this model.
    pub fn new(model: &Model, budget: &PageBudget) -> Cache {
        Cache {
            shape: model.page_shape(),
            context: model.config().context,
            pages: Vec::new(),
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

    /// Drops the positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE_POSITIONS));
    }

    /// A second session with the same positions. Pages are shared until one of the two writes.
    pub fn fork(&self) -> Cache {
        Cache {
            shape: self.shape,
            context: self.context,
            pages: self.pages.clone(),
            len: self.len,
            budget: self.budget.clone(),
        }
    }

    /// Bytes of a session of `positions` positions.
    pub fn bytes_for(model: &Model, positions: usize) -> u64 {
        (positions.div_ceil(PAGE_POSITIONS) * model.page_shape().bytes()) as u64
    }

    pub(crate) fn shape(&self) -> PageShape {
        self.shape
    }

    /// Makes room for `rows` more positions in pages that are not shared; the length does not change.
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
        let bytes = self.shape.bytes();
        for index in self.len / PAGE_POSITIONS..end.div_ceil(PAGE_POSITIONS) {
            let Some(page) = self.pages.get_mut(index) else {
                self.pages.push(Arc::new(self.budget.take(bytes)?));
                continue;
            };
            if Arc::get_mut(page).is_none() {
                let mut own = self.budget.take(bytes)?;
                own.bytes_mut().copy_from_slice(page.bytes());
                *page = Arc::new(own);
            }
        }
        Ok(())
    }

    /// The start of every page, in order; pages with reserved positions may be written through these pointers.
    pub(crate) fn page_starts(&mut self) -> Vec<*mut u16> {
        let writable = self.len / PAGE_POSITIONS;
        self.pages
            .iter_mut()
            .enumerate()
            .map(|(index, page)| match Arc::get_mut(page) {
                Some(own) if index >= writable => own.bytes_mut().as_mut_ptr().cast(),
                _ => page.bytes().as_ptr().cast_mut().cast(),
            })
            .collect()
    }

    /// Adds `rows` reserved positions, now written, to the length.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.len += rows;
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({} positions, {} pages)", self.len, self.pages.len())
    }
}
