//! Decides which nodes are in the pool, from gossiped adverts and connections: whether an advert's author belongs to the
//! pool, whether the advert is newer than the known one, and when a node counts as gone.
//!
//! A node belongs to the pool if it proves that with every advert (a certificate), or if this node is or was connected to
//! it: admission is the same for every connection. It is in the pool while it is connected, or while newer adverts of it
//! arrive through other nodes. A node whose connection ended is gone until it publishes a newer advert, and one that is
//! known through others only is not there before its second one: relayed copies of earlier adverts bring nobody back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use libp2p_identity::PeerId;

use super::advert::{Advert, Term};
use super::advert_pace::silence;
use crate::Time;
use crate::token_bucket::{Rate, TokenBucket};

/// Silence after which a node that is not connected counts as gone: the time of several adverts, which such nodes publish
/// every second.
pub const SILENT: Duration = Duration::from_millis(4000);

/// Time for which adverts published before a connection ended may still arrive: they are relayed within milliseconds.
const HOLD: Duration = Duration::from_millis(300);

/// Maximum nodes of the pool that are not connected, far more than a lab has. Adverts of further ones are ignored; connected
/// nodes always have a place, and the network limits their number.
const MAX_RELAYED: usize = 512;

/// Maximum nodes that are not connected and whose adverts one connected peer passes on: no peer fills the pool alone.
const MAX_OF_FORWARDER: usize = 256;

/// Maximum remembered nodes that are gone, so that their earlier adverts are recognised.
const MAX_GONE: usize = 4096;

/// Maximum remembered nodes to which there was a connection.
const MAX_ADMITTED: usize = 1024;

/// Adverts of one node at once and per second; a node publishes at most 20 per second, and delayed ones arrive together.
const ADVERTS_OF_AUTHOR: Rate = Rate { per_second: 25.0, burst: 40.0 };

/// Adverts that one connected peer passes on at once and per second: two per second of every node that it may speak for.
const ADVERTS_OF_FORWARDER: Rate = Rate { per_second: 512.0, burst: 1024.0 };

/// How an advert arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The connected peer that passed the advert on, which may be its author.
    pub forwarder: PeerId,
    /// Whether the author proved that it belongs to the pool.
    pub proven: bool,
}

/// How an advert compares with the known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The first advert that counts of a node that was not in the pool.
    Joined,
    /// Newer than the last known advert of its node.
    Newer,
    /// The first advert of a member that is not connected and of which no advert was known. It is relayed, and the node
    /// joins with a newer one.
    Noted,
    /// Of a node that has not proved that it belongs to the pool. It is not relayed.
    Stranger,
    /// A copy, or older than the known one, or one too many. It is not relayed.
    Old,
}

/// Order of a node's adverts: incarnation, then sequence.
type Edition = (u64, u64);

#[derive(Debug)]
struct Member {
    advert: Arc<Advert>,
    heard: Time,
    /// The connected peer that passed on the last advert.
    forwarder: PeerId,
    pace: TokenBucket,
}

#[derive(Debug)]
struct Gone {
    edition: Edition,
    /// Adverts of the same incarnation are ignored until then.
    until: Time,
    since: Time,
}

/// A node that was never connected, with one advert so far.
#[derive(Debug)]
struct Noted {
    edition: Edition,
    forwarder: PeerId,
    since: Time,
}

/// The nodes of the pool except this one.
#[derive(Debug)]
pub struct Roster {
    local: PeerId,
    members: BTreeMap<PeerId, Member>,
    connected: BTreeSet<PeerId>,
    /// When each node was connected last.
    admitted: BTreeMap<PeerId, Time>,
    gone: BTreeMap<PeerId, Gone>,
    noted: BTreeMap<PeerId, Noted>,
    /// How many adverts each connected peer may still pass on.
    forwarders: BTreeMap<PeerId, TokenBucket>,
    /// Quarantined nodes: never members, whatever they or others advertise.
    excluded: BTreeSet<PeerId>,
    /// Time without an advert after which a node that is not connected counts as gone.
    silence: Duration,
}

