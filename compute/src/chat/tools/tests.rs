use proptest::prelude::*;

use super::*;
use crate::chat::answer::{AnswerPiece, AnswerReader};
use crate::sample::grammar::{Grammar, GrammarVocabulary};

const TOOLS: [&str; 2] = ["get_weather", "add"];

/// The tools of the answers: what Qwen-Coder writes needs the types of their arguments.
fn tools() -> Json {
    let schema = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "unit": {"enum": ["C", "F"]}, "days": {"type": "integer"}, "at": {"type": "object"},
    }});
    json!(TOOLS.map(|name| tool(name, schema.clone())))
}

fn reader(syntax: ToolSyntax) -> AnswerReader {
    AnswerReader::of_calls(syntax, &tools(), false, false)
}

/// The answer's text, and its calls with their arguments.
fn read(mut reader: AnswerReader, pieces: &[&str]) -> (String, Vec<(String, String)>) {
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    let mut read: Vec<AnswerPiece> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    read.extend(reader.finish());
    for piece in read {
        match piece {
            AnswerPiece::Reasoning(more) => panic!("no reasoning was asked for, but {more:?} came"),
            AnswerPiece::Text(more) => text.push_str(&more),
            AnswerPiece::Call { name } => calls.push((name, String::new())),
            AnswerPiece::Arguments(more) => calls.last_mut().unwrap().1.push_str(&more),
        }
    }
    (text, calls)
}

