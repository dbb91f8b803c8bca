//! `state.redb` in a node's data directory: what outlives the process. It owns the file and how it is opened; each room has
//! tables of its own in it.

use std::path::Path;
use std::sync::Arc;

use pangea_client::{Error, ErrorKind, Result};
use redb::Database;

/// The open file. Clones share it; one process holds it at a time.
#[derive(Clone)]
pub struct State {
    database: Arc<Database>,
}

impl State {
    /// Opens `state.redb` in `data_dir`, which is there; makes it where it is not.
    ///
    /// # Errors
    /// `InvalidInput` where it cannot be read as one, or not be written.
    pub fn open(data_dir: &Path) -> Result<State> {
        let path = data_dir.join("state.redb");
        let database = Database::create(&path).map_err(|error| {
            let why = format!(
                "{} cannot be used ({error}); if it is damaged, move it away: the node starts a new one",
                path.display()
            );
            Error::new(ErrorKind::InvalidInput, why)
        })?;
        Ok(State { database: Arc::new(database) })
    }

    /// The database, for a room's own tables.
    pub(crate) fn database(&self) -> &Database {
        &self.database
    }
}

/// What the database says, as the error of every surface.
pub(crate) fn storage_error(error: impl Into<redb::Error>) -> Error {
    Error::new(ErrorKind::Internal, format!("state.redb: {}", error.into()))
}
