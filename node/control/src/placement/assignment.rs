//! What a node serves that was started without models. The master assigns it what the pool needs, by a placement on this node
//! alone; models whose every server is busy it takes on by itself. Nothing is loaded here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::pool_facts;
use super::{ModelNeeds, Placement};
use crate::Time;
use crate::devices::models_bytes;
use crate::pool::{Advert, StageState, Term, View};

/// Time for which every server of a model is busy before another node takes it on: a burst of requests is over sooner.
const BUSY: Duration = Duration::from_secs(3);

/// Delay of each further node that could take a busy model on. The one before it has advertised the model by then.
const STAGGER: Duration = Duration::from_secs(3);

/// Time for which an assignment lasts without a placement: a new master announces itself before it has published what it places.
const UNPLACED: Duration = Duration::from_secs(10);

/// Time after which a model that this node took on, and does not serve, is taken on again.
const RETRY: Duration = Duration::from_secs(60);

/// What follows for the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assigned {
    /// The node serves a model from now on that no node that was asked to serve it can; to be logged.
    To {
        /// Name of the model.
        name: String,
        /// Whether its file was on the node's disk.
        on_disk: bool,
    },
    /// The assignment was decided again and is the same; to be logged.
    Still {
        /// Name of the model.
        name: String,
    },
    /// The node is to serve a model besides the nodes that do.
    TakeOn {
        /// The model.
        model: Digest,
        /// Name of the model.
        name: String,
    },
}

/// What the node knows of itself.
#[derive(Clone, Debug, Default)]
pub struct OwnFacts {
    /// Models whose whole file was on the disk before their layers were loaded.
    pub on_disk: BTreeSet<Digest>,
    /// Free memory for models, in bytes.
    pub free_bytes: u64,
}

/// The decision behind an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decision {
    term: Term,
    epoch: u64,
}

#[derive(Debug)]
struct Known {
    decision: Decision,
    /// Since when no master places the model.
    unplaced_since: Option<Time>,
    /// Whether it was logged that nothing changes.
    confirmed: bool,
}

/// The assignments of a node that was started without models.
#[derive(Debug, Default)]
pub struct Assignments {
    known: BTreeMap<Digest, Known>,
    /// Since when every server of a model is busy.
    busy: BTreeMap<Digest, Time>,
    /// When this node took models on.
    taken: BTreeMap<Digest, Time>,
}

impl Assignments {
    /// Learns from a view.
    pub fn update(&mut self, view: &View, own: &OwnFacts, now: Time) -> Vec<Assigned> {
        let mut assigned = self.follow(view, own, now);
        assigned.extend(self.take_on(view, own, now));
        assigned
    }

    /// Follows the placements on this node alone.
    fn follow(&mut self, view: &View, own: &OwnFacts, now: Time) -> Vec<Assigned> {
        // While the master's advert is unknown, what it decided last counts.
        let Some(placements) = pool_facts::in_force(view) else { return Vec::new() };
        let mut current: BTreeMap<Digest, &Placement> = BTreeMap::new();
        let placed: BTreeSet<Digest> = placements.iter().map(|placement| placement.model).collect();
        for placement in placements {
            let is_ours = |placement: &Placement| placement.stages.len() == 1 && placement.stages[0].peer == view.local;
            let newest = current.get(&placement.model).is_none_or(|known| known.epoch < placement.epoch);
            if is_ours(placement) && newest && !serves(&view.own, &placement.model) {
                current.insert(placement.model, placement);
            }
        }
        self.known.retain(|model, known| {
            if current.contains_key(model) {
                known.unplaced_since = None;
                return true;
            }
            let since = *known.unplaced_since.get_or_insert(now);
            !placed.contains(model) && now.since(since) < UNPLACED
        });
        let mut assigned = Vec::new();
        for (model, placement) in current {
            let decision = Decision { term: placement.term, epoch: placement.epoch };
            let name = placement.name.clone();
            match self.known.get_mut(&model) {
                Some(known) if known.decision == decision => {}
                Some(known) => {
                    known.decision = decision;
                    if !std::mem::replace(&mut known.confirmed, true) {
                        assigned.push(Assigned::Still { name });
                    }
                }
                // Where the file came from is known once the layers are being loaded.
                None if is_loaded(view, placement) => {
                    self.known.insert(model, Known { decision, unplaced_since: None, confirmed: false });
                    let on_disk = own.on_disk.contains(&model);
                    assigned.push(Assigned::To { name, on_disk });
                }
                None => {}
            }
        }
        assigned
    }

