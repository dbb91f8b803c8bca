//! The models that other nodes served a short while ago, and which nodes: a node that is cut off, or has just started, tells a
//! model that is away from one that never was there. Nothing is served here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pangea_units::Digest;

use super::models_said::ModelsSaid;
use super::served::{MODELS_MAX, served};
use super::{View, is_full_name};
use crate::Time;

/// Time for which a model is remembered after the last node that served it left: a link heals, and a node restarts.
pub const REMEMBERED: Duration = Duration::from_secs(600);

/// Time after a node found a master in which it hears of every node: each one publishes its advert again for a newcomer, at once.
const HEARD_OF_ALL: Duration = Duration::from_secs(2);

/// Nodes named for each model: people look for one of them.
const NODES_MAX: usize = 4;

/// The models that other nodes of the pool serve, or served within [`REMEMBERED`].
#[derive(Debug, Default)]
pub struct ServedLately {
    models: BTreeMap<(String, Digest), Holders>,
    /// What the models follow from.
    said: ModelsSaid,
    /// Whether this node was told of peers, and may have a pool before it hears of one.
    expects_peers: bool,
    /// When this node first followed another node's term.
    joined: Option<Time>,
    /// Whether it ever heard of another node, and when it first led itself without.
    has_met: bool,
    alone: Option<Time>,
    is_joining: bool,
}

#[derive(Debug)]
struct Holders {
    /// Names of the nodes that served the model last.
    nodes: BTreeSet<String>,
    /// Whether they still serve it, and when they did last.
    present: bool,
    last: Time,
}

impl ServedLately {
    /// Records that this node was told of peers.
    pub fn expect_peers(&mut self) {
        (self.expects_peers, self.is_joining) = (true, true);
    }

    /// Learns from a view.
    pub fn update(&mut self, view: &View, now: Time) {
        self.has_met |= !view.nodes.is_empty();
        self.is_joining = match view.term {
            None => self.expects_peers || !view.nodes.is_empty(),
            // A node that starts while its cable is unplugged leads nobody, and still knows nothing of its pool.
            Some(term) if term.master == view.local => {
                self.expects_peers && !self.has_met && now.since(*self.alone.get_or_insert(now)) < REMEMBERED
            }
            Some(_) => now.since(*self.joined.get_or_insert(now)) < HEARD_OF_ALL,
        };
        if self.said.changed(view) {
            self.count(view, now);
        }
        for holders in self.models.values_mut().filter(|holders| holders.present) {
            holders.last = now;
        }
        self.models.retain(|_, holders| now.since(holders.last) < REMEMBERED);
    }

    /// Records which nodes serve which models.
    fn count(&mut self, view: &View, now: Time) {
        let counted = served(view);
        let mut present: BTreeMap<(&str, Digest), BTreeSet<String>> = BTreeMap::new();
        for advert in view.nodes.values() {
            let models = advert.models.iter().filter(|model| model.served && counted.contains_key(&model.digest));
            for model in models {
                let nodes = present.entry((&model.name, model.digest)).or_default();
                if nodes.len() < NODES_MAX {
                    nodes.insert(advert.name.clone());
                }
            }
        }
        self.models.retain(|(_, digest), _| !view.is_dropped(digest));
        self.models.values_mut().for_each(|holders| holders.present = false);
        for ((name, digest), nodes) in present {
            self.models.insert((name.to_owned(), digest), Holders { nodes, present: true, last: now });
        }
        while self.models.len() > MODELS_MAX {
            let oldest = self.models.iter().min_by_key(|(_, holders)| holders.last).map(|(model, _)| model.clone());
            oldest.map(|model| self.models.remove(&model));
        }
    }

    /// Whether this node looks for its pool, or has not heard of all its nodes yet.
    pub fn is_joining(&self) -> bool {
        self.is_joining
    }

    /// The models that no other node serves any more: name, digest, and names of the nodes that served it last.
    pub fn away(&self) -> impl Iterator<Item = (&str, &Digest, &BTreeSet<String>)> {
        let away = self.models.iter().filter(|(_, holders)| !holders.present);
        away.map(|((name, digest), holders)| (name.as_str(), digest, &holders.nodes))
    }

