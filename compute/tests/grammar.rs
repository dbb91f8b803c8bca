//! Grammars and chat templates over the vocabularies of real models.
//! Text that fits a schema, as the model's own tokenizer cuts it, must be possible token by token.

mod model_files;
mod skip;

use pangea_compute::chat::calendar::CalendarTime;
use pangea_compute::chat::{ChatTemplate, Conversation, Message};
use pangea_compute::gguf::Gguf;
use pangea_compute::sample::grammar::{Grammar, GrammarVocabulary};
use pangea_compute::tokenizer::Tokenizer;
use serde_json::{Map, json};

const MODELS: [&str; 2] = ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"];

#[test]
fn json_that_fits_is_possible_in_the_model_s_own_tokens() {
    for model in MODELS {
        let Some(path) = model_files::find("json_that_fits_is_possible_in_the_model_s_own_tokens", model) else {
            return;
        };
        let file = Gguf::open(&path).unwrap();
        let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
        let vocabulary = GrammarVocabulary::new(&tokenizer).unwrap();
        let schema = json!({
            "type": "object",
            "properties": {
                "city": {"type": "string"}, "population": {"type": "integer"},
                "sights": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city", "population"],
            "additionalProperties": false,
        });
        for text in [
            r#"{"city": "Paris", "population": 2102650, "sights": ["Tour Eiffel", "Musée d'Orsay"]}"#,
            "{\n  \"city\": \"東京\",\n  \"population\": 14000000\n}",
            r#"{"city":"a \"quoted\" \\ name 🇫🇷","population":0,"sights":[]}"#,
        ] {
            let mut grammar = Grammar::json_schema(&vocabulary, &schema).unwrap();
            for id in tokenizer.encode(text, false, false) {
                // A space in front, where a tokenizer puts one, is no part of the text.
                if grammar.mask().unwrap().allows(id) {
                    grammar.accept(id).unwrap();
                } else {
                    panic!("{model}: token {id} {:?} of {text} is not allowed", tokenizer.token_text(id));
                }
            }
            assert!(grammar.can_end().unwrap(), "{model}: {text}");
            let end = tokenizer.eos().unwrap();
            let mask = grammar.mask().unwrap();
            assert!(mask.allows(end), "{model}: the end comes after {text}");
            for id in 0..tokenizer.vocabulary() as u32 {
                if tokenizer.is_control(id) && !tokenizer.is_end_of_generation(id) {
                    assert!(!mask.allows(id), "{model}: control token {id}");
                }
            }
        }
    }
}

#[test]
fn the_template_in_the_model_writes_its_special_tokens() {
    let Some(path) = model_files::find("the_template_in_the_model_writes_its_special_tokens", MODELS[0]) else {
        return;
    };
    let file = Gguf::open(&path).unwrap();
    let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
    let source = file.metadata().get_str("tokenizer.chat_template").unwrap().unwrap();
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default().to_owned();
    let template = ChatTemplate::new(source, &text(tokenizer.bos()), &text(tokenizer.eos())).unwrap();
    let prompt = template
        .render(&Conversation {
            messages: &[Message::new("user", "What is the capital of France?")],
            add_generation_prompt: true,
            tools: None,
            variables: &Map::new(),
            now: CalendarTime::from_unix_seconds(0),
        })
        .unwrap();
    let ids = tokenizer.encode(&prompt, false, true);
    let start = tokenizer.token_id("<|im_start|>").unwrap();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == start).count(), 3, "system, user, assistant");
    assert_eq!(ids.iter().filter(|&&id| id == end).count(), 2);
    assert_eq!(tokenizer.decode(&ids, true), prompt);
}
