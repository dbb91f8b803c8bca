//! Decides which part of a model file is requested from which provider: the state of one fetch. A provider that has
//! delivered gets the next request; towards the end, idle providers are asked for parts that others are slow with. A
//! provider that delivers nothing for a while, or has nothing that is missing, gives its place to the one that waits longest. A
//! provider whose stream ends is retried with a growing delay; one that sent wrong bytes is not used again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::Time;
use crate::backoff::doubled;

use pangea_units::{Error, ErrorKind};

use super::limits::{
    ASKED_AHEAD, FAILURES_MAX, PATIENCE, PATIENCE_MAX, PROVIDERS, RETRY_DELAY, RETRY_DELAY_MAX, SLOW_AFTER, UNWRITTEN,
};
use super::parts::{PartId, PartSet};

/// Index of a provider in the list given to the fetch.
pub type ProviderId = usize;

/// Input of the fetch.
#[derive(Debug)]
pub enum Event {
    /// The provider has answered which parts it has.
    Opened {
        /// The provider.
        provider: ProviderId,
        /// The parts that it has.
        has: PartSet,
    },
    /// A part arrived, was verified and is written.
    Good {
        /// The provider.
        provider: ProviderId,
        /// The part.
        part: PartId,
    },
    /// The received bytes do not match the part's hash.
    Bad {
        /// The provider.
        provider: ProviderId,
        /// Why the bytes are wrong.
        why: String,
    },
    /// The provider does not have the part.
    Lacks {
        /// The provider.
        provider: ProviderId,
        /// The part.
        part: PartId,
    },
    /// The stream could not be opened, or ended.
    Lost {
        /// The provider.
        provider: ProviderId,
        /// Reason.
        error: Error,
    },
    /// The part cannot be stored on this node.
    Failed(Error),
    /// Time passed.
    Tick,
}

/// What the driver does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a stream to the provider and ask which parts it has.
    Open(ProviderId),
    /// Request the part on the provider's stream; answers arrive in this order.
    Ask(ProviderId, PartId),
    /// Close the provider's stream.
    Close(ProviderId),
}

/// The state of a fetch.
#[derive(Debug)]
pub enum Outcome {
    /// The fetch is in progress.
    Going,
    /// Every part is stored.
    Done,
    /// No provider is left.
    Failed(Error),
}

struct Provider {
    /// Name for people.
    name: String,
    state: State,
    /// Consecutive failures without a verified part between them.
    failures: u32,
    /// The last failure.
    error: Option<Error>,
}

enum State {
    /// Closed; may be opened from this time on.
    Waiting(Time),
    /// Since this time.
    Opening(Time),
    Open {
        has: PartSet,
        asked: VecDeque<PartId>,
        /// Last time at which the provider delivered a part, or was asked for one while it owed none.
        since: Time,
    },
    GivenUp,
}

/// A part that was requested.
struct Asked {
    /// Number of providers that were asked for it.
    providers: u32,
    /// Time of the last request.
    since: Time,
}

/// One fetch.
pub struct Fetch {
    providers: Vec<Provider>,
    /// Parts that are not requested yet, in the file's order.
    waiting: VecDeque<PartId>,
    /// Maximum providers in use at once, limited by the memory for parts.
    at_once: usize,
    asked: BTreeMap<PartId, Asked>,
    /// Time without a part after which a provider gives its place to one that waits. It grows each time, so that parts
    /// arrive in the end where every provider is slow.
    patience: Duration,
}

impl Fetch {
    /// A fetch of `parts` from the providers with these names, with at most `buffers` parts in memory.
    pub fn new(parts: Vec<PartId>, providers: Vec<String>, buffers: usize, now: Time) -> Fetch {
        let provider = |name| Provider { name, state: State::Waiting(now), failures: 0, error: None };
        Fetch {
            providers: providers.into_iter().map(provider).collect(),
            waiting: parts.into(),
            at_once: providers_at_once(buffers),
            asked: BTreeMap::new(),
            patience: PATIENCE,
        }
    }

