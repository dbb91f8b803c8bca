//! Owned memory for tensors: zeroed, aligned to a cache line, large pieces on huge pages.
//! Running out of memory is an error here, never an abort. It knows nothing of elements.

use crate::Error;

/// Every buffer begins on a cache line, which is also one AVX-512 register.
pub const ALIGN_BYTES: usize = 64;

/// From here on memory comes straight from the system, on huge pages where it has them: fewer page faults than an
/// allocator's 4 KiB pages, and it goes back to the system when dropped. Below, the allocator's reuse is faster.
const MAP_FROM_BYTES: usize = 4 << 20;

/// `len` bytes of owned, zeroed memory, aligned to [`ALIGN_BYTES`].
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    /// The first aligned byte is at `start`.
    Heap {
        bytes: Vec<u8>,
        start: usize,
    },
    Pages(memmap2::MmapMut),
}

impl Buffer {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeroed(len: usize) -> Result<Buffer, Error> {
        let out_of_memory = || Error::OutOfMemory {
            bytes: len as u64,
            what: "a tensor",
        };
        // The system's own limit is half the address space; ask for less than that or do not ask.
        if len > isize::MAX as usize - ALIGN_BYTES {
            return Err(out_of_memory());
        }
        if len >= MAP_FROM_BYTES {
            let pages = memmap2::MmapMut::map_anon(len).map_err(|_| out_of_memory())?;
            #[cfg(target_os = "linux")]
            {
                // A hint: without huge pages everything still works.
                let _ = pages.advise(memmap2::Advice::HugePage);
            }
            return Ok(Buffer {
                memory: Memory::Pages(pages),
                len,
            });
        }
        let mut bytes: Vec<u8> = Vec::new();
        bytes
            .try_reserve_exact(len + ALIGN_BYTES)
            .map_err(|_| out_of_memory())?;
        bytes.resize(len + ALIGN_BYTES, 0);
        let start = bytes.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES);
        Ok(Buffer {
            memory: Memory::Heap { bytes, start },
            len,
        })
    }

    /// A copy of `bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn copy_of(bytes: &[u8]) -> Result<Buffer, Error> {
        let mut buffer = Buffer::zeroed(bytes.len())?;
        buffer.as_mut_slice().copy_from_slice(bytes);
        Ok(buffer)
    }

    /// The size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap { bytes, start } => &bytes[*start..*start + self.len],
            Memory::Pages(pages) => &pages[..self.len],
        }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap { bytes, start } => &mut bytes[*start..*start + self.len],
            Memory::Pages(pages) => &mut pages[..self.len],
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}