fn edition_of(advert: &Advert) -> Edition {
    (advert.incarnation, advert.sequence)
}

/// Removes the entry that is there for longest, if there are too many.
fn limit<T>(entries: &mut BTreeMap<PeerId, T>, max_len: usize, since: impl Fn(&PeerId, &T) -> Option<Time>) {
    if entries.len() >= max_len {
        let oldest = entries.iter().filter_map(|(peer, entry)| Some((since(peer, entry)?, *peer))).min();
        oldest.map(|(_, peer)| entries.remove(&peer));
    }
}

impl Roster {
    /// The roster of node `local`, which is never listed itself. `publishes`: whether `local` publishes adverts.
    pub fn new(local: PeerId, publishes: bool) -> Roster {
        Roster {
            local,
            members: BTreeMap::new(),
            connected: BTreeSet::new(),
            admitted: BTreeMap::new(),
            gone: BTreeMap::new(),
            noted: BTreeMap::new(),
            forwarders: BTreeMap::new(),
            excluded: BTreeSet::new(),
            silence: silence(publishes),
        }
    }

    /// Whether a connected peer may pass on one more message now.
    pub fn may_forward(&mut self, forwarder: &PeerId, now: Time) -> bool {
        let bucket = self.connected.contains(forwarder).then_some(()).map(|()| {
            self.forwarders.entry(*forwarder).or_insert_with(|| TokenBucket::full(ADVERTS_OF_FORWARDER, now))
        });
        // What a peer sent just before its connection ended counts as well.
        bucket.is_none_or(|bucket| bucket.take(1, now).is_ok())
    }

    /// Processes an advert.
    pub fn heard(&mut self, advert: Advert, delivery: Delivery, now: Time) -> Heard {
        let (peer, edition) = (advert.peer, edition_of(&advert));
        if peer == self.local || self.excluded.contains(&peer) {
            return Heard::Old;
        }
        if let Some(member) = self.members.get_mut(&peer) {
            if !delivery.proven && !self.admitted.contains_key(&peer) {
                return Heard::Stranger;
            }
            if edition <= edition_of(&member.advert) || member.pace.take(1, now).is_err() {
                return Heard::Old;
            }
            let (forwarder, pace) = (delivery.forwarder, member.pace);
            *member = Member { advert: Arc::new(advert), heard: now, forwarder, pace };
            return Heard::Newer;
        }
        let connected = self.connected.contains(&peer);
        let admitted = self.admitted.contains_key(&peer);
        if !admitted && !delivery.proven {
            return Heard::Stranger;
        }
        if let Some(gone) = self.gone.get_mut(&peer) {
            let known = gone.edition;
            if edition <= known {
                return Heard::Old;
            }
            if edition.0 == known.0 && now < gone.until && !connected {
                gone.edition = edition;
                return Heard::Old;
            }
        }
        if !connected && !self.has_place(&delivery.forwarder) {
            return Heard::Old;
        }
        if !connected && !self.gone.contains_key(&peer) {
            match self.noted.get(&peer) {
                Some(noted) if edition <= noted.edition => return Heard::Old,
                Some(_) => {}
                None => return self.note(peer, edition, delivery.forwarder, now),
            }
        }
        self.noted.remove(&peer);
        self.gone.remove(&peer);
        let pace = TokenBucket::full(ADVERTS_OF_AUTHOR, now);
        let member = Member { advert: Arc::new(advert), heard: now, forwarder: delivery.forwarder, pace };
        self.members.insert(peer, member);
        Heard::Joined
    }

    /// Whether one more node that is not connected and that `forwarder` speaks for has a place.
    fn has_place(&self, forwarder: &PeerId) -> bool {
        let relayed = self.members.iter().filter(|(peer, _)| !self.connected.contains(peer));
        let of_forwarder = relayed.clone().filter(|(_, member)| member.forwarder == *forwarder).count();
        of_forwarder < MAX_OF_FORWARDER && relayed.count() < MAX_RELAYED
    }

