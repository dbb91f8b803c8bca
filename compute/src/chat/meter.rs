//! Counts the memory that one render takes, against limits: bytes of text, nodes of lists and maps. Steps and depth are
//! counted by minijinja.

use std::io;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// Bytes of a prompt, at most: more than any model's context holds.
pub(super) const MAX_PROMPT_BYTES: usize = 16 << 20;
/// Bytes of one operation's text, at most.
pub(super) const MAX_TEXT_BYTES: usize = 8 << 20;
/// Nodes of one list or map, at most: a conversation of thousands of messages has some ten thousand.
const MAX_NODES: usize = 200_000;
/// Depth of lists and maps, at most: as deep as `serde_json` parses.
const MAX_DEPTH: usize = 128;
/// Bytes and nodes of one render in total, at most, temporary values included.
const MAX_TOTAL: usize = 128 << 20;

/// Bytes and nodes that a render may still take.
struct Meter {
    left: usize,
}

/// Counts `amount`. Errors: the render's total is exceeded.
pub(super) fn charge(state: &mut State<'_, '_>, amount: usize) -> Result<(), Error> {
    let meter = state.get_or_insert_extension_with(|| Meter { left: MAX_TOTAL });
    meter.left = meter.left.checked_sub(amount).ok_or_else(|| too_much("text and lists", MAX_TOTAL))?;
    Ok(())
}

/// Counts an operation's result. Errors: the result is too large, too deep, or contains itself.
pub(super) fn charge_value(state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let size = match value.as_str() {
        Some(text) if text.len() > MAX_TEXT_BYTES => return Err(too_much("text in one piece", MAX_TEXT_BYTES)),
        Some(text) => text.len(),
        None => {
            let mut nodes = 0;
            count_nodes(value, 0, &mut nodes)?;
            nodes
        }
    };
    charge(state, size)
}

/// Errors as [`charge_value`], for values that are not counted.
pub(super) fn check_value(value: &Value) -> Result<(), Error> {
    count_nodes(value, 0, &mut 0)
}

/// A string is one node: it is shared, not copied.
fn count_nodes(value: &Value, depth: usize, nodes: &mut usize) -> Result<(), Error> {
    *nodes += 1;
    if *nodes > MAX_NODES {
        return Err(too_much("list items", MAX_NODES));
    }
    if depth > MAX_DEPTH {
        return Err(refusal(format!("the template nests lists and maps more than {MAX_DEPTH} deep")));
    }
    // Only namespaces can change after they are made, so only they can come to contain themselves.
    if depth > 0 && is_namespace(value) {
        return Err(refusal("the template puts a namespace into a list, a map or another namespace".to_owned()));
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            // Checked first: counting the items of a range one by one would take time.
            if value.len().is_some_and(|len| len > MAX_NODES) {
                return Err(too_much("list items", MAX_NODES));
            }
            for item in value.try_iter()? {
                count_nodes(&item, depth + 1, nodes)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                count_nodes(&value.get_item(&key)?, depth + 1, nodes)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The name of minijinja's type, which is not exported.
pub(super) fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

pub(super) fn refusal(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

pub(super) fn too_much(what: &str, limit: usize) -> Error {
    refusal(format!("the template makes more {what} than the limit of {limit}; it may grow without bound"))
}

/// A writer with a limit; writing more bytes is an error.
pub(super) struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl Limited {
    pub(super) fn new(limit: usize) -> Limited {
        Limited { bytes: Vec::new(), limit }
    }

    /// The text; `None` where it is not UTF-8.
    pub(super) fn into_text(self) -> Option<String> {
        String::from_utf8(self.bytes).ok()
    }
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.limit - self.bytes.len() < bytes.len() {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the text is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Write for Limited {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        io::Write::write_all(self, text.as_bytes()).map_err(|_| std::fmt::Error)
    }
}
