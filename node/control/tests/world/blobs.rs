//! Model files among providers of which all but one poison them: wrong bytes, parts that they say they have and do not, silence,
//! streams that break off. What comes is compared with its hash, as the driver does; who is asked for what is the binary's decision.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use pangea_control::Time;
use pangea_control::blob::fetch::{Action, Event, Fetch, Outcome};
use pangea_control::blob::parts::{PartId, PartSet};
use pangea_units::{Error, ErrorKind, SplitMix64};

use crate::lies::wanted;

/// Parts of each piece of the file.
const PARTS: [u32; 4] = [1, 3, 5, 4];

/// Time within which a file is here, whatever the others do: many of them take their turns first, each for minutes.
const ENDS_WITHIN: Duration = Duration::from_secs(40_000);

/// How a provider poisons a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Poison {
    /// Sends other bytes.
    WrongBytes,
    /// Says that it has parts, and then that it has not.
    Withdraws,
    /// Does not answer.
    KeepsSilent,
    /// Ends the stream in place of an answer.
    BreaksOff,
}

const POISONS: [Poison; 4] = [Poison::WrongBytes, Poison::Withdraws, Poison::KeepsSilent, Poison::BreaksOff];

struct Provider {
    /// None where it is honest.
    poison: Option<Poison>,
    /// One in so many answers is poisoned; the others are right.
    one_in: u64,
    asked: VecDeque<PartId>,
    is_open: bool,
    /// Whether it sent wrong bytes.
    is_caught: bool,
}

struct Download {
    chance: SplitMix64,
    fetch: Fetch,
    providers: Vec<Provider>,
    now: Time,
    written: BTreeMap<PartId, u64>,
    /// How often each poison was given.
    given: BTreeMap<Poison, u64>,
}

/// What the file has at a part.
fn content(part: PartId) -> u64 {
    SplitMix64::at(u64::from(part.piece) << 32 | u64::from(part.part))
}

impl Download {
    fn new(seed: u64) -> Download {
        let mut chance = SplitMix64::new(seed);
        let count = 2 + chance.index(12);
        let honest = chance.index(count);
        let provider = |at| Provider {
            poison: (at != honest).then(|| POISONS[chance.index(POISONS.len())]),
            one_in: 1 + chance.below(4),
            asked: VecDeque::new(),
            is_open: false,
            is_caught: false,
        };
        let providers = (0..count).map(provider).collect();
        let names = (0..count).map(|at| format!("provider {at}")).collect();
        let of_piece =
            |(piece, parts): (usize, &u32)| (0..*parts).map(move |part| PartId { piece: piece as u32, part });
        let parts = PARTS.iter().enumerate().flat_map(of_piece).collect();
        let now = Time::from_secs(1);
        let fetch = Fetch::new(parts, names, 1 + chance.index(16), now);
        Download { chance, fetch, providers, now, written: BTreeMap::new(), given: BTreeMap::new() }
    }

    fn handle(&mut self, event: Event) -> bool {
        let mut actions = Vec::new();
        let outcome = self.fetch.handle(event, self.now, &mut actions);
        for action in actions {
            match action {
                Action::Open(at) => {
                    let provider = &mut self.providers[at];
                    assert!(!provider.is_caught, "provider {at} is asked again, which sent wrong bytes");
                    provider.is_open = true;
                    provider.asked.clear();
                    // Whoever keeps silent does so now and then from the beginning.
                    if provider.poison != Some(Poison::KeepsSilent) || self.chance.one_in(2) {
                        let has = PartSet::full(PARTS);
                        if self.handle(Event::Opened { provider: at, has }) {
                            return true;
                        }
                    }
                }
                Action::Ask(at, part) => self.providers[at].asked.push_back(part),
                Action::Close(at) => {
                    let provider = &mut self.providers[at];
                    assert!(provider.poison.is_some(), "provider {at} is honest and loses its place");
                    provider.is_open = false;
                    provider.asked.clear();
                }
            }
        }
        match outcome {
            Outcome::Going => false,
            Outcome::Done => true,
            Outcome::Failed(error) => panic!("an honest provider is left: {error}"),
        }
    }

    /// The next answer of a provider that was asked for something; whether the file is here.
    fn answer(&mut self, at: usize) -> bool {
        let provider = &mut self.providers[at];
        let Some(part) = provider.asked.front().copied().filter(|_| provider.is_open) else { return false };
        let poison = provider.poison.filter(|_| self.chance.one_in(provider.one_in));
        if let Some(poison) = poison {
            *self.given.entry(poison).or_default() += 1;
        }
        if poison != Some(Poison::KeepsSilent) {
            provider.asked.pop_front();
        }
        let bytes = if poison == Some(Poison::WrongBytes) { content(part) ^ 1 } else { content(part) };
        match poison {
            None | Some(Poison::WrongBytes) if bytes == content(part) => {
                self.written.insert(part, bytes);
                self.handle(Event::Good { provider: at, part })
            }
            None | Some(Poison::WrongBytes) => {
                provider.is_caught = true;
                self.handle(Event::Bad { provider: at, why: "its hash is another one".to_owned() })
            }
            Some(Poison::Withdraws) => self.handle(Event::Lacks { provider: at, part }),
            Some(Poison::KeepsSilent) => false,
            Some(Poison::BreaksOff) => {
                (provider.is_open, provider.asked) = (false, VecDeque::new());
                let error = Error::new(ErrorKind::Unavailable, "the stream ended");
                self.handle(Event::Lost { provider: at, error })
            }
        }
    }

    fn play(mut self) -> BTreeMap<Poison, u64> {
        let mut is_done = self.handle(Event::Tick);
        while !is_done {
            assert!(self.now < Time::from_secs(1) + ENDS_WITHIN, "the file never came");
            for at in 0..self.providers.len() {
                is_done = is_done || self.answer(at);
            }
            self.now += Duration::from_secs(1);
            is_done = is_done || self.handle(Event::Tick);
        }
        assert_eq!(self.written.len(), PARTS.iter().sum::<u32>() as usize);
        assert!(self.written.iter().all(|(part, bytes)| *bytes == content(*part)));
        self.given
    }
}

#[test]
fn ten_thousand_poisoned_parts_are_never_in_a_file_and_cost_no_honest_provider_its_place() {
    let mut given: BTreeMap<Poison, u64> = POISONS.into_iter().map(|poison| (poison, 0)).collect();
    let mut seed = 0;
    while given.values().any(|count| *count < wanted()) {
        for (poison, count) in Download::new(seed).play() {
            *given.entry(poison).or_default() += count;
        }
        seed += 1;
    }
    given.iter().for_each(|(poison, count)| println!("{count:>10} times {poison:?}, in {seed} fetches"));
}
