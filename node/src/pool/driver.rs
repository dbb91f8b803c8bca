//! The task that feeds the pool's state machines with events of the network and the clock and executes their actions:
//! publishes this node's advert, keeps the view up to date, stores terms. The roster decides which nodes are present, the
//! election which one is the master.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use pangea_client::{Error, ErrorKind};
use thiserror::Error as ThisError;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::codec;
use super::handle::Pool;
use super::memory::Memory;
use super::metrics::{AdvertOutcome, Metrics};
use super::{Advert, LinkAdvert, Term, View};
use crate::clock;
use crate::membership::Membership;
use crate::net::{Follower, Gossip, GossipJudgement, NetEvent, Network, Report};
use crate::observe::Observer;
use crate::peers::Peers;
use crate::wire::WireError;
use pangea_control::Time;
use pangea_control::membership::{NotProven, Role};
use pangea_control::net::traffic_rates;
use pangea_control::pool::advert_pace::{self, AdvertPace, has_new_values};
use pangea_control::pool::election::{Candidate, Changed, Election, Event};
use pangea_control::pool::roster::{Delivery, Heard, Roster};
use pangea_control::pool::term_keeper::{Action, TermKeeper};

/// Interval of the clock's ticks: a fraction of the shortest timeout of an election.
const TICK: Duration = Duration::from_millis(100);

/// An advert says what was sent since the one before: no traffic falls between two of them.
const _: () = assert!(traffic_rates::AVERAGED.as_millis() >= advert_pace::LONGEST.as_millis());

/// What a node's part in the pool starts with.
pub struct PoolSettings {
    /// Initial advert: name, device, speed and so on.
    pub own: Advert,
    /// Who belongs to the pool.
    pub membership: Membership,
    /// Storage of terms.
    pub memory: Memory,
    /// Term of the previous run.
    pub stored_term: Option<Term>,
    /// Links of peers as measured, and quarantined peers.
    pub peers: Peers,
    /// Registry of metrics.
    pub observer: Observer,
}

/// A connection of this node.
struct OwnLink {
    transport: String,
    found_by: String,
}

/// The pool's driver; [`PoolDriver::run`] must be called on the network thread.
pub struct PoolDriver {
    network: Network,
    events: Follower,
    own: Arc<Mutex<Advert>>,
    said: Arc<Notify>,
    view: watch::Sender<Arc<View>>,
    membership: Membership,
    memory: Memory,
    peers: Peers,
    roster: Roster,
    election: Election,
    terms: TermKeeper,
    /// A term that is being stored on disk.
    storing: Option<(Term, JoinHandle<pangea_client::Result<()>>)>,
    links: BTreeMap<PeerId, OwnLink>,
    listening: Vec<Multiaddr>,
    sequence: u64,
    /// The master that was last logged.
    logged_master: Option<PeerId>,
    /// When the own advert is published.
    pace: AdvertPace,
    /// The own advert as it was last published.
    published: Option<Advert>,
    /// Whether the view must be updated.
    view_changed: bool,
    metrics: Metrics,
    started: Instant,
}

impl PoolDriver {
    /// A node's part in the pool over `network`, whose events arrive through `events`.
    pub fn new(settings: PoolSettings, network: Network, events: Follower) -> (PoolDriver, Pool) {
        let local = settings.own.peer;
        let election = Election::new(local, settings.own.works, settings.own.force_master, settings.stored_term);
        let view = View {
            local,
            own: Arc::new(settings.own.clone()),
            term: None,
            nodes: BTreeMap::new(),
            connected: Default::default(),
        };
        let (view, viewed) = watch::channel(Arc::new(view));
        let metrics = Metrics::new(&settings.observer, &viewed);
        let works = settings.own.works;
        let (own, said) = (Arc::new(Mutex::new(settings.own)), Arc::new(Notify::new()));
        let (for_pool, said_by_pool) = (Arc::clone(&own), Arc::clone(&said));
        let pool = Pool { local, own: for_pool, said: said_by_pool, view: viewed, network: network.clone() };
        let driver = PoolDriver {
            network,
            events,
            own,
            said,
            view,
            membership: settings.membership,
            memory: settings.memory,
            peers: settings.peers,
            roster: Roster::new(local, works),
            election,
            terms: TermKeeper::new(local),
            storing: None,
            links: BTreeMap::new(),
            listening: Vec::new(),
            sequence: 0,
            logged_master: None,
            pace: AdvertPace::default(),
            published: None,
            view_changed: true,
            metrics,
            started: Instant::now(),
        };
        (driver, pool)
    }

