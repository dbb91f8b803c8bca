//! Which part is asked of whom: the state of one fetch, a pure state machine. Every holder gets the next parts that it has
//! as soon as it has delivered; towards the end, idle ones get what others are slow with. A holder that breaks off is tried
//! again, later and later; one whose bytes are not true is asked no more.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::Time;

use pangea_units::{Error, ErrorKind};

use super::limits::{ASKED_AHEAD, FAILURES, HOLDERS, RETRY_FIRST, SLOW};
use super::parts::{PartId, PartSet};

/// A holder's place in the list that the fetch was made with.
pub type HolderId = usize;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The holder answers, and has these parts.
    Opened {
        /// Who answers.
        holder: HolderId,
        /// The parts that it has.
        has: PartSet,
    },
    /// A part came, was true and is written.
    Good {
        /// Who sent it.
        holder: HolderId,
        /// The part.
        part: PartId,
    },
    /// What came is not the part.
    Bad {
        /// Who sent it.
        holder: HolderId,
        /// What is wrong with it.
        why: String,
    },
    /// The holder does not have the part after all.
    Lacks {
        /// Who lacks it.
        holder: HolderId,
        /// The part.
        part: PartId,
    },
    /// The stream could not be opened, or ended.
    Lost {
        /// Whose stream it was.
        holder: HolderId,
        /// Why.
        error: Error,
    },
    /// What came cannot be kept here.
    Failed(Error),
    /// Time passed: retries and slow holders wait for it.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a stream to the holder and ask what it has.
    Open(HolderId),
    /// Ask for the part on its stream; answers come in this order.
    Ask(HolderId, PartId),
    /// End its stream.
    Close(HolderId),
}

/// How a fetch stands.
#[derive(Debug)]
pub enum Outcome {
    /// It goes on.
    Going,
    /// All is here.
    Done,
    /// Nobody is left who could help.
    Failed(Error),
}

struct Holder {
    /// For people.
    name: String,
    state: State,
    /// In a row, without a good part between them.
    failures: u32,
    /// The last failure.
    error: Option<Error>,
}

enum State {
    /// To be opened from then on.
    Waiting(Time),
    Opening,
    Open {
        has: PartSet,
        asked: VecDeque<PartId>,
    },
    GivenUp,
}

/// A part that is on its way.
struct Asked {
    /// How many holders have been asked for it.
    holders: u32,
    /// When the last of them was.
    since: Time,
}

/// One fetch.
pub struct Fetch {
    holders: Vec<Holder>,
    /// Nobody has been asked for these, in the order in which they are.
    waiting: VecDeque<PartId>,
    asked: BTreeMap<PartId, Asked>,
}

impl Fetch {
    /// Fetches `parts` from the holders with these names.
    pub fn new(parts: Vec<PartId>, holders: Vec<String>, now: Time) -> Fetch {
        let holder = |name| Holder { name, state: State::Waiting(now), failures: 0, error: None };
        Fetch { holders: holders.into_iter().map(holder).collect(), waiting: parts.into(), asked: BTreeMap::new() }
    }

