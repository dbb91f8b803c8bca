//! Decides which streams form the link to a peer, and what follows when one opens, ends or is replaced. Pure: streams
//! are numbers and time is passed in; the driver executes the actions.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;
use crate::streams::Reopening;

use libp2p_identity::PeerId;

/// Delay before a stream that ended is reopened; by then a lost connection has been reported.
pub const REOPEN_FIRST: Duration = Duration::from_millis(20);

/// Upper bound of that delay for streams that end repeatedly.
pub const REOPEN_LATEST: Duration = Duration::from_secs(2);

/// Identifies a stream, across all peers and forever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

/// Input of a link's state machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The peer connected.
    Up,
    /// The peer disconnected.
    Down(String),
    /// A requested stream is open.
    Opened(StreamId),
    /// A stream ended, or could not be opened.
    Ended(StreamId, String),
    /// The peer opened a stream, which is read from now on.
    Accepted(StreamId),
}

/// What the driver does next, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Open a stream to the peer after a delay.
    Open(StreamId, Duration),
    /// Send messages for the peer over this stream.
    Route(StreamId),
    /// End a stream: nothing of it may be delivered any more.
    Drop(StreamId),
    /// Accept no more messages for the peer, and report that its link failed.
    Gone(String),
}

/// The links to all peers.
#[derive(Default)]
pub struct LinkStates {
    peers: BTreeMap<PeerId, PeerStreams>,
    streams: u64,
}

/// Streams of one peer.
struct PeerStreams {
    connected: bool,
    outgoing: Outgoing,
    incoming: Option<StreamId>,
    reopening: Reopening,
}

impl Default for PeerStreams {
    fn default() -> PeerStreams {
        let reopening = Reopening::new(REOPEN_FIRST, REOPEN_LATEST);
        PeerStreams { connected: false, outgoing: Outgoing::None, incoming: None, reopening }
    }
}

impl PeerStreams {
    /// Whether the peer is connected and has no stream open or opening.
    fn wants_stream(&self) -> bool {
        self.connected && matches!(self.outgoing, Outgoing::None)
    }
}

/// The stream to a peer.
#[derive(Clone, Copy)]
enum Outgoing {
    None,
    Opening(StreamId),
    Open(StreamId, Time),
}

impl LinkStates {
    /// Allocates an id for a stream.
    pub fn number(&mut self) -> StreamId {
        self.streams += 1;
        StreamId(self.streams)
    }

    /// Processes an event of `peer`; returns the actions in order.
    pub fn handle(&mut self, peer: PeerId, event: Event, now: Time) -> Vec<Action> {
        let mut link = self.peers.remove(&peer).unwrap_or_default();
        let mut actions = Vec::new();
        match event {
            Event::Up => {
                link.connected = true;
                link.reopening.reset();
                self.open(&mut link, Duration::ZERO, &mut actions);
            }
            Event::Down(why) => {
                link.connected = false;
                self.lose(&mut link, why, now, &mut actions);
            }
            Event::Opened(stream) => match link.outgoing {
                Outgoing::Opening(opening) if opening == stream => {
                    link.outgoing = Outgoing::Open(stream, now);
                    actions.push(Action::Route(stream));
                }
                _ => actions.push(Action::Drop(stream)),
            },
            Event::Ended(stream, why) => match link.outgoing {
                Outgoing::Opening(opening) if opening == stream => {
                    link.outgoing = Outgoing::None;
                    self.reopen(&mut link, Duration::ZERO, &mut actions);
                }
                Outgoing::Open(open, _) if open == stream => self.lose(&mut link, why, now, &mut actions),
                _ if link.incoming == Some(stream) => self.lose(&mut link, why, now, &mut actions),
                // A stream that was dropped before.
                _ => {}
            },
            Event::Accepted(stream) => {
                if link.incoming.is_some() {
                    // The peer has noticed already that the old stream ended.
                    self.lose(&mut link, "the peer opened a new stream".to_owned(), now, &mut actions);
                }
                link.incoming = Some(stream);
            }
        }
        if link.connected || link.incoming.is_some() {
            self.peers.insert(peer, link);
        }
        actions
    }

