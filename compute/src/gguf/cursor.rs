//! Reads a file's bytes in order: every read is checked against the file's size, every error names the byte. Nothing is
//! allocated for bytes that have not been seen.

use crate::Error;

/// An error of a GGUF file at `offset`.
pub(super) fn bad(offset: usize, what: impl Into<String>) -> Error {
    Error::Parse { format: "gguf", what: what.into(), place: format!("at byte {offset}") }
}

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    size: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor::of_beginning(bytes, bytes.len())
    }

    /// For the first bytes of a file of `size` bytes.
    pub(super) fn of_beginning(bytes: &'a [u8], size: usize) -> Cursor<'a> {
        Cursor { bytes, at: 0, size }
    }

    /// The offset of the next byte.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// The size of the whole file.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The number of bytes left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], Error> {
        let left = self.left();
        if len > left as u64 {
            return Err(bad(
                self.at,
                format!(
                    "{what} should take {len} bytes, but the file ends after {left}: the file is truncated or corrupt; fetch it again"
                ),
            ));
        }
        let taken = &self.bytes[self.at..self.at + len as usize];
        self.at += len as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of items that take at least `least` bytes each; an impossible count is an error.
    pub(super) fn count(&mut self, count: u64, least: u64, what: &str) -> Result<usize, Error> {
        let left = self.left() as u64;
        match count.checked_mul(least) {
            // The count fits a usize: there are at least as many bytes.
            Some(bytes) if bytes <= left => Ok(count as usize),
            _ => Err(bad(
                self.at,
                format!(
                    "{count} {what} do not fit in the {left} remaining bytes: the file is truncated or corrupt; fetch it again"
                ),
            )),
        }
    }

    /// A string: a length of 8 bytes, then UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, Error> {
        let len = self.u64(what)?;
        let start = self.at;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|e| bad(start + e.valid_up_to(), format!("{what} is not UTF-8")))
    }
}
