//! A stage whose signed output a replay refutes: the accused peer and the sentence of the accusation. The fabric stores the
//! evidence.

use libp2p::PeerId;
use pangea_units::LayerRange;

use super::Receipt;

/// A stage whose signed output a replay refutes.
pub struct FailedAudit<'a> {
    /// The answer's receipt, with the stage's signed claim.
    pub receipt: &'a Receipt,
    /// Index of the segment.
    pub segment: usize,
    /// Index of the stage within the segment.
    pub stage: usize,
    /// First position that differs, if known.
    pub position: Option<u64>,
}

impl FailedAudit<'_> {
    /// The accused peer and the accusation; `None` if the receipt holds no such claim, in which case nobody is
    /// accused.
    pub fn accusation(&self) -> Option<(PeerId, String)> {
        let segment = self.receipt.segments.get(self.segment)?;
        let signed = segment.claims.get(self.stage)?;
        let (claim, at) = (&signed.claim, self.position.map(|position| format!(" at position {position}")));
        let why = format!(
            "it signed a wrong output of layers {} of {}{} (receipt {})",
            LayerRange::from(&claim.layers),
            self.receipt.model.name,
            at.unwrap_or_default(),
            self.receipt.id
        );
        signed.is_signed().then(|| (signed.peer(), why))
    }
}
