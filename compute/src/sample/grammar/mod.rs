//! JSON as a constraint on tokens: a [`Grammar`] decides which tokens may come next, so that the answer fits a JSON
//! Schema. The parser is `llguidance` (MIT, also used by llama.cpp and vLLM); its types stay in this file. Nothing is
//! fetched: references in a schema stay inside the schema.
//!
//! Schemas come from strangers, and the library recurses with them: a schema is judged first (`schema_limits`), and compiled
//! on a thread with a stack of its own, within a time limit (`bounded`).

mod bounded;
mod schema_limits;

use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use super::mask::TokenMask;
use crate::Error;
use crate::tokenizer::Tokenizer;

pub use schema_limits::MAX_SCHEMA_BYTES;

const OPERATION: &str = "grammar";
/// Bytes of a token that a grammar can allow, at most; longer tokens are never allowed. (The longest token of today's
/// vocabularies is 1,024 spaces; the trie has no longer paths.)
const MAX_TOKEN_BYTES: usize = 512;
/// Nodes of a trie, at most: the trie counts the nodes below a node in 22 bits.
const MAX_TRIE_NODES: usize = (1 << 22) - 1;
/// Tokens of a vocabulary, at most: the trie keeps ids in 24 bits, and the highest means "none".
const MAX_VOCABULARY: usize = (1 << 24) - 1;
/// States of a grammar's automaton, at most, about 2 KB each: the automaton stays below 40 MB. Schemas in use need some
/// hundreds.
const MAX_LEXER_STATES: usize = 20_000;
/// Bytes of the library's errors that are passed on.
const MAX_ERROR_BYTES: usize = 400;
/// Symbols of a grammar, at most, some tens of bytes each. Schemas within the limits of this house stay far below it.
const MAX_GRAMMAR_SYMBOLS: usize = 200_000;
/// Whitespace allowed between JSON's tokens; bounded, because small models otherwise indent without end.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,20}";

/// The text inside most JSON strings. Tokens that match are found once, not per mask, which makes masks inside strings
/// some hundred times faster. (llguidance's default of four such sets gains little more.)
const STRING_TEXT: &str = r#"[^"\\\x00-\x1F\x7F]+"#;

/// A model's tokens, prepared for grammars: built once, shared by all requests. Cloning is cheap.
#[derive(Clone)]
pub struct GrammarVocabulary {
    factory: Arc<ParserFactory>,
    size: usize,
}

impl GrammarVocabulary {
    /// Takes some microseconds per token, so seconds for the largest vocabularies: build it when first needed, outside
    /// the serving thread. Control tokens match no text; tokens that end a generation end the JSON.
    ///
    /// Errors (`InvalidInput`): no token ends a generation; the vocabulary needs more than 4 million trie nodes.
    pub fn new(tokenizer: &Tokenizer) -> Result<GrammarVocabulary, Error> {
        let size = tokenizer.vocabulary();
        let ids = || (0..size).map(|id| id as u32);
        let word = |id| match tokenizer.is_control(id) {
            true => None,
            false => tokenizer.token_bytes(id, false).map(|bytes| bytes.into_owned()),
        };
        let words = ids().map(word).collect();
        let ends: Vec<u32> = ids().filter(|&id| tokenizer.is_end_of_generation(id)).collect();
        GrammarVocabulary::from_words(words, &ends)
    }

