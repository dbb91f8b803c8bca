//! Which nodes are excluded from a model's plans after a failure, and until when. Placements are unknown here.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;
use crate::backoff::doubled;

use libp2p_identity::PeerId;

use super::offer::NodeOffer;
use crate::pool::View;

/// Time for which a node that failed a model is excluded from its plans; doubled after each further failure.
const COOLDOWN: Duration = Duration::from_secs(30);

/// Upper bound of that time.
const COOLDOWN_MAX: Duration = Duration::from_secs(600);

/// How certain it is that a node caused a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Culpability {
    /// The node reported the failure itself, or did not do what the placement asks. It is excluded from every plan.
    Certain,
    /// The node took part in a chain that broke. It is excluded where a plan without it exists.
    Possible,
}

#[derive(Clone, Copy, Debug)]
struct Cooldown {
    until: Time,
    times: u32,
    incarnation: u64,
    culpability: Culpability,
}

/// The nodes that failed one model.
#[derive(Debug, Default)]
pub(super) struct Cooldowns(BTreeMap<PeerId, Cooldown>);

impl Cooldowns {
    /// Excludes a node from now on. A node that restarted since is not affected by earlier failures.
    pub(super) fn exclude(&mut self, peer: PeerId, culpability: Culpability, view: &View, now: Time) {
        let Some(advert) = view.advert(&peer) else { return };
        let known = self.0.get(&peer).filter(|known| known.incarnation == advert.incarnation);
        if culpability == Culpability::Possible
            && known.is_some_and(|known| known.culpability == Culpability::Certain && known.until > now)
        {
            return;
        }
        let times = known.map_or(0, |known| known.times.saturating_add(1));
        let time = doubled(COOLDOWN, times, COOLDOWN_MAX);
        let cooldown = Cooldown { until: now + time, times, incarnation: advert.incarnation, culpability };
        self.0.insert(peer, cooldown);
    }

    /// The offers that a plan may use. With `strict`, nodes that only took part in a failure are excluded, too.
    pub(super) fn eligible(&self, offers: &[NodeOffer], strict: bool, view: &View, now: Time) -> Vec<NodeOffer> {
        let left_out = |peer: &PeerId| {
            let incarnation = view.advert(peer).map(|advert| advert.incarnation);
            self.0.get(peer).is_some_and(|cooldown| {
                cooldown.until > now
                    && Some(cooldown.incarnation) == incarnation
                    && (strict || cooldown.culpability == Culpability::Certain)
            })
        };
        offers.iter().filter(|offer| !left_out(&offer.peer)).cloned().collect()
    }
}
