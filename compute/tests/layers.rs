//! The modules of a crate form layers: the map in its `lib.rs` numbers them, and each module uses lower layers only. Every crate
//! with such a map includes this file in its tests.
// A test may stop at the first thing that is not as it should be, in its helpers too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The layer of every module, from the table in `lib.rs`.
fn layers(lib: &str) -> BTreeMap<String, u32> {
    let mut layers = BTreeMap::new();
    for row in lib.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = row.split(" | ");
        let Ok(layer) = cells.next().unwrap().parse() else { continue };
        let names = cells.next().unwrap().split(['`', '[', ']', ',', ' ']).filter(|name| !name.is_empty());
        names.for_each(|name| assert_eq!(layers.insert(name.to_owned(), layer), None, "{name} is in the map twice"));
    }
    layers
}

/// What `lib.rs` exports at the crate's root, and the module of each.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for path in lib.split("pub use ").skip(1).flat_map(|rest| expand(rest.split(';').next().unwrap())) {
        let (module, name) = (path.split("::").next().unwrap(), path.rsplit("::").next().unwrap());
        exports.insert(name.to_owned(), module.to_owned());
    }
    exports
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    let inner = rest.trim_end().strip_suffix('}').unwrap();
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let item = inner[start..at].trim();
                if !item.is_empty() {
                    found.extend(expand(item).into_iter().map(|item| format!("{prefix}{item}")));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// The first names of the path or the braced list of paths that `text` begins with.
fn modules(text: &str) -> Vec<String> {
    let mut depth = 0;
    let braces = text.find(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth == 0
    });
    let paths = if text.starts_with('{') { expand(&text[..=braces.unwrap()]) } else { vec![text.to_owned()] };
    let name = |path: String| path.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap().to_owned();
    paths.into_iter().map(name).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.to_str().is_some_and(|name| name.ends_with(".rs") && !name.ends_with("tests.rs")))
        .collect()
}

/// The code of a file without comments and unit tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_module_uses_lower_layers_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = std::fs::read_to_string(root.join("lib.rs")).unwrap();
    let (layers, exports) = (layers(&lib), exports(&lib));
    let mut uses = 0;
    for path in sources(&root) {
        let relative = path.strip_prefix(&root).unwrap().with_extension("");
        let module = relative.iter().next().unwrap().to_str().unwrap();
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let layer = *layers.get(module).unwrap_or_else(|| panic!("{module} is not in the map of lib.rs"));
        let code = code(&path).replace("$crate::", "crate::");
        for used in code.split("crate::").skip(1).flat_map(modules) {
            let target = exports.get(&used).unwrap_or(&used);
            // What other crates own, and what `lib.rs` itself defines, lies below all of these.
            if target.starts_with("pangea_") || lib.contains(&format!("fn {used}(")) {
                continue;
            }
            let Some(below) = layers.get(target) else { panic!("{}: no module crate::{used}", path.display()) };
            assert!(
                target == module || *below < layer,
                "{module} (layer {layer}) uses {target} (layer {below}) in {}",
                path.display()
            );
            uses += 1;
        }
    }
    assert!(uses > layers.len(), "only {uses} uses were found");
}
