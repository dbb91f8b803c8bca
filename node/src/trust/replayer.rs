//! Recomputes the answer of a receipt with compute threads and memory of this node. When that happens, and what follows from
//! the result, is not decided here.

use std::sync::OnceLock;
use std::time::Duration;

use pangea_client::Result;
use pangea_compute::commit::ReplayPace;
use pangea_compute::model::{ModelFile, ModelPart, Wanted};
use pangea_compute::{Cancel, Engine};
use pangea_control::devices::roomy_audit_bytes;

use super::auditor::ModelSource;
use super::receipt::Receipt;
use super::verify::{Verification, Weights, least_room, verify};
use crate::compute_error;
use crate::devices::threads::Purpose;
use crate::devices::{Devices, Kind};

/// Rows computed between two calls of `between`: a few hundredths of a second.
const CHUNK_ROWS: usize = 64;

/// Time that a replay waits for memory: products and loads release theirs within seconds, or keep it for good.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// The threads of replays for one purpose, started with the first replay.
pub(super) struct Replayer {
    purpose: Purpose,
    engine: OnceLock<Engine>,
}

impl Replayer {
    /// For replays of this purpose.
    pub(super) fn new(purpose: Purpose) -> Replayer {
        Replayer { purpose, engine: OnceLock::new() }
    }

    fn engine(&self, devices: &Devices) -> Result<&Engine> {
        match self.engine.get() {
            Some(engine) => Ok(engine),
            None => {
                let made = devices.engine(self.purpose)?;
                Ok(self.engine.get_or_init(|| made))
            }
        }
    }

    /// Recomputes an answer, with memory for as many layers as fit, but at least for a single one. `fetch` gets parts of the
    /// model's file; `between` is called before every pass. Blocks.
    ///
    /// # Errors
    /// Those of `fetch` and of [`verify`]; `Overloaded` without memory; `Cancelled` after `cancel`.
    pub(super) fn replay(
        &self,
        devices: &Devices,
        receipt: &Receipt,
        fetch: &dyn Fn(Wanted) -> Result<ModelSource>,
        cancel: &Cancel,
        between: &mut dyn FnMut(usize),
    ) -> Result<Verification> {
        let ModelSource { path, manifest } = fetch(Wanted::header())?;
        let file = ModelFile::open(&path).map_err(compute_error)?;
        let engine = self.engine(devices)?;
        let least = least_room(receipt, &file, engine, CHUNK_ROWS)?;
        let most = roomy_audit_bytes(devices.limit());
        let room = devices.lease_up_to(Kind::Audits, least, most, MEMORY_TIMEOUT)?;
        let mut fetch = |part: &ModelPart| fetch(Wanted::of_part(part)).map(drop);
        let mut weights = Weights { file: &file, manifest: &manifest, room: room.bytes(), fetch: &mut fetch };
        let mut pace = ReplayPace { chunk_rows: CHUNK_ROWS, cancel, between };
        verify(receipt, &mut weights, engine, &mut pace)
    }
}
