//! Matrices as comma-separated text: one row per line, numbers only. Pure over bytes. Header lines, ragged rows and
//! words are errors with line and column, never guessed at.

use crate::{DType, Error, Tensor, TensorBuf};
use std::fmt::Write;

fn bad(what: impl Into<String>, line: usize, column: usize) -> Error {
    Error::Parse { format: "csv", what: what.into(), place: format!("line {line}, column {column}") }
}

/// The matrix in `text`, as f64: `[lines, fields]`. Fields are separated by commas; spaces around fields and empty
/// lines at the end are ignored. `nan`, `inf` and `-inf` are numbers.
///
/// # Errors
/// [`Error::Parse`] with line and column, both from 1; a column is a field.
pub fn parse(text: &[u8]) -> Result<Tensor, Error> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut values: Vec<f64> = Vec::new();
    let (mut rows, mut cols) = (0, 0);
    let mut ended = None;
    for (index, line) in text.split(|b| *b == b'\n').enumerate() {
        let number = index + 1;
        let line = std::str::from_utf8(line).map_err(|e| bad("not text (UTF-8)", number, e.valid_up_to() + 1))?.trim();
        if line.is_empty() {
            ended.get_or_insert(number);
            continue;
        }
        if let Some(blank) = ended
            && rows > 0
        {
            return Err(bad("an empty line between rows", blank, 1));
        }
        ended = None;
        let before = values.len();
        for (column, field) in line.split(',').enumerate() {
            let value = field.trim().parse().map_err(|_| {
                let shown: String = field.trim().escape_default().take(40).collect();
                let what = if shown.is_empty() {
                    "an empty field".to_string()
                } else {
                    format!("'{shown}' is not a number (a header line must be removed)")
                };
                bad(what, number, column + 1)
            })?;
            values.push(value);
        }
        let count = values.len() - before;
        if rows == 0 {
            cols = count;
        } else if count != cols {
            return Err(bad(format!("{count} fields where the first row has {cols}"), number, count.min(cols) + 1));
        }
        rows += 1;
    }
    Tensor::from_slice(rows, cols, &values)
}

/// The matrix as text that [`parse`] and NumPy's `loadtxt` read back to the same values.
pub fn write(t: &Tensor) -> String {
    let mut out = String::new();
    for row in 0..t.rows() {
        for col in 0..t.cols() {
            if col > 0 {
                out.push(',');
            }
            write_number(&mut out, t, row, col);
        }
        out.push('\n');
    }
    out
}

/// The shortest text that parses back to the element.
pub(crate) fn write_number(out: &mut String, t: &Tensor, row: usize, col: usize) {
    let value = t.get(row, col).unwrap_or(f64::NAN);
    // Writing to a String cannot fail.
    let _ = match t.dtype() {
        _ if !value.is_finite() => write!(out, "{}", spelled(value)),
        DType::F64 => write!(out, "{value:?}"),
        DType::I8 | DType::I32 => write!(out, "{value}"),
        _ => write!(out, "{:?}", value as f32),
    };
}

fn spelled(value: f64) -> &'static str {
    if value.is_nan() {
        "nan"
    } else if value > 0.0 {
        "inf"
    } else {
        "-inf"
    }
}

/// `t` with its elements converted to `dtype`, rounded to nearest; for text, whose numbers have no type.
///
/// # Errors
/// [`Error::Invalid`] where an integer type cannot hold a value exactly; [`Error::OutOfMemory`].
pub fn convert(t: &Tensor, dtype: DType) -> Result<Tensor, Error> {
    if t.dtype() == dtype {
        return Ok(t.clone());
    }
    let mut out = TensorBuf::new(dtype, t.rows(), t.cols())?;
    let cols = t.cols();
    let wrong = |at: usize, value: f64| {
        Error::invalid(
            "convert",
            format!(
                "element ({}, {}) is {value}, which {dtype} cannot hold exactly; choose a float dtype",
                at / cols,
                at % cols
            ),
        )
    };
    macro_rules! fill {
        ($t:ty, $from:expr) => {
            if let Some(elements) = out.elements_mut::<$t>() {
                for (at, to) in elements.iter_mut().enumerate() {
                    let value = t.get(at / cols, at % cols).unwrap_or(f64::NAN);
                    *to = $from(value).ok_or_else(|| wrong(at, value))?;
                }
            }
        };
    }
    match dtype {
        DType::F16 => fill!(half::f16, |v| Some(half::f16::from_f64(v))),
        DType::Bf16 => fill!(half::bf16, |v| Some(half::bf16::from_f64(v))),
        DType::F32 => fill!(f32, |v: f64| Some(v as f32)),
        DType::F64 => fill!(f64, Some),
        DType::I8 => fill!(i8, |v: f64| (f64::from(v as i8) == v).then_some(v as i8)),
        DType::I32 => fill!(i32, |v: f64| (f64::from(v as i32) == v).then_some(v as i32)),
    }
    Ok(out.freeze())
}
