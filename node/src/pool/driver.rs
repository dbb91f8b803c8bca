//! The one task that feeds the pool's state machines with what the network and the clock say, and does what they decide:
//! tells the pool how this node stands, keeps the view, remembers terms. Who is there is the roster's, who is the master the
//! election's to decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use pangea_client::{Error, ErrorKind};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::codec;
use super::handle::Pool;
use super::memory::Memory;
use super::{Advert, LinkAdvert, Term, View};
use crate::clock;
use crate::net::{Follower, Gossip, NetEvent, Network, Verdict};
use crate::observe::Observer;
use crate::peers::Peers;
use pangea_control::Time;
use pangea_control::pool::election::{Candidate, Changed, Election, Event};
use pangea_control::pool::roster::{Heard, Roster};
use pangea_control::pool::term_keeper::{Action, TermKeeper};

/// Between two looks at the clock: a part of the shortest wait of an election.
const TICK: Duration = Duration::from_millis(100);

/// A node says how it stands at least this often.
const REPEAT: Duration = Duration::from_secs(1);

/// And not more often than this, however much changes.
const COALESCE: Duration = Duration::from_millis(50);

/// What a node is when its part in the pool begins.
pub struct Settings {
    /// What it says of itself at first: its name, device, speed and the like.
    pub own: Advert,
    /// What it remembers.
    pub memory: Memory,
    /// The term of its last run.
    pub remembered: Option<Term>,
    /// What is known of peers: their links as measured, and who is quarantined.
    pub peers: Peers,
    /// What is counted, for whoever looks.
    pub observer: Observer,
}

/// A connection of this node.
struct Link {
    transport: String,
    found_by: String,
}

/// The driver. [`Driver::run`] it on the network thread.
pub struct Driver {
    network: Network,
    events: Follower,
    own: Arc<Mutex<Advert>>,
    said: Arc<Notify>,
    view: watch::Sender<Arc<View>>,
    memory: Memory,
    peers: Peers,
    roster: Roster,
    election: Election,
    terms: TermKeeper,
    /// The disk is taking a term.
    storing: Option<(Term, JoinHandle<pangea_client::Result<()>>)>,
    links: BTreeMap<PeerId, Link>,
    listening: Vec<Multiaddr>,
    sequence: u64,
    /// The master that was last told of.
    told: Option<PeerId>,
    /// Something changed that the pool is to know.
    fresh: bool,
    /// Something changed that the view is to show.
    changed: bool,
    published: Option<Instant>,
    started: Instant,
}

impl Driver {
    /// A node's part in the pool over `network`, whose events come by `events`.
    pub fn new(settings: Settings, network: Network, events: Follower) -> (Driver, Pool) {
        let local = settings.own.peer;
        let election = Election::new(local, settings.own.works, settings.own.force_master, settings.remembered);
        let view = View {
            local,
            own: Arc::new(settings.own.clone()),
            term: None,
            nodes: BTreeMap::new(),
            connected: Default::default(),
        };
        let (view, viewed) = watch::channel(Arc::new(view));
        let connected = viewed.clone();
        settings.observer.gauge("peers_connected", "Peers that this node is connected to", move || {
            connected.borrow().connected.len() as f64
        });
        let (own, said) = (Arc::new(Mutex::new(settings.own)), Arc::new(Notify::new()));
        let pool = Pool { local, own: Arc::clone(&own), said: Arc::clone(&said), view: viewed };
        let driver = Driver {
            network,
            events,
            own,
            said,
            view,
            memory: settings.memory,
            peers: settings.peers,
            roster: Roster::new(local),
            election,
            terms: TermKeeper::default(),
            storing: None,
            links: BTreeMap::new(),
            listening: Vec::new(),
            sequence: 0,
            told: None,
            fresh: true,
            changed: true,
            published: None,
            started: Instant::now(),
        };
        (driver, pool)
    }

