//! A conversation from the blocks and items of the dialects that are not lists of turns: who speaks several times in a row speaks
//! once, because templates insist on turns. No JSON is read here but what a call carries.

use pangea_compute::chat::Message;
use serde_json::{Value, json};

/// Messages in the order in which they are said.
#[derive(Default)]
pub(super) struct Conversation(Vec<Message>);

/// Between two texts of one speaker.
const BETWEEN: &str = "\n\n";

impl Conversation {
    /// A text of `system`, `user` or `assistant`.
    pub(super) fn say(&mut self, role: &str, text: &str) {
        match self.0.last_mut() {
            // After its calls the assistant waits for their results.
            Some(last) if last.role == role && last.tool_calls.is_empty() => {
                if !last.content.is_empty() && !text.is_empty() {
                    last.content.push_str(BETWEEN);
                }
                last.content.push_str(text);
            }
            _ => self.0.push(Message::new(role, text)),
        }
    }

    /// A call of a tool by the assistant. `arguments`: JSON.
    pub(super) fn call(&mut self, id: &str, name: &str, arguments: &str) {
        if self.0.last().is_none_or(|last| last.role != "assistant") {
            self.0.push(Message::new("assistant", ""));
        }
        let function = json!({"name": name, "arguments": arguments});
        if let Some(last) = self.0.last_mut() {
            last.tool_calls.push(json!({"id": id, "type": "function", "function": function}));
        }
    }

    /// What a call gave.
    pub(super) fn result(&mut self, id: &str, text: &str) {
        let mut message = Message::new("tool", text);
        let call = self.0.iter().rev().flat_map(|message| &message.tool_calls).find(|call| call["id"] == id);
        message.name = call.and_then(|call| call["function"]["name"].as_str()).map(str::to_owned);
        message.extra.insert("tool_call_id".to_owned(), Value::from(id));
        self.0.push(message);
    }

    /// The messages.
    pub(super) fn into_messages(self) -> Vec<Message> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_speaks_twice_speaks_once_and_calls_stay_with_their_results() {
        let mut conversation = Conversation::default();
        conversation.say("system", "Be brief.");
        conversation.say("system", "");
        conversation.say("user", "a");
        conversation.say("user", "b");
        conversation.say("assistant", "I look.");
        conversation.call("1", "add", "{}");
        conversation.call("2", "sub", "{}");
        conversation.result("2", "five");
        conversation.result("1", "four");
        conversation.say("assistant", "Nine.");
        conversation.call("3", "add", "{}");
        let messages = conversation.into_messages();
        let said: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str(), m.tool_calls.len())).collect();
        let expected = [
            ("system", "Be brief.", 0),
            ("user", "a\n\nb", 0),
            ("assistant", "I look.", 2),
            ("tool", "five", 0),
            ("tool", "four", 0),
            ("assistant", "Nine.", 1),
        ];
        assert_eq!(said, expected);
        assert_eq!(messages[3].name.as_deref(), Some("sub"));
        assert_eq!(messages[3].extra["tool_call_id"], "2");
    }
}
