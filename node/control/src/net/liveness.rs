//! Decides which peers are dead: a pure state machine over the bytes exchanged with each peer, tick by tick. It has no
//! clock: a tick that is late because this node was stopped or busy counts once, so no peer is declared dead because
//! this node was absent.
//!
//! Every node pings every peer each second, so a living peer sends bytes each second whatever else it does; a ping that
//! waits behind bulk data is no evidence against it, because the bulk itself moves.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p_identity::PeerId;

use super::connection::Traffic;

/// Interval of the driver's ticks.
pub const TICK: Duration = Duration::from_millis(250);

/// Consecutive silent ticks after which a peer is dead: 4 s, which leaves a second to react within 5.
const DEAD_AFTER_TICKS: u32 = 16;

/// Bytes sent to a peer in one tick that show that the path moves: far more than pings, far less than bulk.
/// A stopped peer accepts no more than its window and its kernel's buffer.
const MOVING_BYTES: u64 = 64 << 10;

#[derive(Debug, Default)]
struct Silence {
    last: Traffic,
    ticks: u32,
    answers_pings: bool,
}

/// Bytes and silence of each connected peer.
#[derive(Debug, Default)]
pub struct Liveness {
    peers: BTreeMap<PeerId, Silence>,
}

impl Liveness {
    /// The peer answered a ping; from now on its silence counts.
    pub fn answered_ping(&mut self, peer: PeerId) {
        let silence = self.peers.entry(peer).or_default();
        silence.answers_pings = true;
        silence.ticks = 0;
    }

    /// One tick, with the bytes exchanged with a connected peer so far; returns whether the peer is dead.
    pub fn tick(&mut self, peer: PeerId, now: Traffic) -> bool {
        let silence = self.peers.entry(peer).or_default();
        // A replaced connection restarts its counters from zero: any difference is a sign of life.
        let heard = now.received_bytes != silence.last.received_bytes;
        let moving = now.sent_bytes.abs_diff(silence.last.sent_bytes) >= MOVING_BYTES;
        silence.last = now;
        silence.ticks = if heard || moving { 0 } else { silence.ticks + 1 };
        silence.answers_pings && silence.ticks >= DEAD_AFTER_TICKS
    }

    /// Time that the peer has been silent, in whole ticks.
    pub fn silent_for(&self, peer: &PeerId) -> Option<Duration> {
        self.peers.get(peer).map(|silence| TICK * silence.ticks)
    }

    /// Removes a peer that disconnected.
    pub fn remove(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks_until_dead(traffic: impl Fn(u64) -> Traffic, pings: bool) -> Option<u64> {
        let peer = crate::test_peers::fresh_peer();
        let mut liveness = Liveness::default();
        if pings {
            liveness.answered_ping(peer);
        }
        (0..400).find(|tick| liveness.tick(peer, traffic(*tick)))
    }

    const SILENT: Traffic = Traffic { received_bytes: 100, sent_bytes: 100 };

    #[test]
    fn a_silent_peer_is_dead_within_five_seconds() {
        // The first check counts as a sign of life, as does the tick in which the peer fell silent.
        let ticks = ticks_until_dead(|_| SILENT, true).unwrap() + 2;
        assert!(TICK * ticks as u32 <= Duration::from_secs(5), "{ticks}");
    }

    #[test]
    fn a_peer_that_is_heard_once_a_second_lives() {
        assert_eq!(ticks_until_dead(|tick| Traffic { received_bytes: tick / 4, sent_bytes: 0 }, true), None);
    }

    #[test]
    fn a_peer_that_only_receives_bulk_lives() {
        assert_eq!(ticks_until_dead(|tick| Traffic { received_bytes: 1, sent_bytes: tick * (1 << 20) }, true), None);
    }

    #[test]
    fn pings_that_leave_are_no_sign_of_life() {
        assert!(ticks_until_dead(|tick| Traffic { received_bytes: 1, sent_bytes: tick * 32 }, true).is_some());
    }

    #[test]
    fn a_peer_that_never_answered_a_ping_may_be_silent() {
        assert_eq!(ticks_until_dead(|_| SILENT, false), None);
    }

    #[test]
    fn a_peer_that_reconnects_starts_without_silence() {
        let peer = crate::test_peers::fresh_peer();
        let mut liveness = Liveness::default();
        liveness.answered_ping(peer);
        while !liveness.tick(peer, SILENT) {}
        liveness.remove(&peer);
        assert_eq!(liveness.silent_for(&peer), None);
        assert!(!liveness.tick(peer, SILENT));
    }
}
