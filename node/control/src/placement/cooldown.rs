//! Which nodes are left out of a model's plans, for how long, and which of them only where others can do without. It knows no
//! placements.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;

use libp2p_identity::PeerId;

use super::offer::NodeOffer;
use crate::pool::View;

/// A node that could not load its stage of a model gets none of it for so long, and twice as long after every other time.
const SHUN: Duration = Duration::from_secs(30);

/// But not longer.
const SHUN_MOST: Duration = Duration::from_secs(600);

/// How certain it is that a node is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It said so, or did not do what it was to.
    Its,
    /// It was there when something broke: it is done without where that can be.
    Perhaps,
}

#[derive(Clone, Copy, Debug)]
struct Shunned {
    until: Time,
    times: u32,
    incarnation: u64,
    fault: Fault,
}

/// The nodes that failed a model.
#[derive(Debug, Default)]
pub(super) struct Blame(BTreeMap<PeerId, Shunned>);

impl Blame {
    /// A node is left out for a while.
    pub(super) fn shun(&mut self, peer: PeerId, fault: Fault, view: &View, now: Time) {
        let Some(advert) = view.advert(&peer) else { return };
        let known = self.0.get(&peer).filter(|known| known.incarnation == advert.incarnation);
        if fault == Fault::Perhaps && known.is_some_and(|known| known.fault == Fault::Its && known.until > now) {
            return;
        }
        let times = known.map_or(0, |known| known.times.saturating_add(1));
        let time = SHUN.saturating_mul(1 << times.min(16)).min(SHUN_MOST);
        let shunned = Shunned { until: now + time, times, incarnation: advert.incarnation, fault };
        self.0.insert(peer, shunned);
    }

    /// Those of `offers` that may be taken: where `sparing`, without any that was perhaps at fault.
    pub(super) fn spared(&self, offers: &[NodeOffer], sparing: bool, view: &View, now: Time) -> Vec<NodeOffer> {
        let left_out = |peer: &PeerId| {
            let incarnation = view.advert(peer).map(|advert| advert.incarnation);
            self.0.get(peer).is_some_and(|shunned| {
                shunned.until > now
                    && Some(shunned.incarnation) == incarnation
                    && (sparing || shunned.fault == Fault::Its)
            })
        };
        offers.iter().filter(|offer| !left_out(&offer.peer)).cloned().collect()
    }
}