    /// Takes in what happened; `actions` gets what to do about it.
    pub fn handle(&mut self, event: Event, now: Time, actions: &mut Vec<Action>) -> Outcome {
        match event {
            Event::Opened { holder, has } => {
                // An answer that comes after its holder was closed is nothing.
                if matches!(self.holders[holder].state, State::Opening) {
                    self.holders[holder].state = State::Open { has, asked: VecDeque::new() };
                }
            }
            Event::Good { holder, part } => {
                self.unask(holder, part);
                self.asked.remove(&part);
                self.waiting.retain(|waiting| *waiting != part);
                self.holders[holder].failures = 0;
            }
            Event::Bad { holder, why } => {
                self.take_back(holder);
                let holder_name = &self.holders[holder].name;
                let error = Error::new(ErrorKind::VerificationFailed, format!("{holder_name} sent wrong bytes: {why}"));
                self.give_up(holder, error, actions);
            }
            Event::Lacks { holder, part } => {
                self.unask(holder, part);
                if let State::Open { has, .. } = &mut self.holders[holder].state {
                    has.remove(part);
                }
                self.put_back(part);
            }
            Event::Lost { holder, error } => {
                self.take_back(holder);
                self.fail(holder, error, now, actions);
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
        let mut busy = self.holders.iter().filter(|holder| holder.is_busy()).count();
        for (id, holder) in self.holders.iter_mut().enumerate() {
            if busy < HOLDERS && matches!(holder.state, State::Waiting(at) if at <= now) {
                holder.state = State::Opening;
                actions.push(Action::Open(id));
                busy += 1;
            }
        }
        // One part each in turn, so that the first holder does not get all of a short list.
        while self.ask_each(now, actions) {}
        let is_asked = |holder: &Holder| matches!(&holder.state, State::Open { asked, .. } if !asked.is_empty());
        let is_opening = |holder: &Holder| matches!(holder.state, State::Opening);
        if !self.holders.iter().any(|holder| is_asked(holder) || is_opening(holder)) {
            // Who is open has nothing of what is left; it may have more later.
            for id in 0..self.holders.len() {
                if matches!(self.holders[id].state, State::Open { .. }) {
                    let error = Error::new(ErrorKind::NotFound, "it does not have all that is missing");
                    self.fail(id, error, now, actions);
                }
            }
        }
        match self.holders.iter().all(|holder| matches!(holder.state, State::GivenUp)) {
            true => Outcome::Failed(self.failure()),
            false => Outcome::Going,
        }
    }

    /// Asks every holder that has room for one more part. Whether there was any.
    fn ask_each(&mut self, now: Time, actions: &mut Vec<Action>) -> bool {
        let mut any = false;
        for (id, holder) in self.holders.iter_mut().enumerate() {
            let State::Open { has, asked } = &mut holder.state else { continue };
            if asked.len() >= ASKED_AHEAD {
                continue;
            }
            let next = match self.waiting.iter().position(|part| has.contains(*part)) {
                Some(at) => self.waiting.remove(at),
                // Nothing is left for it: it may be faster with what another is slow with.
                None if asked.is_empty() => {
                    let is_slow = |at: &Asked| at.holders == 1 && now.since(at.since) >= SLOW;
                    let slow = self.asked.iter().filter(|(part, at)| is_slow(at) && has.contains(**part));
                    slow.map(|(part, _)| *part).min()
                }
                None => None,
            };
            if let Some(part) = next {
                asked.push_back(part);
                let entry = self.asked.entry(part).or_insert(Asked { holders: 0, since: now });
                (entry.holders, entry.since) = (entry.holders + 1, now);
                actions.push(Action::Ask(id, part));
                any = true;
            }
        }
        any
    }

    /// The holder has answered about a part.
    fn unask(&mut self, holder: HolderId, part: PartId) {
        if let State::Open { asked, .. } = &mut self.holders[holder].state {
            asked.retain(|asked| *asked != part);
        }
    }

    /// One who was asked for the part will not give it.
    fn put_back(&mut self, part: PartId) {
        match self.asked.get_mut(&part) {
            Some(asked) if asked.holders > 1 => asked.holders -= 1,
            Some(_) => {
                self.asked.remove(&part);
                self.waiting.push_front(part);
            }
            // Another has given it.
            None => {}
        }
    }

    /// Everything that the holder was asked for is to be had elsewhere.
    fn take_back(&mut self, holder: HolderId) {
        if let State::Open { asked, .. } = &mut self.holders[holder].state {
            for part in std::mem::take(asked).into_iter().rev() {
                self.put_back(part);
            }
        }
    }

    fn fail(&mut self, id: HolderId, error: Error, now: Time, actions: &mut Vec<Action>) {
        let holder = &mut self.holders[id];
        if matches!(holder.state, State::GivenUp | State::Waiting(_)) {
            return;
        }
        holder.failures += 1;
        if holder.failures >= FAILURES {
            self.give_up(id, error, actions);
            return;
        }
        let wait: Duration = RETRY_FIRST * (1 << (holder.failures - 1));
        holder.error = Some(error);
        if matches!(holder.state, State::Open { .. }) {
            actions.push(Action::Close(id));
        }
        holder.state = State::Waiting(now + wait);
    }

    fn give_up(&mut self, id: HolderId, error: Error, actions: &mut Vec<Action>) {
        let holder = &mut self.holders[id];
        if !matches!(holder.state, State::GivenUp) {
            holder.state = State::GivenUp;
            holder.error = Some(error);
            actions.push(Action::Close(id));
        }
    }

    /// Why nobody could help.
    fn failure(&self) -> Error {
        let errors = || self.holders.iter().filter_map(|holder| Some((holder, holder.error.as_ref()?)));
        let kind = match errors().next() {
            None => ErrorKind::Unavailable,
            Some(_) if errors().all(|(_, error)| error.kind() == ErrorKind::NotFound) => ErrorKind::NotFound,
            Some(_) if errors().all(|(_, error)| error.kind() == ErrorKind::VerificationFailed) => {
                ErrorKind::VerificationFailed
            }
            Some(_) => ErrorKind::Unavailable,
        };
        let reasons: Vec<String> =
            errors().map(|(holder, error)| format!("{}: {}", holder.name, error.message())).collect();
        let reasons = if reasons.is_empty() { "there is none".to_owned() } else { reasons.join("; ") };
        Error::new(kind, format!("no peer could give what is missing ({reasons})"))
    }
}

impl Holder {
    fn is_busy(&self) -> bool {
        matches!(self.state, State::Opening | State::Open { .. })
    }
}

#[cfg(test)]
mod tests;
