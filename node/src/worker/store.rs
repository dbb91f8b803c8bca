//! Operands kept for peers, so that a matrix is sent once and not per task.
//!
//! Keyed by (owner, digest): naming a digest never reads, or even reveals, what another peer sent.
//! Bounded in all and per owner; the least recently used go first, those that queued tasks need never.
//! Pure: it decides and accounts, the caller sends, receives and hashes.

use std::collections::HashMap;
use std::hash::Hash;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::{Digest, Tensor};
use pangea_units::ByteSize;

use crate::devices::{Devices, Kind, Lease};

/// What an operand counts at least, so that a peer cannot name millions of empty ones.
const ENTRY_BYTES_MIN: u64 = 4096;

/// Operands by owner and digest.
#[derive(Debug)]
pub struct OperandStore<Owner> {
    entries: HashMap<(Owner, Digest), Entry>,
    devices: Devices,
    /// Most bytes of one owner.
    quota: u64,
    used: u64,
    /// Counts uses, to order them.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    /// `None` while it is being received.
    tensor: Option<Tensor>,
    bytes: u64,
    last_use: u64,
    _lease: Lease,
}

/// What became of the announcement of an operand.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is here or on its way already.
    Known,
    /// Receive it; these operands of the same owner had to go.
    Receive {
        /// What was dropped to make room.
        evicted: Vec<Digest>,
    },
}

impl<Owner: Copy + Eq + Hash> OperandStore<Owner> {
    /// A store in the memory of `devices`, of which one owner may have half of what operands may take at all.
    pub fn new(devices: Devices) -> OperandStore<Owner> {
        let quota = Kind::Operands.most_bytes(devices.limit()) / 2;
        OperandStore::with_quota(devices, quota)
    }

    fn with_quota(devices: Devices, quota: u64) -> OperandStore<Owner> {
        OperandStore { entries: HashMap::new(), devices, quota, used: 0, clock: 0 }
    }

    /// Most bytes that one owner may keep here.
    pub fn quota(&self) -> u64 {
        self.quota
    }

    /// Bytes held or being received.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Makes room for an operand of `bytes` that `owner` begins to send. What tasks still need, as
    /// `needed` says, stays.
    pub fn admit(
        &mut self,
        owner: Owner,
        digest: Digest,
        bytes: u64,
        needed: impl Fn(&Digest) -> bool,
    ) -> Result<Admission> {
        // Operands of no size take room, too.
        let bytes = bytes.max(ENTRY_BYTES_MIN);
        if self.entries.contains_key(&(owner, digest)) {
            return Ok(Admission::Known);
        }
        let mut evicted = Vec::new();
        let lease = loop {
            if self.used_by(owner).saturating_add(bytes) <= self.quota {
                match self.devices.lease(Kind::Operands, bytes) {
                    Ok(lease) => break lease,
                    Err(refused) if self.oldest(owner, &needed).is_none() => return Err(refused),
                    Err(_) => {}
                }
            }
            // Only the owner's own operands go: one peer must not push out another's.
            let Some(oldest) = self.oldest(owner, &needed) else {
                return Err(Error::new(
                    ErrorKind::Overloaded,
                    format!(
                        "needs {} for an operand; {} free of the {} that one peer may use here, the rest is needed by its tasks",
                        ByteSize(bytes),
                        ByteSize(self.quota.saturating_sub(self.used_by(owner))),
                        ByteSize(self.quota)
                    ),
                ));
            };
            self.remove(owner, oldest);
            evicted.push(oldest);
        };
        self.used += bytes;
        self.clock += 1;
        let entry = Entry { tensor: None, bytes, last_use: self.clock, _lease: lease };
        self.entries.insert((owner, digest), entry);
        Ok(Admission::Receive { evicted })
    }

    /// The operand arrived whole and is what its digest says.
    pub fn complete(&mut self, owner: Owner, digest: Digest, tensor: Tensor) {
        if let Some(entry) = self.entries.get_mut(&(owner, digest)) {
            entry.tensor = Some(tensor);
        }
    }

    /// Whether it is here or on its way.
    pub fn knows(&self, owner: Owner, digest: &Digest) -> bool {
        self.entries.contains_key(&(owner, *digest))
    }

    /// The operand, where it is here whole.
    pub fn get(&mut self, owner: Owner, digest: &Digest) -> Option<Tensor> {
        self.clock += 1;
        let entry = self.entries.get_mut(&(owner, *digest))?;
        entry.last_use = self.clock;
        entry.tensor.clone()
    }

