//! One peer: its state and measurements, with the rules of trust, smoothing and backoff. Peers are not compared here.

use std::time::Duration;

use super::suspicion::Suspicion;
use crate::Time;
use crate::streams::Reopening;

/// Weight of the newest measurement in the smoothed link speed.
const LINK_SPEED_WEIGHT: f64 = 0.2;

/// Smallest transfer that counts as a measurement of a link's speed, in bytes: below it latency dominates.
const LINK_SAMPLE_BYTES_MIN: u64 = 256 << 10;

/// Growth of the smoothed round-trip time per slower ping: a link that became slow is noticed within some dozen pings.
const RTT_GROWTH: f64 = 1.05;

/// Delay before a stream that ended is reopened; doubles with every consecutive stream that ended soon.
const REOPEN_DELAY: Duration = Duration::from_millis(100);

/// Upper bound of that delay. A stream that lasted longer resets it.
const REOPEN_DELAY_MAX: Duration = Duration::from_secs(30);

/// Factor of the remaining distrust per checked result: half is gone after 23 results.
const DISTRUST_PER_RESULT: f64 = 0.97;

/// Trust of a peer that has not computed anything yet. Low, because identities are free.
const TRUST_AT_FIRST: f64 = 0.1;

/// Trust that results have to earn before people read it as a number. Below it, what is missing is checked work.
const TRUST_OF_THE_KNOWN: f64 = 0.5;

/// Trust that as many checked results earn, before suspicion lowers it.
fn earned(tasks_checked: u64) -> f64 {
    1.0 - (1.0 - TRUST_AT_FIRST) * DISTRUST_PER_RESULT.powf(tasks_checked as f64)
}

/// Whether a peer with this trust and as many checked results is a newcomer: its trust is low because little was checked so far,
/// and neither suspicion nor quarantine has lowered it. People read such a peer as new, not as one that is distrusted.
pub fn is_newcomer(trust: f64, tasks_checked: u64) -> bool {
    let earned = earned(tasks_checked);
    trust.max(earned) < TRUST_OF_THE_KNOWN && trust > earned * Suspicion::factor_of_suspects()
}

/// Whether a peer is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Found, or connected without a hello.
    Connecting,
    /// Admitted, and hellos are exchanged.
    Connected,
    /// The connection ended.
    Gone,
}

/// A peer's hello as a worker, sent when a task stream opens: a first estimate until it is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerHello {
    /// Name for people.
    pub name: String,
    /// Compute threads.
    pub threads: u16,
    /// Speed of f32 products, in FLOP/s.
    pub f32_flops_per_s: f64,
    /// Speed of f64 products, in FLOP/s.
    pub f64_flops_per_s: f64,
    /// Speed of i8 products, in operations per second.
    pub i8_flops_per_s: f64,
    /// Bytes of operands that the peer stores for this node.
    pub store_bytes: u64,
    /// Maximum tasks of this node that the peer accepts at once.
    pub tasks_max: u16,
    /// Whether the peer accepts tasks.
    pub works: bool,
}

/// The state of one peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Whether the peer is connected.
    pub state: PeerState,
    /// Time at which the peer entered that state.
    pub since: Time,
    /// Multiaddrs of the peer's last connection.
    pub addresses: Vec<String>,
    /// Transport of the connection: `tcp`, `quic`.
    pub transport: String,
    /// How the peer was found: `mdns`, `peer`, and so on.
    pub found_by: String,
    /// Smoothed round-trip time; `None` until a ping was answered.
    pub rtt: Option<Duration>,
    /// Smoothed speed of the link towards the peer, in bytes per second; `None` until measured.
    pub bytes_per_s: Option<f64>,
    /// The peer's hello.
    pub hello: Option<WorkerHello>,
    /// Why the peer is quarantined, if it is.
    pub quarantined: Option<String>,
    /// Why the connection ended.
    pub gone: String,
    /// Results of the peer that passed their check.
    pub tasks_checked: u64,
    /// Suspicion of the peer.
    pub suspicion: Suspicion,
    pub(super) reopening: Reopening,
}

impl Peer {
    pub(super) fn new(now: Time) -> Peer {
        Peer {
            state: PeerState::Connecting,
            since: now,
            addresses: Vec::new(),
            transport: String::new(),
            found_by: String::new(),
            rtt: None,
            bytes_per_s: None,
            hello: None,
            quarantined: None,
            gone: String::new(),
            tasks_checked: 0,
            suspicion: Suspicion::default(),
            reopening: Reopening::new(REOPEN_DELAY, REOPEN_DELAY_MAX),
        }
    }

