//! Which models a pool has dropped: one register per model that every node repeats in its advert. The highest version of a
//! register counts, so late adverts change nothing and a node that was away learns what happened meanwhile. Nothing is unloaded
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::View;
use super::served::MODELS_MAX;
use crate::Time;

/// Registers of one node: as many as models of a pool count.
pub const DROPS_MAX: usize = MODELS_MAX;

/// Versions by which a register may grow at once. A pool drops and loads one model less often, and a member that claims the
/// highest version would decide for good.
const LEAP_MAX: u64 = 1 << 16;

/// Time after the first advert of another node within which a node that has just started learns what was dropped before it
/// started. Every node publishes its advert again for a newcomer, at once.
const JOINING: Duration = Duration::from_secs(2);

/// Whether a model is dropped, as of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DropRecord {
    /// Digest of the model.
    pub model: Digest,
    /// Grows with every drop, and with every load after one.
    pub version: u64,
    /// Whether the model is dropped.
    pub dropped: bool,
}

#[derive(Clone, Copy, Debug)]
struct Register {
    version: u64,
    dropped: bool,
    /// Whether the version is from before this node's start.
    earlier: bool,
}

impl Register {
    /// Of two records with one version, the drop counts.
    fn order(&self) -> (u64, bool) {
        (self.version, self.dropped)
    }
}

/// The registers as one node knows them.
#[derive(Debug, Default)]
pub struct Drops {
    registers: BTreeMap<Digest, Register>,
    /// When this node first heard of another.
    met: Option<Time>,
    /// The nodes that it heard of in its first moments.
    heard: BTreeSet<PeerId>,
}

impl Drops {
    /// Drops a model in the whole pool.
    pub fn drop_model(&mut self, model: Digest) {
        let version = self.version(&model) + 1;
        if !self.registers.contains_key(&model) && self.registers.len() >= DROPS_MAX {
            // Models that are served again need no register, as long as their nodes are present.
            let least = |(model, register): (&Digest, &Register)| (register.dropped, register.version, *model);
            let evicted = self.registers.iter().map(least).min().map(|(.., model)| model);
            evicted.map(|model| self.registers.remove(&model));
        }
        self.registers.insert(model, Register { version, dropped: true, earlier: false });
    }

    /// Makes a model one that may be served again.
    pub fn load_model(&mut self, model: &Digest) {
        if let Some(register) = self.registers.get_mut(model).filter(|register| register.dropped) {
            *register = Register { version: register.version + 1, dropped: false, earlier: false };
        }
    }

    /// Whether a model is dropped.
    pub fn is_dropped(&self, model: &Digest) -> bool {
        self.registers.get(model).is_some_and(|register| register.dropped)
    }

    /// The registers, to be advertised.
    pub fn records(&self) -> Vec<DropRecord> {
        let record = |(model, register): (&Digest, &Register)| DropRecord {
            model: *model,
            version: register.version,
            dropped: register.dropped,
        };
        self.registers.iter().map(record).collect()
    }

    /// Learns from a view. `own`: the models that this node serves because it was started or asked to. What was dropped before
    /// this node started is served again, because whoever starts a node with a model wants it. Returns the models that were
    /// dropped now.
    pub fn update(&mut self, view: &View, own: &BTreeSet<Digest>, now: Time) -> Vec<Digest> {
        if self.met.is_none() && !view.nodes.is_empty() {
            self.met = Some(now);
        }
        let joining = self.met.is_some_and(|met| now.since(met) < JOINING);
        let mut dropped = Vec::new();
        let said = view.nodes.values().flat_map(|advert| advert.drops.iter().map(move |record| (advert.peer, record)));
        for (author, record) in said {
            // What a node says for the first time may be long ago; what it adds later happened meanwhile.
            let earlier = joining && !self.heard.contains(&author);
            let heard = Register { version: record.version, dropped: record.dropped, earlier };
            let known = self.registers.get(&record.model);
            if known.is_some_and(|known| known.order() >= heard.order()) {
                continue;
            }
            let most = known.map_or(0, |known| known.version).saturating_add(LEAP_MAX);
            if record.version > most || (known.is_none() && self.registers.len() >= DROPS_MAX) {
                continue;
            }
            let was = self.registers.insert(record.model, heard).is_some_and(|known| known.dropped);
            if record.dropped && !was {
                dropped.push(record.model);
            }
        }
        for model in own {
            if self.registers.get(model).is_some_and(|register| register.dropped && register.earlier) {
                self.load_model(model);
            }
        }
        match joining {
            true => self.heard.extend(view.nodes.keys()),
            false => self.heard.clear(),
        }
        dropped.retain(|model| self.is_dropped(model));
        dropped.sort_unstable();
        dropped.dedup();
        dropped
    }