    /// Names of the nodes that served a model with this name, or with this full name, last; `None` if none did lately.
    pub fn nodes(&self, requested: &str) -> Option<BTreeSet<&str>> {
        let is_meant = |name: &str, digest: &Digest| name == requested || is_full_name(requested, name, digest);
        let meant = self.models.iter().filter(|((name, digest), _)| is_meant(name, digest));
        let mut nodes = meant.flat_map(|(_, holders)| &holders.nodes).map(String::as_str).peekable();
        nodes.peek()?;
        Some(nodes.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pool::{ModelAdvert, ModelSize, Term, advert_of};
    use crate::test_peers::peer;

    /// A pool in which each of these nodes serves a model with this name and this digest.
    fn pool(nodes: &[(&str, &str, u8)]) -> View {
        let node = |(number, (node, model, byte)): (u64, &(&str, &str, u8))| {
            let model = ModelAdvert {
                digest: Digest::from_bytes([*byte; 32]),
                name: (*model).to_owned(),
                served: true,
                whole: true,
                split: false,
                pinned: None,
                size: ModelSize::default(),
            };
            let mut advert = advert_of(peer(number));
            (advert.name, advert.models) = ((*node).to_owned(), vec![model]);
            (peer(number), Arc::new(advert))
        };
        let nodes = (1..).zip(nodes).map(node).collect();
        View { local: peer(0), own: Arc::new(advert_of(peer(0))), term: None, nodes, connected: BTreeSet::new() }
    }

    #[test]
    fn a_model_whose_nodes_left_is_remembered_with_their_names_for_a_while() {
        let mut lately = ServedLately::default();
        let serving = [("desk", "tiny", 1), ("attic", "tiny", 1), ("attic", "other", 2)];
        // As long as they say the same, they are present.
        lately.update(&pool(&serving), Time::ZERO);
        lately.update(&pool(&serving), Time::from_secs(1));
        lately.update(&pool(&[]), Time::from_secs(2));
        assert_eq!(lately.nodes("tiny"), Some(BTreeSet::from(["attic", "desk"])));
        assert_eq!(lately.nodes("tiny@01010101"), Some(BTreeSet::from(["attic", "desk"])));
        assert_eq!((lately.nodes("tiny@02020202"), lately.nodes("tin")), (None, None), "nobody served these");
        lately.update(&pool(&[]), Time::from_secs(1) + REMEMBERED - Duration::from_millis(1));
        assert!(lately.nodes("other").is_some());
        lately.update(&pool(&[]), Time::from_secs(1) + REMEMBERED);
        assert_eq!(lately.nodes("other"), None);
    }

    #[test]
    fn a_node_that_has_not_heard_of_its_whole_pool_is_joining() {
        let mut lately = ServedLately::default();
        assert!(!lately.is_joining(), "it has no pool at all");
        lately.update(&pool(&[]), Time::from_secs(1));
        assert!(!lately.is_joining(), "nobody told it of a peer");
        lately.expect_peers();
        assert!(lately.is_joining());
        lately.update(&pool(&[]), Time::from_secs(1));
        assert!(lately.is_joining());
        let of = |master| View { term: Some(Term { counter: 1, master }), ..pool(&[]) };
        for (second, joining) in [(2, true), (3, true), (4, false), (5, false)] {
            lately.update(&of(peer(1)), Time::from_secs(second));
            assert_eq!(lately.is_joining(), joining, "{second}");
        }
        let mut alone = ServedLately::default();
        alone.update(&of(peer(0)), Time::from_secs(4));
        assert!(!alone.is_joining(), "nobody else was there, so it is the master");
    }

    #[test]
    fn a_node_that_leads_only_itself_waits_for_the_peers_that_it_was_told_of() {
        let own = |nodes| View { term: Some(Term { counter: 1, master: peer(0) }), ..pool(nodes) };
        let mut lately = ServedLately::default();
        lately.expect_peers();
        for (second, joining) in
            [(1, true), (60, true), (REMEMBERED.as_secs(), true), (REMEMBERED.as_secs() + 1, false)]
        {
            lately.update(&own(&[]), Time::from_secs(second));
            assert_eq!(lately.is_joining(), joining, "{second}");
        }
        let mut lately = ServedLately::default();
        lately.expect_peers();
        lately.update(&own(&[("desk", "tiny", 1)]), Time::from_secs(1));
        lately.update(&own(&[]), Time::from_secs(2));
        assert!(!lately.is_joining(), "it met its peers and leads them");
    }

    #[test]
    fn names_without_end_take_no_memory_without_end() {
        let mut lately = ServedLately::default();
        for number in 0..=MODELS_MAX as u64 {
            lately.update(&pool(&[("desk", &format!("model {number}"), 1)]), Time::from_secs(number));
        }
        assert_eq!(
            (lately.nodes("model 0"), lately.models.len()),
            (None, MODELS_MAX),
            "the one that left first is gone"
        );
        let nodes: Vec<String> = (0..=NODES_MAX).map(|number| format!("node {number}")).collect();
        let many: Vec<_> = nodes.iter().map(|node| (node.as_str(), "tiny", 1)).collect();
        lately.update(&pool(&many), Time::from_secs(100));
        assert_eq!(lately.nodes("tiny").map(|nodes| nodes.len()), Some(NODES_MAX));
    }
}
