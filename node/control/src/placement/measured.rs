//! The speeds of nodes for one model: measured by the frames of its stages where there were any, and estimated elsewhere from
//! what nodes say of themselves, in the proportion in which the measured nodes differ from their own claims. Besides, what the
//! hops of working chains take beyond their links: waking threads, and waiting for a core on a busy machine.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use libp2p_identity::PeerId;

use super::cost::WEIGHT_BITS;
use super::offer::{LinkSpeed, ModelNeeds, NodeOffer};
use super::pool_facts;
use crate::pool::{LayerSpeed, ModelSize, StageAdvert, StagePace, StageState, View};

/// Weight of the newest measurement in a remembered speed: one busy moment moves no layers.
const NEWEST_PART: f64 = 0.25;

/// Largest factor by which claims of unmeasured nodes are corrected, up or down.
const CORRECTION_MAX: f64 = 16.0;

/// Remembered speeds at most. Those of nodes that are gone are removed first.
const REMEMBERED_MAX: usize = 1024;

/// A part of a speed: zero while it is not measured.
type Rates = [f64; 2];

/// The speed that a stage's times amount to.
fn rates(size: &ModelSize, layers: &Range<u32>, pace: &StagePace) -> Rates {
    let layer_bytes = size.read_bytes() as f64 * f64::from(layers.end.saturating_sub(layers.start));
    let head_bytes = if layers.end == size.layers { size.head_bytes as f64 } else { 0.0 };
    let per_s = |amount: f64, time: Duration| if time.is_zero() { 0.0 } else { amount / time.as_secs_f64() };
    [per_s(layer_bytes + head_bytes, pace.step), per_s(layer_bytes * 8.0 / WEIGHT_BITS, pace.prompt_row)]
}

/// The stages of a model that are ready and measured.
fn paced<'a>(view: &'a View, needs: &'a ModelNeeds) -> impl Iterator<Item = (PeerId, &'a StageAdvert, StagePace)> {
    let ready = |stage: &&StageAdvert| stage.model == needs.digest && stage.state == StageState::Ready;
    view.everyone().flat_map(move |advert| {
        let stages = advert.stages.iter().filter(ready);
        stages.filter_map(|stage| Some((advert.peer, stage, stage.pace?)))
    })
}

/// The measured speeds of the nodes for one model.
#[derive(Clone, Debug, Default)]
pub(super) struct MeasuredSpeeds {
    nodes: BTreeMap<PeerId, Measured>,
    /// Seconds of each hop of working chains that neither their stages nor their links account for, once known.
    hop_s: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    rates: Rates,
    /// The last times, and the layers that took them.
    last: (StagePace, u32, u32),
}

impl MeasuredSpeeds {
    /// The speeds that the adverts of a view show.
    pub(super) fn of(view: &View, needs: &ModelNeeds) -> MeasuredSpeeds {
        let mut speeds = MeasuredSpeeds::default();
        speeds.observe(view, needs);
        speeds
    }

    /// Learns from the adverts of a view.
    pub(super) fn observe(&mut self, view: &View, needs: &ModelNeeds) {
        for (peer, stage, pace) in paced(view, needs) {
            let last = (pace, stage.layers.start, stage.layers.end);
            let newest = rates(&needs.size, &stage.layers, &pace);
            match self.nodes.get_mut(&peer) {
                Some(known) if known.last == last => {}
                Some(known) => {
                    known.last = last;
                    for (rate, newest) in known.rates.iter_mut().zip(newest) {
                        *rate = match (*rate, newest) {
                            (_, 0.0) => *rate,
                            (0.0, _) => newest,
                            _ => *rate + NEWEST_PART * (newest - *rate),
                        };
                    }
                }
                None => {
                    self.nodes.insert(peer, Measured { rates: newest, last });
                }
            }
        }
        if self.nodes.len() > REMEMBERED_MAX {
            self.nodes.retain(|peer, _| view.advert(peer).is_some());
        }
    }

    /// Learns what each hop of a working chain took besides its link.
    pub(super) fn observe_hops(&mut self, hop_s: f64) {
        let before_s = self.hop_s.unwrap_or(hop_s);
        self.hop_s = Some(before_s + NEWEST_PART * (hop_s - before_s));
    }

    /// The link between two nodes, with what hops take besides.
    pub(super) fn link(&self, view: &View, from: &PeerId, to: &PeerId) -> Option<LinkSpeed> {
        let link = pool_facts::link(view, from, to)?;
        let hop = Duration::try_from_secs_f64(self.hop_s.unwrap_or(0.0)).unwrap_or_default();
        // A message takes half of the round trip. Zero is a link that is not measured yet.
        let rtt = if link.rtt.is_zero() { link.rtt } else { link.rtt.saturating_add(2 * hop) };
        Some(LinkSpeed { rtt, ..link })
    }

    /// Replaces the claimed speeds of offers.
    pub(super) fn correct(&self, offers: &mut [NodeOffer]) {
        let claimed = |speed: &LayerSpeed| [speed.weight_bytes_per_s, speed.macs_per_s];
        let correction = [0, 1].map(|at| {
            let ratio = |offer: &NodeOffer| {
                let measured = self.nodes.get(&offer.peer)?.rates[at];
                let ratio = measured / claimed(&offer.speed)[at];
                (measured > 0.0 && ratio.is_finite()).then_some(ratio)
            };
            let mut ratios: Vec<f64> = offers.iter().filter_map(ratio).collect();
            ratios.sort_by(f64::total_cmp);
            let median = ratios.get(ratios.len() / 2).copied().unwrap_or(1.0);
            median.clamp(1.0 / CORRECTION_MAX, CORRECTION_MAX)
        });
        for offer in offers {
            let measured = self.nodes.get(&offer.peer).map_or([0.0; 2], |node| node.rates);
            let claimed = claimed(&offer.speed);
            let [weight_bytes_per_s, macs_per_s] =
                [0, 1].map(|at| if measured[at] > 0.0 { measured[at] } else { claimed[at] * correction[at] });
            offer.measured = measured[0] > 0.0;
            offer.speed = LayerSpeed { weight_bytes_per_s, macs_per_s };
        }
    }
}
