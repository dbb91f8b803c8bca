//! The book, followed word for word: every block of a page that is marked `run` runs on real nodes, in order. The introduction of the book
//! says what the marks mean. Links, chapters and commands are compared with what exists, in every other document of the repository too,
//! and the book is built as HTML.

#![allow(clippy::unwrap_used)] // The functions beside the tests are tests too.
#![cfg(unix)]

mod html;
mod machines;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pangea_tests::cluster::Cluster;
use pangea_tests::command::{names_in, pangea, stdout};
use pangea_tests::namespaces::Namespaces;
use pangea_tests::skip::skip;
use pangea_tests::test_model::{GEMMA3, SMOLLM2, file_of};

use machines::{Machines, python_folder};
use page::{HERE, Page, Step, folder, repository};

/// A test for each page.
macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        /// Every page of the book.
        const PAGES: &[&str] = &[$($page),*];
        $(
            #[test]
            fn $test() {
                follow(stringify!($test), $page);
            }
        )*
    };
}

pages! {
    the_introduction_says_what_is_true: "introduction.md",
    the_quick_start_runs: "quick-start.md",
    installing_says_what_is_true: "install.md",
    a_household_runs: "household.md",
    a_lab_runs: "lab.md",
    arrays_run: "arrays.md",
    models_run: "models.md",
    models_of_a_pool_run: "pool-models.md",
    votes_run: "votes.md",
    the_console_is_there: "console.md",
    trust_runs: "trust.md",
    what_others_ask_for_runs: "in-vain.md",
    operating_runs: "operating.md",
    security_runs: "security.md",
    troubleshooting_runs: "troubleshooting.md",
    commands_run: "commands.md",
    the_engine_says_what_is_true: "engine.md",
    protocols_run: "protocol.md",
    the_threat_model_says_what_is_true: "threat-model.md",
    figures_say_what_is_true: "figures.md",
    architecture_says_what_is_true: "architecture.md",
    developing_says_what_is_true: "developing.md",
    the_changelog_says_what_is_true: "changelog.md",
}

/// The file of each model that pages download by this name.
const MODELS: [(&str, &str); 2] = [("smollm2", SMOLLM2), ("gemma3-270m", GEMMA3)];

/// Flags that are for tests only, and in no help.
const HIDDEN: &[&str] = &["--fault"];

fn follow(test: &str, name: &str) {
    let page = Page::read(name);
    let steps = page.steps();
    let mut hosts = vec![HERE.to_owned()];
    for step in &steps {
        if let Step::Run(block) = step
            && !hosts.contains(&block.host)
        {
            hosts.push(block.host.clone());
        }
    }
    if steps.is_empty() {
        return;
    }
    if !python_folder().join("python3").is_file() {
        return skip(test, &format!("no Python in {}; `scripts/setup.sh test` prepares it", python_folder().display()));
    }
    let mut models = BTreeMap::new();
    for name in page.pulled() {
        let (_, file) = MODELS.iter().find(|(known, _)| *known == name).expect("a model that tests have");
        let Some(path) = file_of(file, test) else { return };
        models.insert(name, path);
    }
    let Some(network) = Namespaces::for_test(test, hosts.len()) else { return };
    let cluster = Cluster::new();
    let mut machines = Machines::new(&page, &cluster, &hosts, &network, models);
    for step in &steps {
        machines.take(step);
    }
    machines.end();
}

#[test]
fn every_chapter_is_there_and_has_a_test() {
    let chapters: BTreeSet<String> = Page::read("SUMMARY.md").relative_links().into_iter().collect();
    let pages: BTreeSet<String> = PAGES.iter().map(|page| (*page).to_owned()).collect();
    assert_eq!(chapters, pages, "the chapters of SUMMARY.md have a test each");
    let is_page = |name: &String| name.ends_with(".md") && name != "SUMMARY.md";
    let files: BTreeSet<String> = names_in(&folder()).into_iter().filter(is_page).collect();
    assert_eq!(files, pages, "every page is a chapter");
}

