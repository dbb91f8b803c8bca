//! The placements that masters published last. A new master takes over what it knows, and its advert reaches the nodes of a
//! chain at different times: until then the previous master's placements count. No placement is decided here.

use std::collections::BTreeMap;
use std::time::Duration;

use pangea_units::Digest;

use super::Placement;
use crate::Time;
use crate::session::ChainId;

/// Time for which an earlier master's placements count while the current master has published none of their model.
const EARLIER_PLACEMENTS: Duration = Duration::from_secs(30);

/// The placements of each model that a master published last.
#[derive(Clone, Debug, Default)]
pub struct PublishedPlacements {
    /// The placements of each model, with the time when they were last seen.
    models: BTreeMap<Digest, (Vec<Placement>, Time)>,
}

impl PublishedPlacements {
    /// Records the current master's published placements.
    pub fn observe(&mut self, published: &[Placement], now: Time) {
        for placement in published {
            self.models.insert(placement.model, (Vec::new(), now));
        }
        for placement in published {
            if let Some((of, _)) = self.models.get_mut(&placement.model) {
                of.push(placement.clone());
            }
        }
        self.models.retain(|_, (_, seen)| now.since(*seen) < EARLIER_PLACEMENTS);
    }

    /// The placement that a chain belongs to.
    pub fn of(&self, chain: &ChainId) -> Option<Placement> {
        let (of, _) = self.models.get(&chain.model)?;
        of.iter().find(|placement| placement.epoch == chain.epoch).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::PlacedStage;
    use crate::pool::Term;
    use crate::test_peers::peer;

    fn chain(epoch: u64) -> ChainId {
        ChainId { model: Digest::from_bytes([1; 32]), epoch }
    }

    #[test]
    fn a_placement_counts_until_the_next_master_has_published_its_own() {
        let mut published = PublishedPlacements::default();
        let placement = |epoch| Placement {
            model: chain(epoch).model,
            name: "model".to_owned(),
            epoch,
            term: Term { counter: 1, master: peer(1) },
            stages: vec![PlacedStage { peer: peer(1), layers: 0..1 }],
        };
        published.observe(&[placement(1), placement(2)], Time::from_secs(1));
        assert_eq!(published.of(&chain(1)), Some(placement(1)));
        // The next master has published nothing yet.
        published.observe(&[], Time::from_secs(2));
        assert_eq!(published.of(&chain(2)), Some(placement(2)));
        published.observe(&[placement(3)], Time::from_secs(3));
        assert_eq!((published.of(&chain(2)), published.of(&chain(3))), (None, Some(placement(3))));
        published.observe(&[], Time::from_secs(33));
        assert_eq!(published.of(&chain(3)), None);
    }
}
