//! The health of one current placement, as its nodes advertise it: forming, ready, disconnected or broken. No placement is
//! made here.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;

use libp2p_identity::PeerId;

use super::pool_facts;
use super::{PlacedStage, Placement};
use crate::pool::{StageState, View};

/// Time within which a node must advertise a stage that it was given.
const STAGE_ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// Time without progress after which fetching a stage's weights counts as failed.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Time after which loading a stage counts as failed. Packing the largest stage takes less.
const LOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// A current placement.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) placement: Placement,
    /// When this node decided it or learned of it.
    pub(super) made: Time,
    /// The incarnation of each stage's node.
    incarnations: Vec<u64>,
    /// The last advertised state of each stage, and since when.
    progress: Vec<(Option<StageState>, Time)>,
    /// Time since which the chain has failed although every node is present.
    disconnected_since: Option<Time>,
}

/// The health of a placement.
pub(super) enum Health {
    Ready,
    Forming,
    /// The placement can no longer serve.
    Broken {
        /// Nodes that caused the failure.
        suspects: Vec<PeerId>,
        /// Nodes that are gone or have restarted.
        gone: Vec<PeerId>,
    },
    /// Every node is present and its stage ready, but the chain failed. Which node or connection caused it is unknown.
    Disconnected {
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
            disconnected_since: None,
        }
    }

    /// The nodes of a plan that have no stage of this placement, each with its incarnation.
    pub(super) fn newcomers(&self, stages: &[PlacedStage], view: &View) -> BTreeMap<PeerId, u64> {
        let has = |peer: &PeerId| self.placement.stages.iter().any(|stage| stage.peer == *peer);
        let new = stages.iter().map(|stage| stage.peer).filter(|peer| !has(peer));
        new.filter_map(|peer| Some((peer, view.advert(&peer)?.incarnation))).collect()
    }

    /// Current health. `answering`: all stages have been ready before.
    pub(super) fn health(&mut self, view: &View, now: Time, answering: bool) -> Health {
        let (mut suspects, mut gone) = (Vec::new(), Vec::new());
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
                suspects.push(stage.peer);
            } else if answering && state != Some(&StageState::Ready) {
                broken = true;
            }
            let (before, since) = &mut self.progress[at];
            if before.as_ref() != state {
                (*before, *since) = (state.cloned(), now);
            }
            let most = match state {
                None => STAGE_ACK_TIMEOUT,
                Some(StageState::Fetching { .. }) => FETCH_TIMEOUT,
                Some(StageState::Loading) => LOAD_TIMEOUT,
                Some(StageState::Ready | StageState::Failed(_)) => continue,
            };
            if now.since(*since) >= most {
                broken = true;
                suspects.push(stage.peer);
            }
        }
        if broken {
            return Health::Broken { suspects, gone };
        }
        let by = pool_facts::broken_at(view, &self.placement);
        if !by.is_empty() {
            return Health::Disconnected { since: *self.disconnected_since.get_or_insert(now), by };
        }
        if ready { Health::Ready } else { Health::Forming }
    }
}
