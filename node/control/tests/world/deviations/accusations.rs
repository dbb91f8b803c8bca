//! False accusations: a node says that it proved the lie of one that never lied, with evidence that proves nothing.

use pangea_control::trust::accusations::EvidenceKind;

use crate::deviations::Deviation;
use crate::world::World;

impl World {
    /// Once a second, a node accuses another one to everybody.
    pub(crate) fn accuse_falsely(&mut self, at: usize) {
        if !self.deviates(at, Deviation::FalselyAccuses) {
            return;
        }
        let kinds = [EvidenceKind::Product, EvidenceKind::Stage, EvidenceKind::Contradiction];
        let (of, kind) = (self.chance.index(self.nodes.len()), kinds[self.chance.index(kinds.len())]);
        if of == at {
            return;
        }
        let accusation = self.write_evidence(at, of, kind, false);
        for to in (0..self.nodes.len()).filter(|to| *to != at) {
            self.send_accusations(at, to, vec![accusation]);
        }
    }
}
