//! Layers of a model whose file is not hashed yet. Until its digest is known, a stand-in takes its place that no other node ever
//! learns of: requests of this node are answered under it, nothing is signed, offered or advertised. With the digest the very same
//! layers go on under their own name.

use std::sync::Arc;

use pangea_compute::Digest;

use super::{Key, Loader};
use crate::pipeline::wire::ChainId;

impl Loader {
    /// A stand-in for the digest of a model, unlike any other.
    pub fn stand_in(&self) -> Digest {
        let stand_in = Digest::from_bytes(rand::random());
        self.unhashed().insert(stand_in);
        stand_in
    }

    /// Gives the layers that were loaded under a stand-in the digest of their model; the sessions that they have go on. Layers that
    /// are loaded under the digest already are used in place of these.
    pub fn set_digest(&self, stand_in: Digest, digest: Digest) {
        if !self.0.pipeline.rename(ChainId::alone(stand_in), ChainId::alone(digest)) {
            return self.drop_stand_in(stand_in);
        }
        let mut loaded = self.loaded();
        let whole: Vec<Key> = loaded.keys().filter(|key| key.0 == stand_in).copied().collect();
        for key in whole {
            if let Some(layers) = loaded.remove(&key) {
                self.count(digest, Arc::clone(&layers.metrics));
                loaded.insert((digest, key.1, key.2), layers);
            }
        }
        drop(loaded);
        self.forget_stand_in(stand_in);
        self.0.changed.send_modify(|version| *version += 1);
    }

    /// Gives up what was loaded under a stand-in; its chain ends once the sessions there have ended.
    pub fn drop_stand_in(&self, stand_in: Digest) {
        self.loaded().retain(|key, _| key.0 != stand_in);
        self.forget_stand_in(stand_in);
        // Like the chain of a placement that was replaced.
        self.chains().insert(ChainId::alone(stand_in));
        self.0.changed.send_modify(|version| *version += 1);
    }

    /// Forgets a stand-in whose layers are not in memory any more.
    pub(super) fn forget_stand_in(&self, stand_in: Digest) {
        self.unhashed().remove(&stand_in);
    }

    /// The layers in memory of models that have a digest: those that other nodes may know of.
    pub(super) fn hashed(&self) -> Vec<Key> {
        let unhashed = self.unhashed();
        self.loaded().keys().filter(|key| !unhashed.contains(&key.0)).copied().collect()
    }
}
