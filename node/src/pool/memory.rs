//! What a node stores about its pool across restarts: its highest term, so that terms never go back, and the start time
//! of its last run, so that a clock set back does not make its adverts old. An ephemeral node stores nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use pangea_client::Result;
use redb::{ReadableDatabase, TableDefinition};

use super::Term;
use crate::storage::State;

/// Table of the pool's keys and values.
const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("pool");

/// Counter (8 bytes, little-endian), then the master's peer id.
const TERM: &str = "term";

/// Milliseconds since 1970 (8 bytes, little-endian).
const INCARNATION: &str = "incarnation";

/// A node's stored pool state; stores nothing without a [`State`].
#[derive(Clone)]
pub struct Memory {
    state: Option<State>,
}

impl Memory {
    /// Stores in `state`, or nowhere.
    pub fn new(state: Option<State>) -> Memory {
        Memory { state }
    }

    /// The stored term.
    ///
    /// # Errors
    /// `Internal` if it cannot be read.
    pub fn term(&self) -> Result<Option<Term>> {
        let bytes = self.read(TERM)?;
        Ok(bytes.as_deref().and_then(|bytes| {
            let (counter, master) = bytes.split_first_chunk()?;
            Some(Term { counter: u64::from_le_bytes(*counter), master: PeerId::from_bytes(master).ok()? })
        }))
    }

    /// Stores `term`; it is on disk when this returns.
    ///
    /// # Errors
    /// `Internal` if it cannot be written.
    pub fn keep_term(&self, term: &Term) -> Result<()> {
        let mut bytes = term.counter.to_le_bytes().to_vec();
        bytes.extend_from_slice(&term.master.to_bytes());
        self.write(TERM, &bytes)
    }

    /// Number of the run that starts now, greater than those of all earlier runs; by the clock alone if it cannot be stored.
    pub fn next_incarnation(&self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        let stored = self.read(INCARNATION).unwrap_or_else(|error| {
            tracing::warn!(event = "incarnation_unread", %error, "cannot read when this node ran last: {error}");
            None
        });
        let last = stored.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
        let incarnation = now.max(last.map_or(0, |last| last.saturating_add(1)));
        if let Err(error) = self.write(INCARNATION, &incarnation.to_le_bytes()) {
            tracing::warn!(event = "incarnation_not_stored", %error, "cannot store when this node started: {error}");
        }
        incarnation
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let Some(state) = &self.state else { return Ok(None) };
        state.with(|database| {
            let transaction = database.begin_read()?;
            let table = match transaction.open_table(TABLE) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                table => table?,
            };
            let value = redb::ReadableTable::get(&table, key)?;
            Ok(value.map(|value| value.value().to_vec()))
        })
    }

    fn write(&self, key: &str, value: &[u8]) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        state.with(|database| {
            let transaction = database.begin_write()?;
            transaction.open_table(TABLE)?.insert(key, value)?;
            Ok(transaction.commit()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_survives_a_restart_and_incarnations_increase() {
        let folder = tempfile::tempdir().unwrap();
        let term = Term { counter: 7, master: PeerId::random() };
        let first = {
            let memory = Memory::new(Some(State::open(folder.path())));
            assert_eq!(memory.term().unwrap(), None);
            memory.keep_term(&term).unwrap();
            memory.next_incarnation()
        };
        let memory = Memory::new(Some(State::open(folder.path())));
        assert_eq!(memory.term().unwrap(), Some(term));
        // The last run's clock was far ahead.
        memory.write(INCARNATION, &(first + 1_000_000_000).to_le_bytes()).unwrap();
        assert_eq!(memory.next_incarnation(), first + 1_000_000_001);
    }

    #[test]
    fn without_a_usable_disk_a_run_still_has_its_number_and_no_term_counts_as_stored() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("state.redb")).unwrap();
        let memory = Memory::new(Some(State::open(folder.path())));
        assert!(memory.next_incarnation() > 0 && memory.term().is_err());
        assert!(memory.keep_term(&Term { counter: 7, master: PeerId::random() }).is_err());
    }

    #[test]
    fn an_ephemeral_node_stores_nothing() {
        let memory = Memory::new(None);
        memory.keep_term(&Term { counter: 7, master: PeerId::random() }).unwrap();
        assert_eq!(memory.term().unwrap(), None);
        assert!(memory.next_incarnation() > 0);
    }
}
