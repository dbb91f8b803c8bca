//! Ids in messages of `/pangea/session/1`: session, chain, and the stages of the chain. Values only.

use std::ops::Range;

use libp2p_identity::PeerId;
use pangea_units::Digest;

/// A chain: one placement of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId {
    /// Content address of the model.
    pub model: Digest,
    /// Version of the placement; 0 for a model that this node computes alone.
    pub epoch: u64,
}

impl ChainId {
    /// The chain of a node that computes a model alone.
    pub fn alone(model: Digest) -> ChainId {
        ChainId { model, epoch: 0 }
    }
}

/// Id of a session: one answer in progress. The coordinator draws it at random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// The session of answer `index` to the same prompt: this id, as a little-endian number, plus `index`.
    pub fn choice(self, index: u16) -> SessionId {
        SessionId(u128::from_le_bytes(self.0).wrapping_add(u128::from(index)).to_le_bytes())
    }

    /// The start of the id, as people read it in logs.
    pub fn short(self) -> String {
        self.0.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One stage of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageAt {
    /// The node that computes the stage.
    pub peer: PeerId,
    /// Layers `[first, end)`, counted from 0; never empty.
    pub layers: Range<u32>,
}
