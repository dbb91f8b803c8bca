//! The compute threads of a node: every pool that computes anything comes from here, with as many threads as its purpose may
//! use.
//!
//! Each purpose has a pool of its own, whose threads sleep when they have nothing to do; all pools share the cores, and take
//! turns at them by how urgent their purpose is ([`pangea_control::devices::turns`]). On a common pool, whose phases
//! run to their end, each phase of an answer's step would wait for a phase of a product.

use std::ops::Range;
use std::sync::Arc;

use pangea_client::Result;
use pangea_compute::model::{ModelFile, ModelPart};
use pangea_compute::{Engine, Pool};
use pangea_control::devices::roomy_sessions_bytes;
use pangea_control::devices::turns::Class;

use super::{Devices, Kind, Turn};

/// What a pool computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Products of this node and of peers, one at a time.
    Products,
    /// Checks of what peers computed, beside the products.
    Checks,
    /// The steps of one stage of a model.
    Stage,
    /// Packing of weights.
    Loading,
    /// Replays of answers, when the node is idle.
    Audits,
    /// Replays that an answer waits for.
    AwaitedAudits,
    /// Measurements of this node's speed.
    Probe,
}

/// Checks take at most one thread in this many: callers wait for products, not for checks.
const CHECKS_SHARE: usize = 4;

impl Devices {
    /// Number of compute threads of a pool for `purpose`.
    pub fn threads(&self, purpose: Purpose) -> usize {
        match purpose {
            Purpose::Checks => (self.shared.threads / CHECKS_SHARE).max(1),
            Purpose::Products
            | Purpose::Stage
            | Purpose::Loading
            | Purpose::Audits
            | Purpose::AwaitedAudits
            | Purpose::Probe => self.shared.threads.max(1),
        }
    }

    /// Creates a pool for `purpose`.
    ///
    /// # Errors
    /// `InvalidInput` if `PANGEA_ISA` names kernels that this processor cannot run.
    pub fn pool(&self, purpose: Purpose) -> Result<Pool> {
        let pool = Pool::new(self.threads(purpose)).map_err(crate::compute_error)?;
        Ok(match purpose {
            // A measurement takes one turn for its whole length, so that it contains no waiting.
            Purpose::Probe => pool,
            purpose => pool.on(self.shared.cores.of(class(purpose))),
        })
    }

    /// Creates the engine that computes layers for `purpose`.
    ///
    /// # Errors
    /// As [`Devices::pool`].
    pub fn engine(&self, purpose: Purpose) -> Result<Engine> {
        self.pool(purpose).map(Engine::from)
    }

    /// The engine that loads a part of a model: the GPU where there is one, as far as its memory has room for the layers and for
    /// their sessions, which get the least of `session_bytes` and up to the most; else the processor.
    ///
    /// # Errors
    /// As [`Devices::pool`].
    pub fn engine_for(&self, file: &ModelFile, part: &ModelPart, session_bytes: Range<u64>) -> Result<Engine> {
        let pool = Arc::new(self.pool(Purpose::Loading)?);
        let Some(gpu) = self.gpu() else { return Ok(Engine::Cpu(pool)) };
        let free = self.gpu_accounts().into_iter().map(|account| account.free_for(Kind::Weights));
        let room = free.min().unwrap_or(0);
        let session_bytes = session_bytes.end.min(roomy_sessions_bytes(room)).max(session_bytes.start);
        let a_position = file.config().position_bytes() * part.layers.len().max(1) as u64;
        let positions = usize::try_from(session_bytes / a_position.max(1)).unwrap_or(usize::MAX);
        Ok(gpu.engine(file, part, pool, positions, room))
    }

    /// The cores for a measurement. Blocks while more urgent work computes, at most for the longest wait of its class.
    pub fn turn(&self, purpose: Purpose) -> Turn {
        self.shared.cores.turn(class(purpose))
    }
}

/// The class of a purpose, by its urgency.
fn class(purpose: Purpose) -> Class {
    match purpose {
        Purpose::Stage | Purpose::AwaitedAudits => Class::Answers,
        Purpose::Products | Purpose::Checks | Purpose::Loading => Class::Products,
        Purpose::Audits | Purpose::Probe => Class::Background,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_leave_most_threads_to_products() {
        for (threads, checks) in [(0, 1), (1, 1), (4, 1), (8, 2)] {
            assert_eq!(Devices::new(1 << 20, threads).threads(Purpose::Checks), checks);
        }
        assert_eq!(Devices::new(1 << 20, 8).pool(Purpose::Products).unwrap().threads(), 8);
    }
}
