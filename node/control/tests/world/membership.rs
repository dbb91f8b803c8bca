//! Who is there and who is the master, at one node: the directory of peers, the roster, the election and the keeper of terms,
//! fed with what the network, the disk and the clock say.

use std::sync::Arc;

use libp2p_identity::PeerId;
use pangea_control::peers;
use pangea_control::pool::election::{Candidate, Changed, Event as Happened};
use pangea_control::pool::roster::{Delivery, Heard};
use pangea_control::pool::term_keeper::Action as Keep;
use pangea_control::pool::{Advert, Term};
use pangea_control::schedule::{Event, LeaveReason};
use pangea_control::session::link_state::Event as LinkEvent;
use pangea_control::trust::accusations::{Accusation, Event as AccusationsEvent, EvidenceKind};

use crate::certificates::Published;
use crate::checks::{Broken, Check};
use crate::deviations::Deviation;
use crate::node::Node;
use crate::scenario::{Micros, SECOND};
use crate::world::{Happening, TICK, World};

impl World {
    /// A node looks at the clock.
    pub(crate) fn tick(&mut self, node: usize, number: u64) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let time = run.time(now);
        let silent = run.roster.silent(time);
        for peer in silent {
            self.elect(node, Happened::Gone { peer, silent: true })?;
        }
        self.elect(node, Happened::Tick)?;
        if let Some(run) = &mut self.nodes[node].run {
            let actions = run.terms.tick(time);
            self.keep_terms(node, number, actions)?;
        }
        self.soon_look(node);
        if let Some(run) = &mut self.nodes[node].run
            && let Some(advert) = run.due_advert(now)
        {
            let told = self.bend_advert(node, advert.clone());
            if told != advert
                && let Some(run) = &mut self.nodes[node].run
            {
                run.said_something_else();
            }
            self.publish(node, told);
        }
        self.tell_peers(node, peers::Event::Tick)?;
        self.follow_suspicions(node)?;
        self.ledger_tick(node)?;
        self.intake_ticks(node)?;
        self.tell_sessions(node)?;
        self.chat_ticks(node)?;
        if now % SECOND < TICK {
            self.stage_ticks(node)?;
            self.tell_accusations(node, AccusationsEvent::Tick)?;
            self.deviate(node)?;
        }
        self.after(TICK, Happening::Tick { node, run: number });
        Ok(())
    }

    /// A node says how it stands.
    fn publish(&mut self, node: usize, advert: Advert) {
        let Node { peer, certificate, .. } = &self.nodes[node];
        let published = Published { source: *peer, certificate: Arc::clone(certificate), advert, is_forged: false };
        self.gossip(node, &Arc::new(published));
    }

    /// A gossiped advert arrives: it is believed where its author has proven that it belongs to the pool.
    pub(crate) fn hear(&mut self, at: usize, from: usize, published: &Arc<Published>) -> Result<(), Broken> {
        let (now, forwarder, unix_s) = (self.now, self.nodes[from].peer, self.nodes[at].unix_s(self.now));
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let time = run.time(now);
        if !run.roster.may_forward(&forwarder, time) {
            return Ok(());
        }
        let advert = &published.advert;
        let is_known_to_all = run.roster.is_connected_to_all(advert);
        let heard = match run.proves(published, unix_s) {
            Ok(proven) => run.roster.heard(advert.clone(), Delivery { forwarder, proven }, time),
            Err(_) if published.is_forged => Heard::Stranger,
            Err(why) => return Err(Broken::new(now, format!("node {at} does not believe {}: {why:?}", advert.name))),
        };
        if published.is_forged {
            self.checks.evaluated(Check::OnlyMembersExist);
            if !matches!(heard, Heard::Old | Heard::Stranger) {
                return Err(Broken::new(now, format!("node {at} believes a forged advert, {heard:?}: {published:?}")));
            }
            self.checks.caught(Deviation::ForgesAdverts);
            return Ok(());
        }
        if matches!(heard, Heard::Old | Heard::Stranger) {
            if advert.peer != forwarder && self.is_one_that(from, Deviation::ReplaysAdverts) {
                self.checks.caught(Deviation::ReplaysAdverts);
            }
            return Ok(());
        }
        if heard != Heard::Newer {
            run.pace.changed();
        }
        self.record_advert(at, published);
        if heard != Heard::Newer || !is_known_to_all {
            self.gossip(at, published);
        }
        if heard == Heard::Noted {
            return Ok(());
        }
        self.elect(at, Happened::Heard(advert.peer, Candidate::of(advert)))?;
        let counter = self.nodes[at].run.as_ref().map_or(0, |run| run.election.counter());
        if counter < advert.counter && self.is_one_that(from, Deviation::PoisonsCounter) {
            self.checks.caught(Deviation::PoisonsCounter);
        }
        self.soon_look(at);
        Ok(())
    }

    /// A peer announces itself on the local network.
    pub(crate) fn discovered(&mut self, at: usize, of: usize) -> Result<(), Broken> {
        let peer = self.nodes[of].peer;
        self.tell_peers(at, peers::Event::Discovered(peer))
    }

    /// Whether a node lets another one connect.
    pub(crate) fn admits(&self, at: usize, of: usize) -> bool {
        self.nodes[at].run.as_ref().is_some_and(|run| !run.blocked.contains(&of))
    }

    /// A connection is there.
    pub(crate) fn up(&mut self, at: usize, of: usize) -> Result<(), Broken> {
        let (now, peer) = (self.now, self.nodes[of].peer);
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let time = run.time(now);
        run.roster.connected(peer, time);
        run.pace.changed();
        self.soon_look(at);
        let (address, transport, found_by) = (String::new(), "tcp".to_owned(), "mdns".to_owned());
        self.tell_peers(at, peers::Event::Up { peer, address, transport, found_by })?;
        let rtt = std::time::Duration::from_micros(self.link(at, of).rtt);
        self.tell_peers(at, peers::Event::RoundTrip { peer, rtt })?;
        self.tell_accusations(at, AccusationsEvent::Up(peer))?;
        self.link_event(at, of, LinkEvent::Up)
    }

    /// A connection is gone.
    pub(crate) fn lose(&mut self, at: usize, of: usize, silent: bool) -> Result<(), Broken> {
        if self.network.connection(at, of).is_some() {
            return Ok(());
        }
        let (now, peer) = (self.now, self.nodes[of].peer);
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        run.pace.changed();
        let time = run.time(now);
        if run.roster.disconnected(peer, time) {
            self.elect(at, Happened::Gone { peer, silent })?;
        }
        self.soon_look(at);
        self.close_link(at, of, LeaveReason::Lost)?;
        self.stop_serving(at, of)?;
        self.tell_accusations(at, AccusationsEvent::Down(peer))?;
        self.link_event(at, of, LinkEvent::Down("the connection is gone".to_owned()))?;
        self.tell_peers(at, peers::Event::Down { peer, why: "the connection is gone".to_owned() })
    }

    /// The node with this peer id.
    pub(crate) fn index_of(&self, peer: &PeerId) -> usize {
        self.nodes.iter().position(|node| node.peer == *peer).unwrap_or(usize::MAX)
    }

    /// Tells the directory what happened, and does what follows.
    pub(crate) fn tell_peers(&mut self, at: usize, event: peers::Event) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let (time, number) = (run.time(now), run.number);
        for action in run.directory.handle(event, time) {
            match action {
                peers::Action::OpenStream { peer, after } => {
                    let (of, delay) =
                        (self.index_of(&peer), after.as_micros() as Micros + self.link(at, self.index_of(&peer)).rtt);
                    self.after(delay, Happening::OpenTasks { at, run: number, of });
                }
                peers::Action::Ready(peer) => self.join(at, self.index_of(&peer))?,
                peers::Action::LinkChanged(peer) => self.update_worker(at, self.index_of(&peer))?,
                peers::Action::Connecting(count) => self.schedule(at, Event::PeersConnecting { count })?,
                peers::Action::CutOff { peer, .. } => self.cut_off(at, self.index_of(&peer))?,
                // Nobody calls.
                peers::Action::CallReady { .. } | peers::Action::CallFailed { .. } => {}
            }
        }
        Ok(())
    }

    /// A node has proven that a peer lies, and tells everybody.
    pub(crate) fn convict(&mut self, at: usize, of: usize, kind: EvidenceKind) -> Result<(), Broken> {
        if self.checks.is_quarantined(at, of) {
            return Ok(());
        }
        let accusation = self.write_evidence(at, of, kind, true);
        self.convicted(at, of, accusation)?;
        self.tell_accusations(at, AccusationsEvent::Found(accusation))
    }

    /// A peer lies, as a node has found or believes now; the proof is kept where the disk takes it.
    pub(crate) fn convicted(&mut self, at: usize, of: usize, accusation: Accusation) -> Result<(), Broken> {
        let node = &mut self.nodes[at];
        if !node.disk.full {
            node.disk.evidence.insert(of, Accusation { accuser: node.peer, ..accusation });
        }
        self.checks.quarantined(self.now, at, of)?;
        self.exclude(at, of)
    }

    /// From now on a peer is nothing to this node.
    pub(crate) fn exclude(&mut self, at: usize, of: usize) -> Result<(), Broken> {
        let (now, peer) = (self.now, self.nodes[of].peer);
        self.tell_peers(at, peers::Event::Convicted { peer, why: "a wrong product".to_owned() })?;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let time = run.time(now);
        if run.roster.exclude(peer, time) {
            self.elect(at, Happened::Gone { peer, silent: true })?;
        }
        self.soon_look(at);
        Ok(())
    }

    fn cut_off(&mut self, at: usize, of: usize) -> Result<(), Broken> {
        self.close_link(at, of, LeaveReason::Quarantined)?;
        // What it computed before is computed again, also where its link is gone.
        if let Some(worker) = self.nodes[at].run.as_ref().and_then(|run| run.products.worker_at(of)) {
            self.schedule(at, Event::WorkerLeft { worker, why: LeaveReason::Quarantined })?;
        }
        if let Some(run) = &mut self.nodes[at].run {
            run.blocked.insert(of);
        }
        self.disconnect(at, of, false);
        Ok(())
    }

    /// The election decides; a new term is on disk before it is told to anybody.
    fn elect(&mut self, at: usize, event: Happened) -> Result<(), Broken> {
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(run) = &mut node.run else { return Ok(()) };
        let (number, time) = (run.number, run.time(now));
        let before = run.election.term();
        let Some(Changed(term)) = run.election.handle(event, time) else { return Ok(()) };
        self.checks.decided(now, at, node, term)?;
        if let (Some(before), Some(term)) = (before, term)
            && before.master != term.master
            && self.is_one_that(self.index_of(&before.master), Deviation::Usurps)
        {
            self.checks.caught(Deviation::Usurps);
        }
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let actions = run.terms.decided(term);
        self.keep_terms(at, number, actions)
    }

    /// The disk is through with a term.
    pub(crate) fn stored(&mut self, at: usize, term: Term) -> Result<(), Broken> {
        let now = self.now;
        let node = &mut self.nodes[at];
        let taken = !node.disk.full;
        if taken {
            node.disk.term = Some(term);
        }
        let Some(run) = &mut node.run else { return Ok(()) };
        let (number, time) = (run.number, run.time(now));
        let actions = run.terms.stored(term, taken, time);
        self.keep_terms(at, number, actions)
    }

    fn keep_terms(&mut self, at: usize, number: u64, actions: Vec<Keep>) -> Result<(), Broken> {
        for action in actions {
            match action {
                Keep::Store(term) => {
                    let takes = self.nodes[at].disk.write_takes;
                    self.after(takes, Happening::Stored { node: at, run: number, term });
                }
                Keep::GiveUp(term) => self.elect(at, Happened::NotStored(term))?,
                Keep::Announce(term) => {
                    if let Some(run) = &mut self.nodes[at].run {
                        run.pace.changed();
                    }
                    let master = term.map(|term| self.index_of(&term.master));
                    self.checks.lives_under(self.now, at, term, master)?;
                    self.soon_look(at);
                }
            }
        }
        Ok(())
    }

    /// Lets the placer look at the pool in a moment: what changes at once is looked at once.
    pub(crate) fn soon_look(&mut self, node: usize) {
        if let Some(run) = self.nodes[node].run.as_mut().filter(|run| !run.looking) {
            run.looking = true;
            let number = run.number;
            self.after(1_000, Happening::Look { node, run: number });
        }
    }
}