    /// Processes an event and appends the actions to `actions`.
    pub fn handle(&mut self, event: Event, now: Time, actions: &mut Vec<Action>) -> Outcome {
        match event {
            Event::Opened { provider, has } => {
                // An answer of a provider that was closed meanwhile is ignored.
                if matches!(self.providers[provider].state, State::Opening(_)) {
                    self.providers[provider].state = State::Open { has, asked: VecDeque::new(), since: now };
                }
            }
            Event::Good { provider, part } => {
                self.unask(provider, part);
                self.asked.remove(&part);
                self.waiting.retain(|waiting| *waiting != part);
                self.providers[provider].failures = 0;
                if let State::Open { since, .. } = &mut self.providers[provider].state {
                    *since = now;
                }
            }
            Event::Bad { provider, why } => {
                self.take_back(provider);
                let provider_name = &self.providers[provider].name;
                let error =
                    Error::new(ErrorKind::VerificationFailed, format!("{provider_name} sent wrong bytes: {why}"));
                self.give_up(provider, error, actions);
            }
            Event::Lacks { provider, part } => {
                self.unask(provider, part);
                if let State::Open { has, .. } = &mut self.providers[provider].state {
                    has.remove(part);
                }
                self.put_back(part);
            }
            Event::Lost { provider, error } => {
                self.take_back(provider);
                self.fail(provider, error, now, actions);
            }
            Event::Failed(error) => return Outcome::Failed(error),
            Event::Tick => {}
        }
        self.plan(now, actions)
    }

    fn plan(&mut self, now: Time, actions: &mut Vec<Action>) -> Outcome {
        if self.waiting.is_empty() && self.asked.is_empty() {
            return Outcome::Done;
        }
        self.displace(now, actions);
        let mut busy = self.providers.iter().filter(|provider| provider.is_busy()).count();
        // Whoever waits longest is next: two that take their turns and deliver nothing would keep all others out.
        let waits = |(id, provider): (usize, &Provider)| match provider.state {
            State::Waiting(at) if at <= now => Some((at, id)),
            _ => None,
        };
        while busy < self.at_once
            && let Some((_, id)) = self.providers.iter().enumerate().filter_map(waits).min()
        {
            self.providers[id].state = State::Opening(now);
            actions.push(Action::Open(id));
            busy += 1;
        }
        // One request each in turn, so that the first provider does not get all of a short list.
        while self.ask_each(now, actions) {}
        let is_asked = |provider: &Provider| matches!(&provider.state, State::Open { asked, .. } if !asked.is_empty());
        let is_opening = |provider: &Provider| matches!(provider.state, State::Opening(_));
        if !self.providers.iter().any(|provider| is_asked(provider) || is_opening(provider)) {
            // No open provider has any of the remaining parts now; one may get more later.
            for id in 0..self.providers.len() {
                if matches!(self.providers[id].state, State::Open { .. }) {
                    let error = Error::new(ErrorKind::NotFound, "it does not have all that is missing");
                    self.fail(id, error, now, actions);
                }
            }
        }
        match self.providers.iter().all(|provider| matches!(provider.state, State::GivenUp)) {
            true => Outcome::Failed(self.failure()),
            false => Outcome::Going,
        }
    }

    /// Closes a provider that has nothing that is missing, or the one that has delivered nothing for longest, if another one waits
    /// for its place.
    fn displace(&mut self, now: Time, actions: &mut Vec<Action>) {
        let busy = self.providers.iter().filter(|provider| provider.is_busy()).count();
        let waits = |provider: &Provider| matches!(provider.state, State::Waiting(at) if at <= now);
        if busy < self.at_once || !self.providers.iter().any(waits) {
            return;
        }
        let is_useless = |provider: &Provider| match &provider.state {
            State::Open { has, asked, .. } => {
                asked.is_empty() && !self.waiting.iter().chain(self.asked.keys()).any(|part| has.contains(*part))
            }
            _ => false,
        };
        if let Some(useless) = self.providers.iter().position(is_useless) {
            self.providers[useless].state = State::Waiting(now + PATIENCE);
            actions.push(Action::Close(useless));
            return;
        }
        let owing = self.providers.iter().enumerate().filter_map(|(id, provider)| Some((provider.owes_since()?, id)));
        let Some((since, slowest)) = owing.min() else { return };
        if now.since(since) < self.patience {
            return;
        }
        self.take_back(slowest);
        self.providers[slowest].state = State::Waiting(now + self.patience);
        self.patience = (2 * self.patience).min(PATIENCE_MAX);
        actions.push(Action::Close(slowest));
    }

    /// Requests one more part from every provider that has room; returns whether there was a request.
    fn ask_each(&mut self, now: Time, actions: &mut Vec<Action>) -> bool {
        let mut any = false;
        for (id, provider) in self.providers.iter_mut().enumerate() {
            let State::Open { has, asked, since } = &mut provider.state else { continue };
            if asked.len() >= ASKED_AHEAD {
                continue;
            }
            let next = match self.waiting.iter().position(|part| has.contains(*part)) {
                Some(at) => self.waiting.remove(at),
                // Nothing is left to request first; this provider may be faster with a part that another one is slow with.
                None if asked.is_empty() => {
                    let is_slow = |at: &Asked| now.since(at.since) >= slow_after(at.providers);
                    let slow = self.asked.iter().filter(|(part, at)| is_slow(at) && has.contains(**part));
                    slow.map(|(part, _)| *part).min()
                }
                None => None,
            };
            if let Some(part) = next {
                if asked.is_empty() {
                    *since = now;
                }
                asked.push_back(part);
                let entry = self.asked.entry(part).or_insert(Asked { providers: 0, since: now });
                (entry.providers, entry.since) = (entry.providers + 1, now);
                actions.push(Action::Ask(id, part));
                any = true;
            }
        }
        any
    }

