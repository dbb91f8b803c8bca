//! The memory of layers: leased for weights and sessions together, of this machine and of the GPU that has a part of them.

use std::ops::Range;
use std::time::Duration;

use pangea_client::{Error, Result};
use pangea_compute::model::{ModelFile, ModelPart};
use pangea_compute::{Digest, Engine};
use pangea_units::ByteSize;

use super::Loader;
use crate::compute_error;
use crate::devices::{Devices, Kind, Lease};

/// Time that a load waits for leased memory: stages that end release theirs within a second, and products
/// theirs when they are done.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(5);

/// Memory of layers.
pub(super) struct Leased {
    /// The leases, of one memory or of several.
    pub(super) leases: Vec<Lease>,
    /// Bytes of it for sessions.
    pub(super) session_bytes: u64,
}

/// Bytes in one memory: of weights, and for sessions.
struct Share {
    weights: u64,
    sessions: Range<u64>,
}

impl Loader {
    /// Leases memory for the weights and for the sessions of a part that this engine loads; sessions get the least of
    /// `session_bytes` in any case, and up to the most.
    ///
    /// # Errors
    /// `Overloaded` with the numbers.
    pub(super) fn lease(
        &self,
        model: Digest,
        file: &ModelFile,
        part: &ModelPart,
        engine: &Engine,
        session_bytes: Range<u64>,
    ) -> Result<Leased> {
        let needs = engine.load_bytes(file, part).map_err(compute_error)?;
        let shape = engine.cache_shape(file.config(), part).map_err(compute_error)?;
        let on_device = |bytes: u64| shape.device_bytes_of(bytes);
        let Range { start: least, end: most } = session_bytes;
        let host = Share { weights: needs.weights, sessions: least - on_device(least)..most - on_device(most) };
        let device = Share { weights: needs.device, sessions: on_device(least)..on_device(most) };
        let (mut leases, mut session_bytes) = (Vec::new(), most);
        let of_device = self.0.devices.gpu_accounts().into_iter().map(|account| (account, &device));
        for (devices, share) in std::iter::once((&self.0.devices, &host)).chain(of_device) {
            if share.weights == 0 && share.sessions.end == 0 {
                continue;
            }
            let [weights, sessions] = self.lease_share(model, devices, share)?;
            // What one memory cannot hold, the other one need not.
            let whole = u128::from(most) * u128::from(sessions.bytes()) / u128::from(share.sessions.end.max(1));
            if share.sessions.end > 0 {
                session_bytes = session_bytes.min(u64::try_from(whole).unwrap_or(most));
            }
            leases.extend([weights, sessions]);
        }
        Ok(Leased { leases, session_bytes: session_bytes.max(least) })
    }

    fn lease_share(&self, model: Digest, devices: &Devices, share: &Share) -> Result<[Lease; 2]> {
        let Share { weights: weight_bytes, sessions } = share;
        // Weights and sessions are leased together, because neither is of use alone.
        let both = weight_bytes.saturating_add(sessions.start);
        let mut weights = match devices.lease(Kind::Weights, both) {
            Ok(lease) => lease,
            Err(_) => {
                self.end_idle_whole(model);
                devices.lease_within(Kind::Weights, both, MEMORY_TIMEOUT).map_err(|error| {
                    let (weights, sessions) = (ByteSize(*weight_bytes), ByteSize(sessions.start));
                    let why = format!("{} ({weights} of weights, {sessions} for sessions)", error.message());
                    Error::new(error.kind(), why)
                })?
            }
        };
        weights.shrink(*weight_bytes);
        let sessions = devices.lease_up_to(Kind::Sessions, sessions.start, sessions.end, MEMORY_TIMEOUT)?;
        Ok([weights, sessions])
    }
}
