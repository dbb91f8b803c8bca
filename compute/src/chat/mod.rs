//! Conversations to prompt text: the chat templates that come with models (Jinja, as Hugging Face runs it). Templates
//! are untrusted programs: their steps, depth, memory and output are bounded. No clock or file is read; tokens are the
//! tokenizer's.
//!
//! The map:
//!
//! | module | owns |
//! |---|---|
//! | `environment` | the filters, functions and methods that templates may use |
//! | `message_form` | what the templates of some families expect of messages |
//! | `meter` | the memory that a render has taken so far |
//! | `metering` | adds the meter to a template's own operators |
//! | [`plain_text`] | texts of a conversation that look like control tokens |
//! | [`answer`] | an answer's text as reasoning, text and calls |
//! | [`reasoning`] | how models mark what they think before they answer |
//! | [`tools`] | how models write calls of tools |
//! | `python` | values as Python prints them, JSON as `json.dumps` writes it |
//! | [`calendar`] | dates for `strftime_now` |

pub mod answer;
pub mod calendar;
mod environment;
mod message_form;
mod meter;
mod metering;
pub mod plain_text;
mod python;
pub mod reasoning;
pub mod tools;

use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

use crate::Error;
use calendar::CalendarTime;
use message_form::MessageForm;
use plain_text::{Marker, RenderedPrompt};
use reasoning::ReasoningSyntax;
use tools::ToolSyntax;

const OPERATION: &str = "chat template";
/// Bytes of a template, at most. The longest in use have some 30 KB.
const MAX_SOURCE_BYTES: usize = 256 << 10;
const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or any other role that the template knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// The speaker's or the tool's name.
    pub name: Option<String>,
    /// Calls that the assistant made, in OpenAI's form: `{id, type, function: {name, arguments}}`. Arguments that are a
    /// JSON object in a string are given to the template as an object, which is what nearly all templates expect.
    pub tool_calls: Vec<Json>,
    /// Other fields of the message (`tool_call_id`, `reasoning_content`), given to the template under these names.
    pub extra: Map<String, Json>,
}

impl Message {
    /// A message with a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), ..Message::default() }
    }

    /// The role is the template's word, not a text of the request: callers allow only those that templates know.
    fn to_value(&self, marker: &Marker<'_>, form: MessageForm) -> Value {
        let mut fields = self.extra.clone();
        fields.insert("content".to_owned(), Json::from(self.content.as_str()));
        if let Some(name) = &self.name {
            fields.insert("name".to_owned(), Json::from(name.as_str()));
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().cloned();
            let read = |call| if form.reads_arguments() { with_arguments_read(call) } else { call };
            fields.insert("tool_calls".to_owned(), calls.map(read).collect());
        }
        let mut fields = marker.map(fields);
        fields.insert("role".to_owned(), Json::from(self.role.as_str()));
        Value::from(Serde(fields))
    }
}

fn with_arguments_read(mut call: Json) -> Json {
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(text) = arguments.as_str()
        && let Ok(object @ Json::Object(_)) = serde_json::from_str(text)
    {
        *arguments = object;
    }
    call
}

