//! What follows when a part of the node ends or falls silent: it is started again, its owner replaces it, or the node ends.
//! Parts are threads and long-lived tasks; this file knows their names and rules, and never what they do.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;
use crate::backoff::doubled;

/// Wait before a part that panicked is started again; doubles with each panic in a row.
pub const RESTART_FIRST: Duration = Duration::from_millis(100);

/// Upper bound of that wait.
pub const RESTART_LATEST: Duration = Duration::from_secs(10);

/// Panics in a row after which restarting has not helped, and the node ends.
pub const RESTARTS: u32 = 8;

/// Time without a panic after which a part counts as recovered.
pub const RECOVERED: Duration = Duration::from_secs(60);

/// Silence after which a part that beats once a second is not answering: many times what the longest task on its thread takes.
pub const SILENCE: Duration = Duration::from_secs(10);

/// Tells parts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartId(u64);

/// What a part's end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The node cannot go on without the part, and its state is lost with it: any end ends the node.
    Essential,
    /// Works off a queue that outlives it. After a panic the part is started again; returning is its normal end.
    Restarted,
    /// Works once. A panic is told, and its owner does what follows.
    Owned,
}

/// How a part ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It returned.
    Returned,
    /// It panicked with this message.
    Panicked(String),
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A part starts. `beats`: it says once a second that it is alive.
    Started {
        /// Chosen by the driver with [`Supervision::number`].
        part: PartId,
        /// Name for people.
        name: String,
        /// What its end means.
        rule: Rule,
        /// Whether its silence means something.
        beats: bool,
    },
    /// A part says that it is alive.
    Beat(PartId),
    /// A part ended.
    Ended(PartId, End),
    /// The owner of a part has replaced it, or does not need it any more.
    Forgotten(PartId),
    /// The node shuts down: from now on every end is expected.
    Closing,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the part again after this time, and say so.
    Restart(Duration),
    /// Say that the part panicked; its owner acts.
    Tell,
    /// End the node with this reason.
    EndNode(String),
}

/// A part that does not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwell {
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub why: String,
}

#[derive(Debug)]
struct Part {
    name: String,
    rule: Rule,
    beat: Option<Time>,
    /// Why it does not run.
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
    /// An id for a part that is about to start.
    pub fn number(&mut self) -> PartId {
        self.next += 1;
        PartId(self.next)
    }

    /// What follows from `event`.
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
            // Its owner needs it no more; a panic is told all the same.
            return matches!(end, End::Panicked(_)).then_some(Action::Tell);
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
            return Some(Action::Tell);
        }
        match part.rule {
            Rule::Essential => {
                let reason = format!("the part \"{}\" {why}", part.name);
                part.ended = Some(why);
                Some(Action::EndNode(reason))
            }
            Rule::Owned => {
                part.ended = Some(why);
                Some(Action::Tell)
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

    /// The parts that do not do their work at this moment.
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
    fn the_end_of_an_essential_part_ends_the_node_with_its_name_and_is_expected_of_a_node_that_closes() {
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
        assert_eq!(supervision.handle(Event::Ended(part, panicked()), NOW), Some(Action::Tell));
    }

    #[test]
    fn a_part_with_a_queue_is_started_again_later_and_later_until_that_does_not_help() {
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
    fn a_part_that_ran_well_for_a_while_is_started_again_soon() {
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
    fn a_part_of_an_owner_is_unwell_until_the_owner_has_replaced_it() {
        let (mut supervision, part) = with(Rule::Owned, false);
        assert_eq!(supervision.handle(Event::Ended(part, panicked()), NOW), Some(Action::Tell));
        assert_eq!(supervision.unwell(NOW).len(), 1);
        supervision.handle(Event::Forgotten(part), NOW);
        assert_eq!(supervision.unwell(NOW), []);
        assert_eq!(supervision.handle(Event::Ended(part, panicked()), NOW), Some(Action::Tell), "never unseen");
        let (mut supervision, part) = with(Rule::Owned, false);
        assert_eq!(supervision.handle(Event::Ended(part, End::Returned), NOW), None);
        assert_eq!(supervision.unwell(NOW), []);
    }

    #[test]
    fn a_part_that_beats_is_unwell_at_the_bound_of_silence_and_well_with_its_next_beat() {
        let (mut supervision, part) = with(Rule::Essential, true);
        assert_eq!(supervision.unwell(NOW + SILENCE - Duration::from_nanos(1)), []);
        let silent = Unwell { name: "pool".to_owned(), why: "has not answered for 10 s".to_owned() };
        assert_eq!(supervision.unwell(NOW + SILENCE), [silent]);
        supervision.handle(Event::Beat(part), NOW + SILENCE);
        assert_eq!(supervision.unwell(NOW + SILENCE), []);
    }
}
