//! Files that are whole or not there, whatever fails and whenever the node or the host crashes: written under a temporary
//! name, synced, renamed, and the folder synced. All of them are readable by their owner only. This file never reads one.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Read and write for the owner only.
const FILE_MODE: u32 = 0o600;

/// A folder for the owner only.
const FOLDER_MODE: u32 = 0o700;

/// First and last part of a temporary name.
const TEMPORARY: (&str, &str) = (".", ".unfinished");

/// The operations on files that the rules of this module are made of, so that a test can fail each one, or crash after it.
trait Layer {
    /// Creates a file that must not exist and writes all of it; it may be lost in a crash.
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes the content of a file, or the entries of a folder, survive a crash.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Gives a file or folder another name; replaces a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, which must not exist.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file, or a folder with what is in it.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The file system.
struct Disk;

impl Layer for Disk {
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        File::options().write(true).create_new(true).mode(FILE_MODE).open(path)?.write_all(bytes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match path.is_dir() {
            true => std::fs::remove_dir_all(path),
            false => std::fs::remove_file(path),
        }
    }
}

/// Creates a file, or replaces it: afterwards, whatever fails, `path` has the old content or all of `bytes`.
///
/// # Errors
/// Those of the file system. After one the new content may be there nevertheless; it is then whole.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_in(&Disk, path, bytes)
}

/// Creates a file that does not exist, with all of `bytes` or not at all.
///
/// # Errors
/// `AlreadyExists`, which leaves the existing file as it is; otherwise as [`replace`].
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create_in(&Disk, path, bytes)
}

/// Gives a file its final name once it is complete, replacing a file of that name. `partial` is in the same folder.
///
/// # Errors
/// As [`replace`].
pub fn finish(partial: &Path, path: &Path) -> io::Result<()> {
    finish_in(&Disk, partial, path)
}

/// Creates a folder that does not exist, with all files that `fill` puts into it or not at all. `fill` gets the folder under
/// its temporary name and makes files only.
///
/// # Errors
/// Those of `fill` and of the file system.
pub fn create_folder(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let temporary = unfinished(path);
    let made = || {
        std::fs::DirBuilder::new().mode(FOLDER_MODE).create(&temporary)?;
        fill(&temporary)?;
        for file in std::fs::read_dir(&temporary)? {
            let file = file?.path();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(FILE_MODE))?;
            Disk.sync(&file)?;
        }
        finish_in(&Disk, &temporary, path)
    };
    made().inspect_err(|_| drop(Disk.remove(&temporary)))
}

/// Creates a folder for the owner only, with those above it; one that exists is made the owner's alone.
///
/// # Errors
/// Those of the file system.
pub fn private_folder(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)?;
    let permissions = std::fs::metadata(path)?.permissions();
    if permissions.mode() & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(FOLDER_MODE))?;
    }
    Ok(())
}

/// Removes what a crash left of unfinished files and folders in `folder`. Nobody else may be writing there.
pub fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let unfinished = name.to_str().is_some_and(|name| name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1));
        if unfinished && let Err(error) = Disk.remove(&entry.path()) {
            tracing::debug!(event = "not_swept", path = %entry.path().display(), %error);
        }
    }
}

fn replace_in(disk: &impl Layer, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = unfinished(path);
    let written = disk.write_new(&temporary, bytes).and_then(|()| finish_in(disk, &temporary, path));
    // After a failed rename the temporary file is of no use; after a failed sync it has its final name.
    written.inspect_err(|_| drop(disk.remove(&temporary)))
}

fn create_in(disk: &impl Layer, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = unfinished(path);
    let created = disk
        .write_new(&temporary, bytes)
        .and_then(|()| disk.sync(&temporary))
        .and_then(|()| disk.link(&temporary, path))
        .and_then(|()| disk.sync(folder_of(path)));
    drop(disk.remove(&temporary));
    created
}

