//! The peers of a run, by number.

use libp2p_identity::PeerId;
use multiaddr::multihash::Multihash;

/// A peer by number.
#[expect(clippy::unwrap_used, reason = "a key of 36 bytes fits into the hash of a peer id")]
pub(crate) fn peer(number: u8) -> PeerId {
    let mut key = vec![8, 1, 0x12, 32];
    key.extend([number; 32]);
    PeerId::from_multihash(Multihash::wrap(0, &key).unwrap()).unwrap()
}
