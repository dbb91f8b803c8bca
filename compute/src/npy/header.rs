//! The header of `.npy` files (NumPy's `format.py`, versions 1 to 3): parsed and written, pure over bytes. Input is not
//! trusted: lengths are bounded, sizes are computed without overflow.

use crate::{DType, Error};

/// Length of a header, at most: far more than two dimensions need.
pub(super) const MAX_HEADER_BYTES: usize = 64 << 10;
/// Dimensions in a header, at most (NumPy's own limit).
const MAX_DIMS: usize = 64;
const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The content of a `.npy` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyHeader {
    /// The element type.
    pub dtype: DType,
    /// Whether the elements' bytes are in big-endian order.
    pub big_endian: bool,
    /// Whether the first index varies fastest (Fortran order).
    pub fortran: bool,
    /// The length of every dimension.
    pub shape: Vec<u64>,
}

fn bad(what: impl Into<String>, at: usize) -> Error {
    Error::Parse { format: "npy", what: what.into(), place: format!("at byte {at}") }
}

impl NpyHeader {
    /// Bytes of a file, from its start, that hold its whole header, as far as `start` says: some bytes of the file from which more is
    /// learnt the more there are. A length over the limit is not believed; [`NpyHeader::parse`] refuses it.
    pub fn length(start: &[u8]) -> usize {
        let (fixed, len) = match start {
            [_, _, _, _, _, _, 1, _, low, high, ..] => (10, usize::from(u16::from_le_bytes([*low, *high]))),
            [_, _, _, _, _, _, 2 | 3, _, a, b, c, d, ..] => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
            [_, _, _, _, _, _, 2 | 3, ..] => (12, 0),
            _ => (10, 0),
        };
        if len > MAX_HEADER_BYTES { fixed } else { fixed + len }
    }

    /// The header at the start of `bytes`, and the offset of the elements. `bytes` may be only the start of a file.
    ///
    /// # Errors
    /// [`Error::Parse`] for bytes that are not a header as NumPy writes it; [`Error::Dtype`] for element types that
    /// products do not support.
    pub fn parse(bytes: &[u8]) -> Result<(NpyHeader, u64), Error> {
        if bytes.len() < 10 {
            return Err(bad("too short for a .npy header", bytes.len()));
        }
        if &bytes[..6] != MAGIC {
            return Err(bad("not a .npy file: the first bytes are not \\x93NUMPY", 0));
        }
        let (start, len) = match (bytes[6], bytes[7]) {
            (1, 0) => (10, usize::from(u16::from_le_bytes([bytes[8], bytes[9]]))),
            (2 | 3, 0) if bytes.len() >= 12 => {
                let len = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
                (12, len as usize)
            }
            (2 | 3, 0) => return Err(bad("too short for a .npy header", bytes.len())),
            (major, minor) => {
                return Err(bad(format!("version {major}.{minor} is not supported; versions 1.0 to 3.0 are"), 6));
            }
        };
        if len > MAX_HEADER_BYTES {
            return Err(bad(format!("a header of {len} bytes is over the limit of {MAX_HEADER_BYTES}"), 8));
        }
        let Some(text) = bytes.get(start..start + len) else {
            return Err(bad(
                format!("the header should be {len} bytes long but the file ends before that"),
                bytes.len(),
            ));
        };
        let mut literal = Literal { text, at: 0, base: start };
        let header = literal.header()?;
        Ok((header, (start + len) as u64))
    }

    /// Bytes of all elements, which follow the header.
    ///
    /// # Errors
    /// [`Error::Parse`] where the shape's product overflows.
    pub fn payload_bytes(&self) -> Result<u64, Error> {
        // A dimension of zero means no elements, whatever the other lengths.
        if self.shape.contains(&0) {
            return Ok(0);
        }
        self.shape
            .iter()
            .try_fold(self.dtype.size_bytes() as u64, |n, d| n.checked_mul(*d))
            .filter(|bytes| *bytes <= i64::MAX as u64)
            .ok_or_else(|| bad(format!("the shape {:?} is larger than any file", self.shape), 0))
    }

