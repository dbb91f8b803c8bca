//! How many bytes per second pass over the connections to each peer now: what their counters grew by in the last seconds. Counters
//! come in with the time; nothing is decided by it, people read it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use libp2p_identity::PeerId;

use super::connection::Traffic;
use crate::Time;

/// Time over which bytes are averaged: the longest pause between two adverts of a node, so that what passes between two of them is
/// in one of them.
pub const AVERAGED: Duration = Duration::from_secs(3);

/// Shortest time over which bytes are averaged: a burst that follows the connection's start is not taken for its rate.
const SHORTEST: Duration = Duration::from_secs(1);

/// Bytes exchanged with a peer per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TrafficRate {
    /// Received bytes per second.
    pub received_bytes_per_s: f64,
    /// Sent bytes per second.
    pub sent_bytes_per_s: f64,
}

/// The rates of all connected peers.
#[derive(Debug, Default)]
pub struct TrafficRates {
    /// The counters of each peer, oldest first: those within [`AVERAGED`] of the latest, and the one before.
    samples: BTreeMap<PeerId, VecDeque<(Time, Traffic)>>,
}

impl TrafficRates {
    /// The counters of every connected peer at `now`. Peers that are not among them are forgotten.
    pub fn sample(&mut self, counted: impl IntoIterator<Item = (PeerId, Traffic)>, now: Time) {
        let mut before = std::mem::take(&mut self.samples);
        for (peer, traffic) in counted {
            let mut samples = before.remove(&peer).unwrap_or_default();
            // A connection that replaced another one counts from zero.
            let is_restarted = |(_, last): &(Time, Traffic)| {
                traffic.sent_bytes < last.sent_bytes || traffic.received_bytes < last.received_bytes
            };
            if samples.back().is_some_and(is_restarted) {
                samples.clear();
            }
            samples.push_back((now, traffic));
            while samples.get(1).is_some_and(|(time, _)| now.since(*time) >= AVERAGED) {
                samples.pop_front();
            }
            self.samples.insert(peer, samples);
        }
    }

    /// The mean rates of `peer` over the last [`AVERAGED`]; zero for a peer that is not connected, and until it was counted for a
    /// second.
    pub fn of(&self, peer: &PeerId) -> TrafficRate {
        let ends = self.samples.get(peer).and_then(|samples| Some((samples.front()?, samples.back()?)));
        let Some(((begin, first), (end, last))) = ends else { return TrafficRate::default() };
        let time = end.since(*begin);
        if time < SHORTEST {
            return TrafficRate::default();
        }
        let per_s = |before: u64, now: u64| now.saturating_sub(before) as f64 / time.as_secs_f64();
        TrafficRate {
            received_bytes_per_s: per_s(first.received_bytes, last.received_bytes),
            sent_bytes_per_s: per_s(first.sent_bytes, last.sent_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::fresh_peer;

    fn traffic(received_bytes: u64, sent_bytes: u64) -> Traffic {
        Traffic { received_bytes, sent_bytes }
    }

    fn rate(received_bytes_per_s: f64, sent_bytes_per_s: f64) -> TrafficRate {
        TrafficRate { received_bytes_per_s, sent_bytes_per_s }
    }

    #[test]
    fn a_rate_is_the_mean_of_the_last_seconds_and_ends_with_the_traffic() {
        let (mut rates, peer) = (TrafficRates::default(), fresh_peer());
        assert_eq!(rates.of(&peer), rate(0.0, 0.0));
        // 1000 bytes per second sent and 100 received for 10 s, after a first byte of each; then silence.
        for quarter in 0..=40 {
            rates.sample([(peer, traffic(1 + quarter * 25, 1 + quarter * 250))], Time::from_millis(quarter * 250));
            let expected = if quarter < 4 { rate(0.0, 0.0) } else { rate(100.0, 1000.0) };
            assert_eq!(rates.of(&peer), expected, "after {quarter} quarters of a second");
        }
        let stopped = |seconds| Time::from_secs(10) + Duration::from_secs(seconds);
        for (seconds, sent) in [(1, 2000.0 / 3.0), (2, 1000.0 / 3.0), (3, 0.0), (4, 0.0)] {
            rates.sample([(peer, traffic(1001, 10_001))], stopped(seconds));
            let now = rates.of(&peer);
            assert!((now.sent_bytes_per_s - sent).abs() < 1e-6, "{seconds} s after the end: {now:?}");
        }
    }

    #[test]
    fn samples_of_long_ago_are_forgotten() {
        let (mut rates, peer) = (TrafficRates::default(), fresh_peer());
        for quarter in 0..100 {
            rates.sample([(peer, traffic(0, quarter))], Time::from_millis(quarter * 250));
        }
        assert_eq!(rates.samples[&peer].len(), 13, "3 s of four each, and the one before");
        // A node that was stopped has one sample after the pause: the mean is that of the pause.
        rates.sample([(peer, traffic(0, 1099))], Time::from_millis(24_750 + 100_000));
        assert_eq!(rates.samples[&peer].len(), 2);
        assert_eq!(rates.of(&peer), rate(0.0, 10.0));
    }

    #[test]
    fn a_replaced_connection_counts_from_zero_and_one_that_ended_is_forgotten() {
        let (mut rates, [peer, other]) = (TrafficRates::default(), [(); 2].map(|()| fresh_peer()));
        let at = |seconds| Time::from_secs(seconds);
        rates.sample([(peer, traffic(0, 5000)), (other, traffic(0, 7))], at(0));
        rates.sample([(peer, traffic(0, 6000)), (other, traffic(0, 7))], at(1));
        assert_eq!((rates.of(&peer), rates.of(&other)), (rate(0.0, 1000.0), rate(0.0, 0.0)));
        rates.sample([(peer, traffic(0, 10))], at(2));
        assert_eq!(rates.of(&peer), rate(0.0, 0.0), "the new connection was counted once");
        rates.sample([(peer, traffic(40, 30))], at(4));
        assert_eq!(rates.of(&peer), rate(20.0, 10.0));
        rates.sample([(peer, traffic(40, 30)), (other, traffic(0, 9000))], at(5));
        assert_eq!(rates.of(&other), rate(0.0, 0.0), "its bytes from before it came back are of no second");
    }
}
