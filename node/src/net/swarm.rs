//! The swarm's task: drives libp2p, executes the handle's commands and the dialling plan, and turns what happens into
//! events. It decides little: `dial` decides whom to dial, `liveness` who is dead, `admission` and `connection_table`
//! who is admitted.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionError, ConnectionId, DialError, ListenError, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, gossipsub, identify, ping};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::failures::{closed_text, connect_error, dial_error_text, failure_of, listen_error, refused_here};
use super::gossip;
use super::inbound::Inbound;
use super::metrics::RefusedByPeers;
use super::network::{Command, Direction, Gossip, GossipJudgement, GossipTicket, NetConfig, NetError, NetEvent};
use super::peer_connections::PeerConnections;
use super::peers_file::{self, Change};
use super::swarm_behaviour::{self, Behaviour, BehaviourEvent};
use super::transport::{self, HandshakeContext, RefusedConnection};
use super::yamux;
use crate::clock;
use pangea_control::net::admission::Refusal;
use pangea_control::net::announcements::News;
use pangea_control::net::dial::{Dial, DialPlan, Failure, FoundBy, TargetId, peer_of, transport_of};
use pangea_control::net::liveness::{self, Liveness};
use pangea_control::net::refusal_log::{self, RefusalLog};

/// Interval between two checks of the peers file.
const PEERS_FILE_INTERVAL: Duration = Duration::from_secs(1);

/// Time for connections to close in order.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Delay before retrying a `connect` whose connection lost against another one that then ended.
const CONNECT_RETRY: Duration = Duration::from_millis(100);

/// Events queued for a reader that lags; beyond them the swarm waits.
const MAX_WAITING_EVENTS: usize = 256;

/// Who requested a dial.
enum Dialler {
    Plan { target: TargetId, found_by: FoundBy },
    Caller(Caller),
}

/// A `connect` call that waits for its answer.
struct Caller {
    address: Multiaddr,
    until: Instant,
    reply: oneshot::Sender<Result<PeerId, NetError>>,
}

/// A `connect` whose connection duplicated another one to `peer`; it waits for that one.
struct Waiting {
    caller: Caller,
    peer: PeerId,
    retry: Instant,
}

/// A connected peer.
struct Connected {
    connections: HashSet<ConnectionId>,
    addresses: Vec<Multiaddr>,
}

/// Why this node ends its connections to a peer.
struct Ending {
    why: String,
    /// Whether the peer was silent for too long.
    silent: bool,
}

/// State of the swarm's task.
pub(super) struct SwarmDriver {
    swarm: Swarm<Behaviour>,
    connections: PeerConnections,
    events: mpsc::Sender<NetEvent>,
    waiting_events: VecDeque<NetEvent>,
    refused: mpsc::Receiver<RefusedConnection>,
    refusals: RefusalLog,
    refused_by: RefusedByPeers,
    plan: DialPlan,
    dials: bool,
    dialling: HashMap<ConnectionId, Dialler>,
    waiting: Vec<Waiting>,
    connected: HashMap<PeerId, Connected>,
    liveness: Liveness,
    topic: Option<gossipsub::IdentTopic>,
    /// Peers whose connections this node is ending.
    ending: HashMap<PeerId, Ending>,
    /// Disconnects in progress and the time at which they are forced.
    closing: Vec<(PeerId, Instant, Option<oneshot::Sender<()>>)>,
    watch: Option<peers_file::Watch>,
}

