//! Models on disk: which file a name or a path means. It opens none of them.

use std::path::{Path, PathBuf};

use pangea_client::{Error, ErrorKind, Result};

/// What model files end with.
const EXTENSION: &str = "gguf";

/// The file of a model that is here: a path as it is, else a file of that name in `folder`, with or without `.gguf`.
pub fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let as_path = PathBuf::from(name);
    if is_path(name) {
        return as_path.is_file().then_some(as_path);
    }
    let file = folder.join(name);
    let with_extension = folder.join(format!("{name}.{EXTENSION}"));
    [file, with_extension].into_iter().find(|path| path.is_file())
}

/// As [`find`].
///
/// # Errors
/// `NotFound` where there is no such model.
pub fn resolve(folder: &Path, name: &str) -> Result<PathBuf> {
    let missing = || match is_path(name) {
        true => format!("the model file {name} is not there"),
        false => {
            format!("there is no model {name} in {}; put its .gguf file there, or give its path", folder.display())
        }
    };
    find(folder, name).ok_or_else(|| Error::new(ErrorKind::NotFound, missing()))
}

/// The models in `folder`, by name, in the order of their names.
pub fn installed(folder: &Path) -> Vec<(String, PathBuf)> {
    let files = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let models = files.filter(|path| path.extension().is_some_and(|end| end == EXTENSION) && path.is_file());
    let mut named: Vec<(String, PathBuf)> =
        models.filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path))).collect();
    named.sort();
    named
}

/// Whether a model is given as a path: a name has no separators and does not end like a file.
pub fn is_path(name: &str) -> bool {
    name.contains(std::path::MAIN_SEPARATOR) || Path::new(name).extension().is_some_and(|end| end == EXTENSION)
}

/// What a model is called: its name, or its file's name without the end.
pub fn name_of(model: &str) -> &str {
    match is_path(model) {
        true => Path::new(model).file_stem().and_then(|stem| stem.to_str()).unwrap_or(model),
        false => model,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_path_or_a_file_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("Small-1B.Q4_0.gguf");
        std::fs::write(&file, b"x").unwrap();
        assert_eq!(find(folder.path(), "Small-1B.Q4_0").as_ref(), Some(&file));
        assert_eq!(find(Path::new("/nowhere"), file.to_str().unwrap()).as_ref(), Some(&file));
        assert_eq!(installed(folder.path()), [("Small-1B.Q4_0".to_owned(), file.clone())]);
        assert_eq!(name_of(file.to_str().unwrap()), "Small-1B.Q4_0");
        assert_eq!(name_of("Small-1B.Q4_0"), "Small-1B.Q4_0");
        for (name, said) in
            [("other", "no model other in"), ("other.gguf", "file other.gguf is not there"), ("..", "no model ..")]
        {
            let error = resolve(folder.path(), name).unwrap_err();
            assert!(error.kind() == ErrorKind::NotFound && error.message().contains(said), "{error}");
        }
    }
}