    /// Runs until the network ends.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut excluded = self.peers.excluded();
        // Evidence that was found at start counts like fresh evidence.
        excluded.mark_changed();
        loop {
            let due = self.published.map_or(self.started, |last| last + if self.fresh { COALESCE } else { REPEAT });
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(event) => self.on_net_event(event).await,
                    None => return,
                },
                // The sender is in `self.peers`.
                Ok(()) = excluded.changed() => {
                    let excluded = Arc::clone(&excluded.borrow_and_update());
                    self.exclude(&excluded);
                }
                () = self.said.notified() => self.fresh = true,
                (term, stored) = store_ended(&mut self.storing) => self.on_stored(term, stored),
                _ = tick.tick() => self.on_tick(),
                () = tokio::time::sleep_until(due) => self.publish().await,
            }
            if std::mem::take(&mut self.changed) || self.fresh {
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
                self.fresh = true;
            }
            NetEvent::PeerUp { peer, transport, found_by, .. } => {
                let link = Link { transport: transport.to_string(), found_by: found_by.to_string() };
                self.links.insert(peer, link);
                self.roster.connected(peer);
                self.fresh = true;
            }
            NetEvent::PeerDown { peer, silent, .. } => {
                self.links.remove(&peer);
                self.fresh = true;
                if self.roster.disconnected(peer, self.now()) {
                    self.elect(Event::Gone { peer, silent });
                }
            }
            _ => {}
        }
    }

    /// Quarantined nodes are not nodes of this pool: neither their adverts nor their mastership count.
    fn exclude(&mut self, excluded: &BTreeSet<PeerId>) {
        for peer in excluded {
            if self.roster.exclude(*peer, self.now()) {
                self.changed = true;
                self.elect(Event::Gone { peer: *peer, silent: true });
            }
        }
    }

    async fn on_gossip(&mut self, gossip: Gossip) {
        let Gossip { source, bytes, ticket } = gossip;
        let advert = match codec::decode(&bytes) {
            Ok(advert) if advert.peer == source => advert,
            Ok(_) => return self.refuse(source, "it speaks for another", &ticket).await,
            Err(error) => return self.refuse(source, &error.to_string(), &ticket).await,
        };
        let (candidate, addresses) = (Candidate::of(&advert), advert.addresses.clone());
        let heard = self.roster.heard(advert, self.now());
        let verdict = if heard == Heard::Old { Verdict::Ignore } else { Verdict::Accept };
        self.network.judge(ticket, verdict).await;
        if heard == Heard::Old {
            return;
        }
        if !self.roster.is_connected(&source) {
            self.network.heard_of(source, addresses).await;
        }
        self.changed = true;
        // Whoever has just come is told at once.
        self.fresh |= heard == Heard::Joined;
        self.elect(Event::Heard(source, candidate));
    }

    async fn refuse(&self, source: PeerId, why: &str, ticket: &crate::net::GossipTicket) {
        tracing::debug!(event = "gossip_refused", peer = %source, why);
        self.network.judge(ticket.clone(), Verdict::Reject).await;
    }

    fn on_tick(&mut self) {
        for peer in self.roster.silent(self.now()) {
            self.changed = true;
            self.elect(Event::Gone { peer, silent: true });
        }
        self.elect(Event::Tick);
        let actions = self.terms.tick(clock::now());
        self.act(actions);
    }

    /// Lets the election decide; a term is on disk before anyone is told of it.
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
                "cannot store the term of the master, so it is not told: {error}"
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
                    // The disk may take seconds; what happens on the network is followed meanwhile.
                    self.storing = Some((term, tokio::task::spawn_blocking(move || memory.keep_term(&term))));
                }
                Action::Tell(term) => self.tell(term),
            }
        }
    }

    fn tell(&mut self, term: Option<Term>) {
        self.fresh = true;
        let Some(term) = term else {
            tracing::debug!(event = "no_master", "no master is known");
            return;
        };
        if self.told.replace(term.master) != Some(term.master) {
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

    /// Brings what this node says of itself up to date.
    fn refresh(&self) -> Advert {
        let links = self.peers.read(|directory| {
            let link = |(peer, link): (&PeerId, &Link)| {
                let measured = directory.get(peer);
                LinkAdvert {
                    to: *peer,
                    rtt: measured.and_then(|peer| peer.rtt).unwrap_or_default(),
                    bytes_per_s: measured.and_then(|peer| peer.bytes_per_s).unwrap_or_default(),
                    transport: link.transport.clone(),
                    found_by: link.found_by.clone(),
                }
            };
            self.links.iter().filter(|(peer, _)| directory.may_compute(peer)).map(link).collect()
        });
        let mut own = self.own();
        own.peer = self.network.local_peer_id();
        own.sequence = self.sequence;
        own.term = self.terms.told();
        own.counter = self.terms.counter(self.election.counter());
        own.uptime = self.started.elapsed();
        own.addresses.clone_from(&self.listening);
        own.links = links;
        own.clone()
    }

    async fn publish(&mut self) {
        self.sequence += 1;
        self.fresh = false;
        self.changed = true;
        self.published = Some(Instant::now());
        match codec::encode(&self.refresh()) {
            Ok(bytes) => self.network.publish(bytes).await,
            Err(error) => {
                tracing::warn!(event = "advert_too_long", %error, "cannot publish this node's advert: {error}")
            }
        }
    }

    fn show(&self) {
        let view = View {
            local: self.network.local_peer_id(),
            own: Arc::new(self.refresh()),
            term: self.terms.told(),
            nodes: self.roster.adverts().map(|advert| (advert.peer, Arc::clone(advert))).collect(),
            connected: self.roster.connections().clone(),
        };
        self.view.send_replace(Arc::new(view));
    }
}

/// The term that the disk was given, and what became of it; never where none was.
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

    /// Longer than an election with nobody there takes, by far.
    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn a_disk_that_hangs_delays_no_news_of_peers_and_only_the_telling_of_the_term() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (network, _swarm_events) = start(NetConfig::new(crate::net::identity::ephemeral())).unwrap();
            let (events, receiver) = mpsc::channel(8);
            let mut followers = Followers::new(receiver);
            let own = Advert { works: true, ..Advert::new(network.local_peer_id()) };
            let settings = Settings {
                own,
                memory: Memory::new(Some(state.clone())),
                remembered: None,
                peers: Peers::default(),
                observer: Observer::default(),
            };
            let (driver, pool) = Driver::new(settings, network.clone(), followers.follow(Interest::All));
            let driving = tokio::task::spawn_local(driver.run());
            tokio::task::spawn_local(followers.run(Some(network)));
            // The database has one writer at a time: whatever the driver stores waits for this one.
            let hung = state.database().begin_write().unwrap();
            let mut view = pool.view();
            let before = Instant::now();
            let mut peers = 0;
            // Peers come one after another, until long after the node has elected itself.
            while before.elapsed() < pangea_control::pool::election::LISTEN * 2 {
                let peer = PeerId::random();
                let (address, transport) = (Multiaddr::empty(), Transport::Tcp);
                let (direction, found_by) = (Direction::Dialled, FoundBy::Manual);
                events.send(NetEvent::PeerUp { peer, address, transport, direction, found_by }).await.unwrap();
                let seen = tokio::time::timeout(TIMEOUT, view.wait_for(|view| view.connected.contains(&peer)));
                assert_eq!(seen.await.expect("the disk holds up the news").unwrap().term, None, "not on disk");
                events.send(NetEvent::PeerDown { peer, why: String::new(), silent: false }).await.unwrap();
                let seen = tokio::time::timeout(TIMEOUT, view.wait_for(|view| !view.connected.contains(&peer)));
                seen.await.expect("the disk holds up the news").unwrap();
                peers += 1;
            }
            assert!(peers > 10, "{peers}");
            drop(hung);
            let elected = tokio::time::timeout(TIMEOUT, view.wait_for(|view| view.term.is_some()));
            assert!(elected.await.expect("the term is told once it is stored").unwrap().is_master());
            drop(events);
            driving.await.unwrap();
        });
    }
}