fn finish_in(disk: &impl Layer, partial: &Path, path: &Path) -> io::Result<()> {
    disk.sync(partial)?;
    disk.rename(partial, path)?;
    disk.sync(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// A name beside `path` that nothing else has and that [`sweep`] removes.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(TEMPORARY.0);
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.{:08x}", std::process::id(), rand::random::<u32>()));
    name.push(TEMPORARY.1);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    use super::*;

    /// What happens to the operation with the chosen number.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Mishap {
        /// It fails, half done where it writes; the next ones work.
        Error(io::ErrorKind),
        /// The host crashes before it, and nothing happens any more.
        Crash,
    }

    /// Files in memory with what of them would survive a crash. Unsynced bytes and unsynced names may or may not.
    #[derive(Default)]
    struct Model {
        /// Content as the system shows it, and the part of it that is synced.
        files: RefCell<Vec<(Vec<u8>, Vec<u8>)>>,
        names: RefCell<BTreeMap<PathBuf, usize>>,
        synced_names: RefCell<BTreeMap<PathBuf, usize>>,
        operations: Cell<usize>,
        mishap: Option<(usize, Mishap)>,
    }

    impl Model {
        /// A disk with `old` at `path`, if any.
        fn with(path: &Path, old: Option<&[u8]>, mishap: Option<(usize, Mishap)>) -> Model {
            let model = Model { mishap, ..Model::default() };
            if let Some(old) = old {
                model.files.borrow_mut().push((old.to_vec(), old.to_vec()));
                model.names.borrow_mut().insert(path.to_owned(), 0);
                model.synced_names.borrow_mut().insert(path.to_owned(), 0);
            }
            model
        }

        fn operation(&self) -> io::Result<()> {
            let number = self.operations.replace(self.operations.get() + 1);
            match self.mishap {
                Some((at, Mishap::Error(kind))) if at == number => Err(kind.into()),
                Some((at, Mishap::Crash)) if at <= number => Err(io::ErrorKind::Other.into()),
                _ => Ok(()),
            }
        }

        fn is_down(&self) -> bool {
            matches!(self.mishap, Some((at, Mishap::Crash)) if at < self.operations.get())
        }

        /// Every content that `path` may have after a crash now; `None` for no file.
        fn after_crash(&self, path: &Path) -> Vec<Option<Vec<u8>>> {
            let files = self.files.borrow();
            let tables = [self.names.borrow().get(path).copied(), self.synced_names.borrow().get(path).copied()];
            let mut contents = Vec::new();
            for name in tables {
                let Some(file) = name.and_then(|name| files.get(name)) else {
                    contents.push(None);
                    continue;
                };
                let (shown, synced) = file;
                contents.push(Some(synced.clone()));
                // Unsynced bytes may be there up to any of them.
                contents.extend((synced.len()..=shown.len()).map(|end| Some(shown[..end].to_vec())));
            }
            contents
        }
    }

    impl Layer for Model {
        fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
            let outcome = self.operation();
            if self.is_down() {
                return outcome;
            }
            let written = if outcome.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
            self.files.borrow_mut().push((written.to_vec(), Vec::new()));
            let file = self.files.borrow().len() - 1;
            assert!(self.names.borrow_mut().insert(path.to_owned(), file).is_none(), "a temporary name is taken");
            outcome
        }

        fn sync(&self, path: &Path) -> io::Result<()> {
            self.operation()?;
            match self.names.borrow().get(path) {
                Some(file) => {
                    let (shown, synced) = &mut self.files.borrow_mut()[*file];
                    synced.clone_from(shown);
                }
                None => self.synced_names.borrow_mut().clone_from(&self.names.borrow()),
            }
            Ok(())
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.operation()?;
            let mut names = self.names.borrow_mut();
            let file = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            names.insert(to.to_owned(), file);
            Ok(())
        }

        fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.operation()?;
            let mut names = self.names.borrow_mut();
            if names.contains_key(to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let file = *names.get(from).ok_or(io::ErrorKind::NotFound)?;
            names.insert(to.to_owned(), file);
            Ok(())
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            self.operation()?;
            self.names.borrow_mut().remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
        }
    }

    type Writer = fn(&Model, &Path, &[u8]) -> io::Result<()>;

    /// Calls `write` once for each mishap at each of its operations; afterwards, and after a crash then, the old or the new
    /// content is there.
    fn is_never_half_there(write: Writer, old: Option<&[u8]>) {
        let (path, new) = (Path::new("/data/node.json"), b"the new content");
        let undisturbed = Model::with(path, old, None);
        let operations = match write(&undisturbed, path, new) {
            Ok(()) => undisturbed.operations.get(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(undisturbed.after_crash(path), vec![Some(new.to_vec()); 4], "what is written is durable");
        assert!(operations >= 4);
        let mishaps = [Mishap::Error(io::ErrorKind::StorageFull), Mishap::Error(io::ErrorKind::Other), Mishap::Crash];
        for (at, mishap) in (0..operations).flat_map(|at| mishaps.map(|mishap| (at, mishap))) {
            let disk = Model::with(path, old, Some((at, mishap)));
            let outcome = write(&disk, path, new);
            let allowed = [old.map(<[u8]>::to_vec), Some(new.to_vec())];
            for content in disk.after_crash(path) {
                assert!(allowed.contains(&content), "{mishap:?} at {at}: {content:?}");
                assert!(outcome.is_err() || content == allowed[1], "{mishap:?} at {at}: told as written");
            }
            let left = disk.names.borrow().keys().filter(|name| *name != path).count();
            let is_swept_later = mishap == Mishap::Crash || at + 1 == operations;
            assert!(left == 0 || is_swept_later, "{mishap:?} at {at} leaves {left} temporary files");
        }
    }

    #[test]
    fn a_replaced_file_is_the_old_or_the_new_one_whatever_fails() {
        is_never_half_there(replace_in, Some(b"the old"));
        is_never_half_there(replace_in, None);
    }

    #[test]
    fn a_created_file_is_whole_or_missing_whatever_fails() {
        is_never_half_there(create_in, None);
        let (path, old) = (Path::new("/data/node.key"), b"the key");
        let disk = Model::with(path, Some(old), None);
        assert_eq!(create_in(&disk, path, b"another").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(disk.after_crash(path), vec![Some(old.to_vec()); 4]);
    }

    #[test]
    fn the_model_of_a_disk_shows_a_file_that_is_written_in_place_as_half_there() {
        let path = Path::new("/data/node.json");
        let disk = Model::with(path, None, None);
        disk.write_new(path, b"the new content").unwrap();
        assert!(disk.after_crash(path).contains(&Some(b"the new".to_vec())));
    }

    #[test]
    fn files_and_folders_are_their_owners_alone() {
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let root = tempfile::tempdir().unwrap();
        let (file, folder) = (root.path().join("file"), root.path().join("folder"));
        replace(&file, b"1").unwrap();
        replace(&file, b"2").unwrap();
        assert_eq!((std::fs::read(&file).unwrap(), mode(&file)), (b"2".to_vec(), FILE_MODE));
        create_folder(&folder, |inside| std::fs::write(inside.join("a"), b"3")).unwrap();
        assert_eq!((mode(&folder), mode(&folder.join("a"))), (FOLDER_MODE, FILE_MODE));
        let open = root.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        private_folder(&open).unwrap();
        assert_eq!(mode(&open), FOLDER_MODE);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 3, "nothing temporary is left");
    }

    #[test]
    fn a_folder_that_cannot_be_filled_is_not_there_and_what_a_crash_leaves_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("folder");
        let full = |inside: &Path| {
            std::fs::write(inside.join("a"), b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        assert_eq!(create_folder(&folder, full).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        let left = unfinished(&folder);
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("a"), b"half").unwrap();
        std::fs::write(root.path().join("kept"), b"whole").unwrap();
        sweep(root.path());
        let names: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["kept"]);
    }
}