    /// The provider has answered a request.
    fn unask(&mut self, provider: ProviderId, part: PartId) {
        if let State::Open { asked, .. } = &mut self.providers[provider].state {
            asked.retain(|asked| *asked != part);
        }
    }

    /// A provider that was asked for the part will not deliver it.
    fn put_back(&mut self, part: PartId) {
        match self.asked.get_mut(&part) {
            Some(asked) if asked.providers > 1 => asked.providers -= 1,
            Some(_) => {
                self.asked.remove(&part);
                self.waiting.push_front(part);
            }
            // Another provider has delivered it.
            None => {}
        }
    }

    /// Everything requested from the provider must be requested elsewhere.
    fn take_back(&mut self, provider: ProviderId) {
        if let State::Open { asked, .. } = &mut self.providers[provider].state {
            for part in std::mem::take(asked).into_iter().rev() {
                self.put_back(part);
            }
        }
    }

    fn fail(&mut self, id: ProviderId, error: Error, now: Time, actions: &mut Vec<Action>) {
        let provider = &mut self.providers[id];
        if matches!(provider.state, State::GivenUp | State::Waiting(_)) {
            return;
        }
        provider.failures += 1;
        if provider.failures >= FAILURES_MAX {
            self.give_up(id, error, actions);
            return;
        }
        let wait = doubled(RETRY_DELAY, provider.failures - 1, RETRY_DELAY_MAX);
        provider.error = Some(error);
        if matches!(provider.state, State::Open { .. }) {
            actions.push(Action::Close(id));
        }
        provider.state = State::Waiting(now + wait);
    }

    fn give_up(&mut self, id: ProviderId, error: Error, actions: &mut Vec<Action>) {
        let provider = &mut self.providers[id];
        if !matches!(provider.state, State::GivenUp) {
            provider.state = State::GivenUp;
            provider.error = Some(error);
            actions.push(Action::Close(id));
        }
    }

    /// Why no provider could deliver.
    fn failure(&self) -> Error {
        let errors = || self.providers.iter().filter_map(|provider| Some((provider, provider.error.as_ref()?)));
        let kind = match errors().next() {
            None => ErrorKind::Unavailable,
            Some(_) if errors().all(|(_, error)| error.kind() == ErrorKind::NotFound) => ErrorKind::NotFound,
            Some(_) if errors().all(|(_, error)| error.kind() == ErrorKind::VerificationFailed) => {
                ErrorKind::VerificationFailed
            }
            Some(_) => ErrorKind::Unavailable,
        };
        let reasons: Vec<String> =
            errors().map(|(provider, error)| format!("{}: {}", provider.name, error.message())).collect();
        let reasons = if reasons.is_empty() { "there is none".to_owned() } else { reasons.join("; ") };
        Error::new(kind, format!("no peer could give what is missing ({reasons})"))
    }
}

/// Maximum parts in memory at once for a fetch of `parts` parts from `providers` providers: one that each
/// of them sends, and those that are being written.
pub fn max_buffers(parts: usize, providers: usize) -> usize {
    // A part that one provider is slow with may be requested from a second one as well.
    (providers.clamp(1, PROVIDERS) + UNWRITTEN).min(2 * parts.max(1))
}

/// Time after which a part that was requested from `providers` providers may be requested from one more: two that deliver nothing
/// must not keep a part to themselves. A third one is asked late, because honest providers that are slow share one line.
fn slow_after(providers: u32) -> Duration {
    if providers == 1 { SLOW_AFTER } else { PATIENCE * providers }
}

/// Providers that may send at once into this many buffers. If there are few, half of them are kept for writing.
fn providers_at_once(buffers: usize) -> usize {
    (buffers - UNWRITTEN.min(buffers / 2)).clamp(1, PROVIDERS)
}

impl Provider {
    /// Since when the provider owes something and delivers nothing.
    fn owes_since(&self) -> Option<Time> {
        match &self.state {
            State::Opening(since) => Some(*since),
            State::Open { asked, since, .. } if !asked.is_empty() => Some(*since),
            _ => None,
        }
    }

    fn is_busy(&self) -> bool {
        matches!(self.state, State::Opening(_) | State::Open { .. })
    }
}

#[cfg(test)]
mod tests;
