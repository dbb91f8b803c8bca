//! Replays one accused claim of a receipt with what is on this node: whether its stage signed a wrong output. Nothing is fetched
//! and nobody is accused here.

use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;
use pangea_compute::model::NUMERICS;

use super::replayer::Replayer;
use super::{AuditHost, Receipt};
use crate::devices::Devices;
use crate::devices::threads::Purpose;

/// Time to find out that a part of the model is not on this node.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Replays accused claims.
pub struct ClaimReplay<H> {
    host: H,
    devices: Devices,
    replayer: Replayer,
}

impl<H: AuditHost> ClaimReplay<H> {
    /// With the models of `host`.
    pub fn new(host: H, devices: Devices) -> ClaimReplay<H> {
        ClaimReplay { host, devices, replayer: Replayer::new(Purpose::Audits) }
    }

    /// Whether the model refutes the claim of a stage: it signed, for the receipt's session, a wrong output of a right input.
    /// Blocks.
    ///
    /// # Errors
    /// `NotFound` if a part of the model is not on this node, `Overloaded` without memory, `InvalidInput` for a receipt that
    /// is none.
    pub fn refutes(&self, receipt: &Receipt, segment: usize, stage: usize) -> Result<bool> {
        let model = receipt.model.digest;
        if receipt.numerics != NUMERICS {
            let why = format!("the claim is about numerics {}, this node has {NUMERICS}", receipt.numerics);
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        let here = |wanted| self.host.fetch(model, wanted, &[], FETCH_TIMEOUT);
        let found = self.replayer.replay(&self.devices, receipt, &here, &Cancel::new(), &mut |_| {})?;
        let check = found.segments.get(segment).and_then(|segment| segment.stages.get(stage));
        let none = || Error::new(ErrorKind::InvalidInput, "the receipt has no such stage");
        Ok(check.ok_or_else(none)?.is_lie())
    }
}
