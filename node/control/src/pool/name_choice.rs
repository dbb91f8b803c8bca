//! Which of several models with one name is meant by a request that gives no digest. The choice is stable: it is neither a
//! matter of order nor changed by whoever serves another model under the name later. Every model can be requested by its full
//! name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::models_said::ModelsSaid;
use super::served::served;
use super::{View, full_name};
use crate::Time;

/// Time after which a choice stays whatever else appears. Until then the adverts of a pool that this node just joined arrive.
const SETTLED: Duration = Duration::from_secs(30);

/// Time for which a settled choice stays when no node serves its model any more: another model with the name is not it.
const KEPT: Duration = Duration::from_secs(600);

/// Time that a node must have been known for its word about a name to count.
const STANDING: Duration = Duration::from_secs(60);

/// Why a model got its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This node serves its file.
    OwnFile,
    /// A node that served the earlier model with this name serves this one now.
    Successor,
    /// The master places it under this name.
    Master,
    /// The most nodes that have been known for a while have it.
    Standing,
    /// Nothing tells the models apart; the order of their digests counts.
    Order,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::OwnFile => "this node serves its file",
            Reason::Successor => "the node that served the earlier model with this name serves it now",
            Reason::Master => "the master places it under this name",
            Reason::Standing => "the most nodes that have been known for a while have it",
            Reason::Order => "nothing tells the models apart",
        })
    }
}

/// A choice between several models, to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameChosen {
    /// The name.
    pub name: String,
    /// The model that it stands for.
    pub digest: Digest,
    /// Why.
    pub reason: Reason,
    /// Full names of the other models.
    pub others: Vec<String>,
}

#[derive(Debug)]
struct Choice {
    digest: Digest,
    /// Time of the choice, and the last time that a node served the model.
    since: Time,
    seen: Time,
    /// The nodes that served it last.
    servers: BTreeSet<PeerId>,
    /// Whether it was logged as one of several.
    logged: bool,
}

/// The models that names stand for.
#[derive(Debug, Default)]
pub struct NameChoices {
    names: BTreeMap<String, Choice>,
    /// Time since which each node has been known.
    known: BTreeMap<PeerId, Time>,
    /// What the candidates follow from, and they.
    said: ModelsSaid,
    own: Vec<(String, Option<Digest>)>,
    candidates: Candidates,
}

/// Models by name, each with the nodes that serve it.
type Candidates = BTreeMap<String, BTreeMap<Digest, BTreeSet<PeerId>>>;

impl NameChoices {
    /// The model that a name stands for.
    pub fn of(&self, name: &str) -> Option<Digest> {
        self.names.get(name).map(|choice| choice.digest)
    }

    /// Name under which a model is listed: its short name, or its full one where that stands for another model.
    pub fn listed(&self, name: &str, digest: &Digest) -> String {
        match self.of(name) {
            Some(chosen) if chosen != *digest => full_name(name, digest),
            _ => name.to_owned(),
        }
    }

    /// Follows a view. `own`: the files that this node serves, by name; `None` while the digest is not known.
    pub fn update(&mut self, view: &View, own: &[(String, Option<Digest>)], now: Time) -> Vec<NameChosen> {
        if !self.known.keys().eq(view.nodes.keys()) {
            self.known.retain(|peer, _| view.nodes.contains_key(peer));
            for peer in view.nodes.keys() {
                self.known.entry(*peer).or_insert(now);
            }
        }
        if self.said.changed(view) || self.own != own {
            self.own = own.to_vec();
            self.candidates = candidates(view);
            for (name, digest) in own {
                self.candidates.entry(name.clone()).or_default().extend(digest.map(|digest| (digest, BTreeSet::new())));
            }
        }
        let candidates = std::mem::take(&mut self.candidates);
        self.names.retain(|name, choice| candidates.contains_key(name) || now.since(choice.seen) < KEPT);
        let mut chosen = Vec::new();
        for (name, models) in &candidates {
            let own = own.iter().find(|(own, _)| own == name);
            let new = match own {
                // The digest of a file of this node is known soon.
                Some((_, None)) => continue,
                Some((_, Some(digest))) => Some((*digest, Reason::OwnFile)),
                None => self.choose(name, models, view, now),
            };
            if let Some((digest, _)) = new
                && self.of(name) != Some(digest)
            {
                let choice = Choice { digest, since: now, seen: now, servers: BTreeSet::new(), logged: false };
                self.names.insert(name.clone(), choice);
            }
            let Some(choice) = self.names.get_mut(name) else { continue };
            if let Some(servers) = models.get(&choice.digest) {
                choice.seen = now;
                if choice.servers != *servers {
                    choice.servers.clone_from(servers);
                }
            }
            let others = || models.keys().filter(|digest| **digest != choice.digest);
            if !choice.logged && others().next().is_some() {
                let others = others().map(|digest| full_name(name, digest)).collect();
                choice.logged = true;
                let reason = new.map_or(Reason::Standing, |(_, reason)| reason);
                chosen.push(NameChosen { name: name.clone(), digest: choice.digest, reason, others });
            }
        }
        self.candidates = candidates;
        chosen
    }

