//! The text side of a model: prompt to token ids, token ids to bytes, and the grammar of an answer. Shared by
//! all threads; it knows neither layers nor requests.

mod fill;
mod pending_grammar;
mod prompt;

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::chat::answer::AnswerReader;
use pangea_compute::chat::calendar::CalendarTime;
use pangea_compute::chat::plain_text::RenderedPrompt;
use pangea_compute::chat::reasoning::ReasoningSyntax;
use pangea_compute::chat::tools::{self, ToolChoice, ToolSyntax};
use pangea_compute::chat::{ChatTemplate, Conversation, Message};
use pangea_compute::model::ModelFile;
use pangea_compute::sample::AnswerFormat;
use pangea_compute::sample::grammar::{Grammar, GrammarVocabulary};
use pangea_compute::sample::recommended::RecommendedSampling;
use pangea_compute::tokenizer::Tokenizer;
use serde_json::{Map, Value};

use crate::compute_error;

pub(crate) use pending_grammar::PendingGrammar;
pub use prompt::{Prompt, WrongField, role};

/// A model's tokenizer and chat template.
pub struct ModelText {
    pub(crate) tokenizer: Tokenizer,
    template: ChatTemplate,
    /// The sampling terms that the model's file recommends.
    pub(crate) recommended: RecommendedSampling,
    /// Built on the first use of a grammar, because it takes a while.
    grammars: Mutex<Option<GrammarVocabulary>>,
}

impl ModelText {
    /// Reads the tokenizer and chat template of a file.
    pub(crate) fn of(file: &ModelFile) -> Result<ModelText> {
        let tokenizer = file.tokenizer().map_err(compute_error)?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default().to_owned();
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        let template = match file.chat_template() {
            Some(source) => ChatTemplate::new(source, &bos, &eos),
            None => ChatTemplate::default_for(|token| tokenizer.token_id(token).is_some(), &bos, &eos),
        };
        let (template, recommended) =
            (template.map_err(compute_error)?, RecommendedSampling::of(file.gguf().metadata()));
        Ok(ModelText { template, recommended, tokenizer, grammars: Mutex::new(None) })
    }

