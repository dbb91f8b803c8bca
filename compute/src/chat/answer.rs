//! An answer's text, read as reasoning, text and calls of tools while it arrives; the pieces do not depend on how the text is cut.
//! How each family writes these is in `reasoning` and `tools`.

use serde_json::Value as Json;

use super::reasoning::{ReasoningReader, ReasoningSyntax, Thought};
use super::tools::ToolSyntax;
use super::tools::call_reader::CallReader;
use super::tools::harmony::HarmonyReader;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPiece {
    /// What the model thinks before it answers.
    Reasoning(String),
    /// Text.
    Text(String),
    /// A call begins.
    Call {
        /// Name of the tool.
        name: String,
    },
    /// More of the arguments of the last call, as JSON.
    Arguments(String),
}

/// Reads one answer.
#[derive(Clone, Debug)]
pub struct AnswerReader {
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// Reasoning before the rest, with or without calls in it.
    Plain {
        reasoning: Option<ReasoningReader>,
        calls: Option<CallReader>,
    },
    Harmony(HarmonyReader),
}

impl AnswerReader {
    /// A reader at the beginning of an answer without calls: everything is text.
    pub fn of_text() -> AnswerReader {
        AnswerReader { form: Form::Plain { reasoning: None, calls: None } }
    }

    /// A reader at the beginning of an answer that may call `tools`, which are in OpenAI's form. `forced`: the answer follows
    /// the prompt's [`ToolSyntax::forced_prefix`]; `single`: at most one call is read.
    pub fn of_calls(syntax: ToolSyntax, tools: &Json, forced: bool, single: bool) -> AnswerReader {
        let form = match syntax {
            ToolSyntax::Harmony if !forced => Form::Harmony(HarmonyReader::new(single)),
            _ => Form::Plain { reasoning: None, calls: Some(CallReader::new(syntax, tools, forced, single)) },
        };
        AnswerReader { form }
    }

    /// The same reader for an answer that begins with reasoning, or inside it where the prompt has `begun` it
    /// ([`ReasoningSyntax::is_begun`]). Answers that a prompt forces to be a call have none.
    pub fn with_reasoning(self, syntax: ReasoningSyntax, begun: bool) -> AnswerReader {
        let form = match (self.form, syntax) {
            (Form::Plain { calls: None, .. }, ReasoningSyntax::Harmony) => Form::Harmony(HarmonyReader::new(false)),
            (Form::Plain { calls, .. }, syntax) => {
                Form::Plain { reasoning: ReasoningReader::new(syntax, begun), calls }
            }
            (harmony, _) => harmony,
        };
        AnswerReader { form }
    }

    /// The pieces that `text` completes.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPiece> {
        match &mut self.form {
            Form::Harmony(reader) => reader.push(text),
            Form::Plain { reasoning: None, calls } => after_reasoning(calls, text.to_owned()),
            Form::Plain { reasoning: Some(reasoning), calls } => thoughts(reasoning.push(text), calls),
        }
    }

    /// The rest, because no text follows.
    pub fn finish(&mut self) -> Vec<AnswerPiece> {
        match &mut self.form {
            Form::Harmony(reader) => reader.finish(),
            Form::Plain { reasoning, calls } => {
                let rest = reasoning.as_mut().map(ReasoningReader::finish).unwrap_or_default();
                let mut pieces = thoughts(rest, calls);
                pieces.extend(calls.iter_mut().flat_map(CallReader::finish));
                pieces
            }
        }
    }
}

fn thoughts(pieces: Vec<Thought>, calls: &mut Option<CallReader>) -> Vec<AnswerPiece> {
    let read = |piece| match piece {
        Thought::Reasoning(text) => vec![AnswerPiece::Reasoning(text)],
        Thought::Answer(text) => after_reasoning(calls, text),
    };
    pieces.into_iter().flat_map(read).collect()
}

