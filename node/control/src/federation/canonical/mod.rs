//! The canonical answer of a text: the part that is equal in two texts that give the same answer. A text without one is free text,
//! which no vote can compare.
//!
//! | text | answer |
//! |---|---|
//! | JSON: an object with a field like `answer`, or with one field | that field |
//! | other JSON | the whole value, if it is small |
//! | `… #### 42`, `… \boxed{42}`, `… the answer is 42.`, `Answer: 42` | what follows |
//! | a letter as a choice: `B`, `(B)`, `B) Paris` | the choice |
//! | a short text | the number in it, or the text without case and punctuation |
//!
//! This file looks for the answer; `number` and `json` compare numbers and JSON. No text makes it fail.

mod json;
mod number;

use std::fmt;

use super::limits::{SHORT_CHARS, SHORT_WORDS, TAIL_BYTES};

/// An answer that can be compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Canonical {
    /// A choice, by its letter in upper case.
    Choice(char),
    /// A number in decimal notation, without superfluous digits.
    Number(String),
    /// A short text in lower case, single-spaced, without punctuation around it.
    Text(String),
    /// A JSON value with sorted keys.
    Json(String),
}

impl fmt::Display for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Canonical::Choice(letter) => write!(f, "{letter}"),
            Canonical::Number(text) | Canonical::Text(text) | Canonical::Json(text) => f.write_str(text),
        }
    }
}

/// Phrases before an answer, in lower case. The last one in the text counts.
const MARKERS: [&str; 6] = ["####", "answer is", "answer:", "answer =", "result is", "result:"];

/// The last letter of a choice: tests with more choices than ten are numbered.
const LAST_CHOICE: char = 'J';

impl Canonical {
    /// The answer in a text; `None` if it is free text.
    pub fn of(text: &str) -> Option<Canonical> {
        let text = unfenced(text.trim());
        if text.is_empty() {
            return None;
        }
        let value = if text.starts_with(['{', '[', '"']) { json::parse(text) } else { None };
        if value.is_some() || text.starts_with(['{', '[']) {
            return value.as_ref().and_then(json::canonical);
        }
        let tail = tail(text);
        if let Some(answer) = boxed(tail).or_else(|| marked(tail)).and_then(short) {
            return Some(answer);
        }
        short(text)
    }

    /// Whether a text is one JSON value that is whole.
    pub fn is_json(text: &str) -> bool {
        json::parse(unfenced(text.trim())).is_some()
    }
}

/// The content of a text that is one fenced block of code.
fn unfenced(text: &str) -> &str {
    let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    match inner.and_then(|inner| inner.split_once('\n')) {
        Some((_, content)) if !content.contains("```") => content.trim(),
        _ => text,
    }
}

/// The end of a text, cut at a character.
fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(TAIL_BYTES);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[start..]
}

/// What the last `\boxed{…}` holds.
fn boxed(text: &str) -> Option<&str> {
    let (_, rest) = text.rsplit_once("\\boxed{")?;
    let mut depth = 1;
    let end = rest.char_indices().find_map(|(at, c)| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        (depth == 0).then_some(at)
    })?;
    Some(&rest[..end])
}

/// What follows the last marker, to the end of its line or sentence.
fn marked(text: &str) -> Option<&str> {
    // Only ASCII letters change, so that every place in one text is the same place in the other.
    let lower = text.to_ascii_lowercase();
    let end = |marker: &str| lower.rfind(marker).map(|at| at + marker.len());
    let start = MARKERS.iter().filter_map(|marker| end(marker)).max()?;
    let rest = text[start..].trim_start_matches([':', ' ', '\t', '*', '=']);
    let line = rest.lines().next()?;
    // A point ends a sentence, and one between digits does not.
    let stop = line.find(". ").map_or(line, |at| &line[..at]);
    Some(stop)
}

/// The answer in a text that has nothing else in it.
fn short(text: &str) -> Option<Canonical> {
    let text = bare(text);
    if text.is_empty() || text.contains('\n') {
        return None;
    }
    if let Some(choice) = choice(text) {
        return Some(choice);
    }
    if text.chars().count() > SHORT_CHARS || text.split_whitespace().count() > SHORT_WORDS {
        return None;
    }
    if let Some(number) = number::within(text) {
        return Some(Canonical::Number(number));
    }
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let article = words.len() > 1 && ["the", "a", "an"].contains(&words[0].as_str());
    let text = words[usize::from(article)..].join(" ");
    (!text.is_empty()).then_some(Canonical::Text(text))
}

/// A text without the white space, emphasis, quotation marks and punctuation around it.
fn bare(text: &str) -> &str {
    let around = |c: char| c.is_whitespace() || "*_`\"'“”‘’".contains(c);
    let ends = |c: char| around(c) || ".,;:!?".contains(c);
    text.trim_start_matches(around).trim_end_matches(ends)
}

