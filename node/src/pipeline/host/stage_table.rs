//! The stages of this node by chain. A chain whose model got its digest after it was started goes by two ids from then on: sessions
//! that were opened before name the first one.

use std::collections::HashMap;
use std::collections::hash_map::{Iter, Values, ValuesMut};

use pangea_control::session::ChainId;

#[derive(Debug)]
pub(super) struct StageTable<S> {
    stages: HashMap<ChainId, S>,
    /// The present id of each chain with another one before.
    renamed: HashMap<ChainId, ChainId>,
}

impl<S> Default for StageTable<S> {
    fn default() -> StageTable<S> {
        StageTable { stages: HashMap::new(), renamed: HashMap::new() }
    }
}

impl<S> StageTable<S> {
    /// The present id of a chain.
    pub(super) fn id(&self, chain: ChainId) -> ChainId {
        self.renamed.get(&chain).copied().unwrap_or(chain)
    }

    /// Gives a stage's chain another id, unless another stage has it; returns whether it did.
    pub(super) fn rename(&mut self, chain: ChainId, to: ChainId) -> bool {
        if self.stages.contains_key(&to) {
            return false;
        }
        let Some(stage) = self.stages.remove(&chain) else { return false };
        self.stages.insert(to, stage);
        self.renamed.insert(chain, to);
        true
    }

    pub(super) fn get(&self, chain: &ChainId) -> Option<&S> {
        self.stages.get(&self.id(*chain))
    }

    pub(super) fn get_mut(&mut self, chain: &ChainId) -> Option<&mut S> {
        let id = self.id(*chain);
        self.stages.get_mut(&id)
    }

    pub(super) fn contains(&self, chain: &ChainId) -> bool {
        self.get(chain).is_some()
    }

    pub(super) fn insert(&mut self, chain: ChainId, stage: S) -> Option<S> {
        self.stages.insert(chain, stage)
    }

    pub(super) fn remove(&mut self, chain: &ChainId) -> Option<S> {
        let id = self.id(*chain);
        self.renamed.retain(|_, present| *present != id);
        self.stages.remove(&id)
    }

    pub(super) fn values(&self) -> Values<'_, ChainId, S> {
        self.stages.values()
    }

    pub(super) fn values_mut(&mut self) -> ValuesMut<'_, ChainId, S> {
        self.stages.values_mut()
    }

    pub(super) fn iter(&self) -> Iter<'_, ChainId, S> {
        self.stages.iter()
    }
}

#[cfg(test)]
mod tests {
    use pangea_units::Digest;

    use super::*;

    fn chain(byte: u8) -> ChainId {
        ChainId::alone(Digest::from_bytes([byte; 32]))
    }

    #[test]
    fn a_renamed_chain_goes_by_both_ids_until_its_stage_ends() {
        let mut table = StageTable::default();
        table.insert(chain(1), "one");
        assert!(table.rename(chain(1), chain(2)));
        assert_eq!((table.get(&chain(1)), table.get(&chain(2))), (Some(&"one"), Some(&"one")));
        assert_eq!((table.id(chain(1)), table.iter().count()), (chain(2), 1));
        *table.get_mut(&chain(1)).unwrap() = "new";
        assert_eq!(table.remove(&chain(2)), Some("new"));
        assert!(!table.contains(&chain(1)));
        table.insert(chain(2), "later");
        assert!(!table.contains(&chain(1)), "no session of the stage that ended reaches the next one");
    }

    #[test]
    fn a_chain_takes_no_id_that_another_stage_has() {
        let mut table = StageTable::default();
        table.insert(chain(1), "one");
        table.insert(chain(2), "two");
        assert!(!table.rename(chain(1), chain(2)) && !table.rename(chain(3), chain(4)));
        assert_eq!((table.get(&chain(1)), table.get(&chain(2))), (Some(&"one"), Some(&"two")));
    }
}
