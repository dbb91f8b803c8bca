//! How a user names a model: a short name, a path, `hf:OWNER/REPO/FILE.gguf`, or an address. Parsing only.

use std::path::{Component, Path, PathBuf};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::gguf::PartName;

use super::catalogue::{self, KnownModel};

/// Extension of model files.
pub const EXTENSION: &str = "gguf";

/// A parsed name of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Reference {
    /// A model with a short name.
    Known(&'static KnownModel),
    /// A file of a repository on Hugging Face.
    HuggingFace {
        /// `OWNER/REPO`.
        repository: String,
        /// Path of the file in the repository.
        file: String,
    },
    /// A file at an https address.
    Address(String),
    /// A file on this machine.
    Path(PathBuf),
    /// Any other text: a file in the models folder, if it exists.
    Name(String),
}

impl Reference {
    /// Parses `text`.
    ///
    /// # Errors
    /// `InvalidInput` for an empty text, an address that is not https or does not end in `.gguf`, names that lead out of a
    /// folder, and a part of a split model that is not its first one.
    pub fn parse(text: &str) -> Result<Reference> {
        let wrong =
            |what: &str| Err(Error::new(ErrorKind::InvalidInput, format!("{text:?} does not name a model: {what}")));
        if text.is_empty() {
            return wrong("use a name, hf:OWNER/REPO/FILE.gguf, an address or a path");
        }
        if let Some(rest) = text.strip_prefix("hf:") {
            return match rest.splitn(3, '/').collect::<Vec<_>>()[..] {
                [owner, repository, file] if is_safe(owner) && is_safe(repository) && is_file(file) => {
                    is_first(text, file)?;
                    Ok(Reference::HuggingFace { repository: format!("{owner}/{repository}"), file: file.to_owned() })
                }
                _ => wrong("a file on Hugging Face is written hf:OWNER/REPO/FILE.gguf"),
            };
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let path = rest.split(['?', '#']).next().unwrap_or_default();
            return match (scheme, path.split_once('/')) {
                ("https", Some((host, path))) if !host.is_empty() && path.rsplit('/').next().is_some_and(is_file) => {
                    is_first(text, path)?;
                    Ok(Reference::Address(text.to_owned()))
                }
                ("https", _) => wrong("the address must end with the name of a .gguf file"),
                _ => wrong("only https:// addresses can be downloaded"),
            };
        }
        Ok(match catalogue::known(text) {
            Some(known) if !Path::new(text).is_file() => Reference::Known(known),
            _ if is_path(text) => Reference::Path(text.into()),
            _ => Reference::Name(text.to_owned()),
        })
    }

    /// Path of the model's file in the models folder; `None` if it is never stored there.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Reference::Known(known) => Some(known.file.into()),
            // Many repositories have files with the same name.
            Reference::HuggingFace { repository, file } => Some(Path::new("hf").join(repository).join(file)),
            Reference::Address(address) => {
                let path = address.split(['?', '#']).next().unwrap_or_default();
                path.rsplit('/').next().map(PathBuf::from)
            }
            Reference::Path(_) | Reference::Name(_) => None,
        }
    }
}

/// Whether a model is given as a path: a name has no separators and no file extension.
pub fn is_path(model: &str) -> bool {
    let fetched = model.starts_with("hf:") || model.contains("://");
    !fetched && (model.contains(std::path::MAIN_SEPARATOR) || has_extension(Path::new(model)))
}

/// Name of a file without its extension, and without the number of a split model's first part.
pub(super) fn stem_of(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    match PartName::parse(name).filter(|part| part.number() == 0) {
        Some(part) => name.get(..part.stem().len()),
        None => path.file_stem()?.to_str(),
    }
}