    /// Its owner will not name it again soon: it is the first to go when room is needed.
    pub fn release(&mut self, owner: Owner, digest: &Digest) {
        if let Some(entry) = self.entries.get_mut(&(owner, *digest)) {
            entry.last_use = 0;
        }
    }

    /// Drops one operand, whole or not.
    pub fn remove(&mut self, owner: Owner, digest: Digest) {
        if let Some(entry) = self.entries.remove(&(owner, digest)) {
            self.used -= entry.bytes;
        }
    }

    /// Drops all that `owner` keeps here.
    pub fn remove_owner(&mut self, owner: Owner) {
        let mut freed = 0;
        self.entries.retain(|key, entry| {
            let stays = key.0 != owner;
            freed += if stays { 0 } else { entry.bytes };
            stays
        });
        self.used -= freed;
    }

    fn used_by(&self, owner: Owner) -> u64 {
        self.entries.iter().filter(|(key, _)| key.0 == owner).map(|(_, entry)| entry.bytes).sum()
    }

    /// The least recently used whole operand of `owner` that is not `needed`.
    fn oldest(&self, owner: Owner, needed: impl Fn(&Digest) -> bool) -> Option<Digest> {
        self.entries
            .iter()
            .filter(|(key, entry)| key.0 == owner && entry.tensor.is_some() && !needed(&key.1))
            .min_by_key(|(_, entry)| entry.last_use)
            .map(|(key, _)| key.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pangea_compute::DType;
    use proptest::prelude::*;

    const K: u64 = ENTRY_BYTES_MIN;

    fn tensor() -> Tensor {
        Tensor::generate(DType::I8, 1, 1, 1).unwrap()
    }

    fn digest(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    fn nothing(_: &Digest) -> bool {
        false
    }

    #[test]
    fn an_owner_never_sees_what_another_sent() {
        let mut store = OperandStore::with_quota(Devices::new(200 * K, 1), 50 * K);
        store.admit('a', digest(1), 10 * K, nothing).unwrap();
        store.complete('a', digest(1), tensor());
        assert!(store.get('a', &digest(1)).is_some());
        assert!(store.get('b', &digest(1)).is_none());
        assert_eq!(store.admit('b', digest(1), 10 * K, nothing).unwrap(), Admission::Receive { evicted: vec![] });
    }

    #[test]
    fn the_least_recently_used_operand_that_no_task_needs_goes_first() {
        let mut store = OperandStore::with_quota(Devices::new(200 * K, 1), 30 * K);
        for n in 1..=3 {
            store.admit('a', digest(n), 10 * K, nothing).unwrap();
            store.complete('a', digest(n), tensor());
        }
        store.get('a', &digest(1));
        let admitted = store.admit('a', digest(4), 10 * K, |of| *of == digest(2)).unwrap();
        assert_eq!(admitted, Admission::Receive { evicted: vec![digest(3)] });
    }

    #[test]
    fn operands_that_tasks_need_are_not_dropped_but_the_new_one_is_refused() {
        let mut store = OperandStore::with_quota(Devices::new(200 * K, 1), 20 * K);
        for n in 1..=2 {
            store.admit('a', digest(n), 10 * K, nothing).unwrap();
            store.complete('a', digest(n), tensor());
        }
        assert_eq!(store.admit('a', digest(3), 10 * K, |_| true).unwrap_err().kind(), ErrorKind::Overloaded);
        assert_eq!(store.used(), 20 * K);
    }

    proptest! {
        #[test]
        fn limits_hold_and_the_accounts_balance(steps in proptest::collection::vec((0u8..3, 0u8..6, 0..40 * K, 0u8..4), 1..200)) {
            let devices = Devices::new(180 * K, 1);
            let mut store = OperandStore::with_quota(devices.clone(), 50 * K);
            for (owner, n, bytes, what) in steps {
                match what {
                    0 | 1 => if let Ok(Admission::Receive { .. }) = store.admit(owner, digest(n), bytes, |of| of.as_bytes()[0] < 2) {
                        store.complete(owner, digest(n), tensor());
                    },
                    2 => store.remove(owner, digest(n)),
                    _ => store.remove_owner(owner),
                }
                prop_assert!(store.used() <= 90 * K);
                prop_assert!((0..3).all(|owner| store.used_by(owner) <= 50 * K));
                prop_assert_eq!(store.used(), devices.held());
            }
        }
    }
}
