//! The directory of all peers: reports of the network, task streams, checks and audits go in with the time, actions
//! come out. It decides which peers may compute; it never opens, sends or stores anything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p_identity::PeerId;

use super::peer::{Peer, PeerState, WorkerHello};
use super::suspicion::SuspicionReason;
use crate::Time;

/// Maximum peers remembered that are not quarantined, including those that are gone. The longest gone are removed first, suspects
/// last.
const PEERS_MAX: usize = 1024;

/// Maximum peers remembered as quarantined: more than the pool has nodes, and a few hundred bytes each. A quarantined peer is
/// never forgotten; once there are so many, strangers may not compute, because one of them may be a liar that was not
/// remembered.
const QUARANTINED_MAX: usize = 4096;

/// Why a stranger may not compute then.
const TOO_MANY_LIARS: &str = "this node knows as many liars as it can remember and works only with peers that it knows";

/// Time that a found peer counts as connecting without a hello.
const EXPECTED_FOR: Duration = Duration::from_secs(5);

/// Input of the directory.
#[derive(Clone, Debug)]
pub enum Event {
    /// A peer announced itself on the local network.
    Discovered(PeerId),
    /// A peer connected.
    Up {
        /// The peer.
        peer: PeerId,
        /// Its multiaddr.
        address: String,
        /// Transport of the connection.
        transport: String,
        /// How the peer was found.
        found_by: String,
    },
    /// The addresses of a connected peer changed.
    AddressesChanged {
        /// The peer.
        peer: PeerId,
        /// The peer's multiaddrs; an empty list is ignored.
        addresses: Vec<String>,
    },
    /// The last connection to a peer ended.
    Down {
        /// The peer.
        peer: PeerId,
        /// Why.
        why: String,
    },
    /// A ping was answered.
    RoundTrip {
        /// The peer.
        peer: PeerId,
        /// Round-trip time.
        rtt: Duration,
    },
    /// A task stream to a peer could not be opened.
    StreamRefused {
        /// The peer.
        peer: PeerId,
        /// Why.
        why: String,
    },
    /// A peer sent the hello of its task stream.
    Hello {
        /// The peer.
        peer: PeerId,
        /// Content of the hello.
        hello: WorkerHello,
    },
    /// A task stream to a peer ended.
    StreamEnded(PeerId),
    /// The speed of the link to a peer was measured with a probe.
    LinkProbed {
        /// The peer.
        peer: PeerId,
        /// Bytes per second.
        bytes_per_s: f64,
        /// Whether the same stream was probed before. Later probes only raise the speed: a busy processor makes a link look
        /// slow and never fast, and a link that looks too slow to be used would never be measured by what it carries.
        repeated: bool,
    },
    /// Operands were sent to a peer.
    Sent {
        /// The peer.
        peer: PeerId,
        /// Number of bytes.
        bytes: u64,
        /// Duration of sending.
        seconds: f64,
    },
    /// A result of a peer passed its check.
    ResultPassed(PeerId),
    /// A peer did something that a liar does and that proves nothing. Lowers its trust for a while.
    Suspected {
        /// The peer.
        peer: PeerId,
        /// What it did.
        reason: SuspicionReason,
    },
    /// A peer was proven to lie: by a check, by an audit, or by evidence found at start.
    Convicted {
        /// The peer.
        peer: PeerId,
        /// What was proven.
        why: String,
    },
    /// A call waits for a peer's hello.
    CallWaits {
        /// The caller's number of the call.
        call: u64,
        /// The peer.
        peer: PeerId,
        /// Time at which the call fails.
        until: Time,
    },
    /// Time passed.
    Tick,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a task stream after a delay.
    OpenStream {
        /// The peer to open it to.
        peer: PeerId,
        /// The delay.
        after: Duration,
    },
    /// The peer of a waiting call has sent its hello.
    CallReady {
        /// Number of the call.
        call: u64,
        /// The peer.
        peer: PeerId,
    },
    /// A waiting call has failed.
    CallFailed {
        /// Number of the call.
        call: u64,
        /// Reason, a sentence without its full stop.
        why: String,
    },
    /// A peer has said hello and may be given work. Comes before a [`Action::Connecting`] that does not count the peer any more:
    /// whoever waits for a peer must see it before hearing that nobody is expected.
    Ready(PeerId),
    /// The estimated speed of the link to a peer changed enough to replan.
    LinkChanged(PeerId),
    /// The number of peers whose hello is expected soon has changed.
    Connecting(usize),
    /// End all connections to a peer and refuse new ones.
    CutOff {
        /// The peer.
        peer: PeerId,
        /// Why.
        why: String,
    },
}

