//! Keeps the text of a conversation from being read as the model's control tokens: what requests bring is text, whatever it
//! looks like, and only the template's own control tokens are tokens. Which texts are control tokens is the caller's
//! knowledge.
//!
//! Templates trim, cut, join and compare texts, so nothing is put around them. Only where a text could be read as a
//! control token, a mark is put before that place; the marks travel through the template and are taken out of the prompt. The mark
//! is a noncharacter of Unicode that occurs nowhere in the conversation.

use std::borrow::Cow;

use serde_json::{Map, Value as Json};

use super::{Conversation, invalid};
use crate::Error;

/// The noncharacters that a mark is chosen from.
const MARKS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// Whether a character can be a mark; it is written as it is, also where other characters are escaped.
pub(super) fn is_mark(c: char) -> bool {
    MARKS.contains(&c)
}

/// A prompt, and the places in it that no control token covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The prompt.
    pub text: String,
    /// Byte offsets, in order.
    pub plain: Vec<usize>,
}

/// Puts marks into the texts of a conversation.
pub(super) struct Marker<'a> {
    mark: char,
    /// The byte offsets of a text that no control token may cover.
    places: &'a dyn Fn(&str) -> Vec<usize>,
}

impl<'a> Marker<'a> {
    /// # Errors
    /// `InvalidInput` if every possible mark occurs in the conversation.
    pub(super) fn new(
        conversation: &Conversation<'_>,
        places: &'a dyn Fn(&str) -> Vec<usize>,
    ) -> Result<Marker<'a>, Error> {
        let mut used = Vec::new();
        let mut note = |text: &str| used.extend(text.chars().filter(|c| is_mark(*c)));
        for message in conversation.messages {
            note(&message.content);
            note(message.name.as_deref().unwrap_or_default());
            message.tool_calls.iter().chain(message.extra.values()).for_each(|json| each_text(json, &mut note));
            message.extra.keys().for_each(|name| note(name));
        }
        conversation.tools.iter().for_each(|tools| each_text(tools, &mut note));
        conversation.variables.iter().for_each(|(name, value)| {
            note(name);
            each_text(value, &mut note);
        });
        let mark = MARKS.into_iter().find(|mark| !used.contains(mark));
        let mark = mark.ok_or_else(|| invalid("the conversation has every noncharacter of Unicode".to_owned()))?;
        Ok(Marker { mark, places })
    }

    pub(super) fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let places = (self.places)(text);
        if places.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut marked = String::with_capacity(text.len() + places.len() * self.mark.len_utf8());
        let mut at = 0;
        for place in places {
            marked.push_str(&text[at..place]);
            marked.push(self.mark);
            at = place;
        }
        marked.push_str(&text[at..]);
        Cow::Owned(marked)
    }

    /// Every text of a value, names too. (Its depth is what the JSON parser allows.)
    pub(super) fn json(&self, value: Json) -> Json {
        match value {
            Json::String(text) => Json::String(self.text(&text).into_owned()),
            Json::Array(items) => Json::Array(items.into_iter().map(|item| self.json(item)).collect()),
            Json::Object(map) => Json::Object(self.map(map)),
            other => other,
        }
    }

    pub(super) fn map(&self, map: Map<String, Json>) -> Map<String, Json> {
        map.into_iter().map(|(name, value)| (self.text(&name).into_owned(), self.json(value))).collect()
    }

    /// Takes the marks out of a prompt.
    pub(super) fn unmark(&self, marked: String) -> RenderedPrompt {
        if !marked.contains(self.mark) {
            return RenderedPrompt { text: marked, plain: Vec::new() };
        }
        let mut prompt = RenderedPrompt { text: String::with_capacity(marked.len()), plain: Vec::new() };
        for (at, part) in marked.split(self.mark).enumerate() {
            if at > 0 && prompt.plain.last() != Some(&prompt.text.len()) {
                prompt.plain.push(prompt.text.len());
            }
            prompt.text.push_str(part);
        }
        prompt
    }
}

fn each_text(value: &Json, note: &mut impl FnMut(&str)) {
    match value {
        Json::String(text) => note(text),
        Json::Array(items) => items.iter().for_each(|item| each_text(item, note)),
        Json::Object(map) => map.iter().for_each(|(name, value)| {
            note(name);
            each_text(value, note);
        }),
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}
