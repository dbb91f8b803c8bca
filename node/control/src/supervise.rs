//! Decides what follows when a part of the node ends or falls silent: restart it, let its owner replace it, or end the node.
//! Parts are threads and long-lived tasks; this file knows their names and rules, not their work.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;
use crate::backoff::doubled;

/// Delay before a part that panicked is restarted; doubles with each consecutive panic.
pub const RESTART_FIRST: Duration = Duration::from_millis(100);

/// Upper bound of that delay.
pub const RESTART_LATEST: Duration = Duration::from_secs(10);

/// Consecutive panics after which the node ends, because restarting did not help.
pub const RESTARTS: u32 = 8;

/// Time without a panic after which the count of consecutive panics is reset.
pub const RECOVERED: Duration = Duration::from_secs(60);

/// Silence after which a part that beats once a second counts as not answering: many times the longest work on its thread.
pub const SILENCE: Duration = Duration::from_secs(10);

/// Identifies a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartId(u64);

/// What a part's end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The node cannot work without the part, and the part's state is lost with it: any end ends the node.
    Essential,
    /// Works off a queue that outlives it. After a panic the part is restarted; returning is its normal end.
    Restarted,
    /// Runs once. A panic is reported, and its owner decides what follows.
    Owned,
}

/// How a part ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The part returned.
    Returned,
    /// The part panicked with this message.
    Panicked(String),
}

/// Input of the supervision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A part starts. `beats`: it reports once a second that it is alive.
    Started {
        /// Chosen by the driver with [`Supervision::number`].
        part: PartId,
        /// Name for people.
        name: String,
        /// What its end means.
        rule: Rule,
        /// Whether silence makes the part unwell.
        beats: bool,
    },
    /// A part reports that it is alive.
    Beat(PartId),
    /// A part ended.
    Ended(PartId, End),
    /// The owner of a part has replaced it, or no longer needs it.
    Forgotten(PartId),
    /// The node shuts down: every end is expected from now on.
    Closing,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Restart the part after this delay, and log it.
    Restart(Duration),
    /// Log that the part panicked; its owner acts.
    Report,
    /// End the node with this reason.
    EndNode(String),
}

/// A part that does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwell {
    /// Name of the part.
    pub name: String,
    /// Why it does not work.
    pub why: String,
}

#[derive(Debug)]
struct Part {
    name: String,
    rule: Rule,
    beat: Option<Time>,
    /// Why the part does not run.
    ended: Option<String>,
    panics: u32,
    last_panic: Time,
}

/// The parts of a node.
#[derive(Debug, Default)]
pub struct Supervision {
    parts: BTreeMap<PartId, Part>,
    next: u64,
    closing: bool,
}

impl Supervision {
    /// Allocates an id for a part that is about to start.
    pub fn number(&mut self) -> PartId {
        self.next += 1;
        PartId(self.next)
    }

    /// Processes an event; returns what the driver does next.
    pub fn handle(&mut self, event: Event, now: Time) -> Option<Action> {
        match event {
            Event::Started { part, name, rule, beats } => {
                let beat = beats.then_some(now);
                self.parts.insert(part, Part { name, rule, beat, ended: None, panics: 0, last_panic: Time::ZERO });
                None
            }
            Event::Beat(part) => {
                if let Some(beat) = self.parts.get_mut(&part).and_then(|part| part.beat.as_mut()) {
                    *beat = now;
                }
                None
            }
            Event::Ended(part, end) => self.ended(part, end, now),
            Event::Forgotten(part) => {
                self.parts.remove(&part);
                None
            }
            Event::Closing => {
                self.closing = true;
                None
            }
        }
    }

    fn ended(&mut self, id: PartId, end: End, now: Time) -> Option<Action> {
        let closing = self.closing;
        let Some(part) = self.parts.get_mut(&id) else {
            // The owner no longer needs the part; a panic is still reported.
            return matches!(end, End::Panicked(_)).then_some(Action::Report);
        };
        let why = match (end, part.rule) {
            (End::Returned, Rule::Essential) if !closing => "ended unexpectedly".to_owned(),
            (End::Returned, _) => {
                self.parts.remove(&id);
                return None;
            }
            (End::Panicked(message), _) => format!("panicked: {message}"),
        };
        if closing {
            self.parts.remove(&id);
            return Some(Action::Report);
        }
        match part.rule {
            Rule::Essential => {
                let reason = format!("the part \"{}\" {why}", part.name);
                part.ended = Some(why);
                Some(Action::EndNode(reason))
            }
            Rule::Owned => {
                part.ended = Some(why);
                Some(Action::Report)
            }
            Rule::Restarted => {
                if now.since(part.last_panic) >= RECOVERED {
                    part.panics = 0;
                }
                (part.panics, part.last_panic) = (part.panics + 1, now);
                if part.panics > RESTARTS {
                    let reason = format!("the part \"{}\" {why}; {RESTARTS} restarts did not help", part.name);
                    part.ended = Some(why);
                    return Some(Action::EndNode(reason));
                }
                Some(Action::Restart(doubled(RESTART_FIRST, part.panics - 1, RESTART_LATEST)))
            }
        }
    }

