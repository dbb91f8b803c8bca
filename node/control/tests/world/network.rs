//! The network of the world: connections that come and go, streams that break, gossip that is lost, doubled and late.
//!
//! Gossiped adverts are flooded: they may be lost, duplicated, late and out of order. What travels on a stream arrives in
//! order or not at all: a stream that breaks takes everything on it along.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::certificates::Published;
use crate::chat_messages::SessionMessage;
use crate::checks::Broken;
use crate::scenario::{LinkSpec, Micros};
use crate::worker::TaskMessage;
use crate::world::{Happening, World};

/// Until a silent peer is found dead.
const SILENCE: std::ops::Range<Micros> = 3_750_000..4_250_000;

/// Tells streams apart, in the whole world and for ever.
pub(crate) type StreamNumber = u64;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    /// Tasks of products, and what comes of them.
    Tasks,
    /// Sessions of models.
    Sessions,
}

/// A stream that is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// Who opened it.
    pub(crate) opener: usize,
    /// The other end.
    pub(crate) other: usize,
    /// What for.
    pub(crate) protocol: Protocol,
}

impl Stream {
    /// The end that is not `at`.
    pub(crate) fn other_end(&self, at: usize) -> usize {
        if self.opener == at { self.other } else { self.opener }
    }
}

/// What travels on a stream.
pub(crate) enum Message {
    /// Of a task.
    Task(TaskMessage),
    /// Of a session.
    Session(SessionMessage),
}

/// What connects the nodes.
#[derive(Default)]
pub(crate) struct Network {
    /// Connections by pair, the lower node first; each has a number of its own.
    connections: BTreeMap<(usize, usize), u64>,
    /// Pairs that cannot reach each other.
    cut: BTreeSet<(usize, usize)>,
    streams: BTreeMap<StreamNumber, Stream>,
    /// When the sending side of a connection is free again, for each protocol: streams share it fairly.
    send_free: BTreeMap<(usize, usize, Protocol), Micros>,
    /// Nodes from the first of which nothing gets to the second, until their connection with this number is found dead.
    one_way: BTreeMap<(usize, usize), u64>,
    /// One in this many gossiped adverts is lost; none where 0.
    pub(crate) loss_one_in: u64,
    number: u64,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Network {
    /// The number of the connection between two nodes.
    pub(crate) fn connection(&self, a: usize, b: usize) -> Option<u64> {
        self.connections.get(&pair(a, b)).copied()
    }

    fn is_silent(&self, from: usize, to: usize) -> bool {
        !self.one_way.is_empty() && self.one_way.contains_key(&(from, to))
    }

    /// A stream that is open.
    pub(crate) fn stream(&self, stream: StreamNumber) -> Option<Stream> {
        self.streams.get(&stream).copied()
    }

    fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }
}

impl World {
    /// What the connection between two nodes is.
    pub(crate) fn link(&self, a: usize, b: usize) -> LinkSpec {
        let (one, other) = (self.nodes[a].spec.link, self.nodes[b].spec.link);
        LinkSpec { bytes_per_s: one.bytes_per_s.min(other.bytes_per_s), rtt: one.rtt.max(other.rtt) }
    }

    /// Sends on a stream, behind what was sent before, `bytes` of payload with it; how long the wire is busy until then.
    pub(crate) fn send(&mut self, from: usize, stream: StreamNumber, bytes: u64, message: Message) -> Micros {
        self.send_later(from, stream, 0, bytes, message)
    }

    /// The same, after `delay`.
    pub(crate) fn send_later(
        &mut self,
        from: usize,
        stream: StreamNumber,
        delay: Micros,
        bytes: u64,
        message: Message,
    ) -> Micros {
        let Some(open) = self.network.stream(stream) else { return 0 };
        let to = open.other_end(from);
        let link = self.link(from, to);
        let free = self.network.send_free.entry((from, to, open.protocol)).or_insert(0);
        *free = (*free).max(self.now + delay) + (bytes as f64 / link.bytes_per_s * 1e6) as Micros;
        let sent = *free - self.now;
        if !self.network.is_silent(from, to) {
            self.after(sent + link.rtt / 2, Happening::Message { to, stream, message });
        }
        sent
    }

    /// Sends a short message that overtakes what waits to be sent.
    pub(crate) fn send_first(&mut self, from: usize, stream: StreamNumber, message: Message) {
        let Some(open) = self.network.stream(stream) else { return };
        let to = open.other_end(from);
        let delay = self.link(from, to).rtt / 2;
        if !self.network.is_silent(from, to) {
            self.after(delay, Happening::Message { to, stream, message });
        }
    }

    /// Opens a stream between connected nodes; none where they are not connected any more.
    pub(crate) fn open_stream(&mut self, opener: usize, other: usize, protocol: Protocol) -> Option<StreamNumber> {
        self.network.connection(opener, other)?;
        if self.network.is_silent(opener, other) || self.network.is_silent(other, opener) {
            return None;
        }
        let number = self.network.number();
        self.network.streams.insert(number, Stream { opener, other, protocol });
        Some(number)
    }

