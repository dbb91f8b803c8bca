//! The book, followed word for word: every block of a page that is marked `run` runs on real nodes, in order. The introduction of the book
//! says what the marks mean. Links, chapters and commands are compared with what exists.

#![allow(clippy::unwrap_used)] // The functions beside the tests are tests too.
#![cfg(unix)]

mod machines;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pangea_tests::cluster::Cluster;
use pangea_tests::command::{names_in, pangea, stdout};
use pangea_tests::namespaces::Namespaces;
use pangea_tests::skip::{skip, unless_root};
use pangea_tests::test_model::{GEMMA3, SMOLLM2, file_of};

use machines::{Machines, python_folder};
use page::{HERE, Page, Step, folder};

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
    trust_runs: "trust.md",
    what_others_ask_for_runs: "in-vain.md",
    operating_runs: "operating.md",
    security_runs: "security.md",
    protocols_run: "protocol.md",
    architecture_says_what_is_true: "architecture.md",
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
    if steps.is_empty() || unless_root(test) {
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
    let network = match Namespaces::new(hosts.len()) {
        Ok(network) => network,
        Err(why) => return skip(test, &format!("no network namespaces can be made: {why}")),
    };
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

#[test]
fn every_link_leads_somewhere() {
    for name in PAGES {
        for link in Page::read(name).relative_links() {
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { name } else { path };
            assert!(folder().join(target).exists(), "{name}: {link} leads nowhere");
            assert!(
                anchor.is_empty() || Page::read(target).anchors().contains(anchor),
                "{name}: {link} names no heading"
            );
        }
    }
}

#[test]
fn every_command_and_flag_exists() {
    for name in PAGES {
        for words in Page::read(name).commands() {
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
