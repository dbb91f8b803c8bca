//! The book as HTML: built by the script that people run, each link of its pages followed within the folder that is published.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pangea_tests::command::names_in;
use pangea_tests::skip::skip;

use crate::PAGES;
use crate::page::repository;

/// Environment variable that names mdBook; `scripts/setup.sh` reads it too.
const MDBOOK: &str = "MDBOOK";

/// mdBook: the one that is named, or one on the `PATH`, or the one that `scripts/setup.sh` keeps beside the build.
fn mdbook() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Tests are in target/PROFILE/deps.
    let beside = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("mdbook/bin/mdbook");
    let named = std::env::var_os(MDBOOK).map(PathBuf::from);
    named
        .into_iter()
        .chain(std::env::split_paths(&path).map(|folder| folder.join("mdbook")))
        .chain([beside])
        .find(|file| file.is_file())
}

/// The values of these attributes in a page, without those within text.
fn values<'a>(html: &'a str, attributes: &'a [&str]) -> impl Iterator<Item = &'a str> {
    attributes.iter().flat_map(move |attribute| {
        let pieces = html.split(*attribute).skip(1);
        pieces.filter_map(|rest| Some(rest.strip_prefix("=\"")?.split_once('"')?.0))
    })
}

#[test]
fn the_book_is_built_and_each_link_stays_within_it() {
    let test = "the_book_is_built_and_each_link_stays_within_it";
    let Some(mdbook) = mdbook() else {
        return skip(test, "mdBook is not installed; `scripts/setup.sh book` installs it");
    };
    let target = tempfile::tempdir().unwrap();
    let mut script = Command::new("bash");
    script.arg(repository().join("scripts/setup.sh")).arg("book").stdin(Stdio::null());
    let output = script.env("CARGO_TARGET_DIR", target.path()).env(MDBOOK, mdbook).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let book = target.path().join("book").canonicalize().unwrap();
    let files = names_in(&book).into_iter().filter(|name| name.ends_with(".html"));
    let pages: BTreeMap<PathBuf, String> =
        files.map(|name| book.join(name)).map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect();
    for name in PAGES {
        assert!(pages.contains_key(&book.join(Path::new(name).with_extension("html"))), "{name} is no page");
    }
    let mut followed = 0;
    for (page, html) in &pages {
        for link in values(html, &[" href", " src"]) {
            if link.contains(':') {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { book.join(path) };
            let target = target.canonicalize().unwrap_or_else(|_| panic!("{}: {link} leads nowhere", page.display()));
            assert!(target.starts_with(&book), "{}: {link} leads out of the book", page.display());
            let has = |html: &String| values(html, &[" id"]).any(|id| id == anchor);
            assert!(
                anchor.is_empty() || pages.get(&target).is_some_and(has),
                "{}: {link} names nothing",
                page.display()
            );
            followed += 1;
        }
    }
    assert!(followed > 500, "only {followed} links were found");
}