/// A call that waits for a peer's hello.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u64,
    peer: PeerId,
    until: Time,
}

/// All peers.
#[derive(Debug, Default)]
pub struct Directory {
    peers: BTreeMap<PeerId, Peer>,
    calls: Vec<Call>,
    connecting: usize,
    /// Number of quarantined peers among `peers`.
    quarantined: usize,
}

impl Directory {
    /// Processes an event; returns the actions in order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Discovered(peer) => {
                let known = self.entry(peer, now);
                if known.state != PeerState::Connected {
                    known.enter(PeerState::Connecting, now);
                }
            }
            Event::Up { peer, address, transport, found_by } => {
                let known = self.entry(peer, now);
                known.enter(PeerState::Connecting, now);
                (known.addresses, known.transport, known.found_by) = (vec![address], transport, found_by);
                known.gone.clear();
                known.reopening.reset();
                if !known.is_quarantined() {
                    actions.push(Action::OpenStream { peer, after: Duration::ZERO });
                }
            }
            Event::AddressesChanged { peer, addresses } => {
                if let Some(known) = self.peers.get_mut(&peer).filter(|_| !addresses.is_empty()) {
                    known.addresses = addresses;
                }
            }
            Event::Down { peer, why } => {
                let known = self.entry(peer, now);
                known.enter(PeerState::Gone, now);
                known.gone = why;
            }
            Event::RoundTrip { peer, rtt } => {
                if self.entry(peer, now).round_trip(rtt) {
                    actions.push(Action::LinkChanged(peer));
                }
            }
            Event::StreamRefused { peer, why } => {
                self.fail_calls(peer, &format!("{peer} is connected but takes no tasks: {why}"), &mut actions);
            }
            Event::Hello { peer, hello } => {
                let known = self.entry(peer, now);
                known.hello = Some(hello);
                known.enter(PeerState::Connected, now);
                if !known.is_quarantined() {
                    actions.push(Action::Ready(peer));
                }
                let ready = self.take_calls(|call| call.peer == peer);
                actions.extend(ready.into_iter().map(|call| Action::CallReady { call: call.number, peer }));
            }
            Event::StreamEnded(peer) => {
                let here = |known: &&mut Peer| known.state != PeerState::Gone && !known.is_quarantined();
                if let Some(known) = self.peers.get_mut(&peer).filter(here) {
                    let after = known.stream_ended(now);
                    actions.push(Action::OpenStream { peer, after });
                }
            }
            Event::LinkProbed { peer, bytes_per_s, repeated } => {
                let valid = bytes_per_s.is_finite() && bytes_per_s > 0.0;
                let counts = |known: &&mut Peer| {
                    valid && (!repeated || known.bytes_per_s.is_none_or(|before| bytes_per_s > before))
                };
                if let Some(known) = self.peers.get_mut(&peer).filter(counts) {
                    known.bytes_per_s = Some(bytes_per_s);
                    actions.push(Action::LinkChanged(peer));
                }
            }
            Event::Sent { peer, bytes, seconds } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.sent(bytes, seconds);
                }
            }
            Event::ResultPassed(peer) => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.tasks_checked += 1;
                }
            }
            Event::Suspected { peer, reason } => {
                let is_new = !self.peers.contains_key(&peer);
                let known = self.entry(peer, now);
                if is_new {
                    known.state = PeerState::Gone;
                }
                known.suspicion.add(reason, now);
                // No action, whatever the time: whoever suspects a peer executes none.
                return Vec::new();
            }
            Event::Convicted { peer, why } => self.convict(peer, why, now, &mut actions),
            Event::CallWaits { call, peer, until } => match self.peers.get(&peer) {
                Some(Peer { quarantined: Some(why), .. }) => {
                    actions.push(Action::CallFailed { call, why: format!("{peer} is quarantined: {why}") });
                }
                Some(Peer { state: PeerState::Connected, .. }) => actions.push(Action::CallReady { call, peer }),
                _ => self.calls.push(Call { number: call, peer, until }),
            },
            Event::Tick => {
                for Call { number, peer, .. } in self.take_calls(|call| call.until <= now) {
                    let why = format!("{peer} is connected but does not answer as a Pangea node");
                    actions.push(Action::CallFailed { call: number, why });
                }
            }
        }
        let expected = |peer: &&Peer| peer.state == PeerState::Connecting && now.since(peer.since) < EXPECTED_FOR;
        let connecting = self.peers.values().filter(expected).filter(|peer| !peer.is_quarantined()).count();
        if connecting != self.connecting {
            self.connecting = connecting;
            actions.push(Action::Connecting(connecting));
        }
        actions
    }

    /// Whether a peer may get work, weights, sessions and mastership, and may submit work of its own. An unknown
    /// peer may.
    pub fn may_compute(&self, peer: &PeerId) -> bool {
        self.why_not(peer).is_none()
    }

    /// Why a peer may not compute; `None` if it may.
    pub fn why_not(&self, peer: &PeerId) -> Option<&str> {
        let known = self.peers.get(peer);
        match known.and_then(|known| known.quarantined.as_deref()) {
            None if self.is_full() && known.is_none_or(|known| known.tasks_checked == 0) => Some(TOO_MANY_LIARS),
            why => why,
        }
    }

    /// Whether no further peer can be remembered as quarantined.
    fn is_full(&self) -> bool {
        self.quarantined >= QUARANTINED_MAX
    }

    /// All peers that may not compute.
    pub fn excluded(&self) -> BTreeSet<PeerId> {
        self.peers.iter().filter(|(_, peer)| peer.is_quarantined()).map(|(id, _)| *id).collect()
    }

    /// Whether a peer is used last and audited first. A quarantined peer is not used at all.
    pub fn is_suspect(&self, peer: &PeerId, now: Time) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.suspicion.is_suspect(now))
    }

    /// All suspects, the one under most suspicion first.
    pub fn suspects(&self, now: Time) -> Vec<PeerId> {
        let suspects = self.peers.iter().filter(|(_, peer)| peer.suspicion.is_suspect(now));
        let mut suspects: Vec<_> = suspects.map(|(id, peer)| (peer.suspicion.amount(now), *id)).collect();
        suspects.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        suspects.into_iter().map(|(_, id)| id).collect()
    }

    /// The state of a peer, if known.
    pub fn get(&self, peer: &PeerId) -> Option<&Peer> {
        self.peers.get(peer)
    }

    /// Every peer, ordered by peer id.
    pub fn iter(&self) -> impl Iterator<Item = (&PeerId, &Peer)> {
        self.peers.iter()
    }

    /// Number of peers that are connected and have sent their hello.
    pub fn connected(&self) -> usize {
        let is_client = |peer: &Peer| peer.hello.as_ref().is_some_and(|hello| !hello.works);
        let counts = |peer: &&Peer| peer.state == PeerState::Connected && !peer.is_quarantined() && !is_client(peer);
        self.peers.values().filter(counts).count()
    }

    fn convict(&mut self, peer: PeerId, why: String, now: Time, actions: &mut Vec<Action>) {
        let is_new = !self.peers.contains_key(&peer);
        let is_full = self.is_full();
        let known = self.entry(peer, now);
        if known.is_quarantined() {
            return;
        }
        if is_new {
            known.state = PeerState::Gone;
        }
        match is_full {
            false => known.quarantined = Some(why.clone()),
            // Like a stranger from now on, and so without work.
            true => known.tasks_checked = 0,
        }
        self.quarantined += usize::from(!is_full);
        self.fail_calls(peer, &format!("{peer} is quarantined: {why}"), actions);
        actions.push(Action::CutOff { peer, why });
    }

    fn fail_calls(&mut self, peer: PeerId, why: &str, actions: &mut Vec<Action>) {
        let failed = self.take_calls(|call| call.peer == peer);
        actions.extend(failed.iter().map(|call| Action::CallFailed { call: call.number, why: why.to_owned() }));
    }

    fn take_calls(&mut self, which: impl Fn(&Call) -> bool) -> Vec<Call> {
        let (taken, left) = std::mem::take(&mut self.calls).into_iter().partition(which);
        self.calls = left;
        taken
    }

    /// The state of a peer, added if unknown.
    fn entry(&mut self, peer: PeerId, now: Time) -> &mut Peer {
        if self.peers.len() - self.quarantined >= PEERS_MAX && !self.peers.contains_key(&peer) {
            let gone = |(_, peer): &(&PeerId, &Peer)| peer.state != PeerState::Connected && !peer.is_quarantined();
            let oldest = self
                .peers
                .iter()
                .filter(gone)
                .min_by_key(|(_, peer)| (peer.suspicion.is_suspect(now), peer.since))
                .map(|(id, _)| *id);
            oldest.map(|oldest| self.peers.remove(&oldest));
        }
        self.peers.entry(peer).or_insert_with(|| Peer::new(now))
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
