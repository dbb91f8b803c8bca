//! Tools in a conversation: how the models of each family write calls, which JSON a forced call is, and what a model is told
//! whose template knows no tools. Nothing is called here, and no tokens are made.
//!
//! | module | owns |
//! |---|---|
//! | `call_reader` | an answer's text as text and calls, while it arrives |
//! | `call_head`, `json_span` | a call that is a JSON object; where one ends |
//! | `tag_call` | calls whose arguments come one by one: `xml_call`, `key_value_call`, `gemma_call` |
//! | `argument_value` | what plain text stands for, by the tool's schema |
//! | `deepseek` | the head of DeepSeek's calls |
//! | `harmony` | messages of gpt-oss |

mod argument_value;
mod call_head;
pub(super) mod call_reader;
mod deepseek;
mod gemma_call;
pub(super) mod harmony;
mod json_span;
mod key_value_call;
mod tag_call;
mod xml_call;

use serde_json::{Map, Value as Json, json};

use super::Message;
use super::reasoning::is_harmony;

pub(super) use harmony::MARKS as HARMONY_MARKS;

/// How the models of a family write calls in their answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolSyntax {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen; or the same between `<tool_call>` and its end as
    /// `<function=…><parameter=…>…</parameter></function>`: Qwen-Coder.
    Hermes,
    /// `{"name": …, "parameters": …}`, perhaps after `<|python_tag|>`: Llama 3.
    Llama3,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]`, or `[TOOL_CALLS]name[ARGS]{…}`: Mistral.
    Mistral,
    /// `<tool_call>name`, then `<arg_key>…</arg_key>` and `<arg_value>…</arg_value>` for each argument: GLM-4.5 and later.
    Glm,
    /// `<｜tool▁calls▁begin｜>` and calls with marks around the name and the JSON of the arguments: DeepSeek V3, R1, V3.1.
    Deepseek,
    /// `<|tool_call>call:name{key:value}<tool_call|>`: Gemma 4.
    Gemma4,
    /// Messages to `functions.name` whose text is the JSON of the arguments: gpt-oss.
    Harmony,
    /// An answer that is `{"name": …, "arguments": …}`: what a model is told whose template knows no tools.
    Json,
}

/// Which tools the answer may or must call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// One of the tools is called.
    Required,
    /// This tool is called.
    Named(String),
}

impl ToolSyntax {
    /// The syntax that a template asks for; `None` if the template knows no tools.
    pub fn of_template(source: &str) -> Option<ToolSyntax> {
        if !source.contains("tools") {
            return None;
        }
        let has = |text: &str| source.contains(text);
        Some(match () {
            () if is_harmony(source) => ToolSyntax::Harmony,
            () if ToolSyntax::is_deepseek(source) => ToolSyntax::Deepseek,
            () if has("<|tool_call>") => ToolSyntax::Gemma4,
            () if has("<arg_key>") => ToolSyntax::Glm,
            () if has("<tool_call>") => ToolSyntax::Hermes,
            () if has("[TOOL_CALLS]") => ToolSyntax::Mistral,
            () if has("<|python_tag|>") || has("<|start_header_id|>") => ToolSyntax::Llama3,
            () => ToolSyntax::Json,
        })
    }

    /// Whether a template writes calls as DeepSeek's models do.
    pub(super) fn is_deepseek(source: &str) -> bool {
        source.contains(deepseek::CALL_BEGIN)
    }

    /// Text that begins a call; empty where a call is an answer of its own.
    fn opener(self) -> &'static str {
        match self {
            ToolSyntax::Hermes | ToolSyntax::Glm => "<tool_call>",
            ToolSyntax::Mistral => "[TOOL_CALLS]",
            ToolSyntax::Llama3 => "<|python_tag|>",
            ToolSyntax::Deepseek => deepseek::CALLS_BEGIN,
            ToolSyntax::Gemma4 => "<|tool_call>",
            ToolSyntax::Json | ToolSyntax::Harmony => "",
        }
    }

    /// Texts of a call that may be control tokens: the reader must see them.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            ToolSyntax::Hermes => &["<tool_call>", "</tool_call>"],
            ToolSyntax::Glm => {
                &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
            }
            ToolSyntax::Deepseek => {
                use deepseek::{CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEPARATOR};
                &[CALLS_BEGIN, CALL_BEGIN, SEPARATOR, CALL_END, CALLS_END]
            }
            ToolSyntax::Gemma4 => &["<|tool_call>", "<tool_call|>", "<|\"|>"],
            ToolSyntax::Harmony => &HARMONY_MARKS,
            ToolSyntax::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            ToolSyntax::Llama3 => &["<|python_tag|>"],
            ToolSyntax::Json => &[],
        }
    }

    /// The beginning of an answer that must be a call; [`ToolSyntax::call_schema`] is what follows.
    pub fn forced_prefix(self) -> &'static str {
        match self {
            ToolSyntax::Hermes => "<tool_call>\n",
            // These take the JSON of a whole call, too, which is what a grammar can demand.
            ToolSyntax::Glm => "<tool_call>",
            ToolSyntax::Deepseek => deepseek::CALLS_BEGIN,
            ToolSyntax::Gemma4 => "<|tool_call>",
            ToolSyntax::Harmony => "<|channel|>commentary <|constrain|>json<|message|>",
            ToolSyntax::Mistral => "[TOOL_CALLS]",
            ToolSyntax::Llama3 | ToolSyntax::Json => "",
        }
    }

    /// JSON Schema of one call of one of `tools` (OpenAI's form), as this family writes it. `None` without a tool of the
    /// wanted name.
    pub fn call_schema(self, tools: &Json, choice: &ToolChoice) -> Option<Json> {
        let arguments = if self == ToolSyntax::Llama3 { "parameters" } else { "arguments" };
        let (mut calls, mut definitions) = (Vec::new(), Map::new());
        for (at, (name, parameters)) in functions(tools).enumerate() {
            if matches!(choice, ToolChoice::Named(wanted) if wanted != name) {
                continue;
            }
            let parameters = match parameters {
                Some(schema) => hoisted(schema.clone(), &format!("tool{at}_"), &mut definitions),
                None => json!({"type": "object"}),
            };
            calls.push(json!({
                "type": "object", "properties": {"name": {"const": name}, arguments: parameters},
                "required": ["name", arguments], "additionalProperties": false,
            }));
        }
        let mut schema = match calls.len() {
            0 => return None,
            1 => calls.remove(0),
            _ => json!({"anyOf": calls}),
        };
        if self == ToolSyntax::Mistral {
            schema = json!({"type": "array", "items": schema, "minItems": 1, "maxItems": 1});
        }
        if !definitions.is_empty() {
            schema["$defs"] = Json::Object(definitions);
        }
        Some(schema)
    }
}

/// Names and parameters of tools in OpenAI's form.
fn functions(tools: &Json) -> impl Iterator<Item = (&str, Option<&Json>)> {
    let tools = tools.as_array().map(Vec::as_slice).unwrap_or_default();
    tools.iter().filter_map(|tool| {
        let function = &tool["function"];
        Some((function["name"].as_str()?, function.get("parameters").filter(|schema| !schema.is_null())))
    })
}

/// Names of tools in OpenAI's form.
pub fn names(tools: &Json) -> Vec<String> {
    functions(tools).map(|(name, _)| name.to_owned()).collect()
}

/// A tool's schema as a part of a larger one: its definitions move to the whole schema's, under names of their own.
fn hoisted(mut schema: Json, prefix: &str, definitions: &mut Map<String, Json>) -> Json {
    for place in ["$defs", "definitions"] {
        let moved = schema.as_object_mut().and_then(|schema| schema.remove(place));
        let Some(Json::Object(moved)) = moved else { continue };
        for (name, mut definition) in moved {
            refer(&mut definition, prefix);
            definitions.insert(format!("{prefix}{name}"), definition);
        }
    }
    refer(&mut schema, prefix);
    schema
}

/// Follows the definitions to their new place.
fn refer(schema: &mut Json, prefix: &str) {
    match schema {
        Json::Object(fields) => {
            if let Some(Json::String(target)) = fields.get_mut("$ref") {
                let name = target.strip_prefix("#/$defs/").or_else(|| target.strip_prefix("#/definitions/"));
                if let Some(name) = name {
                    *target = format!("#/$defs/{prefix}{name}");
                }
            }
            fields.values_mut().for_each(|field| refer(field, prefix));
        }
        Json::Array(items) => items.iter_mut().for_each(|item| refer(item, prefix)),
        _ => {}
    }
}

const EXPLAINED: &str = "You can call functions. To call one, answer with nothing but one JSON object of the form \
    {\"name\": \"the function\", \"arguments\": {}}; its result comes in the next message. Call a function only if the \
    question needs it; otherwise answer in plain text. The functions:";

/// A conversation for a template that knows no tools: the tools are described in the system message, calls and their results
/// are plain messages.
pub fn explained(messages: &[Message], tools: Option<&Json>) -> Vec<Message> {
    let mut written: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    // Names of the calls so far, by id: a result names only the id.
    let mut called: Vec<(&str, &str)> = Vec::new();
    for message in messages {
        let mut plain = Message::new(message.role.clone(), message.content.clone());
        plain.name.clone_from(&message.name);
        for call in &message.tool_calls {
            let function = &call["function"];
            let (id, name) = (call["id"].as_str().unwrap_or_default(), function["name"].as_str().unwrap_or_default());
            called.push((id, name));
            let arguments = match &function["arguments"] {
                Json::String(text) => text.clone(),
                other => other.to_string(),
            };
            if !plain.content.is_empty() {
                plain.content.push('\n');
            }
            plain.content.push_str(&format!("{{\"name\": {}, \"arguments\": {arguments}}}", json!(name)));
        }
        if message.role == "tool" {
            let id = message.extra.get("tool_call_id").and_then(Json::as_str).unwrap_or_default();
            let known = called.iter().rev().find(|(known, _)| *known == id).map(|(_, name)| *name);
            let name = message.name.as_deref().or(known).unwrap_or("the function");
            plain = Message::new("user", format!("Result of {name}: {}", message.content));
        }
        written.push(plain);
    }
    let Some(tools) = tools.and_then(Json::as_array) else { return written };
    let mut text = EXPLAINED.to_owned();
    for tool in tools {
        text.push('\n');
        text.push_str(&tool["function"].to_string());
    }
    match written.first_mut() {
        Some(first) if first.role == "system" => first.content = format!("{}\n\n{text}", first.content),
        _ => written.insert(0, Message::new("system", text)),
    }
    written
}

#[cfg(test)]
mod tests;
