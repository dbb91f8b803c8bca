//! `state.redb` in a node's data directory: state that survives the process. This file owns the database and opens it; it
//! knows no table.

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
    /// Opens `state.redb` in the existing folder `data_dir`, creating it if necessary.
    ///
    /// # Errors
    /// `InvalidInput` if it cannot be read or written.
    pub fn open(data_dir: &Path) -> Result<State> {
        let path = data_dir.join("state.redb");
        let database = Database::create(&path).map_err(|error| {
            let why = format!(
                "cannot use {} ({error}); if it is damaged, move it away and the node creates a new one",
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

/// Converts an error of the database.
pub(crate) fn storage_error(error: impl Into<redb::Error>) -> Error {
    Error::new(ErrorKind::Internal, format!("state.redb: {}", error.into()))
}
