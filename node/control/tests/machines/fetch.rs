//! The fetch of a model file from one honest provider among any others: wrong bytes, silence, lies about what they have. Whatever they
//! do, who sent wrong bytes is not asked again, and everything comes from the honest one at last.

use std::collections::VecDeque;
use std::time::Duration;

use pangea_control::Time;
use pangea_control::blob::fetch::{Action, Event, Fetch, Outcome};
use pangea_control::blob::parts::{PartId, PartSet};
use pangea_units::{Error, ErrorKind};

use crate::bytes::Bytes;

/// Parts of the two pieces of the file.
const PARTS: [u32; 2] = [3, 4];

/// Time within which the honest provider has delivered everything once it alone answers.
const ENDS_WITHIN: Duration = Duration::from_secs(10_000);

/// A provider as the fetch sees it.
#[derive(Default)]
struct Provider {
    is_opening: bool,
    is_open: bool,
    asked: VecDeque<PartId>,
    /// Whether it sent wrong bytes.
    is_bad: bool,
}

struct Run<'a> {
    bytes: Bytes<'a>,
    fetch: Fetch,
    providers: Vec<Provider>,
    honest: usize,
    now: Time,
    is_done: bool,
}

/// Plays a run.
pub(crate) fn run(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let count = 1 + bytes.below(6);
    let honest = bytes.below(count);
    let names = (0..count).map(|number| format!("provider {number}")).collect();
    let of_piece = |(piece, parts): (usize, &u32)| (0..*parts).map(move |part| PartId { piece: piece as u32, part });
    let parts = PARTS.iter().enumerate().flat_map(of_piece).collect();
    let now = Time::from_secs(1);
    let fetch = Fetch::new(parts, names, 1 + bytes.below(32), now);
    let providers = (0..count).map(|_| Provider::default()).collect();
    let mut run = Run { bytes, fetch, providers, honest, now, is_done: false };
    run.handle(Event::Tick);
    while !run.bytes.is_empty() && !run.is_done {
        run.event();
    }
    let until = run.now + ENDS_WITHIN;
    while !run.is_done {
        assert!(run.now < until, "the honest provider has not delivered everything");
        run.honest_answers();
        run.now += Duration::from_secs(5);
        run.handle(Event::Tick);
    }
}

impl Run<'_> {
    fn event(&mut self) {
        let provider = self.bytes.below(self.providers.len());
        if self.bytes.is_rare(80) {
            self.now += Duration::from_millis(u64::from(self.bytes.byte()) * 40);
            return self.handle(Event::Tick);
        }
        if provider == self.honest {
            return self.honest_answers();
        }
        let (is_opening, is_open) = (self.providers[provider].is_opening, self.providers[provider].is_open);
        let error = || Error::new(ErrorKind::Unavailable, "the run says so");
        match self.bytes.below(5) {
            0 | 1 if is_opening => {
                let mut has = PartSet::empty(PARTS);
                for (piece, parts) in PARTS.into_iter().enumerate() {
                    for part in 0..parts {
                        if self.bytes.is_rare(160) {
                            has.insert(PartId { piece: piece as u32, part });
                        }
                    }
                }
                self.opened(provider, has);
            }
            0 if is_open => {
                if let Some(part) = self.providers[provider].asked.pop_front() {
                    self.handle(Event::Good { provider, part });
                }
            }
            1 if is_open => {
                if let Some(part) = self.providers[provider].asked.pop_front() {
                    self.handle(Event::Lacks { provider, part });
                }
            }
            2 if is_open && !self.providers[provider].asked.is_empty() => {
                self.providers[provider].is_bad = true;
                self.handle(Event::Bad { provider, why: "the run says so".to_owned() });
            }
            3 if is_opening || is_open => {
                self.providers[provider] = Provider { is_bad: self.providers[provider].is_bad, ..Provider::default() };
                self.handle(Event::Lost { provider, error: error() });
            }
            _ => {}
        }
    }

    fn opened(&mut self, provider: usize, has: PartSet) {
        (self.providers[provider].is_opening, self.providers[provider].is_open) = (false, true);
        self.handle(Event::Opened { provider, has });
    }

    /// The honest provider answers what it was asked.
    fn honest_answers(&mut self) {
        let provider = self.honest;
        if self.providers[provider].is_opening {
            self.opened(provider, PartSet::full(PARTS));
        } else if let Some(part) = self.providers[provider].asked.pop_front() {
            self.handle(Event::Good { provider, part });
        }
    }

    fn handle(&mut self, event: Event) {
        let mut actions = Vec::new();
        match self.fetch.handle(event, self.now, &mut actions) {
            Outcome::Going => {}
            Outcome::Done => self.is_done = true,
            Outcome::Failed(error) => panic!("an honest provider is left: {error}"),
        }
        for action in actions {
            match action {
                Action::Open(id) => {
                    let provider = &mut self.providers[id];
                    assert!(!provider.is_bad && !provider.is_open, "{id} is opened twice, or sent wrong bytes");
                    provider.is_opening = true;
                }
                Action::Ask(id, part) => {
                    let provider = &mut self.providers[id];
                    assert!(!provider.is_bad && provider.is_open, "{id} is asked, which is closed or sent wrong bytes");
                    provider.asked.push_back(part);
                }
                Action::Close(id) => {
                    let provider = &mut self.providers[id];
                    *provider = Provider { is_bad: provider.is_bad, ..Provider::default() };
                }
            }
        }
    }
}