    /// The model that a name is to stand for from now on; `None` if nothing changes.
    fn choose(
        &self,
        name: &str,
        models: &BTreeMap<Digest, BTreeSet<PeerId>>,
        view: &View,
        now: Time,
    ) -> Option<(Digest, Reason)> {
        if let Some(known) = self.names.get(name) {
            let settled = known.seen.since(known.since) >= SETTLED;
            match models.contains_key(&known.digest) {
                true if settled => return None,
                true => {}
                false => {
                    let from_server = |servers: &BTreeSet<PeerId>| !servers.is_disjoint(&known.servers);
                    if let Some((successor, _)) = models.iter().find(|(_, servers)| from_server(servers)) {
                        return Some((*successor, Reason::Successor));
                    }
                    if settled && now.since(known.seen) < KEPT {
                        return None;
                    }
                }
            }
        }
        let placed = view.term.and_then(|term| view.advert(&term.master));
        let placed = placed.and_then(|master| {
            let mut named = master.placements.iter().filter(|placement| placement.name == name);
            named.find(|placement| models.contains_key(&placement.model)).map(|placement| placement.model)
        });
        if let Some(placed) = placed {
            return Some((placed, Reason::Master));
        }
        let standing = |digest: &Digest| -> (usize, Duration) {
            let has = |peer: &PeerId| {
                let advert = view.nodes.get(peer);
                advert.is_some_and(|advert| {
                    advert.models.iter().any(|model| model.digest == *digest && (model.served || model.whole))
                })
            };
            let holders = self.known.iter().filter(|(peer, _)| has(peer)).map(|(_, since)| now.since(*since));
            let standing: Vec<Duration> = holders.filter(|standing| *standing >= STANDING).collect();
            (standing.len(), standing.iter().sum())
        };
        let mut ranked: Vec<_> = models.keys().map(|digest| (standing(digest), *digest)).collect();
        ranked.sort_by_key(|(standing, digest)| (std::cmp::Reverse(*standing), *digest));
        match ranked.as_slice() {
            [(best, digest), (next, _), ..] if best > next => Some((*digest, Reason::Standing)),
            [_, _, ..] if self.of(name).is_some_and(|known| models.contains_key(&known)) => None,
            [(_, digest), ..] => Some((*digest, Reason::Order)),
            [] => None,
        }
    }
}

