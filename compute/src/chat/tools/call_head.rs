//! The JSON object that is a call, as far as it has arrived: its name, and where its arguments begin.

use serde_json::Value as Json;

/// The beginning of a call.
pub(super) enum Head<'a> {
    /// More text is needed.
    Short,
    /// `{"name": "…", "arguments": {`, with the place of the last bracket.
    Begun { name: &'a str, arguments: usize },
    /// Something else, which may be a call in another order.
    Other,
}

pub(super) fn head(object: &str) -> Head<'_> {
    let mut cursor = Cursor { text: object, at: 0 };
    match cursor.head() {
        Ok(name) => Head::Begun { name, arguments: cursor.at },
        Err(true) => Head::Short,
        Err(false) => Head::Other,
    }
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The name, with the cursor at the arguments. The error says whether the text ended.
    fn head(&mut self) -> Result<&'a str, bool> {
        self.expect('{')?;
        if self.string()? != "name" {
            return Err(false);
        }
        self.expect(':')?;
        let name = self.string()?;
        self.expect(',')?;
        if !matches!(self.string()?, "arguments" | "parameters") {
            return Err(false);
        }
        self.expect(':')?;
        self.blanks();
        match self.text[self.at..].chars().next() {
            Some('{') => Ok(name),
            other => Err(other.is_none()),
        }
    }

    fn blanks(&mut self) {
        self.at = self.text.len() - self.text[self.at..].trim_start().len();
    }

    fn expect(&mut self, wanted: char) -> Result<(), bool> {
        self.blanks();
        match self.text[self.at..].chars().next() {
            Some(found) if found == wanted => {
                self.at += wanted.len_utf8();
                Ok(())
            }
            other => Err(other.is_none()),
        }
    }

    /// A string without escapes.
    fn string(&mut self) -> Result<&'a str, bool> {
        self.expect('"')?;
        let rest = &self.text[self.at..];
        match rest.find(['"', '\\']) {
            Some(end) if rest[end..].starts_with('"') => {
                self.at += end + 1;
                Ok(&rest[..end])
            }
            other => Err(other.is_none()),
        }
    }
}

/// Name and arguments of a call in any order; arguments may be JSON in a string.
pub(super) fn whole_call(text: &str) -> Option<(String, String)> {
    let call: Json = serde_json::from_str(text).ok()?;
    // Some models write the call as OpenAI's API shows it.
    let call = call.get("function").filter(|function| function.is_object()).unwrap_or(&call);
    let name = call["name"].as_str()?.to_owned();
    let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
        None | Some(Json::Null) => "{}".to_owned(),
        Some(Json::String(text)) => matches!(serde_json::from_str(text), Ok(Json::Object(_))).then(|| text.clone())?,
        Some(object @ Json::Object(_)) => object.to_string(),
        Some(_) => return None,
    };
    Some((name, arguments))
}