impl SwarmDriver {
    /// Sets everything up and binds the listen addresses.
    pub(super) fn new(
        config: NetConfig,
        connections: PeerConnections,
        refused_by: RefusedByPeers,
        events: mpsc::Sender<NetEvent>,
    ) -> Result<Self, NetError> {
        let local = config.identity.public().to_peer_id();
        let (refused_sender, refused) = mpsc::channel(refusal_log::MAX_REMEMBERED);
        let context = HandshakeContext {
            keypair: config.identity.clone(),
            local,
            membership: config.membership.clone(),
            connections: connections.clone(),
            windows: yamux::Windows::new(),
            refused: refused_sender,
        };
        let transport = transport::build(&context).map_err(|error| NetError::Setup(error.to_string()))?;
        let (behaviour, topic) = swarm_behaviour::build(&config)?;
        let swarm_config =
            libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(swarm_behaviour::IDLE_TIMEOUT);
        let mut swarm = Swarm::new(transport, behaviour, local, swarm_config);
        for address in &config.listen {
            swarm.listen_on(address.clone()).map_err(|error| listen_error(address, &error))?;
        }
        let mut plan = DialPlan::new(local);
        for address in config.peers {
            plan.add_named(address, clock::now());
        }
        Ok(Self {
            swarm,
            connections,
            events,
            waiting_events: VecDeque::new(),
            refused,
            refusals: RefusalLog::new(clock::now()),
            refused_by,
            plan,
            dials: config.dials,
            dialling: HashMap::new(),
            waiting: Vec::new(),
            connected: HashMap::new(),
            liveness: Liveness::default(),
            topic,
            ending: HashMap::new(),
            closing: Vec::new(),
            watch: config.peers_file.map(peers_file::Watch::new),
        })
    }

    pub(super) fn inbound(&self) -> Inbound {
        self.swarm.behaviour().inbound.inbound()
    }

    pub(super) fn streams(&self) -> libp2p_stream::Control {
        self.swarm.behaviour().streams.new_control()
    }

    /// Runs until shutdown, or until the last handle is dropped.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut tick = clock::ticks(liveness::TICK);
        let (change_sender, mut changes) = mpsc::channel(1);
        let watching = self.watch.take().map(|watch| tokio::spawn(watch_peers_file(watch, change_sender)));
        let events = self.events.clone();
        let shutdown = loop {
            // A lagging reader delays the swarm, not the connections; only round-trip times are dropped.
            let room = self.waiting_events.len() < MAX_WAITING_EVENTS;
            tokio::select! {
                permit = events.reserve(), if !self.waiting_events.is_empty() => match permit {
                    Ok(permit) => if let Some(event) = self.waiting_events.pop_front() { permit.send(event) },
                    // Nobody reads the events: they are dropped; the network continues for the handle's users.
                    Err(_) => self.waiting_events.clear(),
                },
                event = self.swarm.select_next_some(), if room => self.on_swarm(event),
                Some(refused) = self.refused.recv(), if room => self.on_refused(&refused),
                Some((path, change)) = changes.recv(), if room => self.on_peers_file(path, change),
                _ = tick.tick(), if room => self.on_tick(),
                command = commands.recv() => match command {
                    Some(Command::Shutdown { reply }) => break Some(reply),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
            }
        };
        if let Some(watching) = watching {
            watching.abort();
        }
        self.close_all().await;
        drop(self);
        if let Some(reply) = shutdown {
            let _ = reply.send(());
        }
    }

