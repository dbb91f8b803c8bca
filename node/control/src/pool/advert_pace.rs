//! When a node publishes its advert: soon after a change, and again from time to time.
//!
//! Nodes that are connected know of each other's life from their connection, so adverts that say nothing new are rare. Only
//! where some members hear of each other through others do adverts show that a node is alive, and they are frequent.

use std::time::Duration;

use super::advert::{Advert, LinkAdvert};
use super::roster::SILENT;
use crate::Time;

/// Shortest time between two adverts, however much changes.
const AFTER_CHANGE: Duration = Duration::from_millis(50);

/// Time after which a node considers whether to publish: measured values, and signs of life for those who hear them through others.
const CONSIDERED: Duration = Duration::from_secs(1);

/// Longest time between two adverts.
pub const LONGEST: Duration = Duration::from_secs(3);

/// Adverts that follow a change at [`CONSIDERED`], whether they say something new or not: a newcomer may have missed the
/// first ones, because gossip reaches it only some time after it was connected.
const REPEATED: u32 = 3;

/// Ratio of two measured values from which on the difference is worth an advert.
const MATERIAL: f64 = 1.5;

/// The times of one node's adverts.
#[derive(Debug)]
pub struct AdvertPace {
    /// When the last advert was published and when the node last considered one; `None` before the first.
    last: Option<(Time, Time)>,
    changed: bool,
    /// How many adverts are still to follow the last change.
    repeats: u32,
}

impl Default for AdvertPace {
    fn default() -> AdvertPace {
        AdvertPace { last: None, changed: true, repeats: REPEATED }
    }
}

impl AdvertPace {
    /// The advert says something new.
    pub fn changed(&mut self) {
        self.changed = true;
    }

    /// Whether a change was not published yet.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// When [`AdvertPace::speaks`] is asked next.
    pub fn due(&self) -> Time {
        let Some((published, considered)) = self.last else { return Time::ZERO };
        if self.changed { published + AFTER_CHANGE } else { considered + CONSIDERED }
    }

    /// Whether the node publishes its advert at `now`, which is not before [`AdvertPace::due`]. `has_news`: some values differ
    /// from what was published, a member hears this node only through others, or not all members are of one mind about the master.
    pub fn speaks(&mut self, now: Time, has_news: impl FnOnce() -> bool) -> bool {
        let is_old = self.last.is_none_or(|(published, _)| now.since(published) >= LONGEST);
        let speaks = self.changed || self.repeats > 0 || is_old || has_news();
        self.repeats = if self.changed { REPEATED } else { self.repeats.saturating_sub(1) };
        self.changed = false;
        let published = if speaks { now } else { self.last.map_or(now, |(published, _)| published) };
        self.last = Some((published, now));
        speaks
    }
}

/// Time without an advert after which a node that is not connected counts as gone. A node that publishes adverts itself lets
/// its members know that they are heard through others; one that does not, a lite client, has to wait for the longest pause.
pub fn silence(publishes: bool) -> Duration {
    if publishes { SILENT } else { LONGEST * 2 + CONSIDERED }
}

