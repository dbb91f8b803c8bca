//! Round trips and transfers that measure a link.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::FabricDriver;
use crate::fabric::status::LinkProbe;
use crate::link::coordinator::{Bulk, TaskLink};
use pangea_control::peers::{Peer, PeerState};

/// Bytes of an automatic probe of a link: short even on a slow one.
pub(super) const FIRST_PROBE_BYTES: u64 = 2 << 20;

/// Delays before each automatic probe of a link. Nodes that start together keep their processors busy, so that the first probes
/// may find a fast link slow; a link that looks slow gets no work and is not measured by work.
pub(super) const PROBES_AFTER: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
];

/// Maximum rounds of a requested measurement.
const ROUNDS_MAX: u32 = 1000;

/// Bytes of a small message.
const SMALL_BYTES: u64 = 16;

/// Timeout of a probe: enough for the largest over a slow link.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// Minimum number of small round trips, which are cheap and noisy.
const SMALL_ROUNDS_MIN: u32 = 51;

/// Probes in flight, with the receivers of their answers.
#[derive(Default)]
pub(super) struct Probes {
    pub(super) next: u64,
    pub(super) waiting: HashMap<u64, oneshot::Sender<Instant>>,
}

impl FabricDriver {
    /// The open link to a peer by its id or name; for an empty `peer`, to any connected one.
    pub(super) fn link_to(&self, peer: &str) -> Result<(PeerId, Peer, Rc<TaskLink>)> {
        let found = self.links.iter().find_map(|(id, open)| {
            let known = self.peers.read(|directory| directory.get(id).cloned())?;
            let named = id.to_string() == peer || known.name() == peer;
            let any = peer.is_empty() && known.state == PeerState::Connected;
            (named || any).then(|| (*id, known, Rc::clone(&open.link)))
        });
        found.ok_or_else(|| {
            let why = format!("no connected peer is named '{peer}'; `pangea peers` lists them");
            Error::new(ErrorKind::NotFound, why)
        })
    }

    pub(super) fn check_peer(&self, peer: &str, timeout: Duration, answer: oneshot::Sender<Result<Duration>>) {
        let (id, link) = match self.link_to(peer) {
            Ok((id, known, link)) => (format!("{} ({id})", known.name()), link),
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        let probes = Rc::clone(&self.probes);
        tokio::task::spawn_local(async move {
            let round_trip = probe_within(&link, &probes, SMALL_BYTES, timeout).await;
            let _ = answer.send(round_trip.ok_or_else(|| {
                let why = format!("{id} did not answer within {} ms", timeout.as_millis());
                Error::new(ErrorKind::DeadlineExceeded, why)
            }));
        });
    }

    pub(super) fn probe_link(
        &self,
        peer: &str,
        message_bytes: u64,
        rounds: u32,
        answer: oneshot::Sender<Result<LinkProbe>>,
    ) {
        let (id, transport, link) = match self.link_to(peer) {
            Ok((id, known, link)) => (id, known.transport, link),
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        let probes = Rc::clone(&self.probes);
        tokio::task::spawn_local(async move {
            let measured = measure_rounds(link, probes, message_bytes, rounds).await;
            let _ = answer.send(match measured {
                Some((bytes_per_s, round_trip)) => Ok(LinkProbe {
                    peer: id.to_string(),
                    transport,
                    message_bytes,
                    bytes_per_s,
                    round_trip_us: round_trip.as_secs_f64() * 1e6,
                }),
                None => Err(Error::new(ErrorKind::Unavailable, format!("{id} disconnected during the measurement"))),
            });
        });
    }
}

/// Sends `bytes` and waits until all have arrived: the time from the first byte to the answer.
pub(super) async fn probe(link: &TaskLink, probes: &RefCell<Probes>, bytes: u64) -> Option<Duration> {
    probe_within(link, probes, bytes, PROBE_TIMEOUT).await
}

pub(super) async fn probe_within(
    link: &TaskLink,
    probes: &RefCell<Probes>,
    bytes: u64,
    timeout: Duration,
) -> Option<Duration> {
    let (answer, answered) = oneshot::channel();
    let nonce = {
        let mut probes = probes.borrow_mut();
        probes.next += 1;
        let nonce = probes.next;
        probes.waiting.insert(nonce, answer);
        nonce
    };
    let begin = Instant::now();
    link.send(Bulk::Probe { nonce, bytes }).ok()?;
    let end = tokio::time::timeout(timeout, answered).await;
    // The probe is removed, because a disconnected peer never answers.
    probes.borrow_mut().waiting.remove(&nonce);
    Some(end.ok()?.ok()?.duration_since(begin))
}

/// The time of `bytes` beyond a round trip.
pub(super) async fn measure(link: Rc<TaskLink>, probes: Rc<RefCell<Probes>>, bytes: u64) -> Option<(Duration, u64)> {
    probe(&link, &probes, SMALL_BYTES).await?;
    let round_trip = probe(&link, &probes, SMALL_BYTES).await?;
    let took = probe(&link, &probes, bytes).await?;
    Some((took.saturating_sub(round_trip).max(took / 8), bytes))
}

/// Medians over `rounds`: bytes per second of bulk messages, and round-trip time of small ones.
pub(super) async fn measure_rounds(
    link: Rc<TaskLink>,
    probes: Rc<RefCell<Probes>>,
    bytes: u64,
    rounds: u32,
) -> Option<(f64, Duration)> {
    let rounds = rounds.clamp(1, ROUNDS_MAX);
    let mut rates = Vec::new();
    let mut trips = Vec::new();
    probe(&link, &probes, bytes.min(FIRST_PROBE_BYTES)).await?;
    for _ in 0..rounds {
        rates.push(bytes as f64 / probe(&link, &probes, bytes).await?.as_secs_f64().max(1e-9));
    }
    for _ in 0..rounds.max(SMALL_ROUNDS_MIN) {
        trips.push(probe(&link, &probes, SMALL_BYTES).await?);
    }
    rates.sort_by(f64::total_cmp);
    trips.sort();
    Some((rates[rates.len() / 2], trips[trips.len() / 2]))
}