    /// The parts that do not work at this moment.
    pub fn unwell(&self, now: Time) -> Vec<Unwell> {
        let why = |part: &Part| match (&part.ended, part.beat) {
            (Some(why), _) => Some(why.clone()),
            (None, Some(beat)) if now.since(beat) >= SILENCE => {
                Some(format!("has not answered for {} s", now.since(beat).as_secs()))
            }
            _ => None,
        };
        self.parts.values().filter_map(|part| Some(Unwell { name: part.name.clone(), why: why(part)? })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_secs(1000);

    fn with(rule: Rule, beats: bool) -> (Supervision, PartId) {
        let mut supervision = Supervision::default();
        let part = supervision.number();
        supervision.handle(Event::Started { part, name: "pool".to_owned(), rule, beats }, NOW);
        (supervision, part)
    }

    fn panicked() -> End {
        End::Panicked("out of luck".to_owned())
    }

    #[test]
    fn an_essential_parts_end_ends_the_node_unless_it_is_closing() {
        for (end, why) in [(End::Returned, "ended unexpectedly"), (panicked(), "panicked: out of luck")] {
            let (mut supervision, part) = with(Rule::Essential, false);
            let ended = supervision.handle(Event::Ended(part, end), NOW);
            assert_eq!(ended, Some(Action::EndNode(format!("the part \"pool\" {why}"))));
            assert_eq!(supervision.unwell(NOW), [Unwell { name: "pool".to_owned(), why: why.to_owned() }]);
        }
        let (mut supervision, part) = with(Rule::Essential, true);
        supervision.handle(Event::Closing, NOW);
        assert_eq!(supervision.handle(Event::Ended(part, End::Returned), NOW), None);
        assert_eq!(supervision.unwell(NOW + SILENCE), []);
        let (mut supervision, part) = with(Rule::Essential, true);
        supervision.handle(Event::Closing, NOW);
        assert_eq!(supervision.handle(Event::Ended(part, panicked()), NOW), Some(Action::Report));
    }

    #[test]
    fn a_restarted_parts_delay_grows_until_restarting_is_given_up() {
        let (mut supervision, part) = with(Rule::Restarted, false);
        let mut last = Duration::ZERO;
        for _ in 0..RESTARTS {
            let Some(Action::Restart(after)) = supervision.handle(Event::Ended(part, panicked()), NOW) else {
                panic!("not restarted")
            };
            assert!(after > last && after <= RESTART_LATEST);
            last = after;
            assert_eq!(supervision.unwell(NOW), []);
        }
        let ended = supervision.handle(Event::Ended(part, panicked()), NOW);
        assert!(
            matches!(ended, Some(Action::EndNode(why)) if why.contains("\"pool\"") && why.contains("did not help"))
        );
    }

    #[test]
    fn a_part_that_recovered_is_restarted_soon() {
        let (mut supervision, part) = with(Rule::Restarted, false);
        let mut now = NOW;
        for _ in 0..RESTARTS * 3 {
            let action = supervision.handle(Event::Ended(part, panicked()), now);
            assert_eq!(action, Some(Action::Restart(RESTART_FIRST)));
            now += RECOVERED;
        }
        assert_eq!(supervision.handle(Event::Ended(part, End::Returned), now), None);
    }

    #[test]
    fn an_owned_part_is_unwell_until_its_owner_replaces_it() {
        let (mut supervision, part) = with(Rule::Owned, false);
        assert_eq!(supervision.handle(Event::Ended(part, panicked()), NOW), Some(Action::Report));
        assert_eq!(supervision.unwell(NOW).len(), 1);
        supervision.handle(Event::Forgotten(part), NOW);
        assert_eq!(supervision.unwell(NOW), []);
        assert_eq!(supervision.handle(Event::Ended(part, panicked()), NOW), Some(Action::Report), "never unseen");
        let (mut supervision, part) = with(Rule::Owned, false);
        assert_eq!(supervision.handle(Event::Ended(part, End::Returned), NOW), None);
        assert_eq!(supervision.unwell(NOW), []);
    }

    #[test]
    fn a_silent_part_is_unwell_until_its_next_beat() {
        let (mut supervision, part) = with(Rule::Essential, true);
        assert_eq!(supervision.unwell(NOW + SILENCE - Duration::from_nanos(1)), []);
        let silent = Unwell { name: "pool".to_owned(), why: "has not answered for 10 s".to_owned() };
        assert_eq!(supervision.unwell(NOW + SILENCE), [silent]);
        supervision.handle(Event::Beat(part), NOW + SILENCE);
        assert_eq!(supervision.unwell(NOW + SILENCE), []);
    }
}