/// A choice by its letter: alone, in brackets, or before a bracket, a point or a colon with its text.
fn choice(text: &str) -> Option<Canonical> {
    let open = text.strip_prefix('(');
    let text = open.unwrap_or(text);
    let text = text.strip_prefix("option ").or_else(|| text.strip_prefix("Option ")).unwrap_or(text);
    let letter = text.chars().next().filter(|letter| ('A'..=LAST_CHOICE).contains(letter))?;
    let rest = &text[1..];
    let follows = rest.is_empty() || rest.starts_with([')', ':']) || rest.starts_with(". ");
    (follows && (open.is_none() || rest.starts_with(')'))).then_some(Canonical::Choice(letter))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Option<Canonical> {
        Some(Canonical::Number(text.to_owned()))
    }

    fn words(text: &str) -> Option<Canonical> {
        Some(Canonical::Text(text.to_owned()))
    }

    #[test]
    fn the_same_answer_is_found_in_whatever_is_around_it() {
        for text in [
            "42",
            " 42.\n",
            "**42**",
            "$42",
            "42 apples",
            "The answer is 42.",
            "So 6 times 7 is 42.\n\nAnswer: 42",
            "First I thought the answer is 41. But no, the final answer is **42**.",
            "It is 6 * 7\n#### 42",
            "Thus \\boxed{42}.",
            "{\"answer\": 42}",
            "```json\n{\"reasoning\": \"6 times 7, as everyone knows, makes it\", \"answer\": \"42\"}\n```",
            "{\"value\": 42.0}",
        ] {
            assert_eq!(Canonical::of(text), number("42"), "{text}");
        }
        for text in
            ["B", "(B)", "B)", "B.", "b is wrong, so the answer is B", "Answer: (B) Paris", "B: Paris", "Option B"]
        {
            assert_eq!(Canonical::of(text), Some(Canonical::Choice('B')), "{text}");
        }
        for text in ["Paris", "paris.", "\"Paris\"", "*Paris*", "The answer is: Paris!", "{\"answer\": \"Paris\"}"] {
            assert_eq!(Canonical::of(text), words("paris"), "{text}");
        }
        assert_eq!(Canonical::of("The Netherlands"), words("netherlands"));
        assert_eq!(Canonical::of("New   York"), words("new york"));
        assert_eq!(Canonical::of("The"), words("the"));
    }

    #[test]
    fn a_text_that_says_more_than_an_answer_is_free_text() {
        for text in [
            "",
            "   ",
            "...",
            "Once upon a time there was a node that computed for everyone.",
            "Roses are red,\nviolets are blue.",
            "The answer is that nobody knows for sure what happens then.",
            &"x".repeat(SHORT_CHARS + 1),
            "one two three four five six seven",
            "{\"story\": \"Once upon a time there was a node that computed for everyone in the whole wide world.\"}",
            "{\"answer\": ",
            "[1, 2",
        ] {
            assert_eq!(Canonical::of(text), None, "{text}");
        }
        assert_eq!(Canonical::of(&"x".repeat(SHORT_CHARS)), words(&"x".repeat(SHORT_CHARS)));
        assert_eq!(Canonical::of("one two three four five six"), words("one two three four five six"));
    }

    #[test]
    fn words_that_begin_like_a_choice_are_none() {
        for (text, expected) in
            [("Berlin", "berlin"), ("A cat", "cat"), ("K", "k"), ("b", "b"), ("(Bonn", "(bonn"), ("D.C", "d.c")]
        {
            assert_eq!(Canonical::of(text), words(expected), "{text}");
        }
        assert_eq!(Canonical::of("J"), Some(Canonical::Choice('J')));
    }

    #[test]
    fn the_last_of_several_answers_counts() {
        assert_eq!(Canonical::of("\\boxed{1} is wrong: \\boxed{\\frac{1}{2}}"), words("\\frac{1}{2}"));
        assert_eq!(Canonical::of("Result: 3\nThe answer is 4"), number("4"));
        assert_eq!(Canonical::of("The answer is 4\nResult: 3.5. Quite sure."), number("3.5"));
        assert_eq!(Canonical::of("\\boxed{1"), words("\\boxed{1"), "a box that does not end holds nothing");
    }

    #[test]
    fn only_the_end_of_a_long_text_is_searched() {
        let long = |words: usize| format!("The answer is 4.\n{}", "and so on ".repeat(words));
        assert_eq!(Canonical::of(&long(1)), number("4"));
        assert_eq!(Canonical::of(&long(TAIL_BYTES / 5)), None);
    }

    #[test]
    fn a_whole_json_value_is_told_from_a_cut_one() {
        assert!(Canonical::is_json(" {\"a\": [1, 2]}\n") && Canonical::is_json("```json\n[1]\n```"));
        assert!(!Canonical::is_json("{\"a\": [1, 2]") && !Canonical::is_json("42 is it") && !Canonical::is_json(""));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fail_and_every_answer_is_short(text in ".{0,80}", before in ".{0,40}") {
            for text in [text.clone(), format!("{before} answer is {text}"), format!("{before}\\boxed{{{text}")] {
                if let Some(answer) = Canonical::of(&text) {
                    let answer = answer.to_string();
                    // A letter in lower case may be two characters.
                    prop_assert!(!answer.is_empty() && answer.chars().count() <= 2 * SHORT_CHARS, "{answer}");
                }
            }
        }

        #[test]
        fn a_number_is_itself_in_every_setting(n in -1_000_000_i64..1_000_000, places in 0_usize..3) {
            let text = format!("{n}{}{}", if places > 0 { "." } else { "" }, "0".repeat(places));
            for around in ["X", "The answer is X.", "{\"answer\": X}", "\\boxed{X}", "{\"answer\": \"X\"}", "X km"] {
                prop_assert_eq!(Canonical::of(&around.replace('X', &text)), number(&n.to_string()), "{}", around);
            }
        }
    }
}