    fn note(&mut self, peer: PeerId, edition: Edition, forwarder: PeerId, now: Time) -> Heard {
        if self.noted.values().filter(|noted| noted.forwarder == forwarder).count() >= MAX_OF_FORWARDER {
            limit(&mut self.noted, 0, |_, noted| (noted.forwarder == forwarder).then_some(noted.since));
        }
        limit(&mut self.noted, MAX_RELAYED, |_, noted| Some(noted.since));
        self.noted.insert(peer, Noted { edition, forwarder, since: now });
        Heard::Noted
    }

    /// Records a connection to `peer`, which was admitted.
    pub fn connected(&mut self, peer: PeerId, now: Time) {
        let connected = &self.connected;
        limit(&mut self.admitted, MAX_ADMITTED, |peer, since| (!connected.contains(peer)).then_some(*since));
        self.admitted.insert(peer, now);
        self.connected.insert(peer);
        self.noted.remove(&peer);
    }

    /// Records that the last connection to `peer` ended; returns whether the peer was in the pool until now.
    pub fn disconnected(&mut self, peer: PeerId, now: Time) -> bool {
        self.connected.remove(&peer);
        self.forwarders.remove(&peer);
        self.lose(peer, now)
    }

    /// Excludes `peer` from the pool: its adverts are neither processed nor relayed. Returns whether it was in the pool
    /// until now.
    pub fn exclude(&mut self, peer: PeerId, now: Time) -> bool {
        self.excluded.insert(peer);
        self.noted.remove(&peer);
        self.lose(peer, now)
    }

    /// Removes nodes that have been silent for too long, and returns them.
    pub fn silent(&mut self, now: Time) -> Vec<PeerId> {
        let silent = |(peer, member): (&PeerId, &Member)| {
            let away = !self.connected.contains(peer) && now.since(member.heard) >= self.silence;
            away.then_some(*peer)
        };
        let silent: Vec<PeerId> = self.members.iter().filter_map(silent).collect();
        for peer in &silent {
            self.lose(*peer, now);
        }
        silent
    }

    fn lose(&mut self, peer: PeerId, now: Time) -> bool {
        let Some(member) = self.members.remove(&peer) else { return false };
        limit(&mut self.gone, MAX_GONE, |_, gone| Some(gone.since));
        self.gone.insert(peer, Gone { edition: edition_of(&member.advert), until: now + HOLD, since: now });
        true
    }

    /// Whether `peer` is in the pool.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.members.contains_key(peer)
    }

    /// Whether this node's adverts are needed although they say nothing new, while it follows `term`: some nodes of the pool
    /// are known through others only, so they hear this node through others, too; or some follow another master, and must
    /// not have to wait for what could convince them.
    pub fn is_unsettled(&self, term: Option<Term>) -> bool {
        self.members.iter().any(|(peer, member)| !self.connected.contains(peer) || member.advert.term != term)
    }

    /// Whether `author` itself is connected to every node and client that this node knows of, and so has told them all what
    /// it told this node: then nobody needs it from here.
    pub fn is_connected_to_all(&self, author: &Advert) -> bool {
        let links: BTreeSet<&PeerId> = author.links.iter().map(|link| &link.to).collect();
        let mut others = self.members.keys().chain(&self.connected);
        links.contains(&self.local) && others.all(|peer| *peer == author.peer || links.contains(peer))
    }

    /// Whether there is a connection to `peer`.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.connected.contains(peer)
    }

    /// Whether there is or was a connection to `peer`.
    pub fn was_admitted(&self, peer: &PeerId) -> bool {
        self.admitted.contains_key(peer)
    }

    /// The connected peers.
    pub fn connections(&self) -> &BTreeSet<PeerId> {
        &self.connected
    }

    /// The latest adverts of all nodes of the pool.
    pub fn adverts(&self) -> impl Iterator<Item = &Arc<Advert>> {
        self.members.values().map(|member| &member.advert)
    }
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
