//! The digest of a model on this node, before and after its file is hashed.

use std::sync::{Arc, OnceLock};

use pangea_compute::Digest;

/// The digest of a model. A file that is new to the node answers before it is hashed; until then a stand-in that no other node
/// knows takes the digest's place. Clones learn the digest together.
#[derive(Clone, Debug)]
pub(super) struct ModelDigest {
    known: Arc<OnceLock<Digest>>,
    stand_in: Digest,
}

impl ModelDigest {
    /// A digest that is known.
    pub(super) fn known(digest: Digest) -> ModelDigest {
        ModelDigest { known: Arc::new(OnceLock::from(digest)), stand_in: digest }
    }

    /// A digest that `known` will hold.
    pub(super) fn later(known: &Arc<OnceLock<Digest>>, stand_in: Digest) -> ModelDigest {
        ModelDigest { known: Arc::clone(known), stand_in }
    }

    /// The digest by which the model is found on this node now.
    pub(super) fn here(&self) -> Digest {
        self.in_pool().unwrap_or(self.stand_in)
    }

    /// The digest that other nodes know, once there is one.
    pub(super) fn in_pool(&self) -> Option<Digest> {
        self.known.get().copied()
    }
}
