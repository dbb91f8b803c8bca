//! Decides which of many peers' streams is answered now. A stream has a place only while it is answered; places go to the
//! peers that have fewest, and nobody keeps one by taking bytes one at a time while others wait. Streams and peers are
//! numbers to it.

use std::collections::BTreeMap;

use libp2p_identity::PeerId;

use super::limits::{TURN_PATIENCE, UPLOAD_BYTES_PER_S};
use crate::Time;

/// Identifies a stream, forever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamNumber(u64);

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The stream may be answered now.
    Start(StreamNumber),
    /// The stream ends: it takes less than others that wait could.
    Close(StreamNumber),
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// It asks nothing.
    Idle,
    /// It waits for its turn since this time.
    Waiting(Time),
    /// Its present answer began at this time, and it has taken so many bytes of it.
    Answered { since: Time, bytes: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    peer: PeerId,
    state: State,
}

/// The streams of all peers.
#[derive(Debug)]
pub struct Uploads {
    places: usize,
    next: u64,
    streams: BTreeMap<StreamNumber, Stream>,
}

impl Uploads {
    /// So many streams are answered at once.
    pub fn new(places: usize) -> Uploads {
        Uploads { places, next: 0, streams: BTreeMap::new() }
    }

    /// `peer` has opened a stream, which asks nothing yet.
    pub fn opened(&mut self, peer: PeerId) -> StreamNumber {
        let number = StreamNumber(self.next);
        self.next += 1;
        self.streams.insert(number, Stream { peer, state: State::Idle });
        number
    }

    /// A stream asks something. It waits for its turn, unless it has it.
    pub fn asks(&mut self, number: StreamNumber, now: Time) -> Vec<Turn> {
        if let Some(stream) = self.streams.get_mut(&number)
            && matches!(stream.state, State::Idle)
        {
            stream.state = State::Waiting(now);
        }
        self.fill(now)
    }

    /// Whether it is the stream's turn.
    pub fn is_answered(&self, number: StreamNumber) -> bool {
        self.streams.get(&number).is_some_and(|stream| matches!(stream.state, State::Answered { .. }))
    }

    /// A stream has taken `bytes` more.
    pub fn took(&mut self, number: StreamNumber, bytes: u64) {
        if let Some(Stream { state: State::Answered { bytes: taken, .. }, .. }) = self.streams.get_mut(&number) {
            *taken += bytes;
        }
    }

    /// One answer to a stream is complete; `asks_more` if the next question is there already. The stream keeps its turn if
    /// nobody waits.
    pub fn answered(&mut self, number: StreamNumber, asks_more: bool, now: Time) -> Vec<Turn> {
        let others_wait = self.streams.values().any(|stream| matches!(stream.state, State::Waiting(_)));
        if let Some(stream) = self.streams.get_mut(&number) {
            match (asks_more, others_wait) {
                // Counted per answer, so that a stream that stops is noticed however much it took before.
                (true, false) => stream.state = State::Answered { since: now, bytes: 0 },
                (true, true) => stream.state = State::Waiting(now),
                (false, _) => stream.state = State::Idle,
            }
        }
        self.fill(now)
    }

    /// A stream has ended.
    pub fn ended(&mut self, number: StreamNumber, now: Time) -> Vec<Turn> {
        self.streams.remove(&number);
        self.fill(now)
    }

    /// Time passed: a stream that has waited long takes the place of one that takes little, or whose peer has many.
    pub fn tick(&mut self, now: Time) -> Vec<Turn> {
        let Some((next, waiting_since)) = self.next_in_turn() else { return Vec::new() };
        if now.since(waiting_since) < TURN_PATIENCE {
            return Vec::new();
        }
        let own = self.places_of(self.streams[&next].peer);
        let rate = |since: Time, bytes: u64| bytes as f64 / now.since(since).as_secs_f64().max(1e-3);
        let slowest = self
            .streams
            .iter()
            .filter_map(|(number, stream)| match stream.state {
                State::Answered { since, bytes } if now.since(since) >= TURN_PATIENCE => {
                    let greedy = self.places_of(stream.peer) > own + 1;
                    let rate = rate(since, bytes);
                    (greedy || rate < UPLOAD_BYTES_PER_S as f64).then_some((!greedy, rate, *number))
                }
                _ => None,
            })
            .min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let Some((_, _, slowest)) = slowest else { return Vec::new() };
        self.streams.remove(&slowest);
        let mut turns = vec![Turn::Close(slowest)];
        turns.extend(self.fill(now));
        turns
    }