/// An answer with its text and its calls.
type Case = (ToolSyntax, &'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Answers as models write them, and what they are.
const ANSWERS: &[Case] = &[
    (ToolSyntax::Hermes, "Hello <b>you</b>, 1 < 2.\n", "Hello <b>you</b>, 1 < 2.\n", &[]),
    (
        ToolSyntax::Hermes,
        "I look it up.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich }\\\"\"}}\n</tool_call>",
        "I look it up.",
        &[("get_weather", r#"{"city": "Zürich }\""}"#)],
    ),
    (
        ToolSyntax::Hermes,
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": [1, {}]}}\n</tool_call>\n<tool_call>\n{\"arguments\": \"{\\\"b\\\":2}\", \"name\": \"other\"}\n</tool_call>",
        "",
        &[("add", r#"{"a": [1, {}]}"#), ("other", r#"{"b":2}"#)],
    ),
    (ToolSyntax::Hermes, "<tool_call>\nnothing\n</tool_call>", "<tool_call>\nnothing\n</tool_call>", &[]),
    (ToolSyntax::Hermes, "<tool_call>\n{\"a\": 1}\n</tool_call> x", "<tool_call>\n{\"a\": 1}\n</tool_call> x", &[]),
    (ToolSyntax::Hermes, "<tool_call>\n{\"name\": \"add\", \"argu", "<tool_call>\n{\"name\": \"add\", \"argu", &[]),
    (
        ToolSyntax::Hermes,
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": \"cut",
        "",
        &[("add", r#"{"a": "cut"#)],
    ),
    (
        ToolSyntax::Hermes,
        "Well.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=at>\n{\"a\": [1]}\n</parameter>\n</function>\n</tool_call>",
        "Well.",
        &[("get_weather", r#"{"city": "12", "days": 3, "at": {"a":[1]}}"#)],
    ),
    (
        ToolSyntax::Hermes,
        "<tool_call>\n<function=add>\n</function>\n</tool_call>\n<tool_call>\n<function=other>\n<parameter=text>\nif a < b {\n  \"x\"\n}\n\n</parameter>\n<parameter=unit>true</parameter></function></tool_call>",
        "",
        &[("add", "{}"), ("other", r#"{"text": "if a < b {\n  \"x\"\n}\n", "unit": true}"#)],
    ),
    (ToolSyntax::Hermes, "<tool_call>\n<function>\n</tool_call>", "<tool_call>\n<function>\n</tool_call>", &[]),
    (
        ToolSyntax::Hermes,
        "<tool_call><function=add><parameter=unit>C</parameter><parameter=city>Rom",
        "",
        &[("add", r#"{"unit": "C""#)],
    ),
    (
        ToolSyntax::Llama3,
        "{\"name\": \"add\", \"parameters\": {\"a\": 1}}; {\"name\": \"get_weather\", \"parameters\": {}}",
        "",
        &[("add", r#"{"a": 1}"#), ("get_weather", "{}")],
    ),
    (ToolSyntax::Llama3, "<|python_tag|>{\"name\": \"add\", \"parameters\": {}}", "", &[("add", "{}")]),
    (
        ToolSyntax::Llama3,
        "{\"type\": \"function\", \"name\": \"add\", \"parameters\": {\"a\": 1}}",
        "",
        &[("add", r#"{"a":1}"#)],
    ),
    (ToolSyntax::Llama3, " {\"name\": \"who\", \"parameters\": {}} ", " {\"name\": \"who\", \"parameters\": {}} ", &[]),
    (ToolSyntax::Llama3, "The set {1, 2}", "The set {1, 2}", &[]),
    (
        ToolSyntax::Mistral,
        "[TOOL_CALLS] [{\"name\": \"add\", \"arguments\": {\"a\": 1}, \"id\": \"abcdef123\"}, {\"name\": \"x\", \"arguments\": {}}]",
        "",
        &[("add", r#"{"a": 1}"#), ("x", "{}")],
    ),
    (
        ToolSyntax::Mistral,
        "Well.[TOOL_CALLS]get_weather[CALL_ID]abcdef123[ARGS]{\"city\": \"Paris\"}[TOOL_CALLS]add{\"a\": 2}",
        "Well.",
        &[("get_weather", r#"{"city": "Paris"}"#), ("add", r#"{"a": 2}"#)],
    ),
    (ToolSyntax::Mistral, "[TOOL_CALLS]a b", "[TOOL_CALLS]a b", &[]),
    (
        ToolSyntax::Glm,
        "I look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>12</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>add\n<arg_key>at</arg_key>\n<arg_value>{\"a\": [1]}</arg_value>\n</tool_call>",
        "I look.",
        &[("get_weather", r#"{"city": "12", "days": 3}"#), ("add", r#"{"at": {"a":[1]}}"#)],
    ),
    (
        ToolSyntax::Glm,
        "<tool_call>other-tool<arg_key> x </arg_key><arg_value>a < b\n</arg_value></tool_call><tool_call>add</tool_call> Done.",
        " Done.",
        &[("other-tool", r#"{"x": "a < b\n"}"#), ("add", "{}")],
    ),
    (ToolSyntax::Glm, "<tool_call>no call</tool_call>", "<tool_call>no call</tool_call>", &[]),
    (ToolSyntax::Glm, "<tool_call>add\n<arg_key>a</arg_key>\n<arg_val", "", &[("add", "{")]),
    (ToolSyntax::Glm, "<tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>", "", &[("add", "{}")]),
    (
        ToolSyntax::Deepseek,
        "Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Rom }\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Well.",
        &[("get_weather", r#"{"city": "Rom }"}"#), ("add", "{}")],
    ),
    (
        ToolSyntax::Deepseek,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>x\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        &[("add", r#"{"a": 1}"#), ("x", "{}")],
    ),
    (
        ToolSyntax::Deepseek,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add {}",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add {}",
        &[],
    ),
    (ToolSyntax::Deepseek, "<｜tool is no mark｜>", "<｜tool is no mark｜>", &[]),
    (
        ToolSyntax::Gemma4,
        "So:<|tool_call>call:get_weather{city:<|\"|>Zürich, \"}\"<|\"|>,days:3,at:{a:[1,true,<|\"|>x]<|\"|>],<|\"|>b c<|\"|>:None}}<tool_call|><|tool_call>call:add{}<tool_call|>",
        "So:",
        &[
            ("get_weather", r#"{"city": "Zürich, \"}\"", "days": 3, "at": {"a":[1,true,"x]"],"b c":null}}"#),
            ("add", "{}"),
        ],
    ),
    (
        ToolSyntax::Gemma4,
        "<|tool_call>call:add{a: -1.5e3, b:plain words}<tool_call|>!",
        "!",
        &[("add", r#"{"a": -1.5e3, "b": "plain words"}"#)],
    ),
    (ToolSyntax::Gemma4, "<|tool_call>call:add{a:1", "", &[("add", "{")]),
    (ToolSyntax::Gemma4, "<|tool_call>add{a:1}<tool_call|>", "<|tool_call>add{a:1}<tool_call|>", &[]),
    (ToolSyntax::Gemma4, "<|tool_call>{\"name\": \"add\", \"arguments\": {}}<tool_call|>", "", &[("add", "{}")]),
    (ToolSyntax::Json, "```json\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n```", "", &[("add", r#"{"a": 1}"#)]),
    (ToolSyntax::Json, "```rust\nfn main() {}\n```", "```rust\nfn main() {}\n```", &[]),
    (ToolSyntax::Json, "{\"answer\": 5}", "{\"answer\": 5}", &[]),
    (
        ToolSyntax::Json,
        "{\"type\": \"function\", \"function\": {\"name\": \"add\", \"arguments\": {\"a\": 1}}}",
        "",
        &[("add", r#"{"a":1}"#)],
    ),
];

#[test]
fn calls_of_every_family_are_read_and_all_else_is_text() {
    for (syntax, answer, text, calls) in ANSWERS {
        let (read_text, read_calls) = read(reader(*syntax), &[answer]);
        let read_calls: Vec<_> = read_calls.iter().map(|(name, given)| (name.as_str(), given.as_str())).collect();
        assert_eq!((read_text.as_str(), &read_calls[..]), (*text, *calls), "{syntax:?} {answer}");
    }
}

proptest! {
    #[test]
    fn pieces_do_not_depend_on_how_the_text_is_cut(case in 0..ANSWERS.len(), cuts in prop::collection::vec(0..200_usize, 0..40)) {
        let (syntax, answer, ..) = ANSWERS[case];
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| answer.is_char_boundary(cut)).collect();
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]).collect();
        prop_assert_eq!(read(reader(syntax), &pieces), read(reader(syntax), &[answer]));
    }

    #[test]
    fn any_text_comes_out_whole_or_as_calls(text in ".*", tail in r#"[\[\]{}",: `;a-z<>/_]*"#) {
        for syntax in [
            ToolSyntax::Hermes, ToolSyntax::Llama3, ToolSyntax::Mistral, ToolSyntax::Json, ToolSyntax::Glm,
            ToolSyntax::Deepseek, ToolSyntax::Gemma4,
        ] {
            let whole = format!("{text}{tail}");
            let (read, calls) = read(reader(syntax), &[&text, &tail]);
            prop_assert!(!calls.is_empty() || read == whole, "{:?} {} became {}", syntax, whole, read);
        }
    }
}

#[test]
fn arguments_are_passed_on_while_they_arrive() {
    let mut reader = reader(ToolSyntax::Hermes);
    assert_eq!(reader.push("<tool_call>{\"name\": \"add\", \"arg"), []);
    let begun = [AnswerPiece::Call { name: "add".to_owned() }, AnswerPiece::Arguments("{\"a".to_owned())];
    assert_eq!(reader.push("uments\": {\"a"), begun);
    assert_eq!(reader.push("\": 1}"), [AnswerPiece::Arguments("\": 1}".to_owned())]);
    assert_eq!(reader.push("}</tool_call>"), []);
}

#[test]
fn a_forced_answer_begins_inside_the_call_and_a_single_one_ends_with_it() {
    for (syntax, answer) in [
        (ToolSyntax::Hermes, "{\"name\": \"add\", \"arguments\": {}}"),
        (ToolSyntax::Mistral, "[{\"name\": \"add\", \"arguments\": {}}]"),
        (ToolSyntax::Llama3, "{\"name\": \"add\", \"parameters\": {}}"),
        (ToolSyntax::Json, "{\"name\": \"add\", \"arguments\": {}}"),
        (ToolSyntax::Glm, "{\"name\": \"add\", \"arguments\": {}}"),
        (ToolSyntax::Deepseek, "{\"name\": \"add\", \"arguments\": {}}"),
        (ToolSyntax::Gemma4, "{\"name\": \"add\", \"arguments\": {}}"),
        (ToolSyntax::Harmony, "{\"name\": \"add\", \"arguments\": {}}"),
    ] {
        let forced = AnswerReader::of_calls(syntax, &tools(), true, false);
        let call = ("add".to_owned(), "{}".to_owned());
        assert_eq!(read(forced, &[answer]), (String::new(), vec![call.clone()]), "{syntax:?}");
        let twice = AnswerReader::of_calls(syntax, &tools(), true, true);
        assert_eq!(read(twice, &[answer, ";", answer]), (String::new(), vec![call]), "{syntax:?}");
    }
}

fn tool(name: &str, parameters: Json) -> Json {
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

#[test]
fn a_forced_call_fits_its_schema_and_no_other() {
    let words = (0..=255).map(|byte| Some(vec![byte])).chain([None]).collect();
    let vocabulary = GrammarVocabulary::from_words(words, &[256]).unwrap();
    let city = json!({
        "type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"],
        "additionalProperties": false, "$defs": {"City": {"enum": ["Paris"]}},
    });
    let tools = json!([tool("get_weather", city), {"type": "function", "function": {"name": "add"}}]);
    let fits = |schema: &Json, text: &str| {
        let mut grammar = Grammar::json_schema(&vocabulary, schema).unwrap();
        text.bytes().all(|byte| grammar.accept(u32::from(byte)).is_ok()) && grammar.can_end().unwrap()
    };
    let any = ToolSyntax::Json.call_schema(&tools, &ToolChoice::Required).unwrap();
    let weather = r#"{"name": "get_weather", "arguments": {"city": "Paris"}}"#;
    let add = r#"{"name": "add", "arguments": {"a": 1}}"#;
    assert!(fits(&any, weather) && fits(&any, add));
    assert!(!fits(&any, r#"{"name": "get_weather", "arguments": {"city": "Rome"}}"#));
    assert!(!fits(&any, r#"{"name": "sub", "arguments": {}}"#));
    let named = ToolSyntax::Hermes.call_schema(&tools, &ToolChoice::Named("add".to_owned())).unwrap();
    assert!(fits(&named, add) && !fits(&named, weather));
    let llama = ToolSyntax::Llama3.call_schema(&tools, &ToolChoice::Required).unwrap();
    assert!(fits(&llama, r#"{"name": "add", "parameters": {}}"#) && !fits(&llama, add));
    let mistral = ToolSyntax::Mistral.call_schema(&tools, &ToolChoice::Required).unwrap();
    assert!(fits(&mistral, &format!("[{weather}]")) && !fits(&mistral, weather));
    assert_eq!(ToolSyntax::Json.call_schema(&tools, &ToolChoice::Named("sub".to_owned())), None);
}

#[test]
fn the_syntax_follows_from_the_template() {
    for (source, syntax) in [
        (include_str!("../golden/qwen3.jinja"), Some(ToolSyntax::Hermes)),
        (include_str!("../golden/llama3.jinja"), Some(ToolSyntax::Llama3)),
        (include_str!("../golden/mistral.jinja"), Some(ToolSyntax::Mistral)),
        (include_str!("../golden/qwen35.jinja"), Some(ToolSyntax::Hermes)),
        (include_str!("../golden/tekken.jinja"), Some(ToolSyntax::Mistral)),
        (include_str!("../golden/glm.jinja"), Some(ToolSyntax::Glm)),
        (include_str!("../golden/deepseek.jinja"), Some(ToolSyntax::Deepseek)),
        (include_str!("../golden/gemma4.jinja"), Some(ToolSyntax::Gemma4)),
        (include_str!("../golden/harmony.jinja"), Some(ToolSyntax::Harmony)),
        (include_str!("../golden/smollm2.jinja"), None),
        (include_str!("../golden/gemma3.jinja"), None),
        (include_str!("../default/chatml.jinja"), None),
    ] {
        assert_eq!(ToolSyntax::of_template(source), syntax, "{source}");
    }
}

#[test]
fn a_template_without_tools_gets_them_as_text() {
    let call = json!({"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\":1}"}});
    let mut asked = Message::new("assistant", "");
    asked.tool_calls = vec![call];
    let mut result = Message::new("tool", "2");
    result.extra.insert("tool_call_id".to_owned(), json!("c1"));
    let messages = [Message::new("system", "Be brief."), Message::new("user", "1 + 1?"), asked, result];
    let tools = json!([tool("add", json!({"type": "object"}))]);
    let written = explained(&messages, Some(&tools));
    let said: Vec<_> = written.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
    assert!(said[0].1.starts_with("Be brief.\n\n") && said[0].1.contains(r#"{"name":"add""#), "{}", said[0].1);
    let rest =
        [("user", "1 + 1?"), ("assistant", r#"{"name": "add", "arguments": {"a":1}}"#), ("user", "Result of add: 2")];
    assert_eq!(said[1..], rest);
    assert_eq!(explained(&messages[1..2], Some(&tools))[0].role, "system");
    assert_eq!(explained(&messages[..2], None), messages[..2]);
}