    /// Runs until the network ends.
    pub async fn run(mut self) {
        let mut tick = clock::ticks(TICK);
        let mut excluded = self.peers.excluded();
        // Evidence found at start counts like new evidence.
        excluded.mark_changed();
        loop {
            let due = self.started + self.pace.due().elapsed();
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(event) => self.on_net_event(event).await,
                    None => return,
                },
                // Never fails: the sender is in `self.peers`.
                Ok(()) = excluded.changed() => {
                    let excluded = Arc::clone(&excluded.borrow_and_update());
                    self.exclude(&excluded);
                }
                () = self.said.notified() => self.pace.changed(),
                (term, stored) = store_ended(&mut self.storing) => self.on_stored(term, stored),
                _ = tick.tick() => self.on_tick(),
                () = tokio::time::sleep_until(due) => self.consider_advert().await,
            }
            if std::mem::take(&mut self.view_changed) || self.pace.is_changed() {
                self.show();
            }
        }
    }

    fn now(&self) -> Time {
        Time::since_epoch(self.started.elapsed())
    }

    async fn on_net_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::Gossip(gossip) => self.on_gossip(gossip).await,
            NetEvent::Listening(address) => {
                self.listening.push(address);
                self.pace.changed();
            }
            NetEvent::PeerUp { peer, transport, found_by, .. } => {
                let link = OwnLink { transport: transport.to_string(), found_by: found_by.to_string() };
                self.links.insert(peer, link);
                self.roster.connected(peer, self.now());
                self.pace.changed();
            }
            NetEvent::PeerDown { peer, silent, .. } => {
                self.links.remove(&peer);
                self.pace.changed();
                if self.roster.disconnected(peer, self.now()) {
                    self.elect(Event::Gone { peer, silent });
                }
            }
            _ => {}
        }
    }

    /// Removes quarantined nodes: neither their adverts nor their mastership count.
    fn exclude(&mut self, excluded: &BTreeSet<PeerId>) {
        for peer in excluded {
            if self.roster.exclude(*peer, self.now()) {
                self.view_changed = true;
                self.elect(Event::Gone { peer: *peer, silent: true });
            }
        }
    }

    async fn on_gossip(&mut self, gossip: Gossip) {
        let Gossip { source, bytes, ticket } = gossip;
        let forwarder = ticket.forwarder();
        if !self.roster.may_forward(&forwarder, self.now()) {
            self.metrics.received(AdvertOutcome::Limited);
            return self.network.judge(ticket, GossipJudgement::Ignore).await;
        }
        let (advert, proven) = match self.decode(source, &bytes) {
            Ok(decoded) => decoded,
            Err(why) => {
                self.metrics.received(AdvertOutcome::Refused);
                tracing::debug!(event = "gossip_refused", peer = %source, %forwarder, %why);
                return self.network.judge(ticket, GossipJudgement::Reject).await;
            }
        };
        let (candidate, addresses) = (Candidate::of(&advert), advert.addresses.clone());
        let is_known_to_all = self.roster.is_connected_to_all(&advert);
        let heard = self.roster.heard(advert, Delivery { forwarder, proven }, self.now());
        self.metrics.received(heard.into());
        let judgement = match heard {
            Heard::Newer if is_known_to_all => GossipJudgement::Ignore,
            Heard::Joined | Heard::Newer | Heard::Noted => GossipJudgement::Accept,
            Heard::Stranger | Heard::Old => GossipJudgement::Ignore,
        };
        self.network.judge(ticket, judgement).await;
        if heard == Heard::Old {
            return;
        }
        if !self.roster.is_connected(&source) {
            // A stranger of an open pool belongs to it once it is connected.
            let proven = heard != Heard::Stranger;
            self.network.heard_of(Report { peer: source, forwarder, proven }, addresses).await;
        }
        // A node that was just heard of gets this node's advert at once.
        if matches!(heard, Heard::Joined | Heard::Noted) {
            self.pace.changed();
        }
        if matches!(heard, Heard::Joined | Heard::Newer) {
            self.view_changed = true;
            self.elect(Event::Heard(source, candidate));
        }
    }

    /// Decodes an advert of `source`, and whether `source` has proved that it belongs to the pool. In a pool with a key,
    /// nothing but the proof is read of the advert of a node that has not proved it and was never admitted.
    fn decode(&mut self, source: PeerId, bytes: &[u8]) -> Result<(Advert, bool), GossipRefusal> {
        let (membership, roster) = (&self.membership, &self.roster);
        let mut role = None;
        let advert = codec::decode_if(bytes, |certificate| match membership.check(&source, certificate) {
            Ok(proven) => {
                role = Some(proven);
                Ok(())
            }
            Err(why @ NotProven::Revoked(_)) => Err(GossipRefusal::NotProven(why)),
            Err(_) if membership.is_open() || roster.was_admitted(&source) => Ok(()),
            Err(why) => Err(GossipRefusal::NotProven(why)),
        })?;
        if advert.peer != source {
            return Err(GossipRefusal::AnotherPeers);
        }
        if role == Some(Role::Client) && advert.works {
            return Err(GossipRefusal::ClientThatWorks);
        }
        Ok((advert, role.is_some()))
    }

    fn on_tick(&mut self) {
        for peer in self.roster.silent(self.now()) {
            self.view_changed = true;
            self.elect(Event::Gone { peer, silent: true });
        }
        self.elect(Event::Tick);
        let actions = self.terms.tick(clock::now());
        self.act(actions);
    }

    /// Passes an event to the election; a term is stored before it is announced.
    fn elect(&mut self, event: Event) {
        let now = self.now();
        if let Some(Changed(term)) = self.election.handle(event, now) {
            let actions = self.terms.decided(term);
            self.act(actions);
        }
    }

    fn on_stored(&mut self, term: Term, stored: pangea_client::Result<()>) {
        if let Err(error) = &stored {
            tracing::warn!(
                event = "term_not_stored", %error, term = term.counter,
                "cannot store the master's term: {error}; this node can follow a master but not become one"
            );
        }
        let actions = self.terms.stored(term, stored.is_ok(), clock::now());
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Store(term) => {
                    let memory = self.memory.clone();
                    // The disk may take seconds; network events are handled meanwhile.
                    self.storing = Some((term, tokio::task::spawn_blocking(move || memory.keep_term(&term))));
                }
                Action::Announce(term) => self.log_master(term),
                Action::GiveUp(term) => self.elect(Event::NotStored(term)),
            }
        }
    }

    fn log_master(&mut self, term: Option<Term>) {
        self.pace.changed();
        let Some(term) = term else {
            tracing::debug!(event = "no_master", "no master is known");
            return;
        };
        self.metrics.elections.inc();
        if self.logged_master.replace(term.master) != Some(term.master) {
            if term.master == self.network.local_peer_id() {
                tracing::info!(event = "elected", term = term.counter, "Node elected master");
            } else {
                let (master, counter) = (term.master, term.counter);
                tracing::info!(event = "elected", peer = %master, term = counter, "Node {master} elected master");
            }
        }
    }

    fn own(&self) -> MutexGuard<'_, Advert> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates this node's own advert from its links and term.
    fn refresh(&self) -> Advert {
        let links = self.peers.read(|directory| {
            let link = |(peer, link): (&PeerId, &OwnLink)| {
                let measured = directory.get(peer);
                LinkAdvert {
                    to: *peer,
                    rtt: measured.and_then(|peer| peer.rtt).unwrap_or_default(),
                    bytes_per_s: measured.and_then(|peer| peer.bytes_per_s).unwrap_or_default(),
                    sent_bytes_per_s: self.network.traffic_rate(peer).sent_bytes_per_s,
                    transport: link.transport.clone(),
                    found_by: link.found_by.clone(),
                }
            };
            let is_client =
                |peer| directory.get(peer).and_then(|peer| peer.hello.as_ref()).is_some_and(|hello| !hello.works);
            let links = self.links.iter();
            links.filter(|(peer, _)| directory.may_compute(peer) && !is_client(peer)).map(link).collect()
        });
        let mut own = self.own();
        own.peer = self.network.local_peer_id();
        own.sequence = self.sequence;
        own.term = self.terms.announced();
        own.counter = self.terms.counter(self.election.counter());
        own.uptime = self.started.elapsed();
        own.addresses.clone_from(&self.listening);
        own.links = links;
        own.clone()
    }

    /// Publishes this node's advert, if it is time.
    async fn consider_advert(&mut self) {
        let now = self.now();
        let current = self.refresh();
        let (roster, published) = (&self.roster, &self.published);
        let is_new = || published.as_ref().is_none_or(|published| has_new_values(published, &current));
        let has_news = || roster.is_unsettled(current.term) || is_new();
        if self.pace.speaks(now, has_news) {
            self.publish(current).await;
        }
    }

    /// Publishes what this node says of itself now, under the next number.
    async fn publish(&mut self, mut advert: Advert) {
        self.sequence += 1;
        self.view_changed = true;
        advert.sequence = self.sequence;
        self.published = Some(advert.clone());
        if !advert.works {
            // A lite client says nothing of itself: no node keeps anything of it but the connection.
            return;
        }
        match codec::encode_with(&advert, &self.membership.certificate()) {
            Ok(bytes) => {
                self.metrics.adverts_sent.inc();
                self.network.publish(bytes).await;
            }
            Err(error) => {
                tracing::warn!(event = "advert_too_long", %error, "cannot publish this node's advert: {error}")
            }
        }
    }

    fn show(&self) {
        let view = View {
            local: self.network.local_peer_id(),
            own: Arc::new(self.refresh()),
            term: self.terms.announced(),
            nodes: self.roster.adverts().map(|advert| (advert.peer, Arc::clone(advert))).collect(),
            connected: self.roster.connections().clone(),
        };
        self.view.send_replace(Arc::new(view));
    }
}