    /// Streams of `peer` that are answered now.
    fn places_of(&self, peer: PeerId) -> usize {
        let answered = |stream: &&Stream| stream.peer == peer && matches!(stream.state, State::Answered { .. });
        self.streams.values().filter(answered).count()
    }

    /// The waiting stream of a peer with fewest places; of these the one that has waited longest.
    fn next_in_turn(&self) -> Option<(StreamNumber, Time)> {
        let waiting = self.streams.iter().filter_map(|(number, stream)| match stream.state {
            State::Waiting(since) => Some((self.places_of(stream.peer), since, *number)),
            _ => None,
        });
        waiting.min().map(|(_, since, number)| (number, since))
    }

    /// Gives free places away.
    fn fill(&mut self, now: Time) -> Vec<Turn> {
        let mut turns = Vec::new();
        let is_answered = |stream: &&Stream| matches!(stream.state, State::Answered { .. });
        while self.streams.values().filter(is_answered).count() < self.places
            && let Some((next, _)) = self.next_in_turn()
            && let Some(stream) = self.streams.get_mut(&next)
        {
            stream.state = State::Answered { since: now, bytes: 0 };
            turns.push(Turn::Start(next));
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::peer;

    const PLACES: usize = 4;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    /// A stream of peer `number` that asks at once.
    fn asking(uploads: &mut Uploads, number: u64, now: Time) -> (StreamNumber, Vec<Turn>) {
        let stream = uploads.opened(peer(number));
        let turns = uploads.asks(stream, now);
        (stream, turns)
    }

    #[test]
    fn idle_streams_take_no_place() {
        let mut uploads = Uploads::new(PLACES);
        for number in 0..100 {
            uploads.opened(peer(number));
        }
        let (stream, turns) = asking(&mut uploads, 1000, at(0));
        assert_eq!(turns, [Turn::Start(stream)]);
        assert!(uploads.answered(stream, true, at(1)).is_empty(), "it keeps its turn while nobody waits");
        assert!(uploads.answered(stream, false, at(2)).is_empty());
        assert_eq!(uploads.asks(stream, at(3)), [Turn::Start(stream)]);
    }

    #[test]
    fn a_free_place_goes_to_the_peer_that_has_fewest() {
        let mut uploads = Uploads::new(PLACES);
        let greedy: Vec<StreamNumber> = (0..8).map(|_| asking(&mut uploads, 1, at(0)).0).collect();
        let (other, turns) = asking(&mut uploads, 2, at(1));
        assert!(turns.is_empty());
        assert_eq!(uploads.answered(greedy[0], true, at(2)), [Turn::Start(other)], "though others came before");
        assert_eq!(uploads.ended(other, at(3)), [Turn::Start(greedy[4])]);
    }

    #[test]
    fn whoever_takes_bytes_one_at_a_time_loses_its_place_to_one_that_waits() {
        let mut uploads = Uploads::new(PLACES);
        let trickling: Vec<StreamNumber> = (0..4).map(|number| asking(&mut uploads, number, at(0)).0).collect();
        let patience = TURN_PATIENCE.as_millis() as u64;
        for stream in &trickling {
            uploads.took(*stream, UPLOAD_BYTES_PER_S * 60);
        }
        uploads.took(trickling[1], 0);
        let (honest, turns) = asking(&mut uploads, 9, at(50_000));
        assert!(turns.is_empty() && uploads.tick(at(50_000 + patience - 1)).is_empty());
        // All of them are fast enough so far, and no peer has more than another.
        assert!(uploads.tick(at(50_000 + patience)).is_empty());
        // They stop.
        assert_eq!(uploads.tick(at(61_000)), [Turn::Close(trickling[0]), Turn::Start(honest)]);
        assert!(uploads.tick(at(90_000)).is_empty(), "nobody waits: the slow ones stay");
    }

    #[test]
    fn a_peer_with_many_places_gives_one_to_a_peer_without() {
        let mut uploads = Uploads::new(PLACES);
        let greedy: Vec<StreamNumber> = (0..4).map(|_| asking(&mut uploads, 1, at(0)).0).collect();
        for stream in &greedy {
            uploads.took(*stream, 1 << 40);
        }
        let (other, _) = asking(&mut uploads, 2, at(10));
        let later = at(10) + TURN_PATIENCE;
        assert_eq!(uploads.tick(later), [Turn::Close(greedy[0]), Turn::Start(other)]);
        uploads.took(other, 1 << 40);
        let (third, _) = asking(&mut uploads, 1, at(20));
        assert!(uploads.tick(later + TURN_PATIENCE + TURN_PATIENCE).is_empty(), "{third:?} is of the peer with most");
    }
}
