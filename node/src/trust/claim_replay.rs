//! Replays one accused claim of a receipt with what is on this node: whether its stage signed a wrong output. Nothing is fetched
//! and nobody is accused here.

use std::sync::OnceLock;
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::commit::ReplayPace;
use pangea_compute::model::{ModelFile, ModelPart, NUMERICS, Wanted};
use pangea_compute::{Cancel, Pool};
use pangea_control::devices::roomy_audit_bytes;

use super::verify::{Weights, least_room, verify};
use super::{AuditHost, ModelSource, Receipt};
use crate::compute_error;
use crate::devices::threads::Purpose;
use crate::devices::{Devices, Kind};

/// Rows computed between two turns at the cores.
const CHUNK_ROWS: usize = 64;

/// Time to find out that a part of the model is not on this node.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that a replay waits for memory: products and loads release theirs within seconds, or keep it for good.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// Replays accused claims.
pub struct ClaimReplay<H> {
    host: H,
    devices: Devices,
    /// Compute threads, made for the first replay.
    pool: OnceLock<Pool>,
}

impl<H: AuditHost> ClaimReplay<H> {
    /// With the models of `host`.
    pub fn new(host: H, devices: Devices) -> ClaimReplay<H> {
        ClaimReplay { host, devices, pool: OnceLock::new() }
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
        let ModelSource { path, manifest } = here(Wanted::header())?;
        let file = ModelFile::open(&path).map_err(compute_error)?;
        let pool = match self.pool.get() {
            Some(pool) => pool,
            None => {
                let made = self.devices.pool(Purpose::Audits)?;
                self.pool.get_or_init(|| made)
            }
        };
        let least = least_room(receipt, &file, pool.threads(), CHUNK_ROWS)?;
        let most = roomy_audit_bytes(self.devices.limit());
        let room = self.devices.lease_up_to(Kind::Audits, least, most, MEMORY_TIMEOUT)?;
        let mut fetch = |part: &ModelPart| here(Wanted::of_part(part)).map(drop);
        let mut weights = Weights { file: &file, manifest: &manifest, room: room.bytes(), fetch: &mut fetch };
        let (cancel, mut between) = (Cancel::new(), |_| {});
        let mut pace = ReplayPace { chunk_rows: CHUNK_ROWS, cancel: &cancel, between: &mut between };
        let found = verify(receipt, &mut weights, pool, &mut pace)?;
        let check = found.segments.get(segment).and_then(|segment| segment.stages.get(stage));
        let none = || Error::new(ErrorKind::InvalidInput, "the receipt has no such stage");
        Ok(check.ok_or_else(none)?.is_lie())
    }
}
