//! Judges a JSON Schema before the grammar library reads it: how deep it recurses, and how much it grows when definitions
//! are copied into what refers to them. Nothing is compiled here, and whether a schema makes sense is not asked.
//!
//! The estimates are upper bounds of what `llguidance` does: it recurses once per level of the schema and once per
//! reference on the way, and it merges schemas (`allOf`, or a keyword beside `anyOf` or `$ref`) by copying them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::invalid;
use crate::Error;

/// Maximum bytes of a JSON Schema: many times the size of those in use; it travels in one message to the last stage.
pub const MAX_SCHEMA_BYTES: usize = 32 << 10;

/// Maximum levels of JSON inside each other. Schemas in use have up to some 30.
const MAX_LEVELS: usize = 64;

/// Maximum levels on the way through all references: the levels of the schema times the different references and the schema
/// itself. It bounds the library's recursion, and so its stack (`COMPILE_STACK_BYTES`).
const MAX_LEVELS_WITH_REFERENCES: usize = 4096;

/// Maximum different references. Schemas in use have up to some 100.
const MAX_REFERENCES: usize = 256;

/// Maximum entries of one object or list of a schema: the library recurses once per property, and tries each alternative.
const MAX_ENTRIES: usize = 2048;

/// Maximum size once merged, in nodes of JSON: some hundred bytes of memory and some microseconds each.
const MAX_MERGED_NODES: u64 = 200_000;

/// Nodes that a regular expression counts as: the library may spend as long on one as on that many nodes.
const PATTERN_NODES: u64 = 500;

/// Keywords that only describe: beside a reference they merge nothing.
const DESCRIBING: [&str; 17] = [
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "definitions",
    "deprecated",
    "description",
    "example",
    "examples",
    "id",
    "readOnly",
    "title",
    "writeOnly",
];

/// Checks that the schema can be compiled within the limits of stack, memory and time.
///
/// # Errors
/// `InvalidInput` that names the limit.
pub(super) fn check(schema: &Value) -> Result<(), Error> {
    let levels = levels(schema)?;
    let mut references = BTreeSet::new();
    collect_references(schema, &mut references)?;
    let count = references.len();
    if count > MAX_REFERENCES {
        return Err(invalid(format!(
            "the JSON Schema has {count} different references; at most {MAX_REFERENCES} are supported"
        )));
    }
    let followed = levels * (count + 1);
    if followed > MAX_LEVELS_WITH_REFERENCES {
        return Err(invalid(format!(
            "the JSON Schema has {count} references and {levels} levels inside each other; their product may be at most \
             {MAX_LEVELS_WITH_REFERENCES}: use fewer definitions, or flatter ones"
        )));
    }
    let mut merging = Merging { root: schema, known: BTreeMap::new(), open: BTreeSet::new() };
    let size = merging.of(schema, false)?.nodes;
    if size > MAX_MERGED_NODES {
        return Err(too_large());
    }
    Ok(())
}

/// The depth of the schema as JSON, found without recursion.
fn levels(schema: &Value) -> Result<usize, Error> {
    let mut deepest = 0;
    let mut pending = vec![(schema, 1)];
    while let Some((value, level)) = pending.pop() {
        deepest = deepest.max(level);
        if level > MAX_LEVELS {
            return Err(invalid(format!("the JSON Schema has more than {MAX_LEVELS} levels inside each other")));
        }
        let entries = entries(value);
        if entries > MAX_ENTRIES {
            return Err(invalid(format!(
                "one object or list of the JSON Schema has {entries} entries; at most {MAX_ENTRIES} are supported"
            )));
        }
        pending.extend(children(value).map(|child| (child, level + 1)));
    }
    Ok(deepest)
}

fn entries(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// Every different text of a reference. The depth was checked before.
fn collect_references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) -> Result<(), Error> {
    if let Value::Object(map) = value {
        for keyword in ["$dynamicRef", "$recursiveRef"] {
            if map.get(keyword).is_some_and(Value::is_string) {
                return Err(invalid(format!("the JSON Schema has `{keyword}`, which is not supported; use `$ref`")));
            }
        }
        found.extend(map.get("$ref").and_then(Value::as_str));
    }
    children(value).try_for_each(|child| collect_references(child, found))
}

/// An upper bound of the size of a schema once merged.
#[derive(Clone, Copy)]
struct Size {
    /// Alternatives, of which merging takes every pair.
    alternatives: u64,
    /// Nodes of all alternatives together.
    nodes: u64,
}

