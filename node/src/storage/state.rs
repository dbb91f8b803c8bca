//! `state.redb` in a node's data directory: state that survives the process. This file owns the database and opens it; it
//! knows no table. A database that is damaged is kept aside, and one that cannot be used fails each use, so that whoever must
//! store something first does not act, and the node runs on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use pangea_client::{Error, ErrorKind, Result};
use redb::{Database, DatabaseError, StorageError};

/// The file. Clones share it; one process holds it at a time.
#[derive(Clone)]
pub struct State {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    /// `None` after a failure: the next use opens it again.
    database: Mutex<Option<Database>>,
}

impl State {
    /// The state in the existing folder `data_dir`. If it cannot be used, that is logged, and each use tries again.
    pub fn open(data_dir: &Path) -> State {
        let path = data_dir.join("state.redb");
        let database = open(&path);
        if let Err(error) = &database {
            tracing::warn!(
                event = "state_unusable", path = %path.display(), %error,
                "cannot use {} ({error}); this node runs on, but cannot become master until it can be stored",
                path.display()
            );
        }
        State { inner: Arc::new(Inner { path, database: Mutex::new(database.ok()) }) }
    }

    /// Reads or writes with the database. After a failure it is opened again for the next use: an error of the disk stays with
    /// an open database.
    ///
    /// # Errors
    /// `Internal` if the file cannot be opened; errors of `work`.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&Database) -> std::result::Result<T, redb::Error>) -> Result<T> {
        let failed = |error: &dyn std::fmt::Display| Error::new(ErrorKind::Internal, format!("state.redb: {error}"));
        let mut database = self.database();
        let open = match database.take() {
            Some(open) => open,
            None => open(&self.inner.path).map_err(|error| failed(&error))?,
        };
        match work(&open) {
            Ok(done) => {
                *database = Some(open);
                Ok(done)
            }
            Err(error) => {
                drop(open);
                if matches!(error, redb::Error::Corrupted(_)) {
                    set_aside(&self.inner.path, &error).map_err(|error| failed(&error))?;
                }
                Err(failed(&error))
            }
        }
    }

    fn database(&self) -> MutexGuard<'_, Option<Database>> {
        self.inner.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens or creates the file. A damaged one is moved aside first.
fn open(path: &Path) -> std::result::Result<Database, DatabaseError> {
    match Database::create(path) {
        Err(error) if is_damaged(&error) => {
            set_aside(path, &error).map_err(|error| DatabaseError::Storage(StorageError::Io(error)))?;
            Database::create(path)
        }
        opened => opened,
    }
}

/// Moves a damaged file aside, so that an empty one can take its place.
fn set_aside(path: &Path, damage: &dyn std::fmt::Display) -> io::Result<()> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let aside = path.with_extension(format!("redb.damaged-{seconds}"));
    std::fs::rename(path, &aside)?;
    tracing::warn!(
        event = "state_damaged", kept = %aside.display(), error = %damage,
        "{} is damaged ({damage}); it is kept as {}, and this node goes on with an empty one",
        path.display(), aside.display()
    );
    Ok(())
}

/// Whether opening fails because of what is in the file, not because of the disk.
fn is_damaged(error: &DatabaseError) -> bool {
    match error {
        DatabaseError::Storage(StorageError::Corrupted(_)) | DatabaseError::UpgradeRequired(_) => true,
        DatabaseError::Storage(StorageError::Io(error)) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use redb::{ReadableDatabase, TableDefinition};

    use super::*;

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("test");

    fn write(state: &State, value: u64) -> Result<()> {
        state.with(|database| {
            let transaction = database.begin_write()?;
            transaction.open_table(TABLE)?.insert(1, value)?;
            Ok(transaction.commit()?)
        })
    }

    fn read(state: &State) -> Result<u64> {
        state.with(|database| {
            let value = database.begin_read()?.open_table(TABLE)?.get(1)?;
            Ok(value.map_or(0, |value| value.value()))
        })
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_the_node_starts_with_an_empty_one() {
        for damage in [&b"not a database, but long enough to be read as one"[..], &[0; 4096], b"x"] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("state.redb"), damage).unwrap();
            let state = State::open(folder.path());
            write(&state, 7).unwrap();
            assert_eq!(read(&state).unwrap(), 7);
            let aside = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
            let aside = aside.into_iter().find(|path| path.to_str().unwrap().contains("damaged")).unwrap();
            assert_eq!(std::fs::read(aside).unwrap(), damage);
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_fails_each_use_until_it_can() {
        let folder = tempfile::tempdir().unwrap();
        // A folder in its place: neither damaged nor usable.
        let path = folder.path().join("state.redb");
        std::fs::create_dir(&path).unwrap();
        let state = State::open(folder.path());
        assert!(write(&state, 7).is_err() && read(&state).is_err());
        std::fs::remove_dir(&path).unwrap();
        write(&state, 7).unwrap();
        assert_eq!(read(&state).unwrap(), 7);
        // A use that fails costs what is stored nothing.
        let failing = state.with(|_| Err::<(), _>(redb::Error::Io(io::ErrorKind::StorageFull.into())));
        assert!(failing.is_err());
        assert_eq!(read(&state).unwrap(), 7);
    }
}
