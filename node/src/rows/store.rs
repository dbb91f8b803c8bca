//! The rows that stages on engines without exact bits gave. Their bytes are leased together from the node's memory, once there is the
//! first row; beyond them the rows of the sessions that were signed first are dropped. No row is judged here.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use pangea_control::devices::rows_bytes;
use pangea_control::session::SessionId;

use crate::devices::{Devices, Kind, Lease};

/// Bytes of a row beside its values: its allocation and what points to it.
const ROW_BYTES: u64 = 64;

/// The rows of a node's stages. Clones share them.
#[derive(Clone)]
pub struct RowStore(Arc<Inner>);

struct Inner {
    devices: Devices,
    /// Most bytes of all rows.
    limit: u64,
    /// Bytes of all rows, also of sessions that have not ended.
    used: Arc<AtomicU64>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Of all bytes, once there is a row.
    lease: Option<Lease>,
    /// Sessions that were signed, oldest first.
    signed: VecDeque<SignedRows>,
}

/// One row; dropping the last handle gives its bytes back.
#[derive(Debug)]
pub struct KeptRow {
    values: Box<[f32]>,
    used: Arc<AtomicU64>,
}

impl KeptRow {
    /// `[hidden_size]`
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    fn bytes(width: usize) -> u64 {
        ROW_BYTES + (width * size_of::<f32>()) as u64
    }
}

impl Drop for KeptRow {
    fn drop(&mut self) {
        self.used.fetch_sub(KeptRow::bytes(self.values.len()), Ordering::Relaxed);
    }
}

/// The rows that a stage signed in one session.
#[derive(Clone, Debug)]
pub struct SignedRows {
    /// The session.
    pub session: SessionId,
    /// The stage's layers.
    pub layers: Range<u32>,
    /// The node that asked for the session, to which alone its rows are opened.
    pub coordinator: PeerId,
    /// A row for each position, from 0.
    pub rows: Vec<Arc<KeptRow>>,
}

impl RowStore {
    /// Without rows.
    pub fn new(devices: Devices) -> RowStore {
        let limit = rows_bytes(devices.limit());
        RowStore(Arc::new(Inner { devices, limit, used: Arc::default(), kept: Mutex::default() }))
    }

    /// Keeps a row; `None` without memory for it.
    pub fn keep(&self, row: &[f32]) -> Option<Arc<KeptRow>> {
        let bytes = KeptRow::bytes(row.len());
        let mut kept = self.kept();
        if kept.lease.is_none() {
            kept.lease = self.0.devices.lease(Kind::Rows, self.0.limit).ok();
        }
        kept.lease.as_ref()?;
        while self.0.used.load(Ordering::Relaxed) + bytes > self.0.limit {
            kept.signed.pop_front()?;
        }
        self.0.used.fetch_add(bytes, Ordering::Relaxed);
        Some(Arc::new(KeptRow { values: row.into(), used: Arc::clone(&self.0.used) }))
    }

    /// Keeps what a stage signed, until there is no room.
    pub fn signed(&self, rows: SignedRows) {
        let mut kept = self.kept();
        kept.signed.retain(|other| (other.session, &other.layers) != (rows.session, &rows.layers));
        kept.signed.push_back(rows);
    }

    /// The rows that a stage signed in a session of this coordinator.
    pub fn get(&self, session: SessionId, layers: &Range<u32>, coordinator: &PeerId) -> Option<SignedRows> {
        let kept = self.kept();
        let is_it =
            |rows: &&SignedRows| (rows.session, &rows.layers, &rows.coordinator) == (session, layers, coordinator);
        kept.signed.iter().find(is_it).cloned()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SignedRows {
    /// `[positions, hidden_size]`
    pub fn values(&self) -> Vec<f32> {
        self.rows.iter().flat_map(|row| row.values()).copied().collect()
    }

    /// Length of all values in bytes.
    pub fn bytes(&self) -> u64 {
        self.rows.iter().map(|row| size_of_val(row.values()) as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: Range<u32> = 2..4;

    fn session(number: u8, coordinator: PeerId, rows: Vec<Arc<KeptRow>>) -> SignedRows {
        SignedRows { session: SessionId([number; 16]), layers: LAYERS, coordinator, rows }
    }

    #[test]
    fn the_oldest_signed_sessions_make_room_and_running_ones_do_not() {
        let devices = Devices::new(32 << 20, 1);
        let store = RowStore::new(devices.clone());
        assert_eq!(devices.held(), 0, "nothing is leased before the first row");
        let width = ((256 << 10) - ROW_BYTES as usize) / size_of::<f32>();
        let row = vec![0.5; width];
        let kept = |count: usize| (0..count).map(|_| store.keep(&row).unwrap()).collect::<Vec<_>>();
        let coordinator = PeerId::random();
        // Four rows fit.
        let running = kept(1);
        assert_eq!(devices.held(), 1 << 20);
        for number in 1..=3 {
            store.signed(session(number, coordinator, kept(1)));
        }
        let there = |number| store.get(SessionId([number; 16]), &LAYERS, &coordinator).is_some();
        assert!(there(1) && there(2) && there(3));
        store.signed(session(4, coordinator, kept(1)));
        assert!(!there(1) && there(2) && there(3) && there(4));
        let more = kept(3);
        assert!(!there(4) && store.keep(&row).is_none(), "sessions that run have all of it");
        drop((running, more));
        assert_eq!(kept(4).len(), 4);
    }

    #[test]
    fn rows_are_opened_to_their_coordinator_alone() {
        let store = RowStore::new(Devices::new(32 << 20, 1));
        let (coordinator, other) = (PeerId::random(), PeerId::random());
        let rows = [[1.0, 2.0], [3.0, 4.0]].map(|row| store.keep(&row).unwrap());
        store.signed(session(1, coordinator, rows.to_vec()));
        let got = store.get(SessionId([1; 16]), &LAYERS, &coordinator).unwrap();
        assert_eq!((got.values(), got.bytes()), (vec![1.0, 2.0, 3.0, 4.0], 16));
        assert!(store.get(SessionId([1; 16]), &LAYERS, &other).is_none());
        assert!(store.get(SessionId([1; 16]), &(2..5), &coordinator).is_none());
        assert!(store.get(SessionId([2; 16]), &LAYERS, &coordinator).is_none());
    }

    #[test]
    fn without_memory_nothing_is_kept() {
        let devices = Devices::new(32 << 20, 1);
        let _all = devices.lease(Kind::Tensors, 32 << 20).unwrap();
        assert!(RowStore::new(devices).keep(&[1.0]).is_none());
    }
}