    /// Closes every connection in order, or at once if that takes too long.
    async fn close_all(&mut self) {
        self.connections.drain();
        let peers: Vec<_> = self.connected.keys().copied().collect();
        for peer in &peers {
            self.end(*peer, "this node is shutting down");
        }
        let orderly = async {
            while !self.connected.is_empty() {
                let event = self.swarm.select_next_some().await;
                self.on_swarm(event);
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, orderly).await.is_err() {
            for peer in &peers {
                self.connections.cut_off(peer, "this node is shutting down");
            }
        }
        for event in std::mem::take(&mut self.waiting_events) {
            let _ = self.events.try_send(event);
        }
    }

    fn emit(&mut self, event: NetEvent) {
        self.waiting_events.push_back(event);
    }

    // Commands of the handle.

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect { address, until, reply } => self.connect(Caller { address, until, reply }),
            Command::Disconnect { peer, why, reply } => {
                if self.connected.contains_key(&peer) {
                    self.end(peer, &why);
                    self.closing.push((peer, Instant::now() + CLOSE_TIMEOUT, Some(reply)));
                } else {
                    let _ = reply.send(());
                }
            }
            Command::Block { peer, why } => {
                self.ending.entry(peer).or_insert(Ending { why, silent: false });
                self.connections.cut_off(&peer, "quarantined");
                if !self.connected.contains_key(&peer) {
                    self.ending.remove(&peer);
                }
            }
            Command::Allow { peer } => {
                self.plan.lost(peer, clock::now());
            }
            Command::Publish { bytes } => self.publish(bytes),
            Command::Judge { ticket, judgement } => self.judge(&ticket, judgement),
            Command::Heard { report, addresses } => {
                let own: Vec<Multiaddr> = self.swarm.listeners().cloned().collect();
                self.plan.heard_of(report, &addresses, &own, clock::now());
            }
            Command::ListenAddresses { reply } => {
                let local = *self.swarm.local_peer_id();
                let _ = reply
                    .send(self.swarm.listeners().map(|address| address.clone().with(Protocol::P2p(local))).collect());
            }
            Command::Keep { addresses } => {
                addresses.into_iter().for_each(|address| self.plan.add_named(address, clock::now()));
                self.dial_due();
            }
            Command::Unconnected { reply } => {
                let connected = &self.connected;
                let _ = reply.send(self.plan.unconnected(|peer| connected.contains_key(peer)));
            }
            Command::Shutdown { .. } => {}
        }
    }

    fn end(&mut self, peer: PeerId, why: &str) {
        self.ending.entry(peer).or_insert_with(|| Ending { why: why.to_owned(), silent: false });
        let _ = self.swarm.disconnect_peer_id(peer);
    }

    fn publish(&mut self, bytes: Vec<u8>) {
        if let (Some(topic), Some(gossip)) = (&self.topic, self.swarm.behaviour_mut().gossip.as_mut())
            && let Err(error) = gossip.publish(topic.hash(), bytes)
        {
            // Having no subscriber is usual; the next message follows within a second.
            tracing::trace!(event = "not_published", %error);
        }
    }

    fn judge(&mut self, ticket: &GossipTicket, judgement: GossipJudgement) {
        if let Some(gossip) = self.swarm.behaviour_mut().gossip.as_mut() {
            gossip.report_message_validation_result(&ticket.id, &ticket.relayed_by, gossip::acceptance(judgement));
        }
    }

    fn on_gossip(&mut self, relayed_by: PeerId, id: gossipsub::MessageId, message: gossipsub::Message) {
        let ticket = GossipTicket { id, relayed_by };
        let Some(source) = message.source.filter(|source| !self.connections.is_blocked(source)) else {
            self.judge(&ticket, GossipJudgement::Ignore);
            return;
        };
        // A lagging reader gets the next one.
        if self.waiting_events.len() < MAX_WAITING_EVENTS / 2 {
            self.emit(NetEvent::Gossip(Gossip { source, bytes: message.data, ticket }));
        } else {
            self.judge(&ticket, GossipJudgement::Ignore);
        }
    }

    fn connect(&mut self, caller: Caller) {
        if let Some(peer) = peer_of(&caller.address) {
            if peer == *self.swarm.local_peer_id() {
                let _ = caller.reply.send(Err(NetError::OwnAddress(caller.address)));
                return;
            }
            if self.connections.is_blocked(&peer) {
                let _ = caller.reply.send(Err(refused_here(peer, Refusal::Blocked)));
                return;
            }
            if self.connected.contains_key(&peer) {
                let _ = caller.reply.send(Ok(peer));
                return;
            }
        }
        let options = dial_options(peer_of(&caller.address), vec![caller.address.clone()]);
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dialling.insert(connection, Dialler::Caller(caller));
            }
            Err(error) => {
                let _ = caller.reply.send(Err(connect_error(&caller.address, &error)));
            }
        }
    }

    // Timers.

    fn on_tick(&mut self) {
        self.connections.sample_rates(clock::now());
        let dead: Vec<PeerId> = self
            .connected
            .keys()
            .filter(|peer| self.liveness.tick(**peer, self.connections.traffic(peer)))
            .copied()
            .collect();
        for peer in dead {
            let silent = self.liveness.silent_for(&peer).unwrap_or_default();
            let why = format!("silent for {:.0} s", silent.as_secs_f64());
            self.ending.entry(peer).or_insert_with(|| Ending { why: why.clone(), silent: true });
            self.connections.cut_off(&peer, &why);
        }
        let instant = Instant::now();
        for (peer, latest, _) in &self.closing {
            if *latest <= instant {
                self.connections.cut_off(peer, "its connection did not close in time");
            }
        }
        self.dial_due();
        self.retry_waiting(instant);
    }

    fn dial(&mut self, dial: Dial) {
        let options = dial_options(dial.peer, dial.addresses);
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dialling.insert(connection, Dialler::Plan { target: dial.target, found_by: dial.found_by });
            }
            Err(error) => self.plan_failed(dial.target, &error),
        }
    }

    fn plan_failed(&mut self, target: TargetId, error: &DialError) {
        let why = dial_error_text(error);
        if let Some(address) = self.plan.failed(target, failure_of(error), &why, clock::now()) {
            tracing::warn!(event = "unreachable", %address, why, "Cannot connect to {address} ({why}); this node goes on trying");
        }
    }

    fn retry_waiting(&mut self, instant: Instant) {
        let (ready, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.retry <= instant);
        self.waiting = waiting;
        for Waiting { caller, .. } in ready {
            if caller.until > instant && !caller.reply.is_closed() {
                self.connect(caller);
            }
        }
    }

    fn on_peers_file(&mut self, path: std::path::PathBuf, change: Change) {
        match change {
            Change::Loaded(peers) => {
                let addresses: Vec<_> = peers.into_iter().map(|peer| peer.address).collect();
                self.plan.set_listed(&addresses, clock::now());
                self.emit(NetEvent::PeersFileLoaded { count: addresses.len() });
            }
            Change::Broken(error) => {
                tracing::warn!(event = "peers_file_broken", path = %path.display(), "{} {error}; the last valid list of peers stays in force", path.display());
                self.emit(NetEvent::PeersFileBroken { path, error });
            }
        }
    }

    fn on_refused(&mut self, refused: &RefusedConnection) {
        let RefusedConnection { peer, refusal, by_peer, timed_out, host } = *refused;
        if by_peer {
            self.refused_by.count(refusal);
        }
        // A lagging reader hears of it the next time.
        if refusal == Refusal::WrongKey && self.waiting_events.len() < MAX_WAITING_EVENTS / 2 {
            self.emit(NetEvent::Stranger { peer, host });
        }
        let Some(times) = self.refusals.refused(peer, refusal, by_peer, clock::now()) else { return };
        let again = if times == 1 { String::new() } else { format!(", {times} times since this was logged") };
        if by_peer {
            let why = refusal.of_this_node().to_owned();
            tracing::warn!(event = "refused_by_peer", %peer, times, "Refused by peer {peer} ({why}){again}");
            self.emit(NetEvent::RefusedBy { peer, why });
        } else {
            let why = if timed_out { "it did not finish the admission in time" } else { refusal.of_the_other() };
            tracing::warn!(event = "refused_peer", %peer, times, "Refused peer {peer} ({why}){again}");
            self.emit(NetEvent::Refused { peer: Some(peer), why: why.to_owned() });
        }
    }

    // Events of libp2p.

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                let address = address.with(Protocol::P2p(*self.swarm.local_peer_id()));
                self.emit(NetEvent::Listening(address));
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(peer_id, connection_id, &endpoint)
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                self.on_closed(peer_id, connection_id, cause.as_ref())
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_dial_failed(connection_id, &error)
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                on_incoming_failed(&send_back_addr, &error)
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(event = "listener_error", %error)
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::warn!(event = "listener_closed", ?addresses, ?reason, "No longer listening on {addresses:?}");
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event { peer, result: Ok(rtt), .. })) => {
                self.liveness.answered_ping(peer);
                if self.waiting_events.len() < MAX_WAITING_EVENTS / 2 {
                    self.emit(NetEvent::Rtt { peer, rtt });
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event { peer, result: Err(error), .. })) => {
                tracing::debug!(event = "ping_failed", %peer, %error);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                self.on_identified(peer_id, info.listen_addrs);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            })) => self.on_gossip(propagation_source, message_id, message),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(News::Discovered(peer, address))) => {
                if self.plan.discovered(peer, address, clock::now()) {
                    self.emit(NetEvent::Discovered(peer));
                }
                self.dial_due();
            }
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(News::Expired(peer, address))) => {
                self.plan.expired(peer, &address);
            }
            _ => {}
        }
    }

    fn dial_due(&mut self) {
        if !self.dials {
            return;
        }
        let (connected, connections) = (&self.connected, &self.connections);
        let dials = self.plan.due(clock::now(), |peer| connected.contains_key(peer) || connections.is_blocked(peer));
        for dial in dials {
            self.dial(dial);
        }
    }

    fn on_established(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let mut found_by = self.plan.found(&peer).unwrap_or(FoundBy::Incoming);
        match self.dialling.remove(&connection) {
            Some(Dialler::Plan { target, found_by: by_plan }) => {
                found_by = by_plan;
                self.plan.succeeded(target, peer);
            }
            Some(Dialler::Caller(caller)) => {
                found_by = FoundBy::Manual;
                let _ = caller.reply.send(Ok(peer));
            }
            None => {}
        }
        let address = endpoint.get_remote_address().clone();
        let up = !self.connected.contains_key(&peer);
        let connected = self
            .connected
            .entry(peer)
            .or_insert_with(|| Connected { connections: HashSet::new(), addresses: Vec::new() });
        connected.connections.insert(connection);
        if up {
            let direction = if endpoint.is_dialer() { Direction::Dialled } else { Direction::Accepted };
            let transport = transport_of(&address);
            self.emit(NetEvent::PeerUp { peer, address, transport, direction, found_by });
        }
        let (ready, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.peer == peer);
        self.waiting = waiting;
        for Waiting { caller, .. } in ready {
            let _ = caller.reply.send(Ok(peer));
        }
    }

    fn on_closed(&mut self, peer: PeerId, connection: ConnectionId, cause: Option<&ConnectionError>) {
        let Some(connected) = self.connected.get_mut(&peer) else {
            return;
        };
        connected.connections.remove(&connection);
        if !connected.connections.is_empty() {
            return;
        }
        self.connected.remove(&peer);
        self.liveness.remove(&peer);
        let Ending { why, silent } =
            self.ending.remove(&peer).unwrap_or_else(|| Ending { why: closed_text(cause), silent: false });
        self.plan.lost(peer, clock::now());
        self.emit(NetEvent::PeerDown { peer, why, silent });
        for (closing, _, reply) in &mut self.closing {
            if *closing == peer
                && let Some(reply) = reply.take()
            {
                let _ = reply.send(());
            }
        }
        self.closing.retain(|(_, _, reply)| reply.is_some());
    }

    fn on_dial_failed(&mut self, connection: ConnectionId, error: &DialError) {
        tracing::debug!(event = "dial_failed", error = %dial_error_text(error));
        match self.dialling.remove(&connection) {
            Some(Dialler::Plan { target, .. }) => self.plan_failed(target, error),
            Some(Dialler::Caller(caller)) => match failure_of(error) {
                Failure::Duplicate(peer) if self.connected.contains_key(&peer) => {
                    let _ = caller.reply.send(Ok(peer));
                }
                Failure::Duplicate(peer) => {
                    self.waiting.push(Waiting { caller, peer, retry: Instant::now() + CONNECT_RETRY });
                }
                _ => {
                    let _ = caller.reply.send(Err(connect_error(&caller.address, error)));
                }
            },
            None => {}
        }
    }

    fn on_identified(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if let Some(connected) = self.connected.get_mut(&peer)
            && connected.addresses != addresses
        {
            connected.addresses.clone_from(&addresses);
            self.emit(NetEvent::PeerAddressesChanged { peer, addresses });
        }
    }
}

async fn watch_peers_file(mut watch: peers_file::Watch, changes: mpsc::Sender<(std::path::PathBuf, Change)>) {
    let mut look = interval(PEERS_FILE_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if let Some(change) = watch.check().await
            && changes.send((watch.path().to_owned(), change)).await.is_err()
        {
            return;
        }
    }
}

fn dial_options(peer: Option<PeerId>, addresses: Vec<Multiaddr>) -> DialOpts {
    // Dialling from the listening port would make two nodes that dial each other at once meet in one TCP connection
    // of which both are the dialer.
    match peer {
        Some(peer) => {
            DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addresses).allocate_new_port().build()
        }
        None => {
            let address = addresses.into_iter().next().unwrap_or_else(Multiaddr::empty);
            DialOpts::unknown_peer_id().address(address).allocate_new_port().build()
        }
    }
}

fn on_incoming_failed(address: &Multiaddr, error: &ListenError) {
    // Refusals are reported where they are decided; the others are sockets without a handshake.
    tracing::debug!(event = "incoming_failed", %address, %error);
}
