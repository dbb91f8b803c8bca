//! The models folder: which file a name means, listing, removing. Only complete models have their final
//! name in it; nothing here writes one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::gguf::{Gguf, PartName};
use pangea_compute::model::ModelFile;

use super::catalogue::{KNOWN, known};
use super::description::Description;
use super::reference::{EXTENSION, Reference, has_extension, is_path, stem_of};

/// Depth of folders that are searched: `hf/OWNER/REPO` and one more.
const MAX_DEPTH: usize = 5;

/// Names listed in an error, so that it stays readable.
const NAMES_SHOWN: usize = 8;

/// A model in the folder.
#[derive(Debug)]
pub struct Entry {
    /// The shortest name that identifies it.
    pub name: String,
    /// Path of its file, or of its first part.
    pub path: PathBuf,
    /// Size of its file in bytes, or of all its parts that are there.
    pub size_bytes: u64,
}

impl Entry {
    /// Reads the file's description.
    ///
    /// # Errors
    /// Why the file is not a supported model.
    pub fn describe(&self) -> Result<Description> {
        Ok(Description::of(&ModelFile::open(&self.path).map_err(crate::compute_error)?))
    }
}

/// What a name refers to.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// A file on this machine.
    Local(PathBuf),
    /// A model that is not on this machine and can be downloaded.
    Fetchable(Reference),
}

/// Every model in `folder`, sorted by name. A missing folder counts as empty.
///
/// # Errors
/// `Internal` if the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<Entry>> {
    let mut files = Vec::new();
    collect(folder, MAX_DEPTH, &mut files).map_err(|error| cannot_read(folder, &error))?;
    let files = join(files);
    let mut entries: Vec<Entry> = files
        .iter()
        .map(|(path, size_bytes)| Entry {
            name: name(folder, path, &files),
            path: path.clone(),
            size_bytes: *size_bytes,
        })
        .collect();
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(entries)
}

fn collect(folder: &Path, depth: usize, files: &mut Vec<(PathBuf, u64)>) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        // Names that start with a dot belong to downloads in progress or to other programs.
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        // Symbolic links are followed; dangling ones are skipped.
        let Ok(facts) = std::fs::metadata(&path) else { continue };
        if facts.is_dir() && depth > 0 {
            collect(&path, depth - 1, files)?;
        } else if facts.is_file() && has_extension(&path) {
            files.push((path, facts.len()));
        }
    }
    Ok(())
}

/// Makes one model of the parts of each split one: its first part, with the size of all. Parts without a first one stay, so that
/// they are seen and can be removed.
fn join(files: Vec<(PathBuf, u64)>) -> Vec<(PathBuf, u64)> {
    let sizes: BTreeMap<PathBuf, u64> = files.into_iter().collect();
    let is_later_part = |path: &Path| first_part(path).is_some_and(|first| first != path && sizes.contains_key(&first));
    let models = sizes.keys().filter(|path| !is_later_part(path));
    let size = |path: &PathBuf| Gguf::part_paths(path).iter().filter_map(|part| sizes.get(part)).sum();
    models.map(|path| (path.clone(), size(path))).collect()
}

/// The path of the first part, for a part of a split model.
fn first_part(path: &Path) -> Option<PathBuf> {
    let name = PartName::parse(path.file_name()?.to_str()?)?;
    Some(path.with_file_name(name.file_names().next()?))
}

/// Whether a model's file is there, with all its parts where it has several.
pub(super) fn is_whole(path: &Path) -> bool {
    Gguf::part_paths(path).iter().all(|part| part.is_file())
}

/// Name of a model: its short name, otherwise [`stem_of`] its file if unique, otherwise its path in the folder.
fn name(folder: &Path, path: &Path, files: &[(PathBuf, u64)]) -> String {
    let inside = path.strip_prefix(folder).unwrap_or(path);
    let stem = |path: &Path| match stem_of(path) {
        Some(stem) => stem.to_owned(),
        None => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    };
    if let Some(known) = KNOWN.iter().find(|known| inside == Path::new(known.file)) {
        return known.name.to_owned();
    }
    match files.iter().filter(|(other, _)| stem(other) == stem(path)).count() {
        1 => stem(path),
        _ => inside.with_extension("").to_string_lossy().replacen("hf/", "hf:", 1),
    }
}