    /// The peer's name; empty until its hello.
    pub fn name(&self) -> &str {
        self.hello.as_ref().map_or("", |hello| &hello.name)
    }

    /// Trust from 0 to 1: earned by checked results alone, lowered by suspicion.
    pub fn trust(&self, now: Time) -> f64 {
        match self.quarantined {
            Some(_) => 0.0,
            None => earned(self.tasks_checked) * self.suspicion.trust_factor(now),
        }
    }

    /// Whether the peer was proven to lie.
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.is_some()
    }

    pub(super) fn enter(&mut self, state: PeerState, now: Time) {
        self.state = state;
        self.since = now;
    }

    /// Records a ping; returns whether it was the first. The minimum of several counts: a busy moment is no property of
    /// the link.
    pub(super) fn round_trip(&mut self, rtt: Duration) -> bool {
        let before = self.rtt;
        self.rtt = Some(before.map_or(rtt, |before| rtt.min(before.mul_f64(RTT_GROWTH))));
        before.is_none()
    }

    /// Records a transfer to the peer.
    pub(super) fn sent(&mut self, bytes: u64, seconds: f64) {
        if bytes < LINK_SAMPLE_BYTES_MIN || !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        let rate = bytes as f64 / seconds;
        self.bytes_per_s = Some(self.bytes_per_s.map_or(rate, |known| known + LINK_SPEED_WEIGHT * (rate - known)));
    }

    /// A task stream ended while the connection lasts; returns the delay before the next one.
    pub(super) fn stream_ended(&mut self, now: Time) -> Duration {
        let lasted = now.since(self.since);
        self.enter(PeerState::Connecting, now);
        self.reopening.ended(lasted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::SuspicionReason;

    #[test]
    fn trust_starts_low_grows_with_checked_results_and_sinks_with_suspicion() {
        let now = Time::from_secs(5);
        let mut peer = Peer::new(now);
        let is = |peer: &Peer, trust: f64| (peer.trust(now) - trust).abs() < 1e-3;
        assert!(is(&peer, TRUST_AT_FIRST), "{}", peer.trust(now));
        peer.tasks_checked = 23;
        assert!(is(&peer, 0.5533), "half of the distrust is left: {}", peer.trust(now));
        peer.tasks_checked = 10_000;
        assert!(is(&peer, 1.0), "{}", peer.trust(now));
        peer.suspicion.add(SuspicionReason::Unsigned, now);
        assert!(is(&peer, 0.5), "{}", peer.trust(now));
        peer.quarantined = Some("a wrong product".into());
        assert_eq!((peer.trust(now), peer.is_quarantined()), (0.0, true));
    }

    #[test]
    fn a_peer_is_new_until_results_have_earned_its_trust_unless_something_speaks_against_it() {
        let now = Time::from_secs(5);
        let is_new = |peer: &Peer| is_newcomer(peer.trust(now), peer.tasks_checked);
        let mut peer = Peer::new(now);
        for (tasks_checked, new) in [(0, true), (19, true), (20, false), (10_000, false)] {
            peer.tasks_checked = tasks_checked;
            assert_eq!(is_new(&peer), new, "{tasks_checked} results, trust {}", peer.trust(now));
        }
        peer.tasks_checked = 5;
        peer.suspicion.add(SuspicionReason::Late, now);
        assert!(is_new(&peer) && !peer.suspicion.is_suspect(now), "one late answer says little");
        peer.suspicion.add(SuspicionReason::Stalled, now);
        assert!(!is_new(&peer) && peer.suspicion.is_suspect(now), "a suspect is distrusted");
        peer.quarantined = Some("a wrong product".into());
        assert!(!is_new(&peer));
    }

    #[test]
    fn only_a_transfer_that_is_large_enough_and_took_a_time_measures_the_link() {
        let mut peer = Peer::new(Time::ZERO);
        peer.sent(LINK_SAMPLE_BYTES_MIN - 1, 1.0);
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            peer.sent(LINK_SAMPLE_BYTES_MIN, seconds);
        }
        assert_eq!(peer.bytes_per_s, None);
        peer.sent(LINK_SAMPLE_BYTES_MIN, 0.5);
        assert_eq!(peer.bytes_per_s, Some(LINK_SAMPLE_BYTES_MIN as f64 * 2.0));
        peer.sent(LINK_SAMPLE_BYTES_MIN, 1.0);
        let smoothed = LINK_SAMPLE_BYTES_MIN as f64 * (2.0 - LINK_SPEED_WEIGHT);
        assert!(peer.bytes_per_s.is_some_and(|speed| (speed - smoothed).abs() < 1.0), "{:?}", peer.bytes_per_s);
    }
}