fn after_reasoning(calls: &mut Option<CallReader>, text: String) -> Vec<AnswerPiece> {
    match calls {
        Some(reader) => reader.push(&text),
        None => vec![AnswerPiece::Text(text)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Reasoning, text, and calls with their arguments.
    type Parts = (String, String, Vec<(String, String)>);

    fn read(mut reader: AnswerReader, pieces: &[&str]) -> Parts {
        let mut read: Vec<AnswerPiece> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
        read.extend(reader.finish());
        let mut parts = Parts::default();
        for piece in read {
            match piece {
                AnswerPiece::Reasoning(more) => parts.0.push_str(&more),
                AnswerPiece::Text(more) => parts.1.push_str(&more),
                AnswerPiece::Call { name } => parts.2.push((name, String::new())),
                AnswerPiece::Arguments(more) => parts.2.last_mut().unwrap().1.push_str(&more),
            }
        }
        parts
    }

    fn harmony() -> AnswerReader {
        AnswerReader::of_calls(ToolSyntax::Harmony, &json!([]), false, false)
    }

    /// An answer, its reasoning, its text and its calls.
    type Case = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

    const HARMONY: [Case; 14] = [
        (
            "<|channel|>analysis<|message|>Sum: 2 + 2.<|end|><|start|>assistant<|channel|>final<|message|>2 + 2 = 4.<|return|>",
            "Sum: 2 + 2.",
            "2 + 2 = 4.",
            &[],
        ),
        // The marks that end the answer are not shown.
        ("<|channel|>final<|message|> Yes <b>\n", "", " Yes <b>\n", &[]),
        (
            "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"San <| Francisco }\"}<|call|>",
            "Ask.",
            "",
            &[("get_weather", r#"{"city": "San <| Francisco }"}"#)],
        ),
        // The recipient before the channel, and the type without its mark.
        (" to=functions.add<|channel|>commentary json<|message|>{\"a\": 1}", "", "", &[("add", r#"{"a": 1}"#)]),
        // A preamble is for the user; a second call follows.
        (
            "<|channel|>commentary<|message|>The plan.<|end|><|start|>assistant<|channel|>commentary to=functions.a<|message|>{}<|end|><|start|>assistant<|channel|>commentary to=functions.b<|message|>\n{\"x\": [{}]} <|call|>",
            "",
            "The plan.",
            &[("a", "{}"), ("b", r#"{"x": [{}]}"#)],
        ),
        ("<|channel|>commentary to=functions.none <|constrain|>json<|message|><|call|>", "", "", &[("none", "{}")]),
        ("<|channel|>commentary to=functions.none<|message|>", "", "", &[("none", "{}")]),
        // Tools that are not functions keep their whole name, and their text as it is.
        ("<|channel|>analysis to=python code<|message|>print(1)<|call|>", "", "", &[("python", "print(1)")]),
        // Cut off.
        ("<|channel|>analysis<|message|>Hm <|en", "Hm <|en", "", &[]),
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|chan", "Hm.", "", &[]),
        ("<|channel|>commentary to=functions.a<|message|>{\"x\": \"cut", "", "", &[("a", r#"{"x": "cut"#)]),
        // The end of a message is missing.
        ("<|channel|>analysis<|message|>Hm.<|start|>assistant<|channel|>final<|message|>Yes.", "Hm.", "Yes.", &[]),
        // A model that has lost the form.
        ("Plain text < with <|nothing|> in it", "", "Plain text < with <|nothing|> in it", &[]),
        ("toast", "", "toast", &[]),
    ];

    fn as_case(parts: &Parts) -> (&str, &str, Vec<(&str, &str)>) {
        let calls = parts.2.iter().map(|(name, arguments)| (name.as_str(), arguments.as_str())).collect();
        (parts.0.as_str(), parts.1.as_str(), calls)
    }

    #[test]
    fn channels_are_reasoning_text_and_calls() {
        for (answer, reasoning, text, calls) in HARMONY {
            let found = read(harmony(), &[answer]);
            assert_eq!(as_case(&found), (reasoning, text, calls.to_vec()), "{answer}");
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_depend_on_how_the_text_is_cut(
            case in 0..HARMONY.len(), cuts in prop::collection::vec(0..220_usize, 0..60),
        ) {
            let answer = HARMONY[case].0;
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| answer.is_char_boundary(cut)).collect();
            cuts.extend([0, answer.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]).collect();
            prop_assert_eq!(read(harmony(), &pieces), read(harmony(), &[answer]));
        }

        /// Whatever a model writes, the reader ends and loses no more than marks.
        #[test]
        fn any_mixture_of_marks_is_read_alike_whole_and_in_pieces(
            parts in prop::collection::vec(prop::sample::select(vec![
                "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "assistant",
                "analysis", "final", " to=functions.a", " ", "{", "}", "\"", "x", "<|", "é", "to=",
            ]), 0..20),
        ) {
            let whole = parts.concat();
            prop_assert_eq!(read(harmony(), &parts), read(harmony(), &[&whole]));
        }
    }

    #[test]
    fn a_header_without_end_is_text() {
        let long = format!("<|channel|>{}", "x".repeat(4000));
        assert_eq!(read(harmony(), &[&long]).1, long);
        for header in [1023, 1024, 1025] {
            let padded = format!("<|channel|>final{}", " ".repeat(header - 16));
            let answer = format!("{padded}<|message|>Yes");
            let text = if header <= 1024 { "Yes" } else { &answer };
            assert_eq!(read(harmony(), &[&answer]).1, text, "{header}");
            let pieces: Vec<String> = answer.chars().map(String::from).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(read(harmony(), &pieces).1, text, "{header} in pieces");
        }
    }

    #[test]
    fn one_call_is_enough_where_only_one_is_wanted() {
        let answer = HARMONY[4].0;
        let reader = AnswerReader::of_calls(ToolSyntax::Harmony, &json!([]), false, true);
        assert_eq!(as_case(&read(reader, &[answer])), ("", "The plan.", vec![("a", "{}")]));
    }

    #[test]
    fn reasoning_comes_before_text_and_calls() {
        let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>";
        let answer = format!("<think>\nHm, <tool_call>?\n</think>\n\nSo:\n{call}");
        let calls = || AnswerReader::of_calls(ToolSyntax::Hermes, &json!([]), false, false);
        let both = calls().with_reasoning(ReasoningSyntax::Think, false);
        assert_eq!(as_case(&read(both, &[&answer])), ("Hm, <tool_call>?", "So:", vec![("add", "{}")]));
        let begun = calls().with_reasoning(ReasoningSyntax::Think, true);
        assert_eq!(as_case(&read(begun, &["Hm.</think>", call])), ("Hm.", "", vec![("add", "{}")]));
        let text = AnswerReader::of_text().with_reasoning(ReasoningSyntax::Mistral, false);
        assert_eq!(as_case(&read(text, &["[THINK]Hm[/THINK]<tool_call>"])), ("Hm", "<tool_call>", vec![]));
        assert_eq!(as_case(&read(AnswerReader::of_text(), &[&answer])), ("", &*answer, vec![]));
        let channels = AnswerReader::of_text().with_reasoning(ReasoningSyntax::Harmony, false);
        assert_eq!(as_case(&read(channels, &[HARMONY[0].0])), (HARMONY[0].1, HARMONY[0].2, vec![]));
    }
}