impl Size {
    /// Each alternative of one schema merged with each of the other.
    fn merged_with(self, other: Size) -> Size {
        let copies = |times: u64, size: Size| times.saturating_mul(size.nodes);
        Size {
            alternatives: self.alternatives.saturating_mul(other.alternatives),
            nodes: copies(self.alternatives, other).saturating_add(copies(other.alternatives, self)),
        }
    }
}

struct Merging<'a> {
    root: &'a Value,
    /// Sizes of definitions, once merged.
    known: BTreeMap<&'a str, Size>,
    /// References that are being followed.
    open: BTreeSet<&'a str>,
}

impl<'a> Merging<'a> {
    /// The size of a schema. `copied`: whether it is merged with another one, so that what it refers to is copied.
    fn of(&mut self, value: &'a Value, copied: bool) -> Result<Size, Error> {
        let size = match value {
            Value::Object(map) => self.object(map, copied)?,
            Value::Array(items) => {
                let mut nodes = 1_u64;
                for item in items {
                    nodes = nodes.saturating_add(self.of(item, copied)?.nodes);
                }
                Size { alternatives: 1, nodes }
            }
            _ => Size { alternatives: 1, nodes: 1 },
        };
        // Stops before estimates of the next level cost much themselves.
        if size.nodes > MAX_MERGED_NODES || size.alternatives > MAX_MERGED_NODES {
            return Err(too_large());
        }
        Ok(size)
    }

    fn object(&mut self, map: &'a Map<String, Value>, copied: bool) -> Result<Size, Error> {
        let alternatives = |keyword: &str| map.get(keyword).and_then(Value::as_array);
        let merges = merges(map);
        let copied = copied || merges;
        // What is not merged: every other keyword, and property names.
        let mut own = Size { alternatives: 1, nodes: 1 };
        let mut parts = Vec::new();
        for (name, value) in map {
            match (name.as_str(), value) {
                ("allOf", Value::Array(items)) => {
                    for item in items {
                        parts.push(self.of(item, copied)?);
                    }
                }
                ("anyOf" | "oneOf" | "enum", Value::Array(_)) => {
                    let options = alternatives(name).map_or(&[][..], Vec::as_slice);
                    let mut one_of = Size { alternatives: 0, nodes: 1 };
                    for option in options {
                        let size = self.of(option, copied)?;
                        one_of.alternatives = one_of.alternatives.saturating_add(size.alternatives);
                        one_of.nodes = one_of.nodes.saturating_add(size.nodes);
                    }
                    if name == "oneOf" {
                        // Each alternative is compared with each other one.
                        one_of.nodes = one_of.nodes.saturating_add(one_of.nodes.saturating_mul(one_of.nodes) / 64);
                    }
                    parts.push(one_of);
                }
                ("$ref", Value::String(reference)) => parts.push(self.reference(reference, copied)?),
                ("pattern" | "format", Value::String(text)) => {
                    own.nodes = own.nodes.saturating_add(PATTERN_NODES.saturating_add(text.len() as u64));
                }
                ("patternProperties", Value::Object(patterns)) => {
                    // Each expression is compared with each other one.
                    let pairs = (patterns.len() as u64).saturating_mul(patterns.len() as u64);
                    own.nodes = own.nodes.saturating_add(pairs.saturating_mul(PATTERN_NODES));
                    own.nodes = own.nodes.saturating_add(self.of(value, copied)?.nodes);
                }
                _ => own.nodes = own.nodes.saturating_add(self.of(value, copied)?.nodes),
            }
        }
        if !merges {
            let nodes = parts.iter().fold(own.nodes, |sum, part| sum.saturating_add(part.nodes));
            let alternatives = parts.iter().map(|part| part.alternatives).fold(1, u64::max);
            return Ok(Size { alternatives, nodes });
        }
        Ok(parts.into_iter().fold(own, Size::merged_with))
    }

    fn reference(&mut self, reference: &'a str, copied: bool) -> Result<Size, Error> {
        let here = Size { alternatives: 1, nodes: 1 };
        if !copied {
            return Ok(here);
        }
        if let Some(size) = self.known.get(reference) {
            return Ok(*size);
        }
        if !self.open.insert(reference) {
            return Err(invalid(format!(
                "the definition {reference} refers to itself and is combined with another schema (by `allOf`, or by a \
                 keyword beside `$ref` or `anyOf`), which is not supported"
            )));
        }
        let target = match reference.strip_prefix('#') {
            Some("") => Some(self.root),
            Some(pointer) => self.root.pointer(pointer),
            None => None,
        };
        // What is not found by its path may be any part of the schema.
        let size = self.of(target.unwrap_or(self.root), true)?;
        self.open.remove(reference);
        self.known.insert(reference, size);
        Ok(size)
    }
}