/// Every Markdown file of the repository.
fn documents() -> Vec<PathBuf> {
    let (mut documents, mut folders) = (Vec::new(), vec![repository()]);
    while let Some(folder) = folders.pop() {
        for name in names_in(&folder) {
            let path = folder.join(&name);
            // What is built, downloaded or hidden is no part of the repository.
            if path.is_dir() && !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str()) {
                folders.push(path);
            } else if name.ends_with(".md") {
                documents.push(path);
            }
        }
    }
    documents.sort();
    documents
}

#[test]
fn every_link_leads_somewhere() {
    let documents = documents();
    assert!(documents.contains(&repository().join("README.md")) && documents.contains(&folder().join("trust.md")));
    for document in documents {
        let page = Page::read(&document);
        for link in page.relative_links() {
            let (target, anchor) = page.target(&link);
            assert!(target.exists(), "{}: {link} leads nowhere", document.display());
            assert!(
                anchor.is_empty() || Page::read(target).anchors().contains(&anchor),
                "{}: {link} names no heading",
                document.display()
            );
        }
    }
}

#[test]
fn every_picture_is_described_and_can_be_read_in_the_dark() {
    let mut shown = BTreeSet::new();
    for document in documents() {
        let page = Page::read(&document);
        for (text, picture) in page.pictures() {
            assert!(text.len() > 20, "{}: {picture} is not described", document.display());
            shown.insert(page.target(&picture).0.canonicalize().unwrap());
        }
    }
    for name in names_in(&folder()).into_iter().filter(|name| name.ends_with(".svg")) {
        let path = folder().join(&name);
        let picture = std::fs::read_to_string(&path).unwrap();
        for part in ["<title ", "<desc ", "role=\"img\"", "prefers-color-scheme: dark"] {
            assert!(picture.contains(part), "{name} has no {part}");
        }
        assert!(shown.contains(&path.canonicalize().unwrap()), "{name} is on no page");
    }
}

#[test]
fn the_readme_is_short_and_names_what_ci_runs() {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 130, "the README is read in two minutes; the rest is in the book");
    let ci = std::fs::read_to_string(repository().join(".ci/run")).unwrap();
    let command = ci.lines().find_map(|line| line.strip_prefix("exec ")).unwrap();
    assert!(readme.lines().any(|line| line.starts_with(command)), "the README does not name `{command}`");
}

#[test]
fn every_command_and_flag_exists() {
    for name in PAGES.iter().map(|name| folder().join(name)).chain([repository().join("README.md")]) {
        let name = name.display().to_string();
        for words in Page::read(&name).commands() {
            let mut command: Vec<&str> = Vec::new();
            let mut rest = &words[..];
            while let Some((word, others)) = rest.split_first()
                && subcommands(&help(&command)).contains(word)
            {
                command.push(word);
                rest = others;
            }
            let help = help(&command);
            assert!(
                subcommands(&help).is_empty() || rest.first().is_none_or(|word| word.starts_with('-')),
                "{name}: `pangea {}` does not exist",
                words.join(" ")
            );
            for flag in rest.iter().filter(|word| word.starts_with("--") && !HIDDEN.contains(&word.as_str())) {
                let known = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(|word| word == flag);
                assert!(known, "{name}: `pangea {}` has no flag {flag}", command.join(" "));
            }
        }
    }
}

/// The help of a command.
fn help(command: &[&str]) -> String {
    let output = pangea(Path::new("/"), &[command, &["--help"]].concat());
    assert!(output.status.success(), "{command:?}: {output:?}");
    stdout(&output)
}

/// The commands that a help lists.
fn subcommands(help: &str) -> BTreeSet<String> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return BTreeSet::new() };
    let lines = list.lines().take_while(|line| !line.is_empty());
    // A line that goes on with a description is indented further.
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}
