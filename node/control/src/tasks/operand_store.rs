//! Operands kept for peers, so that a matrix is sent once and not per task.
//!
//! Keyed by (owner, digest): naming a digest never reads, or even reveals, what another peer sent.
//! Bounded in all and per owner; the least recently used go first, those that queued tasks need never.
//! The caller sends, receives and hashes, and says what an operand and a lease of memory are.

use std::collections::BTreeMap;

use pangea_units::{ByteSize, Digest, Error, ErrorKind, Result};

use crate::devices::Kind;

/// What an operand counts at least, so that a peer cannot name millions of empty ones.
const ENTRY_BYTES_MIN: u64 = 4096;

/// Operands by owner and digest.
#[derive(Debug)]
pub struct OperandStore<Owner, Operand, Lease> {
    entries: BTreeMap<(Owner, Digest), Entry<Operand, Lease>>,
    /// Most bytes of one owner.
    quota: u64,
    used: u64,
    /// Counts uses, to order them.
    clock: u64,
}

#[derive(Debug)]
struct Entry<Operand, Lease> {
    /// `None` while it is being received.
    operand: Option<Operand>,
    bytes: u64,
    last_use: u64,
    /// Given back when the entry goes.
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

impl<Owner: Copy + Ord, Operand: Clone, Lease> OperandStore<Owner, Operand, Lease> {
    /// A store in a memory of `limit` bytes, of which one owner may have half of what operands may take at all.
    pub fn new(limit: u64) -> OperandStore<Owner, Operand, Lease> {
        OperandStore::with_quota(Kind::Operands.most_bytes(limit) / 2)
    }

    fn with_quota(quota: u64) -> OperandStore<Owner, Operand, Lease> {
        OperandStore { entries: BTreeMap::new(), quota, used: 0, clock: 0 }
    }

    /// Most bytes that one owner may keep here.
    pub fn quota(&self) -> u64 {
        self.quota
    }

