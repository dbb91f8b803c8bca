//! Peers of tests: no two alike, the same in every run.

use std::cell::Cell;

use libp2p_identity::PeerId;
use multiaddr::multihash::Multihash;

thread_local!(static NEXT: Cell<u64> = const { Cell::new(0) });

/// The peer with this number.
pub(crate) fn peer(number: u64) -> PeerId {
    let mut key = [0; 36];
    key[..8].copy_from_slice(&number.to_le_bytes());
    PeerId::from_multihash(Multihash::wrap(0, &key).unwrap()).unwrap()
}

/// A peer that this test has not had yet.
pub(crate) fn fresh_peer() -> PeerId {
    NEXT.with(|next| {
        next.set(next.get() + 1);
        peer(1 << 32 | next.get())
    })
}