/// Names and files of the models in `folder`, sorted by name; empty if the folder cannot be read.
pub fn installed(folder: &Path) -> Vec<(String, PathBuf)> {
    list(folder).unwrap_or_default().into_iter().map(|entry| (entry.name, entry.path)).collect()
}

/// The local file of a model: a path as given, otherwise the file with that name in `folder`.
pub fn find(folder: &Path, model: &str) -> Option<PathBuf> {
    match locate(folder, model) {
        Ok(Found::Local(path)) => Some(path),
        _ => None,
    }
}

/// Every name under which a node may serve `model` (a name, a path, a download source), the usual one first:
/// one file may have a short name, its file name and its name in `folder`.
pub fn names_of(folder: &Path, model: &str) -> Vec<String> {
    let mut names = vec![super::name_of(model).to_owned()];
    let path = find(folder, model);
    let path = path.map(|path| path.canonicalize().unwrap_or(path));
    let in_folder = path.as_ref().and_then(|path| {
        let entries = list(folder).unwrap_or_default().into_iter();
        let same = |entry: &Entry| entry.path.canonicalize().is_ok_and(|entry| entry == *path);
        entries.filter(same).map(|entry| entry.name).next()
    });
    let of_file = path.as_deref().and_then(stem_of).map(str::to_owned);
    let known = [Some(names[0].as_str()), of_file.as_deref()].into_iter().flatten().find_map(known);
    let known_names = known.map(|known| [known.name.to_owned(), known.file.trim_end_matches(".gguf").to_owned()]);
    names.extend(in_folder.into_iter().chain(of_file.clone()).chain(known_names.into_iter().flatten()));
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// The local file of a model.
///
/// # Errors
/// Those of [`locate`]; `NotFound` for a model that must be downloaded first, with the command that does so.
pub fn resolve(folder: &Path, model: &str) -> Result<PathBuf> {
    match locate(folder, model)? {
        Found::Local(path) => Ok(path),
        Found::Fetchable(_) => Err(Error::new(
            ErrorKind::NotFound,
            format!("the model {model} is not on this machine; download it with: pangea models pull {model}"),
        )),
    }
}

/// Resolves `model` to a local file or to a model that can be downloaded.
///
/// # Errors
/// `InvalidInput` for invalid or ambiguous names, `NotFound` for models that are neither local nor
/// known, with similar names.
pub fn locate(folder: &Path, model: &str) -> Result<Found> {
    let reference = Reference::parse(model)?;
    match &reference {
        Reference::Path(path) if path.is_file() => return Ok(Found::Local(path.clone())),
        Reference::Path(path) if path.components().count() > 1 => return Err(no_file(path)),
        Reference::Path(_) | Reference::Name(_) => {}
        fetched => {
            let file = fetched.file().map(|file| folder.join(file));
            return Ok(match file.filter(|file| is_whole(file)) {
                Some(file) => Found::Local(file),
                None => Found::Fetchable(reference),
            });
        }
    }
    // The name of a file in the folder, with or without its extension.
    let entries = list(folder)?;
    let wanted = model.strip_suffix(&format!(".{EXTENSION}")).unwrap_or(model);
    let is = |name: Option<&str>| name.is_some_and(|name| name.eq_ignore_ascii_case(wanted));
    let named = |entry: &&Entry| {
        let file_stem = entry.path.file_stem().and_then(|stem| stem.to_str());
        is(Some(&entry.name)) || is(stem_of(&entry.path)) || is(file_stem)
    };
    match entries.iter().filter(named).collect::<Vec<_>>()[..] {
        [only] => Ok(Found::Local(only.path.clone())),
        [] if is_path(model) => Err(no_file(Path::new(model))),
        [] => Err(unknown(folder, model, &entries)),
        ref several => {
            // An exact match wins over one in another case.
            if let Some(exact) = several.iter().find(|entry| entry.name == model) {
                return Ok(Found::Local(exact.path.clone()));
            }
            let names: Vec<&str> = several.iter().map(|entry| entry.name.as_str()).collect();
            Err(Error::new(ErrorKind::InvalidInput, format!("{model} is ambiguous; name one of {}", names.join(", "))))
        }
    }
}

fn no_file(path: &Path) -> Error {
    let why = match path.is_dir() {
        true => "is a folder, not a model; name a .gguf file in it",
        false => "does not exist; check the path, or name a model that `pangea models list` shows",
    };
    Error::new(ErrorKind::NotFound, format!("the model file {} {why}", path.display()))
}

fn unknown(folder: &Path, model: &str, entries: &[Entry]) -> Error {
    let here: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let all = here.iter().copied().chain(KNOWN.iter().map(|known| known.name));
    let written = model.to_lowercase();
    let near = |name: &str| match name.to_lowercase() {
        // A prefix of a name is as good as the name.
        name if written.len() >= 3 && name.starts_with(&written) => 0,
        name => distance(&name, &written),
    };
    let nearest = all.map(|name| (near(name), name)).min();
    let hint = match nearest {
        Some((distance, name)) if distance * 3 <= model.chars().count() => format!("did you mean {name}?"),
        _ => {
            let shown = match here.len() {
                0 => "the folder is empty".to_owned(),
                n if n > NAMES_SHOWN => format!("{} and {} more", here[..NAMES_SHOWN].join(", "), n - NAMES_SHOWN),
                _ => format!("the folder has {}", here.join(", ")),
            };
            let names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
            format!(
                "{shown}; `pangea models pull` downloads {}, hf:OWNER/REPO/FILE.gguf or an address",
                names.join(", ")
            )
        }
    };
    Error::new(ErrorKind::NotFound, format!("no model {model} in {}: {hint}", folder.display()))
}

/// Number of single-character edits between two texts (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let best = (diagonal + usize::from(a != *b)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[other.len()]
}