    fn version(&self, model: &Digest) -> u64 {
        self.registers.get(model).map_or(0, |register| register.version)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::pool::advert_of;
    use crate::test_peers::peer;

    const MODEL: Digest = Digest([1; 32]);
    const OTHER: Digest = Digest([2; 32]);

    /// A view in which each of these nodes says this.
    fn view(said: &[Vec<DropRecord>]) -> View {
        let node = |(number, drops): (u64, &Vec<DropRecord>)| {
            let mut advert = advert_of(peer(number));
            advert.drops.clone_from(drops);
            (peer(number), Arc::new(advert))
        };
        let nodes = (1..).zip(said).map(node).collect();
        View { local: peer(0), own: Arc::new(advert_of(peer(0))), term: None, nodes, connected: BTreeSet::new() }
    }

    fn record(version: u64, dropped: bool) -> DropRecord {
        DropRecord { model: MODEL, version, dropped }
    }

    fn own() -> BTreeSet<Digest> {
        BTreeSet::from([MODEL])
    }

    #[test]
    fn a_drop_counts_at_every_node_until_a_load_and_late_adverts_change_nothing() {
        let (mut one, mut two) = (Drops::default(), Drops::default());
        two.update(&view(&[Vec::new()]), &own(), Time::ZERO);
        one.drop_model(MODEL);
        let dropped = one.records();
        let later = Time::from_secs(60);
        assert_eq!(two.update(&view(std::slice::from_ref(&dropped)), &own(), later), [MODEL]);
        assert!(two.is_dropped(&MODEL) && !two.is_dropped(&OTHER));
        assert!(two.update(&view(std::slice::from_ref(&dropped)), &own(), later).is_empty(), "it is known");
        two.load_model(&MODEL);
        assert!(one.update(&view(&[two.records()]), &BTreeSet::new(), later).is_empty());
        assert!(!one.is_dropped(&MODEL));
        for drops in [&mut one, &mut two] {
            assert!(drops.update(&view(std::slice::from_ref(&dropped)), &own(), later).is_empty(), "a late advert");
            assert!(!drops.is_dropped(&MODEL));
        }
        one.drop_model(MODEL);
        assert_eq!(two.update(&view(&[one.records()]), &own(), later), [MODEL], "a second drop");
    }

    #[test]
    fn a_node_that_starts_with_a_model_serves_it_although_it_was_dropped_before_and_one_that_was_away_does_not() {
        let said = [vec![record(1, true)]];
        let mut started = Drops::default();
        assert!(started.update(&view(&said), &own(), Time::from_secs(1)).is_empty());
        assert_eq!(started.records(), [record(2, false)]);
        // Its file may be read later than the adverts arrive.
        let mut slow = Drops::default();
        assert_eq!(slow.update(&view(&said), &BTreeSet::new(), Time::from_secs(1)), [MODEL]);
        assert!(slow.is_dropped(&MODEL));
        slow.update(&view(&said), &own(), Time::from_secs(30));
        assert_eq!(slow.records(), [record(2, false)]);
        let mut new = Drops::default();
        assert!(new.update(&view(&[Vec::new()]), &own(), Time::from_secs(1)).is_empty());
        assert_eq!(
            new.update(&view(&said), &own(), Time::from_millis(1500)),
            [MODEL],
            "it was dropped after the start"
        );
        let mut away = Drops::default();
        away.update(&view(&[Vec::new()]), &own(), Time::from_secs(1));
        away.update(&view(&[]), &own(), Time::from_secs(2));
        assert_eq!(away.update(&view(&said), &own(), Time::from_secs(60)), [MODEL]);
        assert!(away.is_dropped(&MODEL));
        away.update(&view(&said), &own(), Time::from_secs(61));
        assert!(away.is_dropped(&MODEL));
    }

    #[test]
    fn nobody_takes_a_register_out_of_reach_or_fills_the_table_for_good() {
        let mut drops = Drops::default();
        let now = Time::from_secs(1);
        for version in [u64::MAX, LEAP_MAX + 1] {
            assert!(drops.update(&view(&[vec![record(version, true)]]), &own(), now).is_empty());
        }
        let flood = |at: u64| DropRecord { model: Digest([at as u8; 32]), version: 1, dropped: true };
        drops.update(&view(&[(10..200).map(flood).collect()]), &BTreeSet::new(), now);
        assert_eq!(drops.records().len(), DROPS_MAX);
        drops.drop_model(MODEL);
        assert!(drops.is_dropped(&MODEL) && drops.records().len() == DROPS_MAX);
    }

    proptest! {
        #[test]
        fn nodes_that_heard_the_same_agree_whatever_the_order(
            events in prop::collection::vec((0usize..3, any::<bool>()), 1..20),
            order in prop::collection::vec(0usize..3, 0..40),
        ) {
            let mut nodes: [Drops; 3] = Default::default();
            let later = Time::from_secs(60);
            for drops in &mut nodes {
                drops.update(&view(&[Vec::new()]), &BTreeSet::new(), Time::ZERO);
            }
            let mut order = order.into_iter();
            for (at, drop) in events {
                if drop { nodes[at].drop_model(MODEL) } else { nodes[at].load_model(&MODEL) }
                if let Some(from) = order.next() {
                    let said = nodes[from].records();
                    nodes[(from + 1) % 3].update(&view(&[said]), &BTreeSet::new(), later);
                }
            }
            let said = nodes.each_ref().map(Drops::records);
            for drops in &mut nodes {
                drops.update(&view(&said), &BTreeSet::new(), later);
            }
            let agreed = nodes.each_ref().map(Drops::records);
            prop_assert!(agreed[0] == agreed[1] && agreed[1] == agreed[2]);
            let highest = said.iter().flatten().map(|record| (record.version, record.dropped)).max();
            prop_assert_eq!(agreed[0].first().map(|record| (record.version, record.dropped)), highest);
        }
    }
}
