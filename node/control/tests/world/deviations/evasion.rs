//! What a node tries where it is quarantined: it connects again under its own id, asks for streams of every kind, and publishes
//! itself as the master to whoever still listens.

use crate::checks::{Broken, Check};
use crate::deviations::Deviation;
use crate::network::Protocol;
use crate::world::World;

impl World {
    /// Once a second, a node asks for everything at those that have quarantined it.
    pub(crate) fn evade(&mut self, at: usize) -> Result<(), Broken> {
        if !self.is_one_that(at, Deviation::EvadesQuarantine) {
            return Ok(());
        }
        for other in 0..self.nodes.len() {
            if other == at || !self.checks.is_quarantined(other, at) || self.nodes[other].run.is_none() {
                continue;
            }
            if !self.deviates(at, Deviation::EvadesQuarantine) {
                continue;
            }
            self.checks.evaluated(Check::QuarantineHolds);
            self.connect(at, other)?;
            let opened = [Protocol::Tasks, Protocol::Sessions].map(|protocol| self.open_stream(at, other, protocol));
            if self.network.connection(at, other).is_some() || opened.iter().any(Option::is_some) {
                return Err(Broken::new(self.now, format!("node {other} admits {at}, which it has quarantined")));
            }
            self.checks.caught(Deviation::EvadesQuarantine);
        }
        Ok(())
    }
}