    /// `words[id]`: the bytes of a token, `None` for control tokens.
    pub(crate) fn from_words(words: Vec<Option<Vec<u8>>>, ends: &[u32]) -> Result<GrammarVocabulary, Error> {
        let size = words.len();
        if size > MAX_VOCABULARY {
            return Err(invalid(format!(
                "a vocabulary of {size} tokens is too large for grammars; at most {MAX_VOCABULARY} tokens are supported"
            )));
        }
        let Some(&end) = ends.first() else {
            return Err(invalid("no token of this model ends an answer, so JSON could never be completed".into()));
        };
        if let Some(outside) = ends.iter().find(|&&end| end as usize >= size) {
            return Err(invalid(format!("end token {outside} is not in the vocabulary of {size} tokens")));
        }
        let words: Vec<Vec<u8>> = words.into_iter().zip(0_u32..).map(|(word, id)| trie_word(word, id)).collect();
        let nodes = trie_nodes(&words);
        if nodes > MAX_TRIE_NODES {
            return Err(invalid(format!(
                "the vocabulary needs {nodes} trie nodes; at most {MAX_TRIE_NODES} are supported"
            )));
        }
        let trie = TokTrie::from(&TokRxInfo::new(size as u32, end), &words).with_eos_tokens(ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &[STRING_TEXT.to_owned()])
            .map_err(|error| invalid(error.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.max_grammar_size = MAX_GRAMMAR_SYMBOLS;
        limits.verbose_errors = false;
        Ok(GrammarVocabulary { factory: Arc::new(factory), size })
    }
}

/// The text of a token in the trie: control tokens get a name after a byte that occurs in no text; too long tokens get
/// none and are never allowed.
fn trie_word(word: Option<Vec<u8>>, id: u32) -> Vec<u8> {
    match word {
        None => [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("<{id}>").as_bytes()].concat(),
        Some(word) if word.len() > MAX_TOKEN_BYTES => Vec::new(),
        Some(word) if word.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
        Some(word) => word,
    }
}

/// The number of distinct prefixes, one node each.
fn trie_nodes(words: &[Vec<u8>]) -> usize {
    let mut sorted: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    sorted.sort_unstable();
    let mut previous: &[u8] = &[];
    let mut nodes = 1;
    for word in sorted {
        nodes += word.len() - word.iter().zip(previous).take_while(|(a, b)| a == b).count();
        previous = word;
    }
    nodes
}

/// A grammar and the tokens it has accepted so far. A clone is independent, so that drafts can be tried.
pub struct Grammar {
    matcher: Matcher,
    size: usize,
}

impl Clone for Grammar {
    fn clone(&self) -> Grammar {
        // A deep clone: otherwise threads would wait for one shared lexer.
        Grammar { matcher: self.matcher.deep_clone(), size: self.size }
    }
}

impl Grammar {
    /// One JSON value that fits `schema` (JSON Schema as llguidance supports it; `true` is any value). Waits while too many
    /// schemas are being compiled.
    ///
    /// Errors: `InvalidInput` for an unsupported keyword, a schema that no value fits, a reference to an address, a schema
    /// that is too large or takes too long to compile; `Overloaded` after waiting too long for others to be compiled.
    pub fn json_schema(vocabulary: &GrammarVocabulary, schema: &Value) -> Result<Grammar, Error> {
        let (vocabulary, schema) = (vocabulary.clone(), schema.clone());
        bounded::compile(move || Grammar::compile(&vocabulary, schema))
    }

    /// Compiles on this thread's stack.
    fn compile(vocabulary: &GrammarVocabulary, schema: Value) -> Result<Grammar, Error> {
        schema_limits::check(&schema)?;
        let mut schema = match schema {
            Value::Object(_) => schema,
            Value::Bool(true) => json!({}),
            Value::Bool(false) => return Err(invalid("no value fits the schema `false`".to_owned())),
            _ => return Err(invalid("a JSON Schema is an object, `true` or `false`".to_owned())),
        };
        // Replaces options inside the schema, which could lift the bound on whitespace.
        schema["x-guidance"] = json!({"whitespace_flexible": true, "whitespace_pattern": WHITESPACE});
        let grammar = TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(schema));
        let mut matcher = Matcher::new(vocabulary.factory.create_parser(grammar));
        let unusable = |error: String| invalid(format!("this JSON Schema cannot be used: {}", shortened(&error)));
        if let Some(error) = matcher.get_error() {
            return Err(unusable(error));
        }
        // Computing a mask finds a schema that no value fits before the model is used.
        matcher.compute_mask_or_eos().map_err(|error| unusable(error.to_string()))?;
        Ok(Grammar { matcher, size: vocabulary.size })
    }

    /// Any JSON object.
    pub fn json_object(vocabulary: &GrammarVocabulary) -> Result<Grammar, Error> {
        Grammar::json_schema(vocabulary, &json!({"type": "object"}))
    }

    /// The tokens that may come next; tokens that end a generation only once the JSON is complete and cannot be
    /// extended.
    ///
    /// Errors (`InvalidInput`): the schema needs more work per token than the limits allow.
    pub fn mask(&mut self) -> Result<TokenMask, Error> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|error| invalid(error.to_string()))?;
        Ok(TokenMask::from_words(mask.as_slice().to_vec(), self.size))
    }

    /// Accepts a token. Errors (`InvalidInput`): the token is not allowed; the grammar cannot be used afterwards.
    pub fn accept(&mut self, token: u32) -> Result<(), Error> {
        if token as usize >= self.size {
            return Err(invalid(format!("token {token} is not in the vocabulary of {} tokens", self.size)));
        }
        if self.is_complete() {
            return Err(invalid(format!("token {token} follows the end of the JSON")));
        }
        self.matcher.consume_token(token).map_err(|error| invalid(format!("token {token} does not fit: {error}")))
    }

    /// The number of these tokens that would be accepted, one after the other. The grammar does not change.
    pub fn count_acceptable(&mut self, tokens: &[u32]) -> Result<usize, Error> {
        let inside = tokens.iter().take_while(|&&token| (token as usize) < self.size).count();
        self.matcher.validate_tokens(&tokens[..inside]).map_err(|error| invalid(error.to_string()))
    }

    /// Removes the last `count` accepted tokens. Errors (`InvalidInput`): fewer tokens were accepted.
    pub fn rollback(&mut self, count: usize) -> Result<(), Error> {
        self.matcher.rollback(count).map_err(|error| invalid(error.to_string()))
    }

    /// Whether the JSON is complete and nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Whether the JSON is complete; more may follow (a number may get another digit).
    pub fn can_end(&mut self) -> Result<bool, Error> {
        if self.is_complete() {
            return Ok(true);
        }
        self.matcher.is_accepting().map_err(|error| invalid(error.to_string()))
    }
}