/// Removes a model from `folder`, with all its parts and with folders that become empty; returns what was removed.
///
/// # Errors
/// Those of [`resolve`]; `InvalidInput` for a file outside the folder, which only its owner removes.
pub fn remove(folder: &Path, model: &str) -> Result<Entry> {
    let path = match locate(folder, model)? {
        Found::Local(path) => path,
        Found::Fetchable(_) => {
            let message = format!("the model {model} is not in {}; nothing was removed", folder.display());
            return Err(Error::new(ErrorKind::NotFound, message));
        }
    };
    let Some(entry) = list(folder)?.into_iter().find(|entry| entry.path == path) else {
        let message =
            format!("{} is not in {}; only models in that folder can be removed", path.display(), folder.display());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    };
    // The first part goes last: what is left after an error is still the model.
    for part in Gguf::part_paths(&entry.path).iter().rev() {
        match std::fs::remove_file(part) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && *part != entry.path => {}
            removed => removed.map_err(|error| {
                Error::new(ErrorKind::Internal, format!("cannot remove {}: {error}", part.display()))
            })?,
        }
    }
    remove_empty(folder, entry.path.parent().unwrap_or(folder));
    Ok(entry)
}

/// Removes `inner` and its parent folders below `folder` as long as they are empty.
pub(super) fn remove_empty(folder: &Path, inner: &Path) {
    for inner in inner.ancestors().take_while(|inner| *inner != folder) {
        // A folder that is not empty stays.
        if std::fs::remove_dir(inner).is_err() {
            break;
        }
    }
}

