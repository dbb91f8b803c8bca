//! Which streams of which peer make its link, and what follows when one of them opens, breaks or is replaced. Pure: streams
//! are numbers, time is passed in; who runs the streams does what the actions say.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;
use crate::streams::Reopening;

use libp2p_identity::PeerId;

/// A stream that breaks is opened again this soon: when a connection was lost, the network has said so by then.
pub const REOPEN_FIRST: Duration = Duration::from_millis(20);

/// Streams that keep breaking are opened again later and later, up to this.
pub const REOPEN_LATEST: Duration = Duration::from_secs(2);

/// Tells streams apart, across all peers and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The peer is connected.
    Up,
    /// It is not any more.
    Down(String),
    /// A stream that was to be opened is open.
    Opened(StreamId),
    /// A stream ended, or could not be opened.
    Ended(StreamId, String),
    /// The peer opened a stream, which is read from now on.
    Accepted(StreamId),
}

/// What to do about it, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Open a stream to the peer after a while.
    Open(StreamId, Duration),
    /// Take messages for the peer.
    Route(StreamId),
    /// End a stream: nothing of it may be handed on any more.
    Drop(StreamId),
    /// Take no more messages for the peer, and tell that its link broke.
    Gone(String),
}

/// The links to all peers.
#[derive(Default)]
pub struct LinkStates {
    peers: BTreeMap<PeerId, PeerStreams>,
    streams: u64,
}

/// A peer's streams.
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
    /// Whether the peer is there and has no stream, nor one that is being opened.
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
    /// A number for a stream that comes into being.
    pub fn number(&mut self) -> StreamId {
        self.streams += 1;
        StreamId(self.streams)
    }

    /// What follows from `event` at `peer`.
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
                // One that was dropped before.
                _ => {}
            },
            Event::Accepted(stream) => {
                if link.incoming.is_some() {
                    // It knows already that the old one broke.
                    self.lose(&mut link, "it opened its stream anew".to_owned(), now, &mut actions);
                }
                link.incoming = Some(stream);
            }
        }
        if link.connected || link.incoming.is_some() {
            self.peers.insert(peer, link);
        }
        actions
    }

    /// The link is broken: both its streams end.
    fn lose(&mut self, link: &mut PeerStreams, why: String, now: Time, actions: &mut Vec<Action>) {
        let (mut broken, mut lasted) = (false, Duration::ZERO);
        if let Some(stream) = link.incoming.take() {
            actions.push(Action::Drop(stream));
            broken = true;
        }
        match link.outgoing {
            Outgoing::None => {}
            // Still wanted where the peer is there.
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

    /// Opens a stream where the peer is there and none is being opened: later and later, if they keep ending.
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

    /// One peer's link under a clock that the test moves.
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

        /// The stream that is to be opened, and after which time, the last of the actions.
        fn opening(actions: &[Action]) -> (StreamId, Duration) {
            match actions.last() {
                Some(Action::Open(stream, after)) => (*stream, *after),
                other => panic!("{other:?} opens nothing"),
            }
        }

        /// Connected, both streams open: to the peer, from the peer.
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
    fn a_link_that_breaks_is_told_once_whichever_stream_ends_first() {
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
    fn a_peer_that_opens_anew_has_lost_the_old_link() {
        let mut one = One::new();
        let (to, from) = one.linked();
        let new = one.links.number();
        let actions = one.handle(Event::Accepted(new));
        assert_eq!(actions[..2], [Action::Drop(from), Action::Drop(to)]);
        assert!(matches!(actions[2], Action::Gone(_)));
        let (again, _) = One::opening(&actions);
        assert_eq!(one.handle(ended(from)), [], "the old one is history");
        assert_eq!(one.handle(Event::Opened(again)), [Action::Route(again)]);
        let actions = one.handle(ended(new));
        assert_eq!(actions[..2], [Action::Drop(new), Action::Drop(again)]);
    }

    #[test]
    fn streams_that_keep_ending_are_opened_later_and_later_and_one_that_lasted_soon_again() {
        let mut one = One::new();
        let (mut to, _) = One::opening(&one.handle(Event::Up));
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            let actions = one.handle(ended(to));
            assert_eq!(actions.len(), 1, "what was never open is not gone");
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
    fn nothing_is_opened_to_a_peer_that_is_not_there() {
        let mut one = One::new();
        let from = one.links.number();
        assert_eq!(one.handle(Event::Accepted(from)), []);
        assert_eq!(one.handle(ended(from)), [Action::Drop(from), Action::Gone("it broke".to_owned())]);
        let (to, _) = One::opening(&one.handle(Event::Up));
        assert_eq!(one.handle(Event::Down("gone".to_owned())), [Action::Drop(to)]);
        assert_eq!(one.handle(Event::Opened(to)), [Action::Drop(to)], "it was dropped");
    }

    proptest! {
        /// Whatever happens in whatever order: a loss is told only of what was there, no stream is left over, and a connected
        /// peer always has a stream or one that is being opened.
        #[test]
        fn every_order_of_events_leaves_a_sound_state(steps in prop::collection::vec((0u8..6, any::<prop::sample::Index>()), 1..200)) {
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
                            prop_assert!(linked, "nothing was there");
                            linked = false;
                        }
                    }
                }
                linked |= accepted;
                let to = running.len().checked_sub(usize::from(one.links.peers.get(&one.peer).is_some_and(|link| link.incoming.is_some())));
                prop_assert_eq!(to, Some(usize::from(up)), "one stream to a peer that is there, none else");
            }
        }
    }
}
