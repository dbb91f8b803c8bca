//! A page of the book as steps that a test can take, and what its text says of commands and links. Runs nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Machine of the blocks that name none.
pub(crate) const HERE: &str = "here";

/// Stands for any text in expected output, and alone on a line for any lines.
const ANY: &str = "…";

/// What a page has a person do.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Run a block.
    Run(Block),
    /// Switch a machine off.
    SwitchOff(String),
    /// Bring a file, `MACHINE/FILE`, to another machine.
    Copy { from: String, to: String },
}

/// A block of commands or of a program.
#[derive(Debug, PartialEq)]
pub(crate) struct Block {
    /// Line of the page at which the block starts.
    pub(crate) line: usize,
    pub(crate) language: Language,
    /// Machine that runs it.
    pub(crate) host: String,
    /// Whether it is repeated until it does what the page says.
    pub(crate) retry: bool,
    /// Exit code that the page promises.
    pub(crate) exit: i32,
    /// Six digits of the page that stand for those that this block shows.
    pub(crate) digits: Option<String>,
    pub(crate) text: String,
    /// Standard output that the page shows.
    pub(crate) output: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Language {
    Bash,
    Python,
}

/// A page of the book, or another document of the repository.
pub(crate) struct Page {
    path: PathBuf,
    text: String,
}

/// A fenced block as it is written.
struct Fence<'a> {
    line: usize,
    /// The first line without its marks.
    info: &'a str,
    /// The last line with text before the block.
    before: &'a str,
    text: String,
}

