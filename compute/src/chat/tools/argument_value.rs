//! The value of an argument that a model wrote as plain text: the tool's JSON Schema tells whether it stands for a string or for
//! other JSON.

use serde_json::Value as Json;

/// JSON Schemas of the arguments of the tool `name` by their names; null where nothing is known of them. `tools`: names and the JSON
/// Schemas of their parameters.
pub(super) fn properties(tools: &[(String, Json)], name: &str) -> Json {
    let schema = tools.iter().find(|(known, _)| known == name).map(|(_, schema)| schema);
    schema.map(|schema| schema["properties"].clone()).unwrap_or_default()
}

/// The value that `text` stands for, by the `schema` of the argument.
pub(super) fn value(schema: &Json, text: &str) -> Json {
    let is_text = schema["type"] == "string"
        || schema["enum"].as_array().is_some_and(|values| values.iter().all(Json::is_string));
    let other = if is_text { None } else { serde_json::from_str(text.trim()).ok() };
    other.unwrap_or_else(|| Json::from(text))
}