    /// Bytes held or being received.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Makes room for an operand of `bytes` that `owner` begins to send. What tasks still need, as `needed` says, stays;
    /// `lease` is asked for the memory, again after everything that went.
    ///
    /// # Errors
    /// `Overloaded` with the numbers, where there is no room even so.
    pub fn admit(
        &mut self,
        owner: Owner,
        digest: Digest,
        bytes: u64,
        needed: impl Fn(&Digest) -> bool,
        mut lease: impl FnMut(u64) -> Result<Lease>,
    ) -> Result<Admission> {
        // Operands of no size take room, too.
        let bytes = bytes.max(ENTRY_BYTES_MIN);
        if self.entries.contains_key(&(owner, digest)) {
            return Ok(Admission::Known);
        }
        let mut evicted = Vec::new();
        let lease = loop {
            if self.used_by(owner).saturating_add(bytes) <= self.quota {
                match lease(bytes) {
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
        let entry = Entry { operand: None, bytes, last_use: self.clock, _lease: lease };
        self.entries.insert((owner, digest), entry);
        Ok(Admission::Receive { evicted })
    }

    /// The operand arrived whole and is what its digest says.
    pub fn complete(&mut self, owner: Owner, digest: Digest, operand: Operand) {
        if let Some(entry) = self.entries.get_mut(&(owner, digest)) {
            entry.operand = Some(operand);
        }
    }

    /// Whether it is here or on its way.
    pub fn knows(&self, owner: Owner, digest: &Digest) -> bool {
        self.entries.contains_key(&(owner, *digest))
    }

    /// The operand, where it is here whole.
    pub fn get(&mut self, owner: Owner, digest: &Digest) -> Option<Operand> {
        self.clock += 1;
        let entry = self.entries.get_mut(&(owner, *digest))?;
        entry.last_use = self.clock;
        entry.operand.clone()
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

    /// Drops every whole operand that no task needs, and says which: somebody else asks for the memory. Their owners send again
    /// what they name again.
    pub fn give_way(&mut self, needed: impl Fn(Owner, &Digest) -> bool) -> Vec<(Owner, Digest)> {
        let idle =
            self.entries.iter().filter(|((owner, digest), entry)| entry.operand.is_some() && !needed(*owner, digest));
        let gone: Vec<(Owner, Digest)> = idle.map(|(key, _)| *key).collect();
        gone.iter().for_each(|(owner, digest)| self.remove(*owner, *digest));
        gone
    }

    fn used_by(&self, owner: Owner) -> u64 {
        self.entries.iter().filter(|(key, _)| key.0 == owner).map(|(_, entry)| entry.bytes).sum()
    }

    /// The least recently used whole operand of `owner` that is not `needed`.
    fn oldest(&self, owner: Owner, needed: impl Fn(&Digest) -> bool) -> Option<Digest> {
        self.entries
            .iter()
            .filter(|(key, entry)| key.0 == owner && entry.operand.is_some() && !needed(&key.1))
            .min_by_key(|(_, entry)| entry.last_use)
            .map(|(key, _)| key.1)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use proptest::prelude::*;

    const K: u64 = ENTRY_BYTES_MIN;

    /// A memory whose leases give back what they took.
    #[derive(Clone)]
    struct Memory {
        limit: u64,
        held: Rc<Cell<u64>>,
    }

    #[derive(Debug)]
    struct Lease(u64, Rc<Cell<u64>>);

    impl Drop for Lease {
        fn drop(&mut self) {
            self.1.set(self.1.get() - self.0);
        }
    }

    impl Memory {
        fn new(limit: u64) -> Memory {
            Memory { limit, held: Rc::default() }
        }

        fn lease(&self, bytes: u64) -> Result<Lease> {
            if self.held.get() + bytes > self.limit {
                return Err(Error::new(ErrorKind::Overloaded, "full"));
            }
            self.held.set(self.held.get() + bytes);
            Ok(Lease(bytes, Rc::clone(&self.held)))
        }
    }

    /// A store of operands that are numbers.
    struct Store<Owner> {
        store: OperandStore<Owner, u8, Lease>,
        memory: Memory,
    }

    impl<Owner: Copy + Ord> Store<Owner> {
        fn new(limit: u64, quota: u64) -> Store<Owner> {
            Store { store: OperandStore::with_quota(quota), memory: Memory::new(limit) }
        }

        fn admit(&mut self, owner: Owner, n: u8, bytes: u64, needed: impl Fn(&Digest) -> bool) -> Result<Admission> {
            self.store.admit(owner, digest(n), bytes, needed, |bytes| self.memory.lease(bytes))
        }

        fn keep(&mut self, owner: Owner, n: u8, bytes: u64) {
            self.admit(owner, n, bytes, nothing).unwrap();
            self.store.complete(owner, digest(n), n);
        }
    }

    fn digest(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    fn nothing(_: &Digest) -> bool {
        false
    }

    #[test]
    fn an_owner_never_sees_what_another_sent() {
        let mut store = Store::new(200 * K, 50 * K);
        store.keep('a', 1, 10 * K);
        assert_eq!(store.store.get('a', &digest(1)), Some(1));
        assert!(store.store.get('b', &digest(1)).is_none());
        assert_eq!(store.admit('b', 1, 10 * K, nothing).unwrap(), Admission::Receive { evicted: vec![] });
    }

    #[test]
    fn the_least_recently_used_operand_that_no_task_needs_goes_first() {
        let mut store = Store::new(200 * K, 30 * K);
        (1..=3).for_each(|n| store.keep('a', n, 10 * K));
        store.store.get('a', &digest(1));
        let admitted = store.admit('a', 4, 10 * K, |of| *of == digest(2)).unwrap();
        assert_eq!(admitted, Admission::Receive { evicted: vec![digest(3)] });
    }

    #[test]
    fn operands_that_tasks_need_are_not_dropped_but_the_new_one_is_refused() {
        let mut store = Store::new(200 * K, 20 * K);
        (1..=2).for_each(|n| store.keep('a', n, 10 * K));
        assert_eq!(store.admit('a', 3, 10 * K, |_| true).unwrap_err().kind(), ErrorKind::Overloaded);
        assert_eq!(store.store.used(), 20 * K);
    }

    #[test]
    fn operands_that_no_task_needs_give_way_and_those_on_their_way_stay() {
        let mut store = Store::new(200 * K, 90 * K);
        store.keep('a', 1, 10 * K);
        store.keep('a', 2, 10 * K);
        store.keep('b', 1, 10 * K);
        store.admit('b', 3, 10 * K, nothing).unwrap();
        let needed = |owner, of: &Digest| (owner, *of) == ('a', digest(2));
        assert_eq!(store.store.give_way(needed), [('a', digest(1)), ('b', digest(1))]);
        assert_eq!((store.store.used(), store.memory.held.get()), (20 * K, 20 * K));
        assert!(store.store.give_way(needed).is_empty());
    }

    #[test]
    fn one_owner_may_keep_half_of_what_operands_may_take() {
        let limit = 4096 * K;
        let most = Kind::Operands.most_bytes(limit);
        let mut store = Store { store: OperandStore::new(limit), memory: Memory::new(limit) };
        assert_eq!((store.store.quota(), store.store.quota() * 2), (most / 2, most));
        assert_eq!(store.admit('a', 1, most / 2 + 1, nothing).unwrap_err().kind(), ErrorKind::Overloaded);
        store.keep('a', 1, most / 2);
        store.keep('b', 1, most / 2);
        assert_eq!(store.store.used(), most);
    }

    #[test]
    fn where_memory_is_short_an_owners_own_operands_go_and_nobody_elses() {
        let mut store = Store::new(30 * K, 50 * K);
        // Kept in this order: an operand's digest says nothing of its age.
        [3, 1].into_iter().for_each(|n| store.keep('a', n, 10 * K));
        store.keep('b', 9, 10 * K);
        let admitted = store.admit('a', 4, 10 * K, nothing).unwrap();
        assert_eq!(admitted, Admission::Receive { evicted: vec![digest(3)] });
        let refused = store.admit('c', 5, 10 * K, nothing).unwrap_err();
        assert_eq!((refused.kind(), refused.message()), (ErrorKind::Overloaded, "full"), "what the memory says");
        assert!(store.store.knows('b', &digest(9)) && store.store.knows('a', &digest(1)));
        assert!(!store.store.knows('a', &digest(3)) && !store.store.knows('c', &digest(5)));
    }

    #[test]
    fn what_its_owner_releases_goes_first() {
        let mut store = Store::new(200 * K, 20 * K);
        [1, 2].into_iter().for_each(|n| store.keep('a', n, 10 * K));
        store.store.release('a', &digest(2));
        let admitted = store.admit('a', 3, 10 * K, nothing).unwrap();
        assert_eq!(admitted, Admission::Receive { evicted: vec![digest(2)] });
    }

    #[test]
    fn nothing_of_an_owner_that_left_is_kept() {
        let mut store = Store::new(200 * K, 50 * K);
        ['a', 'b', 'c'].into_iter().for_each(|owner| store.keep(owner, 1, 10 * K));
        store.store.remove_owner('b');
        assert_eq!(['a', 'b', 'c'].map(|owner| store.store.get(owner, &digest(1))), [Some(1), None, Some(1)]);
        assert_eq!((store.store.used(), store.memory.held.get()), (20 * K, 20 * K));
    }

    proptest! {
        #[test]
        fn limits_hold_and_the_accounts_balance(steps in proptest::collection::vec((0u8..3, 0u8..6, 0..40 * K, 0u8..4), 1..200)) {
            let mut store = Store::new(90 * K, 50 * K);
            for (owner, n, bytes, what) in steps {
                match what {
                    0 | 1 => if let Ok(Admission::Receive { .. }) = store.admit(owner, n, bytes, |of| of.as_bytes()[0] < 2) {
                        store.store.complete(owner, digest(n), n);
                    },
                    2 => store.store.remove(owner, digest(n)),
                    _ => store.store.remove_owner(owner),
                }
                prop_assert!(store.store.used() <= 90 * K);
                prop_assert!((0..3).all(|owner| store.store.used_by(owner) <= 50 * K));
                prop_assert_eq!(store.store.used(), store.memory.held.get());
            }
        }
    }
}
