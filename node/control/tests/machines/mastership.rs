//! The roster, the election and the keeper of terms of two honest nodes that hear whatever the bytes say: a claim is announced only
//! once it is on disk, the roster is bounded, and once nobody else speaks the two agree on one master.

use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_control::Time;
use pangea_control::pool::election::{Candidate, Changed, Election, Event};
use pangea_control::pool::roster::{Delivery, Heard, Roster};
use pangea_control::pool::term_keeper::{Action, TermKeeper};
use pangea_control::pool::{Advert, Term};

use crate::bytes::Bytes;
use crate::peers::peer;

/// Time after the last word of a stranger within which there is one master.
const QUIET: Duration = Duration::from_secs(12);

/// Nodes that a roster may know.
const NODES_MAX: usize = 1024;

struct Node {
    peer: PeerId,
    roster: Roster,
    election: Election,
    keeper: TermKeeper,
    /// The term on disk.
    disk: Option<Term>,
    sequence: u64,
}

impl Node {
    fn new(number: u8, disk: Option<Term>) -> Node {
        let peer = peer(number);
        let mut node = Node {
            peer,
            roster: Roster::new(peer, true),
            election: Election::new(peer, true, false, disk),
            keeper: TermKeeper::new(peer),
            disk,
            sequence: 0,
        };
        node.roster.connected(self::peer(1 - number), Time::ZERO);
        node
    }

    fn advert(&mut self, now: Time) -> Advert {
        self.sequence += 1;
        Advert {
            incarnation: 1,
            sequence: self.sequence,
            term: self.keeper.announced(),
            counter: self.keeper.counter(self.election.counter()),
            uptime: now.elapsed(),
            ..Advert::new(self.peer)
        }
    }

    fn hear(&mut self, advert: Advert, fails: bool, now: Time) {
        let (peer, candidate) = (advert.peer, Candidate::of(&advert));
        // Whoever speaks here has a certificate of the pool.
        let heard = self.roster.heard(advert, Delivery { forwarder: peer, proven: true }, now);
        if matches!(heard, Heard::Joined | Heard::Newer) {
            self.elect(Event::Heard(peer, candidate), fails, now);
        }
        assert!(self.roster.adverts().count() <= NODES_MAX);
    }

    fn elect(&mut self, event: Event, fails: bool, now: Time) {
        let Some(Changed(term)) = self.election.handle(event, now) else { return };
        let actions = self.keeper.decided(term);
        self.keep(actions, fails, now);
    }

    fn tick(&mut self, fails: bool, now: Time) {
        for peer in self.roster.silent(now) {
            self.elect(Event::Gone { peer, silent: true }, fails, now);
        }
        self.elect(Event::Tick, fails, now);
        let actions = self.keeper.tick(now);
        self.keep(actions, fails, now);
    }

    fn keep(&mut self, mut actions: Vec<Action>, fails: bool, now: Time) {
        while !actions.is_empty() {
            let mut following = Vec::new();
            for action in actions {
                match action {
                    Action::Store(term) => {
                        if !fails {
                            self.disk = Some(term);
                        }
                        following.extend(self.keeper.stored(term, !fails, now));
                    }
                    Action::Announce(Some(term)) if term.master == self.peer => {
                        assert_eq!(Some(term), self.disk, "a claim is announced that is not on disk");
                    }
                    Action::Announce(_) => {}
                    Action::GiveUp(term) => self.elect(Event::NotStored(term), fails, now),
                }
            }
            actions = following;
        }
    }
}

/// Plays a run.
pub(crate) fn run(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let stored = bytes.is_rare(60).then(|| Term { counter: bytes.number(), master: peer(bytes.below(6) as u8) });
    let mut nodes = [Node::new(0, stored), Node::new(1, None)];
    let mut now = Time::ZERO;
    let mut strangers: Vec<PeerId> = Vec::new();
    while !bytes.is_empty() {
        match bytes.below(8) {
            0..=2 => {
                let stranger = peer(2 + bytes.below(20) as u8);
                strangers.push(stranger);
                let term =
                    bytes.is_rare(160).then(|| Term { counter: bytes.number(), master: peer(bytes.below(6) as u8) });
                let advert = Advert {
                    incarnation: bytes.number(),
                    sequence: bytes.number(),
                    term,
                    counter: bytes.number(),
                    force_master: bytes.is_rare(60),
                    works: !bytes.is_rare(60),
                    uptime: Duration::from_millis(bytes.number()),
                    ..Advert::new(stranger)
                };
                let fails = bytes.is_rare(20);
                nodes[bytes.below(2)].hear(advert, fails, now);
            }
            3 => {
                let (node, stranger) = (bytes.below(2), peer(2 + bytes.below(20) as u8));
                if nodes[node].roster.exclude(stranger, now) {
                    nodes[node].elect(Event::Gone { peer: stranger, silent: true }, false, now);
                }
            }
            _ => {
                now += Duration::from_millis(100);
                step(&mut nodes, bytes.is_rare(20), now);
            }
        }
    }
    // Nobody else speaks any more.
    let until = now + Duration::from_secs(5) + QUIET;
    while now < until {
        now += Duration::from_millis(100);
        step(&mut nodes, false, now);
    }
    let announced = nodes.each_ref().map(|node| node.keeper.announced());
    assert!(announced[0].is_some() && announced[0] == announced[1], "no one master: {announced:?}");
    let masters = nodes.each_ref().map(|node| node.peer);
    assert!(announced[0].is_some_and(|term| masters.contains(&term.master)), "the master is gone: {announced:?}");
}

/// A tenth of a second: both tick, and hear each other.
fn step(nodes: &mut [Node; 2], fails: bool, now: Time) {
    nodes.iter_mut().for_each(|node| node.tick(fails, now));
    let [first, second] = nodes;
    let (of_first, of_second) = (first.advert(now), second.advert(now));
    first.hear(of_second, fails, now);
    second.hear(of_first, fails, now);
}