/// The variables of a render.
#[derive(Clone, Debug)]
pub struct Conversation<'a> {
    /// The messages so far.
    pub messages: &'a [Message],
    /// Whether the prompt ends with the header of the assistant's answer.
    pub add_generation_prompt: bool,
    /// The tools that the model may call, in OpenAI's form: a list.
    pub tools: Option<&'a Json>,
    /// Further variables, such as `enable_thinking`; the fields above take precedence.
    pub variables: &'a Map<String, Json>,
    /// The current time, for `strftime_now`.
    pub now: CalendarTime,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The syntax of calls that the template asks for, if it knows tools.
    tools: Option<ToolSyntax>,
    /// The syntax of reasoning that the template knows.
    reasoning: Option<ReasoningSyntax>,
    form: MessageForm,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template (Jinja with `trim_blocks` and `lstrip_blocks`, as in Hugging Face). `bos` and `eos` are the
    /// texts of the tokens that begin and end a sequence; empty where a model has none.
    ///
    /// Errors (`InvalidInput`): a syntax error, with its line; more than 256 KiB.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, Error> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(invalid(format!(
                "the template has {} bytes; at most {MAX_SOURCE_BYTES} are allowed",
                source.len()
            )));
        }
        let metered = metering::metered(source)?;
        let mut environment = environment::new(metered.fuel);
        environment.add_template_owned(NAME, metered.source).map_err(|error| environment::error(&error))?;
        let (tools, reasoning) = (ToolSyntax::of_template(source), ReasoningSyntax::of_template(source));
        let form = MessageForm::of_template(source);
        Ok(ChatTemplate { environment, tools, reasoning, form, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The syntax of calls that the template asks for; `None` if it knows no tools.
    pub fn tools(&self) -> Option<ToolSyntax> {
        self.tools
    }

    /// The syntax of reasoning that the template knows, if any.
    pub fn reasoning(&self) -> Option<ReasoningSyntax> {
        self.reasoning
    }

    /// The default template for a model without one: ChatML where the vocabulary has `<|im_start|>`, Gemma's turns
    /// where it has `<start_of_turn>`, Llama 3's headers where it has `<|start_header_id|>`, else lines with the
    /// speaker's name.
    pub fn default_for(has_token: impl Fn(&str) -> bool, bos: &str, eos: &str) -> Result<ChatTemplate, Error> {
        let source = if has_token("<|im_start|>") {
            include_str!("default/chatml.jinja")
        } else if has_token("<start_of_turn>") {
            include_str!("default/gemma.jinja")
        } else if has_token("<|start_header_id|>") {
            include_str!("default/llama3.jinja")
        } else {
            include_str!("default/plain.jinja")
        };
        ChatTemplate::new(source, bos, eos)
    }

    /// The prompt of a conversation as text. Special tokens are written out, including the token that begins a sequence
    /// if the template writes it.
    ///
    /// Errors (`InvalidInput`): the template refuses the conversation (`raise_exception`), has an error, or exceeds the
    /// limits on steps, depth or memory.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, Error> {
        self.render_apart(conversation, &|_| Vec::new()).map(|prompt| prompt.text)
    }

    /// [`ChatTemplate::render`] with the places in the prompt that no control token covers: those that `places` names in the
    /// texts of the conversation (`Tokenizer::control_places`).
    ///
    /// Errors: those of [`ChatTemplate::render`].
    pub fn render_apart(
        &self,
        conversation: &Conversation<'_>,
        places: &dyn Fn(&str) -> Vec<usize>,
    ) -> Result<RenderedPrompt, Error> {
        let marker = Marker::new(conversation, places)?;
        self.write(self.variables(conversation, &marker)).map(|text| marker.unmark(text))
    }

    fn variables(&self, conversation: &Conversation<'_>, marker: &Marker<'_>) -> Value {
        let mut variables: Map<String, Json> = marker.map(conversation.variables.clone());
        variables.insert("bos_token".to_owned(), Json::from(self.bos.as_str()));
        variables.insert("eos_token".to_owned(), Json::from(self.eos.as_str()));
        variables.insert("add_generation_prompt".to_owned(), Json::from(conversation.add_generation_prompt));
        // Templates test both `if tools` and `tools is not none`.
        let tools = conversation.tools.cloned().map_or(Json::Null, |tools| marker.json(tools));
        variables.insert("tools".to_owned(), tools);
        let mut variables: Vec<(String, Value)> =
            variables.into_iter().map(|(name, value)| (name, Value::from(Serde(value)))).collect();
        let messages = self.form.write(conversation.messages);
        let messages: Vec<Value> = messages.iter().map(|message| message.to_value(marker, self.form)).collect();
        variables.push(("messages".to_owned(), Value::from(messages)));
        variables.push((environment::NOW.to_owned(), Value::from_object(conversation.now)));
        Value::from_pairs(variables)
    }

    /// Runs the template, with few bytes of its own on the stack: the template takes as much as it may.
    fn write(&self, variables: Value) -> Result<String, Error> {
        let template = self.environment.get_template(NAME).map_err(|error| environment::error(&error))?;
        let mut prompt = meter::Limited::new(meter::MAX_PROMPT_BYTES);
        let rendered = template.render_captured_to(variables, &mut prompt);
        rendered.map_err(|error| environment::error(&error))?;
        prompt.into_text().ok_or_else(|| invalid("the template wrote text that is not UTF-8".to_owned()))
    }
}

fn invalid(what: String) -> Error {
    Error::invalid(OPERATION, what)
}

#[cfg(test)]
mod tests;