/// The served models of a view.
fn candidates(view: &View) -> Candidates {
    let counted = served(view);
    let mut candidates = Candidates::new();
    for advert in view.everyone() {
        for model in advert.models.iter().filter(|model| model.served && counted.contains_key(&model.digest)) {
            let models = candidates.entry(model.name.clone()).or_default();
            models.entry(model.digest).or_default().insert(advert.peer);
        }
    }
    candidates
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pool::placed::{PlacedStage, Placement};
    use crate::pool::{ModelAdvert, ModelSize, Term, advert_of};
    use crate::test_peers::peer;

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    /// A view of node 100 in which each of these nodes serves a model called `tiny`. Node 1 is the master, if it is there,
    /// and places `placed` under that name.
    fn view(nodes: &[(u64, u8)], placed: Option<u8>) -> View {
        let term = Term { counter: 1, master: peer(1) };
        let advert = |(number, model): &(u64, u8)| {
            let mut advert = advert_of(peer(*number));
            advert.models.push(ModelAdvert {
                digest: digest(*model),
                name: "tiny".to_owned(),
                served: true,
                whole: true,
                split: false,
                pinned: None,
                size: ModelSize::default(),
            });
            advert.term = Some(term);
            let stages = vec![PlacedStage { peer: peer(1), layers: 0..1 }];
            advert.placements.extend(placed.filter(|_| *number == 1).map(|model| Placement {
                model: digest(model),
                name: "tiny".to_owned(),
                epoch: 1,
                term,
                stages: stages.clone(),
            }));
            (advert.peer, Arc::new(advert))
        };
        let own = Arc::new(advert_of(peer(100)));
        let nodes = nodes.iter().map(advert).collect();
        View { local: own.peer, own, term: Some(term), nodes, connected: BTreeSet::new() }
    }

    /// The choice after these views, one every so many seconds.
    fn chosen(every: u64, views: &[View]) -> u8 {
        let mut choices = NameChoices::default();
        for (at, view) in views.iter().enumerate() {
            choices.update(view, &[], Time::from_secs(1 + at as u64 * every));
        }
        choices.of("tiny").unwrap().as_bytes()[0]
    }

    #[test]
    fn a_poisoned_model_under_a_known_name_never_gets_it() {
        let (owner, liar) = ((2, 0xab), (3, 0x01));
        // Later, with a smaller digest, for a long time, and by more and more nodes.
        let (before, after) = (view(&[owner], None), view(&[owner, liar], None));
        let more = view(&[owner, liar, (4, 0x01), (5, 0x01), (6, 0x01)], None);
        assert_eq!(chosen(40, &[before.clone(), before.clone(), after, more.clone(), more.clone(), more]), 0xab);
        // The owner is gone for some minutes.
        let without = view(&[liar], None);
        assert_eq!(chosen(40, &[before.clone(), before.clone(), without.clone(), without.clone()]), 0xab);
        let rest = std::iter::repeat_n(without, 20);
        assert_eq!(chosen(40, &[before.clone(), before].into_iter().chain(rest).collect::<Vec<_>>()), 0x01);
    }

    #[test]
    fn a_node_that_just_joined_follows_the_master_and_not_the_order_of_arrival() {
        let (liar_first, both) = (view(&[(3, 0x01)], None), view(&[(1, 0xab), (3, 0x01)], Some(0xab)));
        assert_eq!(chosen(1, &[liar_first.clone(), both.clone()]), 0xab);
        assert_eq!(chosen(40, &[liar_first.clone(), liar_first, both]), 0x01, "a settled choice stays");
    }

    #[test]
    fn without_a_master_the_most_nodes_of_standing_count() {
        let all = view(&[(2, 0xab), (4, 0xab), (3, 0x01)], None);
        assert_eq!(chosen(100, &[view(&[], None), all.clone()]), 0x01, "nobody has standing at first");
        assert_eq!(chosen(100, &[view(&[], None), all.clone(), all.clone()]), 0xab, "until it is settled, they count");
    }

    #[test]
    fn the_same_node_may_replace_its_model_and_an_own_file_comes_first() {
        assert_eq!(chosen(40, &[view(&[(2, 0xab)], None), view(&[(2, 0xab)], None), view(&[(2, 0x55)], None)]), 0x55);
        let mut choices = NameChoices::default();
        let own = [("tiny".to_owned(), Some(digest(0xee)))];
        choices.update(&view(&[(2, 0xab)], Some(0xab)), &[], Time::from_secs(1));
        let told = choices.update(&view(&[(2, 0xab)], Some(0xab)), &own, Time::from_secs(100));
        assert_eq!((choices.of("tiny"), told[0].reason), (Some(digest(0xee)), Reason::OwnFile));
        assert_eq!(told[0].others, ["tiny@abababab"]);
        assert_eq!(choices.listed("tiny", &digest(0xab)), "tiny@abababab");
        assert!(choices.update(&view(&[(2, 0xab)], Some(0xab)), &own, Time::from_secs(101)).is_empty(), "told once");
    }
}
