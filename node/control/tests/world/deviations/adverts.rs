//! What is bent in gossip: what a node publishes of itself, and what it publishes again of others.

use std::collections::VecDeque;
use std::sync::Arc;

use pangea_control::pool::election::{LEAP, MAX_COUNTER};
use pangea_control::pool::{Advert, Term};

use crate::deviations::Deviation;
use crate::world::World;

/// Adverts that a node keeps to publish again.
const KEPT: usize = 200;

/// Leads of a counter over every known one: one that elections explain, others that they do not, the last counter of all.
const LEADS: [u64; 4] = [LEAP / 2, LEAP + 1, MAX_COUNTER, u64::MAX - 1];

/// Adverts of others that a node publishes again, the oldest first.
pub(crate) type Recorded = VecDeque<Arc<Advert>>;

impl World {
    /// What a node publishes of itself in place of the truth.
    pub(crate) fn bend_advert(&mut self, at: usize, mut advert: Advert) -> Advert {
        if self.nodes[at].spec.deviations.is_empty() {
            return advert;
        }
        if self.deviates(at, Deviation::Boasts) {
            advert.f32_flops_per_s *= 1e3;
            if let Some(speed) = &mut advert.speed {
                (speed.weight_bytes_per_s, speed.macs_per_s) = (speed.weight_bytes_per_s * 1e3, speed.macs_per_s * 1e3);
            }
            for link in &mut advert.links {
                link.bytes_per_s = link.bytes_per_s.max(1e6) * 1e3;
            }
        }
        let known = advert.counter.max(advert.term.map_or(0, |term| term.counter));
        if self.deviates(at, Deviation::Usurps) {
            let counter = known.saturating_add(1);
            (advert.term, advert.counter) = (Some(Term { counter, master: advert.peer }), counter);
        }
        if self.deviates(at, Deviation::PoisonsCounter) {
            let counter = known.saturating_add(LEADS[self.chance.index(LEADS.len())]);
            let master = self.nodes[self.chance.index(self.nodes.len())].peer;
            advert.counter = counter;
            if self.chance.one_in(2) {
                advert.term = Some(Term { counter, master });
            }
        }
        advert
    }

    /// A node that replays adverts keeps what it hears.
    pub(crate) fn record_advert(&mut self, at: usize, advert: &Arc<Advert>) {
        if self.is_one_that(at, Deviation::ReplaysAdverts) {
            let recorded = &mut self.nodes[at].recorded;
            recorded.push_back(Arc::clone(advert));
            if recorded.len() > KEPT {
                recorded.pop_front();
            }
        }
    }

    /// Once a second, a node publishes an advert of another one again, the oldest that it has.
    pub(crate) fn replay_advert(&mut self, at: usize) {
        if self.nodes[at].recorded.is_empty() || !self.deviates(at, Deviation::ReplaysAdverts) {
            return;
        }
        for _ in 0..8 {
            let Some(advert) = self.nodes[at].recorded.pop_front() else { return };
            self.gossip(at, &advert);
            self.nodes[at].recorded.push_back(advert);
        }
    }
}