/// Name under which a model is served: its short name if it has one, otherwise its file's name without extension, and without the
/// number of a split model's first part.
pub fn name_of(model: &str) -> &str {
    if model.starts_with("hf:") || model.contains("://") || is_path(model) {
        return stem_of(Path::new(model)).unwrap_or(model);
    }
    let means =
        |known: &&KnownModel| known.aliases.iter().chain([&known.name]).any(|name| name.eq_ignore_ascii_case(model));
    catalogue::KNOWN.iter().find(means).map_or(model, |known| known.name)
}

pub(super) fn has_extension(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case(EXTENSION))
}

/// A model is downloaded by the name of its first part, where it has several.
fn is_first(text: &str, file: &str) -> Result<()> {
    let name = file.rsplit('/').next().unwrap_or(file);
    let Some(part) = PartName::parse(name).filter(|part| part.number() > 0) else { return Ok(()) };
    let first = part.file_names().next().unwrap_or_default();
    let what = format!("{text} is part {} of a split model; name its first part, {first}", part.number() + 1);
    Err(Error::new(ErrorKind::InvalidInput, what))
}

/// Whether `name` is safe as a component of a path and of an address.
fn is_safe(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+'))
}

/// Whether `name` ends like a model file, with or without folders.
fn is_file(name: &str) -> bool {
    let path = Path::new(name);
    name.split('/').all(is_safe)
        && path.components().all(|part| matches!(part, Component::Normal(_)))
        && has_extension(path)
        && path.file_stem().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_recognised() {
        let parsed = |text: &str| Reference::parse(text).unwrap();
        assert!(matches!(parsed("SmolLM2"), Reference::Known(known) if known.name == "smollm2"));
        assert_eq!(parsed("my-model"), Reference::Name("my-model".into()));
        for path in ["./my-model", "a/b.gguf", "b.gguf", "/x/y"] {
            assert_eq!(parsed(path), Reference::Path(path.into()));
        }
        let file = parsed("hf:Owner/Repo-GGUF/sub/file-Q8_0.gguf");
        assert_eq!(file.file(), Some("hf/Owner/Repo-GGUF/sub/file-Q8_0.gguf".into()));
        let address = parsed("https://example.org/a/b/m.gguf?download=true");
        assert_eq!(address.file(), Some("m.gguf".into()));
    }

    #[test]
    fn names_that_leave_the_folder_or_are_no_files_are_refused() {
        for text in [
            "",
            "hf:owner/repo",
            "hf:owner/repo/file.bin",
            "hf:../repo/file.gguf",
            "hf:owner/../file.gguf",
            "hf:owner/repo/../../file.gguf",
            "hf:owner/repo/.gguf",
            "hf:owner/repo//file.gguf",
            "hf:owner/repo/a b.gguf",
            "http://example.org/m.gguf",
            "ftp://example.org/m.gguf",
            "https://example.org",
            "https:///m.gguf",
            "https://example.org/m.zip",
            "https://example.org/..gguf",
            "hf:owner/repo/m-00002-of-00003.gguf",
            "https://example.org/m-00003-of-00003.gguf?download=true",
        ] {
            let error = Reference::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}: {error}");
        }
    }

    #[test]
    fn a_models_name_is_its_short_name_or_its_files() {
        for (model, name) in [
            ("smollm2", "smollm2"),
            ("SmolLM2-135M-Instruct", "smollm2"),
            ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct.Q4_1"),
            ("/x/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
            ("/x/Small-1B.Q4_0.gguf", "Small-1B.Q4_0"),
            ("Small-1B.Q4_0", "Small-1B.Q4_0"),
            ("hf:o/r/f.gguf", "f"),
            ("https://example.org/f.gguf", "f"),
            ("hf:o/r/Big-Q4_K_M/Big-Q4_K_M-00001-of-00003.gguf", "Big-Q4_K_M"),
            ("/x/Big-00001-of-00003.gguf", "Big"),
            ("/x/Big-00002-of-00003.gguf", "Big-00002-of-00003"),
        ] {
            assert_eq!(name_of(model), name, "{model}");
        }
    }
}