    /// The token ids of a prompt: at least one, all within the model's vocabulary.
    pub(crate) fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => {
                let size = self.tokenizer.vocabulary();
                if let Some(outside) = tokens.iter().find(|&&token| token as usize >= size) {
                    let message =
                        format!("the prompt holds token {outside}, but this model's tokens are 0 to {}", size - 1);
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
                tokens.clone()
            }
            // A raw prompt is its author's own template, with its control tokens.
            Prompt::Text(text) => self.tokenizer.encode(text, true, true),
            Prompt::Fill { before, after } => fill::tokens(&self.tokenizer, before, after)?,
            Prompt::Chat { messages, tools, tool_choice, variables, begun } => {
                let mut prompt = self.rendered(messages, tools.as_ref(), variables)?;
                if *tool_choice != ToolChoice::Auto {
                    // A call that must come now leaves no room for thoughts that the template has begun.
                    if let Some(syntax) = self.template.reasoning().filter(|syntax| syntax.is_begun(&prompt.text)) {
                        prompt.text.push_str(syntax.end());
                    }
                    prompt.text.push_str(self.tool_syntax().forced_prefix());
                }
                let at = prompt.text.len();
                prompt.plain.extend(self.tokenizer.control_places(begun).into_iter().map(|place| at + place));
                prompt.text.push_str(begun);
                // A template may start the sequence itself.
                let begun = self.tokenizer.bos().and_then(|bos| self.tokenizer.token_text(bos));
                let begins = begun.is_some_and(|bos| prompt.text.starts_with(bos));
                let begins = begins && prompt.plain.first() != Some(&0);
                self.tokenizer.encode_apart(&prompt.text, !begins, &prompt.plain)
            }
        };
        if tokens.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, "the prompt is empty"));
        }
        Ok(tokens)
    }

    /// What the template makes of a conversation, up to where the answer begins.
    fn rendered(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        variables: &Map<String, Value>,
    ) -> Result<RenderedPrompt> {
        // A template that knows no tools drops them in silence.
        let explained = match self.template.tools() {
            None => Some(tools::explained(messages, tools)),
            Some(_) => None,
        };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let conversation = Conversation {
            messages: explained.as_deref().unwrap_or(messages),
            add_generation_prompt: true,
            tools,
            variables,
            now: CalendarTime::from_unix_seconds(seconds as i64),
        };
        // What the request brings is text; only the template's own control tokens are tokens.
        let places = |text: &str| self.tokenizer.control_places(text);
        self.template.render_apart(&conversation, &places).map_err(compute_error)
    }

    fn tool_syntax(&self) -> ToolSyntax {
        self.template.tools().unwrap_or(ToolSyntax::Json)
    }

    /// The format of the answer to a prompt that asks for a call.
    pub(crate) fn call_format(&self, prompt: &Prompt) -> Option<AnswerFormat> {
        let Prompt::Chat { tools: Some(tools), tool_choice, .. } = prompt else { return None };
        if *tool_choice == ToolChoice::Auto {
            return None;
        }
        let schema = self.tool_syntax().call_schema(tools, tool_choice)?;
        Some(AnswerFormat::JsonSchema(schema.to_string()))
    }

    /// What finds reasoning and calls in an answer to a conversation; `None` for other prompts. `single`: at most one call;
    /// `is_free`: the answer need not match a format.
    pub(crate) fn answer_reader(&self, prompt: &Prompt, single: bool, is_free: bool) -> Option<AnswerReader> {
        let Prompt::Chat { messages, tools, tool_choice, variables, begun } = prompt else { return None };
        let is_forced = *tool_choice != ToolChoice::Auto;
        let reader = match tools {
            Some(tools) => AnswerReader::of_calls(self.tool_syntax(), tools, is_forced, single),
            None => AnswerReader::of_text(),
        };
        let Some(syntax) = self.template.reasoning().filter(|_| !is_forced) else { return Some(reader) };
        // A conversation that the template refuses has no answer.
        let rendered = || self.rendered(messages, tools.as_ref(), variables).unwrap_or_default();
        let is_begun = is_free && begun.is_empty() && syntax.is_begun(&rendered().text);
        Some(reader.with_reasoning(syntax, is_begun))
    }

    /// The control tokens that an answer to this prompt shows as text, because they mark reasoning or calls.
    pub(crate) fn answer_marks(&self, prompt: &Prompt) -> Vec<u32> {
        let Prompt::Chat { tools, .. } = prompt else { return Vec::new() };
        let reasoning = self.template.reasoning().map(ReasoningSyntax::marks).unwrap_or_default();
        let calls = tools.as_ref().map(|_| self.tool_syntax().marks()).unwrap_or_default();
        let mut marks: Vec<u32> = reasoning
            .iter()
            .chain(calls)
            .filter_map(|mark| self.tokenizer.token_id(mark))
            .filter(|&id| self.tokenizer.is_control(id) && !self.tokenizer.is_end_of_generation(id))
            .collect();
        marks.sort_unstable();
        marks.dedup();
        marks
    }

    /// The grammar that the answer must match; `None` for free text.
    pub(crate) fn grammar(&self, format: &AnswerFormat) -> Result<Option<Grammar>> {
        format.grammar(|| self.grammar_vocabulary()).map_err(compute_error)
    }

    fn grammar_vocabulary(&self) -> std::result::Result<GrammarVocabulary, pangea_compute::Error> {
        let mut kept = self.grammars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vocabulary) = &*kept {
            return Ok(vocabulary.clone());
        }
        let vocabulary = GrammarVocabulary::new(&self.tokenizer)?;
        Ok(kept.insert(vocabulary).clone())
    }

    /// A token with its bytes.
    pub(crate) fn token(&self, id: u32) -> TokenText {
        let bytes = self.tokenizer.token_bytes(id, true).unwrap_or_default().into_owned();
        TokenText { id, bytes }
    }
}

/// A token with its bytes, which may be a part of a character.
#[derive(Clone, Debug)]
pub struct TokenText {
    /// Id of the token.
    pub id: u32,
    /// Bytes of the token.
    pub bytes: Vec<u8>,
}

impl TokenText {
    /// The bytes as text, with U+FFFD for invalid UTF-8.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}