    /// Rows and columns, where this is a matrix.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other than two dimensions; the message says what to do.
    pub fn matrix_shape(&self) -> Result<(usize, usize), Error> {
        let fits = |d: u64| {
            usize::try_from(d).map_err(|_| Error::invalid("npy", format!("a dimension of {d} is too large here")))
        };
        let hint = match self.shape.as_slice() {
            [rows, cols] => return Ok((fits(*rows)?, fits(*cols)?)),
            [] => "a single number is not a matrix; reshape it to (1, 1)",
            [_] => "a vector is not a matrix; reshape it to (1, n) or (n, 1)",
            _ => "only matrices are multiplied; save one 2-D slice per file, or reshape it",
        };
        Err(Error::invalid("npy", format!("the array has {} dimensions {:?}: {hint}", self.shape.len(), self.shape)))
    }

    /// The bytes of a version 1.0 header, padded so that the elements begin on a 64-byte boundary.
    ///
    /// # Errors
    /// [`Error::Dtype`] for `bf16`, which the format has no name for.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let order = if self.big_endian { '>' } else { '<' };
        let descr = match self.dtype {
            DType::F16 => format!("{order}f2"),
            DType::F32 => format!("{order}f4"),
            DType::F64 => format!("{order}f8"),
            DType::I8 => "|i1".to_string(),
            DType::I32 => format!("{order}i4"),
            DType::Bf16 => return Err(no_bf16("bf16")),
        };
        let dims: Vec<String> = self.shape.iter().map(u64::to_string).collect();
        let shape = match dims.as_slice() {
            [one] => format!("({one},)"),
            many => format!("({})", many.join(", ")),
        };
        let fortran = if self.fortran { "True" } else { "False" };
        let dict = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
        // Magic, version and length take 10 bytes; a newline ends the padding.
        let total = (10 + dict.len() + 1).next_multiple_of(64);
        let len = u16::try_from(total - 10).map_err(|_| bad("the shape has too many dimensions to be written", 0))?;
        let mut bytes = Vec::with_capacity(total);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[1, 0]);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(dict.as_bytes());
        bytes.resize(total - 1, b' ');
        bytes.push(b'\n');
        Ok(bytes)
    }
}

fn no_bf16(descr: &str) -> Error {
    Error::Dtype {
        operation: "npy",
        dtype: descr.to_string(),
        hint: "NumPy has no bfloat16 and a raw 2-byte type could be anything; save as float32 and choose bf16 when multiplying",
    }
}

fn dtype_of(descr: &str) -> Result<(DType, bool), Error> {
    let unsupported =
        |hint| Err(Error::Dtype { operation: "npy", dtype: descr.escape_default().take(40).collect(), hint });
    let (order, kind) = match descr.as_bytes().first() {
        Some(b'<' | b'>' | b'|' | b'=') => descr.split_at(1),
        _ => ("=", descr),
    };
    let dtype = match kind {
        "f2" => DType::F16,
        "f4" => DType::F32,
        "f8" => DType::F64,
        "i1" => DType::I8,
        "i4" => DType::I32,
        "V2" => return Err(no_bf16(descr)),
        "u1" | "u2" | "u4" | "u8" | "i2" | "i8" | "b1" => {
            return unsupported("of the integers only int8 is multiplied; use .astype('int8') or .astype('float64')");
        }
        "c8" | "c16" | "c32" => {
            return unsupported("complex numbers are not multiplied; save the real and imaginary parts");
        }
        "f16" | "f12" => {
            return unsupported("extended precision is not portable; use .astype('float64')");
        }
        "O" => return unsupported("Python objects are never loaded; use .astype('float64')"),
        _ => return unsupported("use float16, float32, float64 or int8"),
    };
    Ok((dtype, order == ">" && dtype.size_bytes() > 1))
}

