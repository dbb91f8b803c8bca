//! A placement that is in force, and how it gets on as its nodes say: forming, ready, parted, or of no use any more. It judges
//! one placement and makes none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;

use super::survey;
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
    pub(super) made: Instant,
    /// The run of each stage's node.
    incarnations: Vec<u64>,
    /// How each stage was last, and since when.
    progress: Vec<(Option<StageState>, Instant)>,
    /// Since when its chain is broken though all its nodes are there.
    parted: Option<Instant>,
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
        since: Instant,
        by: Vec<PeerId>,
    },
}

impl Running {
    pub(super) fn new(placement: Placement, view: &View, now: Instant) -> Running {
        let incarnation = |peer| view.standing(peer).map_or(0, |standing| standing.incarnation);
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
        new.filter_map(|peer| Some((peer, view.standing(&peer)?.incarnation))).collect()
    }

    /// How it is; `answering`: whether all its stages have been ready.
    pub(super) fn health(&mut self, view: &View, now: Instant, answering: bool) -> Health {
        let (mut blamed, mut gone) = (Vec::new(), Vec::new());
        let mut broken = !survey::is_linked(view, &self.placement);
        let mut ready = true;
        for (at, stage) in self.placement.stages.iter().enumerate() {
            let standing = view.standing(&stage.peer).filter(|standing| standing.works);
            if standing.map(|standing| standing.incarnation) != Some(self.incarnations[at]) {
                broken = true;
                gone.push(stage.peer);
                continue;
            }
            let state = survey::stage_state(view, &self.placement, at);
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
            if now.saturating_duration_since(*since) >= most {
                broken = true;
                blamed.push(stage.peer);
            }
        }
        if broken {
            return Health::Broken { blamed, gone };
        }
        let by = survey::broken_at(view, &self.placement);
        if !by.is_empty() {
            return Health::Parted { since: *self.parted.get_or_insert(now), by };
        }
        if ready { Health::Ready } else { Health::Forming }
    }
}
