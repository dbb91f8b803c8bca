//! The key-value pairs of a file, looked up by name and type. Arrays are kept in the file's form. Which keys a model
//! needs is the model's.

use super::cursor::{Cursor, bad};
use crate::Error;
use std::collections::BTreeMap;

/// Bytes of a pair, at least: a key's length, an empty key, the type and one byte.
const LEAST_PAIR_BYTES: u64 = 8 + 4 + 1;

/// The type of a value or of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// 8 bits, unsigned.
    U8,
    /// 8 bits, signed.
    I8,
    /// 16 bits, unsigned.
    U16,
    /// 16 bits, signed.
    I16,
    /// 32 bits, unsigned.
    U32,
    /// 32 bits, signed.
    I32,
    /// IEEE 754 binary32.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8.
    String,
    /// A list of one of the others.
    Array,
    /// 64 bits, unsigned.
    U64,
    /// 64 bits, signed.
    I64,
    /// IEEE 754 binary64.
    F64,
}

impl ValueType {
    /// In the order of the types' ids.
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    fn parse(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, Error> {
        let at = cursor.offset();
        let id = cursor.u32("a value's type")?;
        ValueType::ALL.get(id as usize).copied().ok_or_else(|| {
            bad(at, format!("the value of {key:?} has type {id}, but there are only 0 to 12: the file is corrupt"))
        })
    }

    /// Bytes of a number or bool; `None` for strings and arrays.
    fn size_bytes(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }
}

/// A list of strings, one after the other in one allocation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strings {
    text: String,
    /// The end of each string.
    ends: Vec<usize>,
}

impl Strings {
    /// The number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.text[start..end])
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Strings {
        let mut all = Strings::default();
        for string in strings {
            all.text.push_str(string.as_ref());
            all.ends.push(all.text.len());
        }
        all
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer type, widened.
    Integer(i128),
    /// Either float type; an f32 is widened.
    Float(f64),
    /// A bool.
    Bool(bool),
    /// A string.
    String(String),
    /// A list of strings.
    Strings(Strings),
    /// A list of numbers or bools, in the file's form.
    Numbers {
        /// The type of each element.
        element: ValueType,
        /// The elements, little-endian.
        bytes: Vec<u8>,
    },
}

impl Value {
    pub(super) fn parse(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Error> {
        match ValueType::parse(cursor, key)? {
            ValueType::String => Ok(Value::String(cursor.string("a string value")?.to_owned())),
            ValueType::Array => Value::parse_array(cursor, key),
            number => {
                let at = cursor.offset();
                // Strings and arrays, which have no size, are the arms above.
                let bytes = cursor.take(number.size_bytes().unwrap_or(0) as u64, "a value")?;
                if number == ValueType::Bool && bytes[0] > 1 {
                    return Err(bad(at, format!("{key:?} is neither true nor false: the file is corrupt")));
                }
                Ok(Value::number(number, bytes))
            }
        }
    }

    fn parse_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Error> {
        let at = cursor.offset();
        let element = ValueType::parse(cursor, key)?;
        let count = cursor.u64("an array's length")?;
        if element == ValueType::String {
            // Every string has a length of 8 bytes.
            let count = cursor.count(count, 8, "strings")?;
            let mut strings = Strings { text: String::new(), ends: Vec::with_capacity(count) };
            for _ in 0..count {
                strings.text.push_str(cursor.string("a string of an array")?);
                strings.ends.push(strings.text.len());
            }
            return Ok(Value::Strings(strings));
        }
        let Some(size) = element.size_bytes() else {
            return Err(bad(
                at,
                format!("{key:?} is an array of arrays, which GGUF does not allow: the file is corrupt"),
            ));
        };
        let count = cursor.count(count, size as u64, "elements of an array")?;
        Ok(Value::Numbers { element, bytes: cursor.take((count * size) as u64, "an array")?.to_vec() })
    }

    /// One number or bool of `element`'s size.
    fn number(element: ValueType, bytes: &[u8]) -> Value {
        // Little-endian, sign-extended where the type has a sign.
        let mut raw = [0; 8];
        raw[..bytes.len()].copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(raw);
        let signed = || {
            let unused = 64 - 8 * bytes.len() as u32;
            i128::from(((unsigned << unused) as i64) >> unused)
        };
        match element {
            ValueType::I8 | ValueType::I16 | ValueType::I32 | ValueType::I64 => Value::Integer(signed()),
            ValueType::F32 => Value::Float(f64::from(f32::from_bits(unsigned as u32))),
            ValueType::F64 => Value::Float(f64::from_bits(unsigned)),
            ValueType::Bool => Value::Bool(unsigned != 0),
            _ => Value::Integer(i128::from(unsigned)),
        }
    }

    /// A description for errors.
    fn describe(&self) -> String {
        match self {
            Value::Integer(value) => format!("the integer {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Bool(value) => format!("{value}"),
            Value::String(_) => "a string".to_owned(),
            Value::Strings(_) => "an array of strings".to_owned(),
            Value::Numbers { element, .. } => format!("an array of {element:?}"),
        }
    }

    /// The elements of an array of numbers, if it is one.
    fn elements(&self) -> Option<impl Iterator<Item = Value>> {
        match self {
            Value::Numbers { element, bytes } => {
                // An array's elements have a size.
                let size = element.size_bytes().unwrap_or(1);
                Some(bytes.chunks_exact(size).map(|bytes| Value::number(*element, bytes)))
            }
            _ => None,
        }
    }
}

/// All key-value pairs of a file.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    pairs: BTreeMap<String, Value>,
}

impl Metadata {
    pub(super) fn parse(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, Error> {
        let count = cursor.count(count, LEAST_PAIR_BYTES, "metadata pairs")?;
        let mut pairs = BTreeMap::new();
        for _ in 0..count {
            let at = cursor.offset();
            let key = cursor.string("a metadata key")?;
            let value = Value::parse(cursor, key)?;
            if pairs.insert(key.to_owned(), value).is_some() {
                return Err(bad(at, format!("the metadata key {key:?} occurs twice: the file is corrupt")));
            }
        }
        Ok(Metadata { pairs })
    }

    /// The value of `key`, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.get(key)
    }