fn cannot_read(folder: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("cannot read the folder {}: {error}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"x").unwrap();
        }
        folder
    }

    #[test]
    fn a_model_is_a_path_or_a_file_in_the_folder() {
        let folder = folder_with(&["Small-1B.Q4_0.gguf", "notes.txt", ".hidden.gguf"]);
        let (folder, file) = (folder.path(), folder.path().join("Small-1B.Q4_0.gguf"));
        for name in ["Small-1B.Q4_0", "small-1b.q4_0", "Small-1B.Q4_0.gguf", file.to_str().unwrap()] {
            assert_eq!(resolve(folder, name).unwrap(), file, "{name}");
        }
        for (name, said) in [
            ("Small-1B.Q4_1", "did you mean Small-1B.Q4_0?"),
            ("other", "the folder has Small-1B.Q4_0;"),
            ("other.gguf", "file other.gguf does not exist"),
            ("hidden", "no model hidden"),
            ("/nowhere/x.gguf", "file /nowhere/x.gguf does not exist"),
            ("..", "no model .."),
            ("smollm2", "pangea models pull smollm2"),
            ("smolm2", "did you mean smollm2?"),
            ("hf:o/r/f.gguf", "pangea models pull hf:o/r/f.gguf"),
        ] {
            let error = resolve(folder, name).unwrap_err();
            assert!(error.kind() == ErrorKind::NotFound && error.message().contains(said), "{name}: {error}");
        }
    }

    #[test]
    fn names_of_a_file_are_all_names_it_may_be_served_under() {
        let folder = folder_with(&["SmolLM2-135M-Instruct.Q4_1.gguf", "hf/a/r/model.gguf", "hf/b/r/model.gguf"]);
        let folder = folder.path();
        let names = |model: &str| names_of(folder, model);
        let file = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
        let file = file.to_str().unwrap();
        assert_eq!(names(file), ["SmolLM2-135M-Instruct.Q4_1", "smollm2"]);
        assert_eq!(names("smollm2"), ["smollm2", "SmolLM2-135M-Instruct.Q4_1"]);
        assert_eq!(names(folder.join("hf/a/r/model.gguf").to_str().unwrap()), ["model", "hf:a/r/model"]);
        let link = folder.join("link.gguf");
        std::os::unix::fs::symlink(file, &link).unwrap();
        assert!(names(link.to_str().unwrap()).contains(&"smollm2".to_owned()));
        assert_eq!(names("other"), ["other"], "a name that only another node knows");
    }

    #[test]
    fn two_files_with_one_name_get_different_names() {
        let folder = folder_with(&["hf/a/r/model.gguf", "hf/b/r/model.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"]);
        let names: Vec<String> = list(folder.path()).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["hf:a/r/model", "hf:b/r/model", "smollm2"]);
        let error = resolve(folder.path(), "model").unwrap_err();
        assert!(error.message().contains("hf:a/r/model, hf:b/r/model"), "{error}");
        assert_eq!(resolve(folder.path(), "hf:b/r/model.gguf").unwrap(), folder.path().join("hf/b/r/model.gguf"));
    }

    #[test]
    fn a_split_model_is_one_model() {
        let folder = folder_with(&[
            "hf/o/r/Big-00001-of-00003.gguf",
            "hf/o/r/Big-00002-of-00003.gguf",
            "hf/o/r/Big-00003-of-00003.gguf",
            "Lost-00002-of-00002.gguf",
        ]);
        let folder = folder.path();
        let found: Vec<(String, u64)> =
            list(folder).unwrap().into_iter().map(|entry| (entry.name, entry.size_bytes)).collect();
        assert_eq!(found, [("Big".to_owned(), 3), ("Lost-00002-of-00002".to_owned(), 1)]);
        let first = folder.join("hf/o/r/Big-00001-of-00003.gguf");
        let reference = "hf:o/r/Big-00001-of-00003.gguf";
        for name in ["Big", "big", "Big-00001-of-00003", "Big-00001-of-00003.gguf", reference, first.to_str().unwrap()]
        {
            assert_eq!(resolve(folder, name).unwrap(), first, "{name}");
        }
        assert_eq!(names_of(folder, "Big")[0], "Big");
        std::fs::remove_file(folder.join("hf/o/r/Big-00002-of-00003.gguf")).unwrap();
        assert!(matches!(locate(folder, reference).unwrap(), Found::Fetchable(_)), "a part is missing");
        assert_eq!(remove(folder, "Big").unwrap().size_bytes, 2);
        assert!(!folder.join("hf").exists());
        remove(folder, "Lost-00002-of-00002").unwrap();
        assert!(list(folder).unwrap().is_empty());
    }

    #[test]
    fn removing_a_model_removes_folders_that_become_empty() {
        let folder = folder_with(&["hf/a/r/one.gguf", "hf/a/s/two.gguf"]);
        let outside = folder_with(&["mine.gguf"]);
        let mine = outside.path().join("mine.gguf");
        let error = remove(folder.path(), mine.to_str().unwrap()).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && mine.is_file(), "{error}");
        assert_eq!(remove(folder.path(), "one").unwrap().name, "one");
        assert!(!folder.path().join("hf/a/r").exists() && folder.path().join("hf/a/s/two.gguf").is_file());
        remove(folder.path(), "hf:a/s/two.gguf").unwrap();
        assert!(!folder.path().join("hf").exists() && folder.path().exists());
        assert_eq!(remove(folder.path(), "two").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(remove(folder.path(), "smollm2").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_missing_folder_has_no_models() {
        assert!(list(Path::new("/nowhere/models")).unwrap().is_empty());
    }
}