/// A line outside of fenced blocks, or a fenced block.
enum Part<'a> {
    Line(&'a str),
    Fence(Fence<'a>),
}

/// The folder of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The folder of the pages.
pub(crate) fn folder() -> PathBuf {
    repository().join("node/book/src")
}

impl Page {
    /// A page of the book by its name, or a document by its whole path.
    pub(crate) fn read(name: impl AsRef<Path>) -> Page {
        let path = folder().join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Page { path, text }
    }

    fn parts(&self) -> Vec<Part<'_>> {
        let (mut parts, mut open, mut before) = (Vec::new(), None::<Fence<'_>>, "");
        for (number, line) in self.text.lines().enumerate() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(info)) => open = Some(Fence { line: number + 1, info, before, text: String::new() }),
                (Some(_), Some("")) => parts.extend(open.take().map(Part::Fence)),
                (Some(fence), _) => fence.text.extend([line, "\n"]),
                (None, None) => {
                    parts.push(Part::Line(line));
                    if !line.trim().is_empty() {
                        before = line;
                    }
                }
            }
        }
        assert!(open.is_none(), "{}: the last block has no end", self.path.display());
        parts
    }

    /// The steps in order.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        // Whether the last part was a block that ran, which a block with output may follow.
        let mut ran = false;
        for part in self.parts() {
            match part {
                Part::Line(line) => {
                    ran &= line.is_empty();
                    steps.extend(directive(line));
                }
                Part::Fence(fence) if fence.info == "text,output" => {
                    let last = steps.last_mut().filter(|_| ran);
                    let Some(Step::Run(block)) = last else { panic!("{}: output of nothing", self.at(fence.line)) };
                    block.output = Some(fence.text);
                    ran = false;
                }
                Part::Fence(fence) => {
                    let block = self.block(fence);
                    ran = block.is_some();
                    steps.extend(block.map(Step::Run));
                }
            }
        }
        steps
    }

    /// What a block has the test run, if anything.
    fn block(&self, fence: Fence<'_>) -> Option<Block> {
        let mut words = fence.info.split(',');
        let language = match words.next() {
            Some("bash") => Language::Bash,
            Some("python") => Language::Python,
            _ => return None,
        };
        let mut block = Block {
            line: fence.line,
            language,
            host: HERE.to_owned(),
            retry: false,
            exit: 0,
            digits: None,
            text: fence.text,
            output: None,
        };
        let mut runs = None;
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("run", "") => runs = Some(true),
                ("norun", "") => runs = Some(false),
                ("retry", "") => block.retry = true,
                ("host", host) => host.clone_into(&mut block.host),
                ("exit", code) => block.exit = code.parse().unwrap(),
                ("digits", digits) => block.digits = Some(digits.to_owned()),
                _ => panic!("{}: unknown mark {word:?}", self.at(fence.line)),
            }
        }
        let runs = runs.unwrap_or_else(|| panic!("{}: neither run nor norun", self.at(fence.line)));
        let has_reason = fence.before.starts_with("<!-- norun: ");
        assert!(runs || has_reason, "{}: no comment says why it does not run", self.at(fence.line));
        runs.then_some(block)
    }

    /// Where a line is, for people.
    pub(crate) fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }

    /// Names of the models that the page downloads.
    pub(crate) fn pulled(&self) -> BTreeSet<String> {
        let runs =
            self.steps().into_iter().filter_map(|step| if let Step::Run(block) = step { Some(block) } else { None });
        runs.flat_map(|block| block.pulled()).collect()
    }

    /// The lines outside of fenced blocks.
    fn lines(&self) -> impl Iterator<Item = &str> {
        self.parts().into_iter().filter_map(|part| if let Part::Line(line) = part { Some(line) } else { None })
    }

    /// Targets of the links and pictures that are no addresses of the web.
    pub(crate) fn relative_links(&self) -> Vec<String> {
        let targets = self.lines().flat_map(link_targets);
        targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
    }

    /// Text and target of each picture.
    pub(crate) fn pictures(&self) -> Vec<(String, String)> {
        let pictures = self.lines().flat_map(|line| line.split("![").skip(1));
        let parts = pictures.filter_map(|rest| {
            let (text, rest) = rest.split_once("](")?;
            Some((text.to_owned(), rest.split_once(')')?.0.to_owned()))
        });
        parts.collect()
    }

    /// The file or folder that a relative link leads to, and the heading that it names, or nothing.
    pub(crate) fn target(&self, link: &str) -> (PathBuf, String) {
        let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = if path.is_empty() { self.path.clone() } else { self.path.parent().unwrap().join(path) };
        (target, anchor.to_owned())
    }

    /// Names that links give to the page's headings.
    pub(crate) fn anchors(&self) -> BTreeSet<String> {
        let headings = self.lines().filter(|line| line.starts_with('#'));
        headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
    }

    /// The words behind `pangea` wherever the text or a block of commands has a command of it, without words in quotes.
    pub(crate) fn commands(&self) -> Vec<Vec<String>> {
        let mut texts: Vec<String> = Vec::new();
        for part in self.parts() {
            match part {
                // Every second piece between backticks is code.
                Part::Line(line) => texts.extend(line.split('`').skip(1).step_by(2).map(str::to_owned)),
                Part::Fence(fence) if fence.info.starts_with("bash") => {
                    texts.extend(fence.text.lines().map(str::to_owned));
                }
                Part::Fence(_) => {}
            }
        }
        texts.iter().flat_map(|text| commands_in(text)).collect()
    }
}

impl Block {
    /// Names of the models that the block downloads.
    pub(crate) fn pulled(&self) -> Vec<String> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix("pangea models pull "));
        lines.map(str::to_owned).collect()
    }
}

fn directive(line: &str) -> Option<Step> {
    let words: Vec<&str> = line.strip_prefix("<!-- book: ")?.strip_suffix(" -->")?.split(' ').collect();
    Some(match words[..] {
        ["off", host] => Step::SwitchOff(host.to_owned()),
        ["copy", from, to] => Step::Copy { from: from.to_owned(), to: to.to_owned() },
        _ => panic!("unknown directive: {line}"),
    })
}

