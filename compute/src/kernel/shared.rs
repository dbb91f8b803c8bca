//! Memory that the threads of one job fill together, each its own part between two meetings. It hands out parts; who may
//! touch which is for the job to keep.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

/// A slice lent to all threads of a job.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    lent: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are handed out by unsafe methods alone, whose callers keep writers apart.
unsafe impl<T: Send + Sync> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Shared<'a, T> {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), lent: PhantomData }
    }

    /// A part to read.
    ///
    /// # Safety
    /// Nobody writes it meanwhile.
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "outside of shared memory");
        // SAFETY: inside the slice; the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// A part to write.
    ///
    /// # Safety
    /// Nobody else reads or writes it meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "outside of shared memory");
        // SAFETY: inside the slice; the caller keeps everybody else away.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The first element, for kernels that take a place and a leading dimension.
    pub(crate) fn start(&self) -> *mut T {
        self.start
    }
}