/// Whether keywords of this schema are merged with each other.
fn merges(map: &Map<String, Value>) -> bool {
    let list = |keyword: &str| map.get(keyword).and_then(Value::as_array);
    let applied = ["anyOf", "oneOf", "enum"].into_iter().filter(|keyword| list(keyword).is_some()).count()
        + list("allOf").map_or(0, Vec::len)
        + usize::from(map.get("$ref").is_some_and(Value::is_string))
        + usize::from(map.contains_key("const"));
    let others = map.keys().any(|name| {
        !DESCRIBING.contains(&name.as_str())
            && !["allOf", "anyOf", "oneOf", "enum", "$ref", "const"].contains(&name.as_str())
    });
    applied > 1 || (applied == 1 && others)
}

fn too_large() -> Error {
    invalid(
        "the JSON Schema is too large once its alternatives and definitions are combined; use fewer of them, or fewer \
         of `allOf`, `oneOf` and regular expressions"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> Option<String> {
        check(schema).err().map(|error| error.to_string())
    }

    /// `count` definitions, each made by `link` of the next one's reference.
    fn chain(count: usize, link: impl Fn(Value) -> Value) -> Value {
        let mut definitions = Map::new();
        for at in 0..count {
            let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
            definitions.insert(format!("d{at}"), link(next));
        }
        definitions.insert(format!("d{count}"), json!({"type": "string"}));
        json!({"$ref": "#/$defs/d0", "$defs": definitions})
    }

    #[test]
    fn limits_hold_at_the_limit_and_not_above_it() {
        let nested = |levels: usize| (1..levels).fold(json!(true), |inner, _| json!({"items": inner}));
        assert_eq!(refused(&nested(MAX_LEVELS)), None);
        assert!(refused(&nested(MAX_LEVELS + 1)).is_some_and(|why| why.contains("levels inside each other")));
        let wide = |count: usize| json!({"required": (0..count).map(|at| format!("p{at}")).collect::<Vec<_>>()});
        assert_eq!(refused(&wide(MAX_ENTRIES)), None);
        assert!(refused(&wide(MAX_ENTRIES + 1)).is_some_and(|why| why.contains("entries")));
        let plain = |count| chain(count - 1, |next| next);
        assert_eq!(refused(&plain(MAX_REFERENCES)), None);
        assert!(refused(&plain(MAX_REFERENCES + 1)).is_some_and(|why| why.contains("different references")));
        let deep = |count| chain(count, |next| (0..38).fold(next, |inner, _| json!({"items": inner})));
        assert_eq!(refused(&deep(90)), None);
        assert!(refused(&deep(110)).is_some_and(|why| why.contains("their product")));
    }

    #[test]
    fn definitions_that_double_when_copied_are_refused() {
        let double = |next: Value| {
            let half = json!({"type": "object", "allOf": [next]});
            json!({"type": "object", "properties": {"a": half.clone(), "b": half}})
        };
        assert_eq!(refused(&chain(8, double)), None);
        assert!(refused(&chain(30, double)).is_some_and(|why| why.contains("too large once")));
        let options: Vec<Value> = (0..40).map(|at| json!({"properties": {format!("p{at}"): true}})).collect();
        let product = |factors: usize| json!({"allOf": vec![json!({"anyOf": options.clone()}); factors]});
        assert_eq!(refused(&product(2)), None);
        assert!(refused(&product(4)).is_some_and(|why| why.contains("too large once")));
    }

    #[test]
    fn a_definition_that_refers_to_itself_is_fine_until_it_is_combined() {
        let list = json!({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}});
        assert_eq!(refused(&list), None);
        let mut combined = list;
        combined["allOf"] = json!([{"required": ["next"]}]);
        assert!(refused(&combined).is_some_and(|why| why.contains("refers to itself")));
    }

    #[test]
    fn schemas_in_use_are_within_the_limits() {
        let names: Vec<String> = (0..500).map(|at| format!("value {at}")).collect();
        let row = json!({
            "type": "object", "additionalProperties": false, "required": ["id", "kind", "mail"],
            "properties": {
                "id": {"type": "integer", "minimum": 0}, "kind": {"type": "string", "enum": names},
                "mail": {"type": "string", "format": "email"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                "parent": {"anyOf": [{"$ref": "#/$defs/row"}, {"type": "null"}], "default": null},
            },
        });
        let schema = json!({"type": "object", "properties": {"rows": {"type": "array", "items": {"$ref": "#/$defs/row"}}},
            "required": ["rows"], "$defs": {"row": row}});
        assert_eq!(refused(&schema), None);
    }
}