/// A parser for the Python literal of a header: a dict of strings to a string, a bool and a tuple.
struct Literal<'a> {
    text: &'a [u8],
    at: usize,
    /// Offset of the text in the file.
    base: usize,
}

impl<'a> Literal<'a> {
    fn fail<T>(&self, what: &str) -> Result<T, Error> {
        Err(bad(what, self.base + self.at))
    }

    fn space(&mut self) {
        while self.text.get(self.at).is_some_and(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// The next byte that is not a space, left in place.
    fn peek(&mut self) -> Option<u8> {
        self.space();
        self.text.get(self.at).copied()
    }

    /// Consumes `byte` if it comes next.
    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn need(&mut self, byte: u8) -> Result<(), Error> {
        if self.take(byte) {
            return Ok(());
        }
        self.fail(&format!("the header should have '{}' here", byte as char))
    }

    fn header(&mut self) -> Result<NpyHeader, Error> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.need(b'{')?;
        while !self.take(b'}') {
            let key = self.string()?;
            self.need(b':')?;
            let again = match key {
                "descr" => {
                    if matches!(self.peek(), Some(b'[' | b'(')) {
                        return self.fail("record arrays are not matrices; save one field");
                    }
                    descr.replace(self.string()?.to_string()).is_some()
                }
                "fortran_order" => fortran.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.tuple()?).is_some(),
                _ => return self.fail("the header has an unknown key"),
            };
            if again {
                return self.fail("the header has a duplicate key");
            }
            if !self.take(b',') {
                self.need(b'}')?;
                break;
            }
        }
        if self.peek().is_some() {
            return self.fail("the header has bytes after its dict");
        }
        let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
            return self.fail("the header lacks one of descr, fortran_order, shape");
        };
        let (dtype, big_endian) = dtype_of(&descr)?;
        let header = NpyHeader { dtype, big_endian, fortran, shape };
        header.payload_bytes()?;
        Ok(header)
    }

    fn string(&mut self) -> Result<&'a str, Error> {
        let Some(quote @ (b'\'' | b'"')) = self.peek() else {
            return self.fail("the header should have a string here");
        };
        let start = self.at + 1;
        let rest = &self.text[start..];
        let Some(len) = rest.iter().position(|b| *b == quote || *b == b'\\') else {
            return self.fail("a string in the header does not end");
        };
        if rest[len] == b'\\' {
            return self.fail("escapes in the header's strings are not supported");
        }
        let Ok(text) = std::str::from_utf8(&rest[..len]) else {
            return self.fail("a string in the header is not UTF-8");
        };
        self.at = start + len + 1;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, Error> {
        self.space();
        for (word, value) in [("True", true), ("False", false)] {
            if self.text[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(value);
            }
        }
        self.fail("the header should have True or False here")
    }

    fn tuple(&mut self) -> Result<Vec<u64>, Error> {
        self.need(b'(')?;
        let mut lengths = Vec::new();
        loop {
            if self.take(b')') {
                return Ok(lengths);
            }
            if lengths.len() == MAX_DIMS {
                return self.fail("the shape has more dimensions than NumPy allows");
            }
            lengths.push(self.number()?);
            if !self.take(b',') {
                if lengths.len() == 1 {
                    return self.fail("the shape is a number, not a tuple");
                }
                self.need(b')')?;
                return Ok(lengths);
            }
        }
    }

    fn number(&mut self) -> Result<u64, Error> {
        self.space();
        let digits = self.text[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return self.fail("the shape should have a number, not negative, here");
        }
        let text = &self.text[self.at..self.at + digits];
        let value = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
        let Some(value) = value else {
            return self.fail("a length in the shape is too large");
        };
        self.at += digits;
        // Python 2 wrote 10L.
        if self.text.get(self.at) == Some(&b'L') {
            self.at += 1;
        }
        Ok(value)
    }
}
