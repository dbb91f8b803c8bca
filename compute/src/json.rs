//! Matrices as JSON: a list of rows, each a list of numbers. Pure over bytes. Strings are never read as numbers.

use crate::csv::write_number;
use crate::{Error, Tensor};

/// The matrix in `text`, as f64: a list of rows, or an object with the rows under `data`. Elements are numbers; `null`
/// is refused.
///
/// # Errors
/// [`Error::Parse`] with line and column for invalid JSON, with row and column for JSON that is not a matrix.
pub fn parse(text: &[u8]) -> Result<Tensor, Error> {
    let bad = |what: String, place: String| Error::Parse { format: "json", what, place };
    let value: serde_json::Value = serde_json::from_slice(text)
        .map_err(|e| bad(format!("not valid JSON: {e}"), format!("line {}, column {}", e.line(), e.column())))?;
    let rows = match &value {
        serde_json::Value::Object(object) => object.get("data"),
        other => Some(other),
    };
    let Some(rows) = rows.and_then(|rows| rows.as_array()) else {
        return Err(bad("a matrix is a list of rows, like [[1, 2], [3, 4]]".to_string(), "at the start".to_string()));
    };
    let mut values = Vec::new();
    let mut cols = 0;
    for (r, row) in rows.iter().enumerate() {
        let place = |c: usize| format!("row {}, column {}", r + 1, c + 1);
        let Some(row) = row.as_array() else {
            return Err(bad("a row is not a list; a vector is written [[1, 2, 3]]".to_string(), place(0)));
        };
        if r == 0 {
            cols = row.len();
        } else if row.len() != cols {
            return Err(bad(
                format!("{} numbers where the first row has {cols}", row.len()),
                place(row.len().min(cols)),
            ));
        }
        for (c, value) in row.iter().enumerate() {
            let what = match value {
                serde_json::Value::Number(number) => match number.as_f64() {
                    Some(number) => {
                        values.push(number);
                        continue;
                    }
                    None => "a number too large".to_string(),
                },
                serde_json::Value::String(_) => "a string where a number should be; remove the quotes".to_string(),
                serde_json::Value::Array(_) => "a list inside a row: only 2-D matrices are multiplied".to_string(),
                other => format!("{other} where a number should be"),
            };
            return Err(bad(what, place(c)));
        }
    }
    Tensor::from_slice(rows.len(), cols, &values)
}

/// The matrix as JSON.
///
/// # Errors
/// [`Error::Invalid`] for NaN and infinities, which JSON cannot hold.
pub fn write(t: &Tensor) -> Result<String, Error> {
    if !t.all_finite() {
        return Err(Error::invalid("json", "JSON has no NaN or infinity; write .npy or .csv instead"));
    }
    let mut out = String::from("[");
    for row in 0..t.rows() {
        out.push_str(if row > 0 { ",\n [" } else { "[" });
        for col in 0..t.cols() {
            if col > 0 {
                out.push_str(", ");
            }
            write_number(&mut out, t, row, col);
        }
        out.push(']');
    }
    out.push_str("]\n");
    Ok(out)
}