fn invalid(what: String) -> Error {
    Error::invalid(OPERATION, what)
}

/// The start of a library's error, which may repeat much of the schema.
fn shortened(error: &str) -> &str {
    let end = (0..=MAX_ERROR_BYTES.min(error.len())).rev().find(|&end| error.is_char_boundary(end)).unwrap_or(0);
    &error[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const END: u32 = 256;

    /// Every byte is a token, then an end token, a control token, and some longer tokens.
    fn vocabulary() -> GrammarVocabulary {
        let mut words: Vec<Option<Vec<u8>>> = (0..=255).map(|byte| Some(vec![byte])).collect();
        words.extend([None, None]);
        words.extend(["{\"", "\":", "true", "name", "  ", "\",\""].map(|word| Some(word.as_bytes().to_vec())));
        words.push(Some(vec![b' '; 2000]));
        GrammarVocabulary::from_words(words, &[END]).unwrap()
    }

    fn feed(grammar: &mut Grammar, text: &str) -> Result<(), Error> {
        text.bytes().try_for_each(|byte| {
            let allowed = grammar.mask()?.allows(u32::from(byte));
            let accepted = grammar.accept(u32::from(byte));
            assert_eq!(allowed, accepted.is_ok(), "mask and accept disagree about {:?} in {text}", byte as char);
            accepted
        })
    }

    #[test]
    fn only_text_that_fits_the_schema_is_accepted() {
        let vocabulary = vocabulary();
        let schema = json!({
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
            "required": ["name", "age"],
            "additionalProperties": false,
        });
        let fits = |text: &str| {
            let mut grammar = Grammar::json_schema(&vocabulary, &schema).unwrap();
            feed(&mut grammar, text).is_ok() && grammar.can_end().unwrap()
        };
        assert!(fits(r#"{"name": "Ada", "age": 36}"#));
        assert!(fits("{\n  \"name\": \"é\",\n  \"age\": 0\n}"));
        assert!(!fits(r#"{"name": "Ada"}"#), "age is missing");
        assert!(!fits(r#"{"name": 5"#), "a name is a string");
        assert!(!fits(r#"{"name": "Ada", "age": -1"#), "below the minimum");
        assert!(!fits(r#"{"name": "Ada", "x"#), "no such property");
        assert!(!fits(&format!("{{{}", " ".repeat(21))), "whitespace is bounded");
    }

    #[test]
    fn after_the_object_only_the_end_is_left() {
        let vocabulary = vocabulary();
        let mut grammar = Grammar::json_object(&vocabulary).unwrap();
        assert!(!grammar.mask().unwrap().allows(u32::from(b'[')), "an object, not a list");
        assert!(!grammar.can_end().unwrap());
        feed(&mut grammar, r#"{"a": [1, {"b": null}]}"#).unwrap();
        let mask = grammar.mask().unwrap();
        assert!(mask.allows(END) && mask.count() == 1, "{}", mask.count());
        if !grammar.is_complete() {
            grammar.accept(END).unwrap();
        }
        assert!(grammar.is_complete());
        assert!(grammar.accept(u32::from(b'{')).is_err());
        let mask = grammar.mask().unwrap();
        assert!(mask.allows(END) && mask.count() == 1);
    }

    #[test]
    fn a_clone_goes_its_own_way_and_rollback_returns() {
        let vocabulary = vocabulary();
        let mut grammar = Grammar::json_schema(&vocabulary, &json!({"enum": ["yes", "no"]})).unwrap();
        feed(&mut grammar, "\"").unwrap();
        let before = grammar.mask().unwrap();
        let mut other = grammar.clone();
        feed(&mut other, "no\"").unwrap();
        assert_eq!(grammar.mask().unwrap(), before);
        feed(&mut grammar, "ye").unwrap();
        assert_eq!(grammar.count_acceptable(&[u32::from(b's'), u32::from(b'"'), u32::from(b'"')]).unwrap(), 2);
        grammar.rollback(2).unwrap();
        assert_eq!(grammar.mask().unwrap(), before);
        feed(&mut grammar, "no\"").unwrap();
        assert!(grammar.can_end().unwrap());
    }

    #[test]
    fn schemas_that_cannot_be_are_refused() {
        let vocabulary = vocabulary();
        for schema in [
            json!(false),
            json!(5),
            json!({"type": "nonsense"}),
            json!({"$ref": "https://example.org/schema.json"}),
            json!({"type": "string", "pattern": "("}),
            json!({"type": "integer", "minimum": 3, "maximum": 2}),
        ] {
            let error = match Grammar::json_schema(&vocabulary, &schema) {
                Ok(_) => panic!("{schema} is taken"),
                Err(error) => error,
            };
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput, "{error}");
        }
    }

    /// Each of these overflowed the stack of 2 MB and ended the process.
    #[test]
    fn schemas_that_recurse_without_end_are_refused_on_a_small_stack() {
        let chain = |count: usize, link: fn(Value) -> Value| {
            let mut definitions = serde_json::Map::new();
            for at in 0..count {
                definitions.insert(format!("d{at}"), link(json!({"$ref": format!("#/$defs/d{}", at + 1)})));
            }
            definitions.insert(format!("d{count}"), json!({"type": "string"}));
            json!({"$ref": "#/$defs/d0", "$defs": definitions})
        };
        let names: Vec<String> = (0..8000).map(|at| format!("{at:x}")).collect();
        let schemas = [
            chain(500, |next| json!({"allOf": [next]})),
            chain(500, |next| json!({"allOf": [next, {"type": "string"}]})),
            chain(900, |next| next),
            json!({"type": "object", "required": names}),
        ];
        let vocabulary = vocabulary();
        let small = std::thread::Builder::new().stack_size(256 << 10);
        let judge = move || {
            schemas.map(|schema| {
                let vocabulary = vocabulary.clone();
                bounded::compile_slowly(move || Grammar::compile(&vocabulary, schema)).map(drop)
            })
        };
        for result in small.spawn(judge).unwrap().join().unwrap() {
            assert_eq!(result.unwrap_err().kind(), crate::ErrorKind::InvalidInput);
        }
    }

    /// The deepest and largest schemas within the limits fit the stack, the memory and the time of a compilation.
    #[test]
    fn schemas_at_the_limits_are_compiled() {
        let chain = |count: usize, levels: usize, link: fn(Value) -> Value| {
            let mut definitions = serde_json::Map::new();
            for at in 0..count {
                let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
                definitions.insert(format!("d{at}"), (0..levels).fold(next, |inner, _| link(inner)));
            }
            definitions.insert(format!("d{count}"), json!({"type": "string"}));
            json!({"$ref": "#/$defs/d0", "$defs": definitions})
        };
        let vocabulary = vocabulary();
        let names: Vec<String> = (0..2000).map(|at| format!("{at:x}")).collect();
        for schema in [
            chain(250, 1, |next| next),
            chain(250, 1, |next| json!({"items": next})),
            chain(120, 14, |next| json!({"allOf": [next]})),
            chain(60, 14, |next| json!({"allOf": [next], "type": "string"})),
            chain(66, 28, |next| json!({"anyOf": [next]})),
            chain(66, 28, |next| json!({"type": "array", "items": next})),
            json!({"type": "object", "required": names}),
            json!({"enum": names}),
            json!({"type": "string", "pattern": format!("^{}{}$", "(a?".repeat(100), ")".repeat(100))}),
        ] {
            let vocabulary = vocabulary.clone();
            if let Err(error) = bounded::compile_slowly(move || Grammar::compile(&vocabulary, schema)) {
                let known = ["cannot be used", "too large once", "levels inside", "their product"];
                assert!(known.iter().any(|why| error.to_string().contains(why)), "{error}");
            }
        }
    }

    #[test]
    fn vocabularies_that_cannot_be_are_refused() {
        assert!(GrammarVocabulary::from_words(vec![Some(b"a".to_vec())], &[]).is_err());
        assert!(GrammarVocabulary::from_words(vec![Some(b"a".to_vec())], &[1]).is_err());
        assert!(GrammarVocabulary::from_words(Vec::new(), &[]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is drawn from the masks, what comes out is JSON of the schema.
        #[test]
        fn random_walks_end_in_valid_json(picks in prop::collection::vec(any::<prop::sample::Index>(), 200)) {
            let mut grammar = Grammar::json_schema(&vocabulary(), &json!({
                "type": "object",
                "properties": {"a": {"type": "boolean"}, "b": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 4}},
                "required": ["a", "b"], "additionalProperties": false
            })).unwrap();
            let mut text = Vec::new();
            for pick in picks {
                let mask = grammar.mask().unwrap();
                let allowed: Vec<u32> = (0..=END).filter(|&token| mask.allows(token)).collect();
                prop_assert!(!allowed.is_empty());
                let token = allowed[pick.index(allowed.len())];
                if token == END {
                    let value: Value = serde_json::from_slice(&text).unwrap();
                    prop_assert!(value["a"].is_boolean() && value["b"].is_array());
                    break;
                }
                grammar.accept(token).unwrap();
                text.push(token as u8);
            }
        }
    }
}
