//! A stage whose signed output is not what its layers give: whom it speaks against, and the sentence that says why. It is kept as
//! evidence elsewhere.

use libp2p::PeerId;
use pangea_units::LayerRange;

use super::Receipt;

/// A stage whose signed output a replay refutes.
pub struct FailedAudit<'a> {
    /// The answer's receipt, with the stage's signed claim.
    pub receipt: &'a Receipt,
    /// Which segment, from 0.
    pub segment: usize,
    /// Which of its stages, from 0.
    pub stage: usize,
    /// The first position that differs, where it is known.
    pub position: Option<u64>,
}

impl FailedAudit<'_> {
    /// The peer that signed, and a sentence that says what; `None` where the receipt holds no such claim, which accuses
    /// nobody.
    pub fn accusation(&self) -> Option<(PeerId, String)> {
        let segment = self.receipt.segments.get(self.segment)?;
        let signed = segment.claims.get(self.stage)?;
        let (claim, at) = (&signed.claim, self.position.map(|position| format!(" at position {position}")));
        let why = format!(
            "it signed an output of layers {} of {} that they do not give{} (receipt {})",
            LayerRange::from(&claim.layers),
            self.receipt.model.name,
            at.unwrap_or_default(),
            self.receipt.id
        );
        signed.is_signed().then(|| (signed.peer(), why))
    }
}
