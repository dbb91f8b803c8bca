//! When a model whose stages cannot be loaded is tried again: its file may be no model, and every further node would fetch it.

use std::time::Duration;

use super::pool_facts;
use super::running::{Health, Running};
use crate::Time;
use crate::backoff::doubled;
use crate::pool::{StageState, View};

/// Consecutive placements with a stage that cannot be loaded after which the model pauses.
const FAILURES_BEFORE_PAUSE: u32 = 3;

/// That pause; doubled with each further failure.
const PAUSE: Duration = Duration::from_secs(10);

/// Upper bound of that pause.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Consecutive placements of one model with a stage that could not be loaded.
#[derive(Debug, Default)]
pub(super) struct LoadFailures {
    count: u32,
    last: Time,
}

impl LoadFailures {
    /// Records that every stage of a placement was loaded.
    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    /// Records the health of a placement that forms; returns why the model pauses, if it does from now on.
    pub(super) fn observe(&mut self, forming: &Running, health: &Health, view: &View, now: Time) -> Option<String> {
        let Health::Broken { suspects, .. } = health else { return None };
        let stages = &forming.placement.stages;
        let failed = (0..stages.len()).find_map(|at| match pool_facts::stage_state(view, &forming.placement, at) {
            Some(StageState::Failed(why)) if suspects.contains(&stages[at].peer) => Some((stages[at].peer, why)),
            _ => None,
        });
        let (peer, why) = failed?;
        (self.count, self.last) = (self.count.saturating_add(1), now);
        let name = view.advert(&peer).map_or_else(|| peer.to_string(), |advert| advert.name.clone());
        let count = self.count;
        (count >= FAILURES_BEFORE_PAUSE).then(|| {
            format!(
                "{count} placements in a row could not be loaded, the last one on {name}: {why}; check the file; it is tried again later"
            )
        })
    }

    /// Whether the model may be placed.
    pub(super) fn allow(&self, now: Time) -> bool {
        match self.count.checked_sub(FAILURES_BEFORE_PAUSE) {
            Some(further) => now.since(self.last) >= doubled(PAUSE, further, PAUSE_MAX),
            None => true,
        }
    }
}
