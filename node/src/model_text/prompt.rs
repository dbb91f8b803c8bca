//! The prompt of a request, and checks that hold for every model. This file knows no tokenizer and no template.

use pangea_client::{Error, ErrorKind};
use pangea_compute::chat::Message;
use pangea_compute::chat::tools::{self, ToolChoice};

/// Maximum messages of one conversation: more than any context holds.
const MAX_MESSAGES: usize = 4096;

/// Roles of messages.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// The text that an answer follows.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A text to complete.
    Text(String),
    /// A text to complete, as token ids.
    Tokens(Vec<u32>),
    /// A gap between two texts, for models that were trained to fill gaps.
    Fill {
        /// The text before the gap.
        before: String,
        /// The text after the gap.
        after: String,
    },
    /// A conversation, which the model's template formats.
    Chat {
        /// The messages so far.
        messages: Vec<Message>,
        /// Descriptions of tools for the model's template, as OpenAI writes them.
        tools: Option<serde_json::Value>,
        /// Which of the tools the answer may or must call.
        tool_choice: ToolChoice,
        /// Further variables of the template, such as `enable_thinking`.
        variables: serde_json::Map<String, serde_json::Value>,
        /// The beginning of the answer, which the model goes on with.
        begun: String,
    },
}

impl Prompt {
    /// Checks everything that does not depend on the model.
    ///
    /// # Errors
    /// The first [`WrongField`].
    pub fn check(&self) -> Result<(), WrongField> {
        let Prompt::Chat { messages, tools, tool_choice, .. } = self else { return Ok(()) };
        if messages.is_empty() || messages.len() > MAX_MESSAGES {
            let why = format!("{} messages; it must be 1 to {MAX_MESSAGES}", messages.len());
            return Err(WrongField::new("messages", why));
        }
        messages.iter().enumerate().try_for_each(|(at, message)| role(at, &message.role).map(drop))?;
        let names = tools.as_ref().map(tools::names).unwrap_or_default();
        match tool_choice {
            ToolChoice::Required if names.is_empty() => {
                Err(WrongField::new("tool_choice", "a tool must be called, but the request has no tools"))
            }
            ToolChoice::Named(name) if !names.contains(name) => {
                Err(WrongField::new("tool_choice", format!("the request has no tool named {name:?}")))
            }
            _ => Ok(()),
        }
    }

    /// A conversation without tools.
    pub fn chat(messages: Vec<Message>) -> Prompt {
        Prompt::Chat {
            messages,
            tools: None,
            tool_choice: ToolChoice::Auto,
            variables: serde_json::Map::new(),
            begun: String::new(),
        }
    }
}

/// A field of a request that is wrong for every model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct WrongField {
    /// The field, as OpenAI's clients name it.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

impl WrongField {
    pub(crate) fn new(field: impl Into<String>, why: impl Into<String>) -> WrongField {
        WrongField { field: field.into(), why: why.into() }
    }
}

impl From<WrongField> for Error {
    fn from(wrong: WrongField) -> Error {
        Error::new(ErrorKind::InvalidInput, wrong.to_string())
    }
}

/// Parses the role of message `at`; `developer` is the newer name of `system`.
///
/// # Errors
/// [`WrongField`] for an unknown role.
pub fn role(at: usize, text: &str) -> Result<&'static str, WrongField> {
    let text = if text == "developer" { "system" } else { text };
    ROLES.into_iter().find(|role| *role == text).ok_or_else(|| {
        let why = format!("the role {text:?} is not one of system, developer, user, assistant and tool");
        WrongField::new(format!("messages[{at}]"), why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_has_messages_and_known_roles() {
        let field = |roles: &[&str]| {
            let prompt = Prompt::chat(roles.iter().map(|role| Message::new(*role, "hello")).collect());
            prompt.check().err().map(|wrong| wrong.field)
        };
        assert_eq!(field(&["system", "user", "assistant", "tool"]), None);
        assert_eq!(field(&[]).as_deref(), Some("messages"));
        assert_eq!(field(&vec!["user"; MAX_MESSAGES]), None);
        assert_eq!(field(&vec!["user"; MAX_MESSAGES + 1]).as_deref(), Some("messages"));
        assert_eq!(field(&["user", "king"]).as_deref(), Some("messages[1]"));
    }

    #[test]
    fn developer_means_system() {
        assert_eq!(role(0, "developer"), Ok("system"));
        assert!(role(3, "king").unwrap_err().to_string().starts_with("messages[3]: the role \"king\""));
    }
}
