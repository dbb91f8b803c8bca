//! What form an answer has: free text or JSON. The one type for it in the house; every protocol and API converts at its border.

use super::grammar::{Grammar, GrammarVocabulary, MAX_SCHEMA_BYTES};
use crate::Error;

/// What form an answer has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AnswerFormat {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that fits this JSON Schema: the text of the schema as it was received, which is handed on unchanged because digests
    /// are taken of it.
    JsonSchema(String),
}

impl AnswerFormat {
    /// The grammar that masks the tokens of the answer; `None` where any token may come. `vocabulary` is asked only where there
    /// is a grammar: making one takes a while.
    ///
    /// # Errors
    /// `InvalidInput` where the schema is not JSON or cannot be used; those of `vocabulary`.
    pub fn grammar(
        &self,
        vocabulary: impl FnOnce() -> Result<GrammarVocabulary, Error>,
    ) -> Result<Option<Grammar>, Error> {
        match self {
            AnswerFormat::Text => Ok(None),
            AnswerFormat::JsonObject => Grammar::json_object(&vocabulary()?).map(Some),
            AnswerFormat::JsonSchema(schema) => {
                if schema.len() > MAX_SCHEMA_BYTES {
                    return Err(Error::Invalid {
                        operation: "answer format",
                        what: format!(
                            "the JSON Schema has {} bytes; at most {MAX_SCHEMA_BYTES} are supported",
                            schema.len()
                        ),
                    });
                }
                let schema = serde_json::from_str(schema).map_err(|error| Error::Invalid {
                    operation: "answer format",
                    what: format!("the JSON Schema is not JSON: {error}"),
                })?;
                Grammar::json_schema(&vocabulary()?, &schema).map(Some)
            }
        }
    }
}