    /// All pairs, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Looks up `key` and converts it with `read`; an error names the `expected` type.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| Error::Parse {
            format: "gguf",
            what: format!("the value is {}, not {expected}: fetch or convert the model again", value.describe()),
            place: format!("metadata {key}"),
        })
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::Parse`] where the value is of another type; the same for the methods below.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "a string", |value| match value {
            Value::String(string) => Some(string.as_str()),
            _ => None,
        })
    }

    /// An integer of any type that is not negative.
    ///
    /// # Errors
    /// As [`Metadata::get_str`].
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.typed(key, "a non-negative integer", |value| match value {
            Value::Integer(integer) => u64::try_from(*integer).ok(),
            _ => None,
        })
    }

    /// A number; integers are accepted too.
    ///
    /// # Errors
    /// As [`Metadata::get_str`].
    pub fn get_f64(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number", |value| match value {
            Value::Float(float) => Some(*float),
            Value::Integer(integer) => Some(*integer as f64),
            _ => None,
        })
    }

    /// A bool.
    ///
    /// # Errors
    /// As [`Metadata::get_str`].
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A list of strings.
    ///
    /// # Errors
    /// As [`Metadata::get_str`].
    pub fn get_strs(&self, key: &str) -> Result<Option<&Strings>, Error> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Strings(strings) => Some(strings),
            _ => None,
        })
    }

    /// A list of floats; f64 are rounded to f32.
    ///
    /// # Errors
    /// As [`Metadata::get_str`].
    pub fn get_f32s(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        self.typed(key, "an array of floats", |value| {
            value
                .elements()?
                .map(|element| if let Value::Float(float) = element { Some(float as f32) } else { None })
                .collect()
        })
    }

    /// A list of integers of any type that fit an i32.
    ///
    /// # Errors
    /// As [`Metadata::get_str`].
    pub fn get_i32s(&self, key: &str) -> Result<Option<Vec<i32>>, Error> {
        self.typed(key, "an array of 32-bit integers", |value| {
            value
                .elements()?
                .map(|element| if let Value::Integer(integer) = element { integer.try_into().ok() } else { None })
                .collect()
        })
    }

    /// A list of bools.
    ///
    /// # Errors
    /// As [`Metadata::get_str`].
    pub fn get_bools(&self, key: &str) -> Result<Option<Vec<bool>>, Error> {
        self.typed(key, "an array of bools", |value| {
            value.elements()?.map(|element| if let Value::Bool(flag) = element { Some(flag) } else { None }).collect()
        })
    }
}

impl<K: Into<String>> FromIterator<(K, Value)> for Metadata {
    /// Metadata from another source than a file; the last value of a key counts.
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(pairs: I) -> Metadata {
        Metadata { pairs: pairs.into_iter().map(|(key, value)| (key.into(), value)).collect() }
    }
}