/// Whether `now` has measured values that differ from those that were `published`: the load of models, or links. All other
/// changes are published at once, but what passes over the links now: that differs all the time, only people read it, and it
/// travels with adverts that are published anyway, [`LONGEST`] apart at most.
pub fn has_new_values(published: &Advert, now: &Advert) -> bool {
    let differs = |before: f64, now: f64| {
        let (least, most) = (before.min(now), before.max(now));
        most > 0.0 && most > least * MATERIAL
    };
    let link = |(before, now): (&LinkAdvert, &LinkAdvert)| {
        let both_known = before.bytes_per_s > 0.0 && now.bytes_per_s > 0.0;
        before.to != now.to
            || before.rtt.is_zero() != now.rtt.is_zero()
            || (before.bytes_per_s > 0.0) != (now.bytes_per_s > 0.0)
            || (both_known && differs(before.bytes_per_s, now.bytes_per_s))
    };
    published.serving != now.serving
        || published.links.len() != now.links.len()
        || published.links.iter().zip(&now.links).any(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{ServingAdvert, advert_of, link_to};
    use crate::test_peers::fresh_peer;

    /// The times of all adverts until `end`; `has_news` says whether a considered one has some.
    fn times(pace: &mut AdvertPace, from: Time, end: Time, has_news: impl Fn(Time) -> bool) -> Vec<Duration> {
        let mut told = Vec::new();
        let mut now = from.max(pace.due());
        while now <= end {
            if pace.speaks(now, || has_news(now)) {
                told.push(now.since(Time::ZERO));
            }
            now = pace.due();
        }
        told
    }

    #[test]
    fn a_change_is_published_at_once_and_repeated_and_then_adverts_are_rare() {
        let mut pace = AdvertPace::default();
        let seconds = |times: Vec<Duration>| times.iter().map(|time| time.as_millis() as u64).collect::<Vec<_>>();
        let quiet = times(&mut pace, Time::ZERO, Time::from_secs(7), |_| false);
        assert_eq!(seconds(quiet), [0, 1000, 2000, 3000, 6000]);
        pace.changed();
        assert!(pace.is_changed());
        assert_eq!(pace.due(), Time::from_millis(6050));
        let after = times(&mut pace, Time::from_millis(7300), Time::from_secs(14), |_| false);
        assert_eq!(seconds(after), [7300, 8300, 9300, 10_300, 13_300]);
    }

    #[test]
    fn news_are_published_within_a_second_and_changes_no_faster_than_twenty_times_a_second() {
        let mut pace = AdvertPace::default();
        let told = times(&mut pace, Time::ZERO, Time::from_secs(20), |_| true);
        assert_eq!(told.len(), 21, "{told:?}");
        let mut count = 0;
        let mut now = Time::from_secs(21);
        let end = now + Duration::from_secs(1);
        while now < end {
            pace.changed();
            now = pace.due().max(now);
            assert!(pace.speaks(now, || false));
            count += 1;
        }
        assert!((20..=22).contains(&count), "{count}");
    }

    #[test]
    fn members_that_hear_a_node_through_others_hear_it_before_they_take_it_for_dead() {
        assert!(CONSIDERED * 3 < silence(true), "three may be lost");
        assert!(LONGEST * 2 < silence(false), "one may be lost");
    }

    #[test]
    fn loads_and_material_differences_of_links_are_news() {
        let peer = fresh_peer();
        let link =
            |rtt_us, bytes_per_s| LinkAdvert { rtt: Duration::from_micros(rtt_us), bytes_per_s, ..link_to(peer) };
        let with = |links: &[LinkAdvert]| Advert { links: links.to_vec(), ..advert_of(peer) };
        let before = with(&[link(100, 1e9)]);
        for (news, links) in [
            (false, vec![link(900, 1e9)]),
            (false, vec![link(100, 1.4e9)]),
            (false, vec![LinkAdvert { sent_bytes_per_s: 5e8, ..link(100, 1e9) }]),
            (true, vec![link(100, 1.6e9)]),
            (true, vec![link(100, 0.5e9)]),
            (true, vec![link(0, 1e9)]),
            (true, vec![link(100, 0.0)]),
            (true, vec![]),
        ] {
            assert_eq!(has_new_values(&before, &with(&links)), news, "{links:?}");
        }
        let serving = |running| {
            let model = pangea_units::Digest([7; 32]);
            vec![ServingAdvert { model, places: 4, running, waiting: 0, tokens_per_s: 20 }]
        };
        let busy = |running| Advert { serving: serving(running), ..before.clone() };
        assert!(!has_new_values(&busy(1), &busy(1)));
        assert!(has_new_values(&busy(1), &busy(2)));
    }
}