    /// A stream ends; both ends notice.
    pub(crate) fn end_stream(&mut self, stream: StreamNumber) {
        let Some(Stream { opener, other, protocol }) = self.network.streams.remove(&stream) else { return };
        for (at, of) in [(opener, other), (other, opener)] {
            let delay = self.chance.within(0..2_000);
            self.after(delay, Happening::StreamEnded { at, of, stream, protocol });
        }
    }

    /// All streams between two nodes end, though the nodes stay connected.
    pub(crate) fn break_streams(&mut self, a: usize, b: usize) {
        let between = |(number, stream): (&StreamNumber, &Stream)| {
            (pair(stream.opener, stream.other) == pair(a, b)).then_some(*number)
        };
        let streams: Vec<StreamNumber> = self.network.streams.iter().filter_map(between).collect();
        streams.into_iter().for_each(|stream| self.end_stream(stream));
    }

    /// Connects two nodes that can reach and admit each other.
    pub(crate) fn connect(&mut self, a: usize, b: usize) -> Result<(), Broken> {
        let runs = self.nodes[a].run.is_some() && self.nodes[b].run.is_some();
        let apart = self.network.cut.contains(&pair(a, b)) || self.network.connection(a, b).is_some();
        if a == b || !runs || apart || !self.admits(a, b) || !self.admits(b, a) {
            return Ok(());
        }
        let connection = self.network.number();
        self.network.connections.insert(pair(a, b), connection);
        let delay = self.chance.within(1_000..300_000);
        for (at, of) in [(a, b), (b, a)] {
            self.discovered(at, of)?;
            self.after(delay, Happening::Up { at, of, connection });
        }
        Ok(())
    }

    /// The connection ends; each end that runs notices, at once or after seconds of silence.
    pub(crate) fn disconnect(&mut self, a: usize, b: usize, silent: bool) {
        if self.network.connections.remove(&pair(a, b)).is_none() {
            return;
        }
        self.network.one_way.retain(|(from, to), _| pair(*from, *to) != pair(a, b));
        self.network.send_free.retain(|(from, to, _), _| pair(*from, *to) != pair(a, b));
        let is_theirs = |stream: &Stream| pair(stream.opener, stream.other) == pair(a, b);
        let streams: Vec<(StreamNumber, Protocol)> = self
            .network
            .streams
            .extract_if(.., |_, stream| is_theirs(stream))
            .map(|(number, stream)| (number, stream.protocol))
            .collect();
        for (at, of) in [(a, b), (b, a)] {
            let delay = if silent { self.chance.within(SILENCE) } else { self.chance.within(0..50_000) };
            // There may be another connection by then, which these streams were not on.
            for (stream, protocol) in &streams {
                self.after(delay, Happening::StreamEnded { at, of, stream: *stream, protocol: *protocol });
            }
            self.after(delay, Happening::Down { at, of, silent });
        }
    }

    /// Lets nothing through between two nodes.
    pub(crate) fn cut(&mut self, a: usize, b: usize, silent: bool) {
        if a != b {
            self.network.cut.insert(pair(a, b));
            self.disconnect(a, b, silent);
        }
    }

    /// Lets nothing through from one node to another, until the silence shows.
    pub(crate) fn cut_one_way(&mut self, from: usize, to: usize) {
        let Some(connection) = self.network.connection(from, to) else { return };
        if self.network.one_way.insert((from, to), connection).is_none() {
            let after = self.chance.within(SILENCE);
            self.after(after, Happening::FoundDead { a: from, b: to, connection });
        }
    }

    /// A connection was silent for too long: it ends, and another one may follow.
    pub(crate) fn found_dead(&mut self, a: usize, b: usize, connection: u64) -> Result<(), Broken> {
        if self.network.one_way.get(&(a, b)) == Some(&connection) {
            self.disconnect(a, b, false);
            self.checks.counts.add("connections that were silent one way");
            return self.connect(a, b);
        }
        Ok(())
    }

    /// Lets nothing through at all.
    pub(crate) fn part(&mut self) {
        for a in 0..self.nodes.len() {
            (0..a).for_each(|b| self.cut(a, b, false));
        }
    }

    /// Lets everything through again.
    pub(crate) fn heal(&mut self) -> Result<(), Broken> {
        self.network.cut.clear();
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.connect(a, b)?;
            }
        }
        Ok(())
    }

    /// Floods a message.
    pub(crate) fn gossip(&mut self, from: usize, published: &Arc<Published>) {
        for to in 0..self.nodes.len() {
            if to == from || self.network.connection(from, to).is_none() || self.network.is_silent(from, to) {
                continue;
            }
            if self.network.loss_one_in > 0 && self.chance.one_in(self.network.loss_one_in) {
                continue;
            }
            let copies = if self.chance.one_in(50) { 2 } else { 1 };
            for _ in 0..copies {
                let late = self.chance.one_in(20);
                let delay = if late { self.chance.within(50_000..250_000) } else { self.chance.within(500..20_000) };
                self.after(delay, Happening::Gossip { from, to, published: Arc::clone(published) });
            }
        }
    }
}
