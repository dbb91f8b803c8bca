//! A placement that is in force, and how it gets on as its nodes say: forming, ready, parted, or of no use any more. It judges
//! one placement and makes none.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;

use libp2p_identity::PeerId;

use super::pool_facts;
use super::{PlacedStage, Placement};
use crate::pool::{StageState, View};

/// A node that says nothing of its stage in this time has not heard, or does not obey.
const HEED: Duration = Duration::from_secs(10);

/// Weights that do not come on in this time do not come.
const FETCH_STALL: Duration = Duration::from_secs(60);

/// Packing the largest stage takes less.
const LOAD_STALL: Duration = Duration::from_secs(600);

/// A placement and how it gets on.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) placement: Placement,
    /// When it was decided, or heard of.
    pub(super) made: Time,
    /// The run of each stage's node.
    incarnations: Vec<u64>,
    /// How each stage was last, and since when.
    progress: Vec<(Option<StageState>, Time)>,
    /// Since when its chain is broken though all its nodes are there.
    parted: Option<Time>,
}

/// How a placement is that has not been given up.
pub(super) enum Health {
    Ready,
    Forming,
    /// It will not do any more.
    Broken {
        /// Nodes that are to blame.
        blamed: Vec<PeerId>,
        /// Nodes that are not there any more, or begun anew.
        gone: Vec<PeerId>,
    },
    /// Every node is there and as it should be, and the chain broke all the same, for so long now: these say so, and which of
    /// them or of the connections between them is to blame nobody can tell.
    Parted {
        since: Time,
        by: Vec<PeerId>,
    },
}

impl Running {
    pub(super) fn new(placement: Placement, view: &View, now: Time) -> Running {
        let incarnation = |peer| view.advert(peer).map_or(0, |advert| advert.incarnation);
        Running {
            incarnations: placement.stages.iter().map(|stage| incarnation(&stage.peer)).collect(),
            progress: vec![(None, now); placement.stages.len()],
            placement,
            made: now,
            parted: None,
        }
    }

    /// Those of a plan's nodes that have no part in this, with their runs.
    pub(super) fn newcomers(&self, stages: &[PlacedStage], view: &View) -> BTreeMap<PeerId, u64> {
        let has = |peer: &PeerId| self.placement.stages.iter().any(|stage| stage.peer == *peer);
        let new = stages.iter().map(|stage| stage.peer).filter(|peer| !has(peer));
        new.filter_map(|peer| Some((peer, view.advert(&peer)?.incarnation))).collect()
    }

    /// How it is; `answering`: whether all its stages have been ready.
    pub(super) fn health(&mut self, view: &View, now: Time, answering: bool) -> Health {
        let (mut blamed, mut gone) = (Vec::new(), Vec::new());
        let mut broken = !pool_facts::is_linked(view, &self.placement);
        let mut ready = true;
        for (at, stage) in self.placement.stages.iter().enumerate() {
            let advert = view.advert(&stage.peer).filter(|advert| advert.works);
            if advert.map(|advert| advert.incarnation) != Some(self.incarnations[at]) {
                broken = true;
                gone.push(stage.peer);
                continue;
            }
            let state = pool_facts::stage_state(view, &self.placement, at);
            ready &= state == Some(&StageState::Ready);
            if matches!(state, Some(StageState::Failed(_))) {
                (broken, ready) = (true, false);
                blamed.push(stage.peer);
            } else if answering && state != Some(&StageState::Ready) {
                broken = true;
            }
            let (before, since) = &mut self.progress[at];
            if before.as_ref() != state {
                (*before, *since) = (state.cloned(), now);
            }
            let most = match state {
                None => HEED,
                Some(StageState::Fetching { .. }) => FETCH_STALL,
                Some(StageState::Loading) => LOAD_STALL,
                Some(StageState::Ready | StageState::Failed(_)) => continue,
            };
            if now.since(*since) >= most {
                broken = true;
                blamed.push(stage.peer);
            }
        }
        if broken {
            return Health::Broken { blamed, gone };
        }
        let by = pool_facts::broken_at(view, &self.placement);
        if !by.is_empty() {
            return Health::Parted { since: *self.parted.get_or_insert(now), by };
        }
        if ready { Health::Ready } else { Health::Forming }
    }
}