    /// The model that this node takes on, because every node that serves it is busy. A node takes on one.
    fn take_on(&mut self, view: &View, own: &OwnFacts, now: Time) -> Option<Assigned> {
        self.taken.retain(|model, since| serves(&view.own, model) || now.since(*since) < RETRY);
        let models = pool_facts::models(view);
        self.busy.retain(|model, _| models.get(model).is_some_and(|needs| is_busy(view, needs)));
        for (model, _) in models.iter().filter(|(_, needs)| is_busy(view, needs)) {
            self.busy.entry(*model).or_insert(now);
        }
        if !view.own.works || !self.taken.is_empty() || view.own.models.iter().any(|model| model.served) {
            return None;
        }
        let due = self.busy.iter().filter(|(model, since)| {
            let Some(needs) = models.get(model) else { return false };
            let fits = needs.stage_bytes(&(0..needs.size.layers)) <= own.free_bytes;
            let delay = BUSY + STAGGER.saturating_mul(before(view, needs));
            fits && may_take(&view.own, needs) && now.since(**since) >= delay
        });
        // What is on the disk first, then what has been busy for longest.
        let order = |(model, since): &(&Digest, &Time)| {
            (!models.get(model).is_some_and(|needs| needs.files.contains(&view.local)), **since, **model)
        };
        let (model, _) = due.min_by_key(order)?;
        self.taken.insert(*model, now);
        Some(Assigned::TakeOn { model: *model, name: models.get(model)?.name.clone() })
    }
}

fn serves(advert: &Advert, model: &Digest) -> bool {
    advert.models.iter().any(|known| known.served && known.digest == *model)
}

/// Whether the node's own stage of a placement has its weights.
fn is_loaded(view: &View, placement: &Placement) -> bool {
    matches!(pool_facts::stage_state(view, placement, 0), Some(StageState::Loading | StageState::Ready))
}

/// Whether each of a model's servers has requests that wait. Models that are split, or pinned to nodes, stay where they are.
fn is_busy(view: &View, needs: &ModelNeeds) -> bool {
    let of_model = |advert: &Advert| advert.serving.iter().find(|serving| serving.model == needs.digest).copied();
    let mut servers = view.everyone().filter_map(|advert| of_model(advert)).peekable();
    let is_free = !needs.split && needs.pins.is_empty();
    is_free && servers.peek().is_some() && servers.all(|server| server.waiting > 0)
}

/// Whether a node has the file of a model, or may fetch it.
fn may_take(advert: &Advert, needs: &ModelNeeds) -> bool {
    advert.works && (needs.fetched || needs.files.contains(&advert.peer))
}

