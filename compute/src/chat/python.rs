//! Values as Python prints them and JSON as `json.dumps` writes it, which templates expect. Every text is bounded.

use std::fmt::{self, Write};
use std::io;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};
use serde_json::ser::Formatter;

use super::meter::{self, Limited, MAX_TEXT_BYTES};
use super::plain_text::is_mark;

/// `str(value)`. Errors: longer than the limit on texts, or too deep.
pub(super) fn to_text(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    meter::check_value(value)?;
    let mut out = Limited::new(MAX_TEXT_BYTES);
    write_repr(&mut out, value).map_err(|_| meter::too_much("text in one piece", MAX_TEXT_BYTES))?;
    Ok(out.into_text().unwrap_or_default())
}

/// `repr(value)`.
fn write_repr(out: &mut Limited, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.write_str(&float_text(number)),
            Err(_) => write!(out, "{value}"),
        },
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            for (place, item) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                if place > 0 {
                    out.write_str(", ")?;
                }
                write_repr(out, &item)?;
            }
            out.write_char(']')
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (place, key) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                if place > 0 {
                    out.write_str(", ")?;
                }
                write_repr(out, &key)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).map_err(|_| fmt::Error)?)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// In single quotes, unless the text has single and no double quotes.
fn write_quoted(out: &mut Limited, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if u32::from(c) < 0x20 || c == '\x7f' => write!(out, "\\x{:02x}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

/// `repr` of a float: Rust's shortest form, with a sign and at least two digits in the exponent.
fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    let text = format!("{number:?}");
    match text.split_once('e') {
        None => text,
        Some((mantissa, exponent)) => match exponent.strip_prefix('-') {
            Some(digits) => format!("{mantissa}e-{digits:0>2}"),
            None => format!("{mantissa}e+{exponent:0>2}"),
        },
    }
}

/// `json.dumps(value, ensure_ascii=ascii, indent=indent, separators=separators)`, as Hugging Face's `tojson` calls it.
/// `separators`: between items, after keys. Errors: longer than the limit on texts, too deep, or not representable in
/// JSON.
pub(super) fn to_json(
    value: &Value,
    indent: Option<usize>,
    separators: Option<(&str, &str)>,
    ascii: bool,
) -> Result<String, Error> {
    meter::check_value(value)?;
    let (item, key) = separators.unwrap_or((if indent.is_some() { "," } else { ", " }, ": "));
    let mut out = Limited::new(MAX_TEXT_BYTES);
    let style = Style { item, key, indent, depth: 0, filled: false, ascii };
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, style);
    serde::Serialize::serialize(value, &mut serializer).map_err(|error| match error.is_io() {
        true => meter::too_much("text in one piece", MAX_TEXT_BYTES),
        false => meter::refusal(format!("tojson: {error}")),
    })?;
    Ok(out.into_text().unwrap_or_default())
}

struct Style<'a> {
    item: &'a str,
    key: &'a str,
    indent: Option<usize>,
    depth: usize,
    /// Whether the list or map that is being closed has items.
    filled: bool,
    ascii: bool,
}

impl Style<'_> {
    fn open<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.new_line(writer)?;
        }
        self.filled = true;
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.filled = true;
        self.new_line(writer)
    }

    fn new_line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..indent * self.depth).try_for_each(|_| writer.write_all(b" "))
    }
}

impl Formatter for Style<'_> {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float_text(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        fragment.chars().try_for_each(|c| match c.is_ascii() {
            true => writer.write_all(&[c as u8]),
            false if is_mark(c) => writer.write_all(c.encode_utf8(&mut [0; 4]).as_bytes()),
            false => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}")),
        })
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}
