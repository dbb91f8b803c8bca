//! How the models of each family mark what they think before they answer, and an answer's text cut into the two while it arrives.
//! Calls of tools are unknown here; harmony, whose thoughts are messages of their own, is read in `tools`.

/// How the models of a family mark their reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningSyntax {
    /// `<think>…</think>`: Qwen, DeepSeek, GLM.
    Think,
    /// `[THINK]…[/THINK]`: Mistral.
    Mistral,
    /// `<|channel>thought` and a line end, then the thoughts and `<channel|>`: Gemma 4.
    Gemma4,
    /// Messages in the channel `analysis`: gpt-oss.
    Harmony,
}

impl ReasoningSyntax {
    /// The syntax that a template knows, if any.
    pub fn of_template(source: &str) -> Option<ReasoningSyntax> {
        let has = |text: &str| source.contains(text);
        Some(match () {
            () if is_harmony(source) => ReasoningSyntax::Harmony,
            () if has("<|channel>") => ReasoningSyntax::Gemma4,
            () if has("[THINK]") => ReasoningSyntax::Mistral,
            () if has("<think>") || has("</think>") => ReasoningSyntax::Think,
            () => return None,
        })
    }

    /// Texts around reasoning that may be control tokens: the reader must see them.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            ReasoningSyntax::Think => &["<think>", "</think>"],
            ReasoningSyntax::Mistral => &["[THINK]", "[/THINK]"],
            ReasoningSyntax::Gemma4 => &["<|channel>", "<channel|>"],
            ReasoningSyntax::Harmony => &super::tools::HARMONY_MARKS,
        }
    }

    /// Whether a prompt ends where the model is to think on, because its template opens the reasoning.
    pub fn is_begun(self, prompt: &str) -> bool {
        self.edges().is_some_and(|(open, _)| prompt.trim_end().ends_with(open))
    }

    /// What ends reasoning that the prompt has begun, for an answer that must not think; empty where prompts begin none.
    pub fn end(self) -> &'static str {
        self.edges().map_or("", |(_, close)| close)
    }

    /// What begins and what ends the reasoning; `None` where that is not one text each.
    fn edges(self) -> Option<(&'static str, &'static str)> {
        match self {
            ReasoningSyntax::Think => Some(("<think>", "</think>")),
            ReasoningSyntax::Mistral => Some(("[THINK]", "[/THINK]")),
            ReasoningSyntax::Gemma4 => Some(("<|channel>thought", "<channel|>")),
            ReasoningSyntax::Harmony => None,
        }
    }
}

/// Whether a template writes messages of harmony.
pub(super) fn is_harmony(source: &str) -> bool {
    source.contains("<|channel|>") && source.contains("<|message|>")
}

/// A piece of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Thought {
    /// More reasoning.
    Reasoning(String),
    /// More of what follows it.
    Answer(String),
}

/// Reads one answer. Reasoning is only where the answer begins; blanks at its edges are no part of it or of the answer.
#[derive(Clone, Debug)]
pub(super) struct ReasoningReader {
    open: &'static str,
    close: &'static str,
    place: Place,
    /// Text that is not read yet.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the first character. `begun`: the prompt has begun the reasoning.
    Start {
        begun: bool,
    },
    /// Before the first character of the reasoning.
    Opened,
    Inside,
    /// After the reasoning, before the first character of the answer.
    Ended,
    Answer,
}

impl ReasoningReader {
    /// A reader at the beginning of an answer; `None` for a syntax that has no marks around the reasoning.
    pub(super) fn new(syntax: ReasoningSyntax, begun: bool) -> Option<ReasoningReader> {
        let (open, close) = syntax.edges()?;
        Some(ReasoningReader { open, close, place: Place::Start { begun }, held: String::new() })
    }

    /// The pieces that `text` completes.
    pub(super) fn push(&mut self, text: &str) -> Vec<Thought> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// The rest, because no text follows.
    pub(super) fn finish(&mut self) -> Vec<Thought> {
        let rest = std::mem::take(&mut self.held);
        match self.place {
            _ if rest.is_empty() => Vec::new(),
            Place::Start { begun: true } | Place::Inside => vec![Thought::Reasoning(rest)],
            Place::Start { begun: false } | Place::Answer => vec![Thought::Answer(rest)],
            Place::Opened | Place::Ended => Vec::new(),
        }
    }

