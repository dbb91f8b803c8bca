//! What is bent in gossip: what a node publishes of itself, what it publishes again of others, and what it makes up.

use std::collections::VecDeque;
use std::sync::Arc;

use pangea_control::membership::Role;
use pangea_control::pool::election::{LEAP, MAX_COUNTER};
use pangea_control::pool::{Advert, ModelAdvert, Term};

use crate::certificates::{Published, certify, pool_key};
use crate::deviations::Deviation;
use crate::node::{EPOCH_UNIX_S, digest, peer_of, size};
use crate::world::World;

/// Adverts that a node keeps to publish again.
const KEPT: usize = 200;

/// Adverts that a node may forge at once.
const FORGED: usize = 4;

/// Leads of a counter over every known one: one that elections explain, others that they do not, the last counter of all.
const LEADS: [u64; 4] = [LEAP / 2, LEAP + 1, MAX_COUNTER, u64::MAX - 1];

/// Adverts of others that a node publishes again, the oldest first.
pub(crate) type Recorded = VecDeque<Arc<Published>>;

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
    pub(crate) fn record_advert(&mut self, at: usize, published: &Arc<Published>) {
        if self.is_one_that(at, Deviation::ReplaysAdverts) {
            let recorded = &mut self.nodes[at].recorded;
            recorded.push_back(Arc::clone(published));
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
            let Some(published) = self.nodes[at].recorded.pop_front() else { return };
            self.gossip(at, &published);
            self.nodes[at].recorded.push_back(published);
        }
    }

    /// Once a second, a node publishes adverts that it may not publish.
    pub(crate) fn forge_adverts(&mut self, at: usize) {
        for _ in 0..FORGED {
            if self.deviates(at, Deviation::ForgesAdverts) {
                let forged = self.forge_advert(at);
                self.gossip(at, &Arc::new(forged));
            }
        }
    }

    /// The advert of a node that there is not, or of another one; its author is fast, has a model and claims the mastership.
    fn forge_advert(&mut self, at: usize) -> Published {
        let bits = [self.chance.bits(), self.chance.bits(), self.chance.bits(), self.chance.bits()];
        let (own, own_certificate) = (self.nodes[at].peer, Arc::clone(&self.nodes[at].certificate));
        let (phantom, later) = (peer_of(bits), EPOCH_UNIX_S * 2);
        let other = self.nodes[self.chance.index(self.nodes.len())].peer;
        let is_client = !self.nodes[at].spec.works;
        let (source, author, certificate) = match self.chance.below(8) {
            0 => (phantom, phantom, Arc::from([])),
            1 => (phantom, phantom, Arc::from([1; 120])),
            // A member vouches for nobody.
            2 => (phantom, phantom, own_certificate),
            3 => (phantom, phantom, certify(&pool_key(true), phantom, Role::Member, later)),
            // A former member.
            4 => (phantom, phantom, certify(&pool_key(false), phantom, Role::Member, EPOCH_UNIX_S / 2)),
            // Its own certificate under another name.
            5 => {
                let mut bytes = own_certificate.to_vec();
                let (name, from) = (phantom.to_bytes(), 3);
                bytes[from..from + name.len()].copy_from_slice(&name);
                (phantom, phantom, bytes.into())
            }
            // A client that computes for others.
            6 if is_client => (own, own, own_certificate),
            _ if other != own => (own, other, own_certificate),
            _ => (own, phantom, own_certificate),
        };
        let counter = 1 + self.chance.below(100);
        let advert = Advert {
            incarnation: u64::MAX / 2,
            sequence: counter,
            name: "forged".to_owned(),
            force_master: true,
            works: true,
            memory_bytes: 1 << 50,
            f32_flops_per_s: 1e15,
            term: Some(Term { counter, master: author }),
            counter,
            models: vec![ModelAdvert {
                digest: digest(1),
                name: "model1".to_owned(),
                served: true,
                whole: true,
                split: true,
                pinned: None,
                size: size(),
            }],
            ..Advert::new(author)
        };
        Published { source, certificate, advert, is_forged: true }
    }
}
