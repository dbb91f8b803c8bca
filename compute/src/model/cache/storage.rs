//! The memory of pages and states, and the budget that bounds it. What lies in a page, and to whom it belongs, is not known here.

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

    pub(crate) fn take(&self, bytes: usize) -> Result<Page, Error> {
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
pub(crate) struct Page {
    /// `None` only while the page is dropped.
    memory: Option<Buffer>,
    budget: PageBudget,
}

impl Page {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], Buffer::as_slice)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().map_or(&mut [], Buffer::as_mut_slice)
    }
}

impl Page {
    /// Takes over what another page of this size holds.
    pub(super) fn copy_from(&mut self, other: &Page) {
        self.bytes_mut().copy_from_slice(other.bytes());
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
