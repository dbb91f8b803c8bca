//! Which streams of which peer make its link, and what follows when one of them opens, breaks or is replaced. Pure: streams
//! are numbers, time is passed in; who runs the streams does what the actions say.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;

use crate::pipeline::limits::{REOPEN_FIRST, REOPEN_LATEST};

/// Tells streams apart, across all peers and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StreamId(u64);

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
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
pub(super) enum Action {
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
pub(super) struct Book {
    peers: HashMap<PeerId, Link>,
    streams: u64,
}

/// A peer's streams.
#[derive(Default)]
struct Link {
    connected: bool,
    outgoing: Outgoing,
    incoming: Option<StreamId>,
    /// Streams in a row that ended soon or did not open.
    failures: u32,
}

/// The stream to a peer.
#[derive(Clone, Copy, Default)]
enum Outgoing {
    #[default]
    None,
    Opening(StreamId),
    Open(StreamId, Instant),
}

impl Book {
    /// A number for a stream that comes into being.
    pub(super) fn number(&mut self) -> StreamId {
        self.streams += 1;
        StreamId(self.streams)
    }

    /// What follows from `event` at `peer`.
    pub(super) fn handle(&mut self, peer: PeerId, event: Event, now: Instant) -> Vec<Action> {
        let mut link = self.peers.remove(&peer).unwrap_or_default();
        let mut actions = Vec::new();
        match event {
            Event::Up => {
                link.connected = true;
                link.failures = 0;
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
                    self.reopen(&mut link, &mut actions);
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
    fn lose(&mut self, link: &mut Link, why: String, now: Instant, actions: &mut Vec<Action>) {
        let mut broken = false;
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
                if now.saturating_duration_since(since) > REOPEN_LATEST {
                    link.failures = 0;
                }
                broken = true;
            }
        }
        if broken {
            actions.push(Action::Gone(why));
        }
        self.reopen(link, actions);
    }

    /// Opens a stream where the peer is there and none is being opened: later and later, if they keep ending.
    fn reopen(&mut self, link: &mut Link, actions: &mut Vec<Action>) {
        let after = REOPEN_FIRST.saturating_mul(1 << link.failures.min(16)).min(REOPEN_LATEST);
        if self.open(link, after, actions) {
            link.failures = link.failures.saturating_add(1);
        }
    }

    fn open(&mut self, link: &mut Link, after: Duration, actions: &mut Vec<Action>) -> bool {
        if !link.connected || !matches!(link.outgoing, Outgoing::None) {
            return false;
        }
        let stream = self.number();
        link.outgoing = Outgoing::Opening(stream);
        actions.push(Action::Open(stream, after));
        true
    }
}