    /// Reads on; whether there may be more to read.
    fn step(&mut self, pieces: &mut Vec<Thought>) -> bool {
        match self.place {
            Place::Start { begun } => {
                let text = self.held.trim_start();
                if text.is_empty() || (text.len() < self.open.len() && self.open.starts_with(text)) {
                    return false;
                }
                // Some models open what the prompt has opened.
                if text.starts_with(self.open) {
                    let blanks = self.held.len() - text.len();
                    self.held.drain(..blanks + self.open.len());
                    self.place = Place::Opened;
                } else {
                    self.place = if begun { Place::Opened } else { Place::Answer };
                }
                true
            }
            Place::Opened | Place::Ended => {
                let blanks = self.held.len() - self.held.trim_start().len();
                self.held.drain(..blanks);
                if self.held.is_empty() {
                    return false;
                }
                self.place = if self.place == Place::Opened { Place::Inside } else { Place::Answer };
                true
            }
            Place::Inside => {
                let found = self.held.find(self.close);
                // A part of the mark may be all that has arrived of it.
                let begun = (1..self.close.len()).rev().find(|&len| self.held.ends_with(&self.close[..len]));
                let end = found.unwrap_or(self.held.len() - begun.unwrap_or(0));
                let end = self.held[..end].trim_end().len();
                if end > 0 {
                    pieces.push(Thought::Reasoning(self.held.drain(..end).collect()));
                }
                let Some(at) = found else { return false };
                self.held.drain(..at - end + self.close.len());
                self.place = Place::Ended;
                true
            }
            Place::Answer => {
                if !self.held.is_empty() {
                    pieces.push(Thought::Answer(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(syntax: ReasoningSyntax, begun: bool, pieces: &[&str]) -> (String, String) {
        let mut reader = ReasoningReader::new(syntax, begun).unwrap();
        let mut read: Vec<Thought> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
        read.extend(reader.finish());
        let (mut reasoning, mut answer) = (String::new(), String::new());
        for piece in read {
            match piece {
                Thought::Reasoning(text) => reasoning.push_str(&text),
                Thought::Answer(text) => answer.push_str(&text),
            }
        }
        (reasoning, answer)
    }

    /// Syntax, whether the prompt has begun the reasoning, the answer's text; its reasoning and what follows.
    const ANSWERS: [(ReasoningSyntax, bool, &str, &str, &str); 14] = [
        (ReasoningSyntax::Think, false, "<think>\nEasy:\n1 < 2.\n</think>\n\nYes.\n", "Easy:\n1 < 2.", "Yes.\n"),
        (ReasoningSyntax::Think, true, "Easy.\n</think>\n\nYes.", "Easy.", "Yes."),
        (ReasoningSyntax::Think, true, "\n<think>\nEasy.</think>Yes.", "Easy.", "Yes."),
        (ReasoningSyntax::Think, true, "<th is no mark</think>Yes.", "<th is no mark", "Yes."),
        (ReasoningSyntax::Think, false, "<think></think>\n<tool_call>", "", "<tool_call>"),
        (ReasoningSyntax::Think, false, " No <think>thoughts</think> here", "", " No <think>thoughts</think> here"),
        (ReasoningSyntax::Think, false, "<think>cut </thi", "cut </thi", ""),
        (ReasoningSyntax::Think, false, "<thi", "", "<thi"),
        (ReasoningSyntax::Think, false, "<think><think>a</think>b", "<think>a", "b"),
        (ReasoningSyntax::Think, false, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        (ReasoningSyntax::Mistral, false, "[THINK]Naïve…[/THINK]Ja.", "Naïve…", "Ja."),
        (ReasoningSyntax::Gemma4, false, "<|channel>thought\nHm.\n<channel|>Yes.", "Hm.", "Yes."),
        (ReasoningSyntax::Gemma4, false, "<|channel>thought\n<channel|>Yes.", "", "Yes."),
        (ReasoningSyntax::Gemma4, false, "Plain", "", "Plain"),
    ];

    #[test]
    fn reasoning_is_what_is_between_the_marks_at_the_beginning() {
        for (syntax, begun, text, reasoning, answer) in ANSWERS {
            let found = read(syntax, begun, &[text]);
            assert_eq!((found.0.as_str(), found.1.as_str()), (reasoning, answer), "{syntax:?} {text}");
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_depend_on_how_the_text_is_cut(
            case in 0..ANSWERS.len(), cuts in prop::collection::vec(0..60_usize, 0..30),
        ) {
            let (syntax, begun, text, ..) = ANSWERS[case];
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            prop_assert_eq!(read(syntax, begun, &pieces), read(syntax, begun, &[text]));
        }
    }

    #[test]
    fn the_syntax_follows_from_the_template() {
        for (source, syntax) in [
            (include_str!("golden/qwen3.jinja"), Some(ReasoningSyntax::Think)),
            (include_str!("golden/qwen35.jinja"), Some(ReasoningSyntax::Think)),
            (include_str!("golden/glm.jinja"), Some(ReasoningSyntax::Think)),
            (include_str!("golden/deepseek.jinja"), Some(ReasoningSyntax::Think)),
            (include_str!("golden/tekken.jinja"), Some(ReasoningSyntax::Mistral)),
            (include_str!("golden/gemma4.jinja"), Some(ReasoningSyntax::Gemma4)),
            (include_str!("golden/harmony.jinja"), Some(ReasoningSyntax::Harmony)),
            (include_str!("golden/llama3.jinja"), None),
            (include_str!("golden/smollm2.jinja"), None),
        ] {
            assert_eq!(ReasoningSyntax::of_template(source), syntax, "{source}");
        }
        assert!(ReasoningSyntax::Think.is_begun("<|im_start|>assistant\n<think>\n"));
        assert!(!ReasoningSyntax::Think.is_begun("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
        assert!(!ReasoningSyntax::Gemma4.is_begun("<|turn>model\n<|channel>thought\n<channel|>"));
    }
}
