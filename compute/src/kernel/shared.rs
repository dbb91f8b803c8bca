//! Memory that the threads of one job fill together, each its own part between two barriers. Which thread may touch
//! which part is the job's responsibility.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

/// A slice lent to all threads of a job.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    lent: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are handed out by unsafe methods only, whose callers keep writers apart.
unsafe impl<T: Send + Sync> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Shared<'a, T> {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), lent: PhantomData }
    }

    /// A part for reading.
    ///
    /// # Safety
    /// No thread writes this part at the same time.
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "outside of shared memory");
        // SAFETY: inside the slice; the caller guarantees that there is no writer.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// A part for writing.
    ///
    /// # Safety
    /// No other thread reads or writes this part at the same time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "outside of shared memory");
        // SAFETY: inside the slice; the caller guarantees exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The first element, for kernels that take a pointer and a leading dimension.
    pub(crate) fn start(&self) -> *mut T {
        self.start
    }
}
