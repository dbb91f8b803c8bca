//! The memory of pages and states, and the budget that bounds it. What lies in a page, and to whom it belongs, is not known here.

use crate::kernel::page::KINDS;
use crate::{Buffer, Error};
use pangea_units::ByteSize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory of a device, in which pages have numbered places. Those of one kind of layers are of one size.
pub(crate) trait PageStore: Send + Sync {
    /// Makes room for the places 0 to `places`, exclusive, of a kind, of which there will be `most` at most. Pages that are there
    /// keep what they hold.
    fn reserve(&self, kind: usize, places: u32, most: u32) -> Result<(), Error>;

    /// Copies a page of a kind to another place, before anything that is computed afterwards.
    fn copy(&self, kind: usize, from: u32, to: u32) -> Result<(), Error>;
}

/// Bounds the memory of all caches that were made with it. A clone is the same budget.
#[derive(Clone)]
pub struct PageBudget {
    pages: Arc<Mutex<Pages>>,
    /// Where the pages of layers on a device lie.
    store: Option<Arc<dyn PageStore>>,
}

#[derive(Default)]
struct Pages {
    max_bytes: u64,
    /// Those of them in the store.
    max_store_bytes: u64,
    used_bytes: u64,
    /// Dropped pages, kept for reuse. They do not count as used; together with used pages they stay within `max_bytes`.
    spare: Vec<Buffer>,
    /// Of each kind of layers, the places of dropped pages in a store, and the number of places that were ever taken.
    free: [Vec<u32>; KINDS],
    places: [u32; KINDS],
}

impl PageBudget {
    /// A budget of `max_bytes` of this machine's memory.
    pub fn new(max_bytes: u64) -> PageBudget {
        PageBudget { pages: Arc::new(Mutex::new(Pages { max_bytes, ..Pages::default() })), store: None }
    }

    /// A budget of `max_bytes`, `max_store_bytes` of them in a store and the others in this machine's memory.
    pub(crate) fn with_store(max_bytes: u64, max_store_bytes: u64, store: Arc<dyn PageStore>) -> PageBudget {
        let pages = Pages { max_bytes, max_store_bytes, ..Pages::default() };
        PageBudget { pages: Arc::new(Mutex::new(pages)), store: Some(store) }
    }

    /// Whether the pages of layers on a device lie in this store; with `None`, whether there are no such layers.
    pub(crate) fn lies_in(&self, store: Option<&Arc<dyn PageStore>>) -> bool {
        match (&self.store, store) {
            (Some(own), Some(store)) => Arc::ptr_eq(own, store),
            (own, store) => own.is_none() && store.is_none(),
        }
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
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page of keys and values of a kind of layers, in the store.
    pub(super) fn take_place(&self, kind: usize, bytes: usize) -> Result<Page, Error> {
        let Some(store) = &self.store else {
            return Err(Error::invalid("cache", "the budget has no memory of a device"));
        };
        let mut pages = self.pages();
        pages.check(bytes)?;
        let place = match pages.free[kind].pop() {
            Some(place) => place,
            None => {
                let place = pages.places[kind];
                let most = u32::try_from(pages.max_store_bytes / bytes.max(1) as u64).unwrap_or(u32::MAX);
                store.reserve(kind, place + 1, most)?;
                pages.places[kind] = place + 1;
                place
            }
        };
        pages.used_bytes += bytes as u64;
        Ok(Page { memory: Some(Memory::Placed { kind, place, bytes }), budget: self.clone() })
    }

    /// Bytes of this machine's memory.
    pub(super) fn take(&self, bytes: usize) -> Result<Page, Error> {
        let mut pages = self.pages();
        pages.check(bytes)?;
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
        Ok(Page { memory: Some(Memory::Host(memory)), budget: self.clone() })
    }
}

impl Pages {
    fn spare_bytes(&self) -> u64 {
        self.spare.iter().map(|page| page.len() as u64).sum()
    }

    /// Whether so many bytes more may be in use.
    fn check(&self, bytes: usize) -> Result<(), Error> {
        if self.used_bytes + bytes as u64 <= self.max_bytes {
            return Ok(());
        }
        Err(Error::Busy {
            what: format!(
                "session memory is full: a page needs {}; {} free of {}; end a session or raise the limit",
                ByteSize(bytes as u64),
                ByteSize(self.max_bytes - self.used_bytes),
                ByteSize(self.max_bytes)
            ),
        })
    }
}

impl std::fmt::Debug for PageBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pages = self.pages();
        write!(f, "PageBudget({} of {} bytes)", pages.used_bytes, pages.max_bytes)
    }
}

/// A piece of a budget's memory.
pub(crate) struct Page {
    /// `None` only while the page is dropped.
    memory: Option<Memory>,
    budget: PageBudget,
}

enum Memory {
    Host(Buffer),
    Placed { kind: usize, place: u32, bytes: usize },
}

impl Page {
    /// What it holds; nothing where it lies in a store.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.memory {
            Some(Memory::Host(buffer)) => buffer.as_slice(),
            _ => &[],
        }
    }

    /// As [`Page::bytes`], to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Some(Memory::Host(buffer)) => buffer.as_mut_slice(),
            _ => &mut [],
        }
    }

    /// Its place in the budget's store, if it has one.
    pub(crate) fn place(&self) -> Option<u32> {
        match self.memory {
            Some(Memory::Placed { place, .. }) => Some(place),
            _ => None,
        }
    }

    /// Takes over what another page of the same budget, kind and size holds.
    pub(super) fn copy_from(&mut self, other: &Page) -> Result<(), Error> {
        match (&self.memory, &other.memory, &self.budget.store) {
            (Some(Memory::Placed { kind, place: to, .. }), Some(Memory::Placed { place: from, .. }), Some(store)) => {
                store.copy(*kind, *from, *to)
            }
            _ => {
                self.bytes_mut().copy_from_slice(other.bytes());
                Ok(())
            }
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut pages = self.budget.pages();
        match memory {
            Memory::Host(buffer) => {
                pages.used_bytes -= buffer.len() as u64;
                pages.spare.push(buffer);
            }
            Memory::Placed { kind, place, bytes } => {
                pages.used_bytes -= bytes as u64;
                pages.free[kind].push(place);
            }
        }
    }
}