/// What the links of a line lead to. Code is no link.
fn link_targets(line: &str) -> Vec<&str> {
    let mut code = false;
    let mut starts = Vec::new();
    for (at, _) in line.match_indices(['`', ']']) {
        if line[at..].starts_with('`') {
            code = !code;
        } else if !code && line[at..].starts_with("](") {
            starts.push(at + 2);
        }
    }
    starts.into_iter().filter_map(|start| Some(line[start..].split_once(')')?.0)).collect()
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn commands_in(line: &str) -> Vec<Vec<String>> {
    let starts = line.match_indices("pangea ").filter(|(at, _)| {
        let before = line[..*at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || c == '(')
    });
    let commands = starts.map(|(at, name)| {
        let rest = &line[at + name.len()..];
        let end = rest.find(['|', ';', ')', '>', '&', '#']).unwrap_or(rest.len());
        // Every second piece between quotes is quoted.
        let plain: String = rest[..end].split(['"', '\'']).step_by(2).collect();
        plain.split_whitespace().map(str::to_owned).collect::<Vec<String>>()
    });
    let is_command = |words: &Vec<String>| {
        words.first().is_some_and(|word| word.starts_with(|c: char| c == '-' || c.is_ascii_lowercase()))
    };
    commands.filter(is_command).collect()
}

/// Whether `text` is what a page shows as `expected`.
pub(crate) fn matches(expected: &str, text: &str) -> bool {
    let lines =
        |text: &str| -> Vec<String> { text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect() };
    lines_match(&lines(expected), &lines(text))
}

fn lines_match(expected: &[String], lines: &[String]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == ANY => (0..=lines.len()).any(|skipped| lines_match(rest, &lines[skipped..])),
        Some((first, rest)) => {
            lines.split_first().is_some_and(|(line, others)| line_matches(first, line) && lines_match(rest, others))
        }
    }
}

fn line_matches(expected: &str, line: &str) -> bool {
    let mut pieces: Vec<&str> = expected.split(ANY).collect();
    let Some(mut rest) = line.strip_prefix(pieces.remove(0)) else { return false };
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// The first six digits in what a command shows: together, or in two groups of three.
pub(crate) fn six_digits(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let has = |word: &str, digits: usize| word.len() == digits && word.bytes().all(|byte| byte.is_ascii_digit());
    words.windows(2).find_map(|pair| match pair {
        [word, _] if has(word, 6) => Some((*word).to_owned()),
        [first, second] if has(first, 3) && has(second, 3) => Some([*first, *second].concat()),
        _ => None,
    })
}

mod tests {
    use super::*;

    #[test]
    fn expected_output_matches_with_wildcards_only() {
        assert!(matches("C [2, 2]\n  time     …\n…\n", "C [2, 2]\n  time     3 ms\nmore\nand more\n"));
        assert!(matches("a…c…e", "abcde") && matches("…", "") && matches("x\n…\ny", "x\ny"));
        assert!(!matches("a…c", "ab") && !matches("ab…ba", "aba") && !matches("x", "x\ny") && !matches("x\ny", "x"));
    }

    #[test]
    fn links_are_found_and_code_is_none() {
        assert_eq!(link_targets("[a](b.md#c), ![d](e.svg) and [`f`](g)"), ["b.md#c", "e.svg", "g"]);
        assert_eq!(link_targets("`x[1](y)` [z](https://z)"), ["https://z"]);
        assert_eq!(anchor("Who may ask, and `why`?"), "who-may-ask-and-why");
    }

    #[test]
    fn digits_and_commands_are_found_as_commands_show_them() {
        assert_eq!(six_digits("  PIN    528 056    for one device").as_deref(), Some("528056"));
        assert_eq!(six_digits("The screen must show 980 341. If it does:").as_deref(), Some("980341"));
        assert_eq!(six_digits("port 52415, id 1234567, 12 345"), None);
        let found = commands_in(r#"pangea node --data-dir two --join "$(pangea token --uses 2)" &"#);
        assert_eq!(found, [vec!["node", "--data-dir", "two", "--join"], vec!["token", "--uses", "2"]]);
        assert_eq!(commands_in("pangea = 1; import pangea; ls ~/.pangea "), Vec::<Vec<String>>::new());
    }
}