    /// Ends both streams of a failed link.
    fn lose(&mut self, link: &mut PeerStreams, why: String, now: Time, actions: &mut Vec<Action>) {
        let (mut broken, mut lasted) = (false, Duration::ZERO);
        if let Some(stream) = link.incoming.take() {
            actions.push(Action::Drop(stream));
            broken = true;
        }
        match link.outgoing {
            Outgoing::None => {}
            // The opening continues if the peer is connected.
            Outgoing::Opening(stream) => {
                if !link.connected {
                    actions.push(Action::Drop(stream));
                    link.outgoing = Outgoing::None;
                }
            }
            Outgoing::Open(stream, since) => {
                actions.push(Action::Drop(stream));
                link.outgoing = Outgoing::None;
                (broken, lasted) = (true, now.since(since));
            }
        }
        if broken {
            actions.push(Action::Gone(why));
        }
        self.reopen(link, lasted, actions);
    }

    /// Opens a stream if the peer is connected and none is opening; the delay grows if streams keep ending.
    fn reopen(&mut self, link: &mut PeerStreams, lasted: Duration, actions: &mut Vec<Action>) {
        if link.wants_stream() {
            let after = link.reopening.ended(lasted);
            self.open(link, after, actions);
        }
    }

    fn open(&mut self, link: &mut PeerStreams, after: Duration, actions: &mut Vec<Action>) {
        if link.wants_stream() {
            let stream = self.number();
            link.outgoing = Outgoing::Opening(stream);
            actions.push(Action::Open(stream, after));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One peer's link with a clock that the test moves.
    struct One {
        links: LinkStates,
        peer: PeerId,
        now: Time,
    }

    impl One {
        fn new() -> One {
            One { links: LinkStates::default(), peer: crate::test_peers::fresh_peer(), now: Time::from_secs(1000) }
        }

        fn handle(&mut self, event: Event) -> Vec<Action> {
            self.links.handle(self.peer, event, self.now)
        }

        /// The stream to open and its delay, from the last action.
        fn opening(actions: &[Action]) -> (StreamId, Duration) {
            match actions.last() {
                Some(Action::Open(stream, after)) => (*stream, *after),
                other => panic!("{other:?} opens nothing"),
            }
        }

        /// Connects the peer and opens both streams: to the peer and from the peer.
        fn linked(&mut self) -> (StreamId, StreamId) {
            let actions = self.handle(Event::Up);
            let (to, after) = One::opening(&actions);
            assert_eq!((actions.len(), after), (1, Duration::ZERO));
            assert_eq!(self.handle(Event::Opened(to)), [Action::Route(to)]);
            let from = self.links.number();
            assert_eq!(self.handle(Event::Accepted(from)), []);
            (to, from)
        }
    }

    fn ended(stream: StreamId) -> Event {
        Event::Ended(stream, "it broke".to_owned())
    }

    #[test]
    fn a_failed_link_is_reported_once_whichever_stream_ends_first() {
        for first_to in [true, false] {
            let mut one = One::new();
            let (to, from) = one.linked();
            let (first, second) = if first_to { (to, from) } else { (from, to) };
            let actions = one.handle(ended(first));
            let gone = Action::Gone("it broke".to_owned());
            let (again, _) = One::opening(&actions);
            assert_eq!(actions, [Action::Drop(from), Action::Drop(to), gone, Action::Open(again, REOPEN_FIRST)]);
            assert_eq!(one.handle(ended(second)), []);
            assert_eq!(one.handle(Event::Down("the connection is gone".to_owned())), [Action::Drop(again)]);
            assert!(one.links.peers.is_empty());
        }
    }

    #[test]
    fn a_second_stream_of_a_peer_replaces_the_old_link() {
        let mut one = One::new();
        let (to, from) = one.linked();
        let new = one.links.number();
        let actions = one.handle(Event::Accepted(new));
        assert_eq!(actions[..2], [Action::Drop(from), Action::Drop(to)]);
        assert!(matches!(actions[2], Action::Gone(_)));
        let (again, _) = One::opening(&actions);
        assert_eq!(one.handle(ended(from)), [], "the old stream was dropped before");
        assert_eq!(one.handle(Event::Opened(again)), [Action::Route(again)]);
        let actions = one.handle(ended(new));
        assert_eq!(actions[..2], [Action::Drop(new), Action::Drop(again)]);
    }

    #[test]
    fn delays_grow_with_short_streams_and_reset_after_a_long_one() {
        let mut one = One::new();
        let (mut to, _) = One::opening(&one.handle(Event::Up));
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            let actions = one.handle(ended(to));
            assert_eq!(actions.len(), 1, "a stream that never opened is not reported as gone");
            let (next, after) = One::opening(&actions);
            assert!(after >= REOPEN_FIRST && after >= last && after <= REOPEN_LATEST);
            (to, last) = (next, after);
        }
        assert_eq!(last, REOPEN_LATEST);
        one.handle(Event::Opened(to));
        one.now += REOPEN_LATEST * 2;
        assert_eq!(One::opening(&one.handle(ended(to))).1, REOPEN_FIRST);
    }

    #[test]
    fn no_stream_is_opened_to_a_disconnected_peer() {
        let mut one = One::new();
        let from = one.links.number();
        assert_eq!(one.handle(Event::Accepted(from)), []);
        assert_eq!(one.handle(ended(from)), [Action::Drop(from), Action::Gone("it broke".to_owned())]);
        let (to, _) = One::opening(&one.handle(Event::Up));
        assert_eq!(one.handle(Event::Down("gone".to_owned())), [Action::Drop(to)]);
        assert_eq!(one.handle(Event::Opened(to)), [Action::Drop(to)], "it was dropped");
    }

    proptest! {
        /// For any order of events: a loss is reported only for an open link, no stream is left over, and a connected
        /// peer always has a stream open or opening.
        #[test]
        fn every_order_of_events_leaves_a_valid_state(steps in prop::collection::vec((0u8..6, any::<prop::sample::Index>()), 1..200)) {
            let mut one = One::new();
            let mut running: Vec<StreamId> = Vec::new();
            let mut opening: Vec<StreamId> = Vec::new();
            let (mut up, mut linked) = (false, false);
            for (step, index) in steps {
                let event = match step {
                    0 if !up => Event::Up,
                    1 if up => Event::Down("down".to_owned()),
                    2 if !opening.is_empty() => Event::Opened(opening.remove(index.index(opening.len()))),
                    3 | 4 if !running.is_empty() => ended(running[index.index(running.len())]),
                    5 => Event::Accepted(one.links.number()),
                    _ => continue,
                };
                match &event {
                    Event::Up => up = true,
                    Event::Down(_) => up = false,
                    Event::Opened(_) => {}
                    Event::Ended(stream, _) => {
                        running.retain(|other| other != stream);
                        opening.retain(|other| other != stream);
                    }
                    Event::Accepted(stream) => running.push(*stream),
                }
                let accepted = matches!(event, Event::Accepted(_));
                for action in one.handle(event) {
                    match action {
                        Action::Open(stream, _) => {
                            running.push(stream);
                            opening.push(stream);
                        }
                        Action::Route(stream) => {
                            prop_assert!(running.contains(&stream));
                            linked = true;
                        }
                        Action::Drop(stream) => {
                            running.retain(|other| *other != stream);
                            opening.retain(|other| *other != stream);
                        }
                        Action::Gone(_) => {
                            prop_assert!(linked, "no link was open");
                            linked = false;
                        }
                    }
                }
                linked |= accepted;
                let to = running.len().checked_sub(usize::from(one.links.peers.get(&one.peer).is_some_and(|link| link.incoming.is_some())));
                prop_assert_eq!(to, Some(usize::from(up)), "one stream to a connected peer, none otherwise");
            }
        }
    }
}