/// Why a message of gossip does not count.
#[derive(Debug, ThisError)]
enum GossipRefusal {
    #[error(transparent)]
    Malformed(#[from] WireError),
    #[error(transparent)]
    NotProven(NotProven),
    #[error("it signed another node's advert")]
    AnotherPeers,
    #[error("its certificate is a client's, and it says that it computes for others")]
    ClientThatWorks,
}

/// Completes with the stored term and the result; never, if none is being stored.
async fn store_ended(
    storing: &mut Option<(Term, JoinHandle<pangea_client::Result<()>>)>,
) -> (Term, pangea_client::Result<()>) {
    let Some((term, store)) = storing else { return std::future::pending().await };
    let ended = |error| Err(Error::new(ErrorKind::Internal, format!("storing a term ended unexpectedly: {error}")));
    let stored = store.await.unwrap_or_else(ended);
    let term = *term;
    *storing = None;
    (term, stored)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio::task::LocalSet;

    use super::*;
    use crate::net::{Direction, Followers, FoundBy, Interest, NetConfig, Transport, start};
    use crate::storage::State;

    /// Far longer than an election without other nodes takes.
    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn a_hanging_disk_delays_only_the_announcement_of_the_term() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (network, _swarm_events) = start(NetConfig::new(crate::net::identity::ephemeral())).unwrap();
            let (events, receiver) = mpsc::channel(8);
            let mut followers = Followers::new(receiver);
            let own = Advert { works: true, ..Advert::new(network.local_peer_id()) };
            let settings = PoolSettings {
                membership: Membership::open(&libp2p::identity::Keypair::generate_ed25519()),
                own,
                memory: Memory::new(Some(state.clone())),
                stored_term: None,
                peers: Peers::default(),
                observer: Observer::default(),
            };
            let (driver, pool) = PoolDriver::new(settings, network.clone(), followers.follow(Interest::All));
            let driving = tokio::task::spawn_local(driver.run());
            tokio::task::spawn_local(followers.run(Some(network)));
            // The database has one user at a time, so the driver's writes wait for this one.
            let (let_go, hung) = std::sync::mpsc::sync_channel::<()>(1);
            let (hanging, hangs) = std::sync::mpsc::sync_channel(1);
            std::thread::spawn(move || {
                let hang = state.with(|_| {
                    hanging.send(()).unwrap();
                    // Ends with the sender.
                    let _ = hung.recv();
                    Ok(())
                });
                hang.unwrap();
            });
            hangs.recv().unwrap();
            let mut view = pool.view();
            let before = Instant::now();
            let mut peers = 0;
            // Peers connect one after another, until long after the node has elected itself.
            while before.elapsed() < pangea_control::pool::election::LISTEN * 2 {
                let peer = PeerId::random();
                let (address, transport) = (Multiaddr::empty(), Transport::Tcp);
                let (direction, found_by) = (Direction::Dialled, FoundBy::Manual);
                events.send(NetEvent::PeerUp { peer, address, transport, direction, found_by }).await.unwrap();
                let seen = tokio::time::timeout(TIMEOUT, view.wait_for(|view| view.connected.contains(&peer)));
                assert_eq!(seen.await.expect("the disk delays network events").unwrap().term, None, "not on disk");
                events.send(NetEvent::PeerDown { peer, why: String::new(), silent: false }).await.unwrap();
                let seen = tokio::time::timeout(TIMEOUT, view.wait_for(|view| !view.connected.contains(&peer)));
                seen.await.expect("the disk delays network events").unwrap();
                peers += 1;
            }
            assert!(peers > 10, "{peers}");
            drop(let_go);
            let elected = tokio::time::timeout(TIMEOUT, view.wait_for(|view| view.term.is_some()));
            assert!(elected.await.expect("the term is announced once it is stored").unwrap().is_master());
            drop(events);
            driving.await.unwrap();
        });
    }
}