/// How many other nodes take a model on before this one: those with the file first.
fn before(view: &View, needs: &ModelNeeds) -> u32 {
    let bytes = needs.stage_bytes(&(0..needs.size.layers));
    let is_candidate = |advert: &Advert| {
        let idle = !advert.models.iter().any(|model| model.served) && advert.serving.is_empty();
        idle && may_take(advert, needs) && models_bytes(advert.memory_bytes) >= bytes
    };
    let order = |peer: &PeerId| (!needs.files.contains(peer), *peer);
    let own = order(&view.local);
    let others = view.nodes.values().filter(|advert| is_candidate(advert) && order(&advert.peer) < own);
    u32::try_from(others.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::placement::PlacedStage;
    use crate::pool::{ModelAdvert, ModelSize, ServingAdvert, StageAdvert, advert_of};
    use crate::test_peers::peer;

    const MODEL: Digest = Digest([1; 32]);
    const LOCAL: u64 = 1;
    const OWNER: u64 = 2;

    fn model(served: bool, whole: bool) -> ModelAdvert {
        let size = ModelSize { layers: 4, layer_bytes: 1 << 20, ..ModelSize::default() };
        ModelAdvert { digest: MODEL, name: "tiny".to_owned(), served, whole, split: false, pinned: None, size }
    }

    fn term(counter: u64) -> Term {
        Term { counter, master: peer(OWNER) }
    }

    /// A pool of this node and an owner that is its master, which places the model on these nodes.
    fn pool(counter: u64, epoch: u64, stages: &[u64], state: StageState) -> View {
        let layers = |at: usize| at as u32..at as u32 + 1;
        let placed = stages.iter().enumerate().map(|(at, node)| PlacedStage { peer: peer(*node), layers: layers(at) });
        let placement =
            Placement { model: MODEL, name: "tiny".to_owned(), epoch, term: term(counter), stages: placed.collect() };
        let mut owner = advert_of(peer(OWNER));
        (owner.models, owner.term) = (vec![model(true, true)], Some(term(counter)));
        owner.placements = Vec::from_iter((!stages.is_empty()).then_some(placement));
        let mut own = advert_of(peer(LOCAL));
        let (session_bytes, broken, pace) = (0, None, None);
        own.stages = vec![StageAdvert { model: MODEL, layers: 0..1, epoch, state, session_bytes, broken, pace }];
        let nodes = [(peer(OWNER), Arc::new(owner))].into();
        let connected = BTreeSet::from([peer(OWNER)]);
        View { local: peer(LOCAL), own: Arc::new(own), term: Some(term(counter)), nodes, connected }
    }

    fn facts(on_disk: bool) -> OwnFacts {
        OwnFacts { on_disk: on_disk.then_some(MODEL).into_iter().collect(), free_bytes: 1 << 30 }
    }

    fn to(on_disk: bool) -> Assigned {
        Assigned::To { name: "tiny".to_owned(), on_disk }
    }

    #[test]
    fn a_placement_on_a_node_alone_is_its_assignment_once_its_weights_are_there() {
        let mut assignments = Assignments::default();
        let fetching = StageState::Fetching { done: 0, total: 1 };
        let mut update = |view: &View, on_disk| assignments.update(view, &facts(on_disk), Time::ZERO);
        assert!(update(&pool(1, 1, &[LOCAL], fetching), true).is_empty());
        assert_eq!(update(&pool(1, 1, &[LOCAL], StageState::Loading), true), [to(true)]);
        assert!(update(&pool(1, 1, &[LOCAL], StageState::Ready), true).is_empty());
        let still = Assigned::Still { name: "tiny".to_owned() };
        assert!(update(&pool(2, 1, &[], StageState::Ready), true).is_empty(), "a new master has published nothing yet");
        assert_eq!(update(&pool(2, 1, &[LOCAL], StageState::Ready), true), [still], "and says the same");
        assert!(update(&pool(3, 1, &[LOCAL], StageState::Ready), true).is_empty(), "which is said once");
        assert!(update(&pool(3, 2, &[LOCAL, OWNER], StageState::Ready), true).is_empty(), "it has a part");
        assert_eq!(update(&pool(3, 3, &[LOCAL], StageState::Ready), false), [to(false)]);
        let later = |assignments: &mut Assignments, stages: &[u64], now| {
            assignments.update(&pool(3, 3, stages, StageState::Ready), &facts(true), now)
        };
        assert!(later(&mut assignments, &[], Time::from_secs(1)).is_empty());
        assert!(later(&mut assignments, &[], Time::from_secs(1) + UNPLACED).is_empty());
        assert_eq!(later(&mut assignments, &[LOCAL], Time::from_secs(60)), [to(true)], "it is assigned again");
    }

    #[test]
    fn an_owner_is_assigned_nothing() {
        let mut view = pool(1, 1, &[LOCAL], StageState::Ready);
        let mut own = (*view.own).clone();
        own.models = vec![model(true, true)];
        view.own = Arc::new(own);
        assert!(Assignments::default().update(&view, &facts(true), Time::ZERO).is_empty());
    }

    /// The same pool, whose owner answers the model with so many requests waiting, and an idle node for each of these numbers.
    fn busy(waiting: u16, idle: &[u64]) -> View {
        let mut view = pool(1, 1, &[], StageState::Ready);
        let mut owner = (**view.nodes.get(&peer(OWNER)).unwrap()).clone();
        owner.serving = vec![ServingAdvert { model: MODEL, places: 8, running: 8, waiting, tokens_per_s: 9 }];
        view.nodes.insert(peer(OWNER), Arc::new(owner));
        for number in idle {
            view.nodes.insert(peer(*number), Arc::new(advert_of(peer(*number))));
        }
        let mut own = (*view.own).clone();
        own.stages.clear();
        view.own = Arc::new(own);
        view
    }

    /// Seconds after which a node takes the model on.
    fn taken_after(view: &View, own: &OwnFacts) -> Option<u64> {
        let mut assignments = Assignments::default();
        (0..60).find(|second| {
            let assigned = assignments.update(view, own, Time::from_secs(*second));
            let take_on = Assigned::TakeOn { model: MODEL, name: "tiny".to_owned() };
            assert!(assigned.iter().all(|assigned| *assigned == take_on));
            !assigned.is_empty()
        })
    }

    #[test]
    fn a_model_whose_servers_are_all_busy_for_a_while_is_taken_on_by_one_idle_node() {
        assert_eq!(taken_after(&busy(1, &[]), &facts(false)), Some(BUSY.as_secs()));
        assert_eq!(taken_after(&busy(0, &[]), &facts(false)), None);
        assert_eq!(taken_after(&busy(1, &[]), &OwnFacts { free_bytes: 4 << 20, ..facts(false) }), Some(BUSY.as_secs()));
        assert_eq!(taken_after(&busy(1, &[]), &OwnFacts { free_bytes: (4 << 20) - 1, ..facts(false) }), None);
        let others = [3, 4, 5];
        let earlier = others.iter().filter(|other| peer(**other) < peer(LOCAL)).count() as u64;
        let after = BUSY.as_secs() + earlier * STAGGER.as_secs();
        assert_eq!(taken_after(&busy(1, &others), &facts(false)), Some(after));
        let mut has_file = busy(1, &others);
        let mut own = (*has_file.own).clone();
        own.models = vec![model(false, true)];
        has_file.own = Arc::new(own);
        assert_eq!(taken_after(&has_file, &facts(true)), Some(BUSY.as_secs()), "its own file comes first");
        let mut split = busy(1, &[]);
        let mut owner = (**split.nodes.get(&peer(OWNER)).unwrap()).clone();
        owner.models[0].split = true;
        split.nodes.insert(peer(OWNER), Arc::new(owner));
        assert_eq!(taken_after(&split, &facts(false)), None);
    }

    proptest! {
        #[test]
        fn each_assignment_is_logged_once_and_confirmed_at_most_once(
            steps in prop::collection::vec((1u64..4, 1u64..4, 0usize..3), 1..40),
        ) {
            let mut assignments = Assignments::default();
            let (mut began, mut logged, mut confirmed, mut is_assigned) = (0, 0, 0, false);
            for (counter, epoch, placed) in steps {
                let stages: &[u64] = [&[LOCAL][..], &[LOCAL, OWNER], &[]][placed];
                let view = pool(counter, epoch, stages, StageState::Ready);
                began += usize::from(placed == 0 && !is_assigned);
                is_assigned = placed == 0 || (placed == 2 && is_assigned);
                for assigned in assignments.update(&view, &facts(true), Time::ZERO) {
                    match assigned {
                        Assigned::To { .. } => logged += 1,
                        Assigned::Still { .. } => confirmed += 1,
                        Assigned::TakeOn { .. } => prop_assert!(false, "nobody is busy"),
                    }
                }
            }
            prop_assert_eq!(logged, began);
            prop_assert!(confirmed <= began);
        }
    }
}
