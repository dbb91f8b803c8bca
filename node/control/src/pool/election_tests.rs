//! Elections of one node against chosen adverts, and of several nodes among liars.

use proptest::prelude::*;

use super::*;
use crate::test_peers::peer;

/// Far above all counters of the tests: what one message did to a pool once.
const POISON: u64 = 1 << 32;

const OWN: u64 = 1;
const LIAR: u64 = 9;

fn term(counter: u64, master: u64) -> Term {
    Term { counter, master: peer(master) }
}

fn says(term: Option<Term>, counter: u64) -> Candidate {
    Candidate { works: true, force_master: false, uptime: Duration::from_secs(1), term, counter }
}

fn claims(counter: u64, master: u64) -> Event {
    Event::Heard(peer(master), says(Some(term(counter, master)), counter))
}

fn gone(number: u64) -> Event {
    Event::Gone { peer: peer(number), silent: true }
}

fn election(stored: Option<Term>) -> Election {
    Election::new(peer(OWN), true, false, stored)
}

/// The events at `now`, then ticks for as long as any node waits before a claim; returns the last term.
fn settle(election: &mut Election, events: &[Event], now: &mut Time) -> Option<Term> {
    for event in events {
        election.handle(*event, *now);
    }
    for _ in 0..60 {
        *now += Duration::from_millis(100);
        election.handle(Event::Tick, *now);
    }
    election.term()
}

#[test]
fn an_advert_with_an_implausible_term_is_ignored() {
    let mut election = election(None);
    let heard = Event::Heard(peer(LIAR), says(Some(term(u64::MAX - 1, LIAR)), u64::MAX));
    assert_eq!(election.handle(heard, Time::ZERO), None);
    assert_eq!(election.handle(Event::Tick, Time::ZERO + LISTEN), Some(Changed(Some(term(1, OWN)))));
}

#[test]
fn a_claim_is_never_so_far_above_another_one_that_nobody_follows_it() {
    // Started as the master, this node claims above a master that was not; another node knows the highest counter that counts.
    let mut election = Election::new(peer(OWN), true, true, None);
    let mut now = Time::ZERO;
    let master = Event::Heard(peer(2), says(Some(term(7, 2)), 7));
    let knows = Event::Heard(peer(3), says(Some(term(7, 2)), 7 + LEAP));
    let own = settle(&mut election, &[master, knows], &mut now);
    assert_eq!(own, Some(term(7 + LEAP, OWN)));
    assert_eq!(settle(&mut election, &[master, knows], &mut now), own, "and keeps to its claim");
}

#[test]
fn a_term_that_was_given_up_for_a_lower_one_is_not_claimed_again() {
    let (mut election, mut now) = (election(None), Time::ZERO);
    let reports = |counter| Event::Heard(peer(LIAR), says(None, counter));
    assert_eq!(settle(&mut election, &[], &mut now), Some(term(1, OWN)));
    assert_eq!(settle(&mut election, &[reports(LEAP)], &mut now), Some(term(LEAP + 1, OWN)));
    assert_eq!(settle(&mut election, &[reports(2 * LEAP)], &mut now), Some(term(2 * LEAP + 1, OWN)));
    // The liar is gone, and a pool of another side of a partition is not that far.
    assert_eq!(settle(&mut election, &[gone(LIAR), claims(3, 2)], &mut now), Some(term(3, 2)));
    assert_eq!(settle(&mut election, &[gone(2)], &mut now), Some(term(4, OWN)));
    assert_eq!(settle(&mut election, &[reports(LEAP)], &mut now), Some(term(LEAP + 2, OWN)), "a new term");
}

#[test]
fn a_limited_number_of_own_claims_is_remembered_and_the_highest_are() {
    let mut election = election(None);
    let many = || (1..=2 * CLAIMS_KEPT as u64).collect();
    (election.own_claims, election.spent_claims) = (many(), many());
    election.claim(Time::ZERO);
    for claims in [&election.own_claims, &election.spent_claims] {
        assert_eq!(
            (claims.len(), claims.last().map(|last| *last >= 2 * CLAIMS_KEPT as u64)),
            (CLAIMS_KEPT, Some(true))
        );
    }
}

#[test]
fn one_of_two_masters_that_both_rank_themselves_higher_gives_in() {
    let (mut election, now) = (election(None), Time::from_secs(60));
    election.handle(Event::Tick, now);
    // The rival always claims to have started a second ago.
    assert_eq!(election.handle(claims(5, 2), now), Some(Changed(Some(term(6, OWN)))));
    assert_eq!(election.handle(claims(7, 2), now), Some(Changed(Some(term(7, 2)))));
}

#[test]
fn a_claim_and_a_counter_far_above_the_own_term_move_nothing() {
    for lie in [POISON, LEAP + 100, MAX_COUNTER, u64::MAX] {
        for liar in [claims(5 + lie.min(MAX_COUNTER), LIAR), Event::Heard(peer(LIAR), says(None, lie))] {
            let (mut election, mut now) = (election(Some(term(5, 2))), Time::ZERO);
            assert_eq!(settle(&mut election, &[claims(5, 2), liar], &mut now), Some(term(5, 2)));
            assert_eq!(election.counter(), 5);
            assert_eq!(settle(&mut election, &[gone(2), liar], &mut now), Some(term(6, OWN)), "the next election");
            assert_eq!(settle(&mut election, &[gone(LIAR)], &mut now), Some(term(6, OWN)));
        }
    }
    let (mut election, mut now) = (election(Some(term(5, 2))), Time::ZERO);
    assert_eq!(settle(&mut election, &[claims(5 + LEAP, 2)], &mut now), Some(term(5 + LEAP, 2)), "at the limit");
}

#[test]
fn a_newcomer_follows_the_master_whichever_claim_it_hears_first() {
    for (master, lie) in [(7, 7 + POISON), (3 * LEAP, 3 * LEAP + POISON)] {
        let said = [claims(lie, LIAR), claims(master, 2)];
        for events in [said, [said[1], said[0]]] {
            let (mut election, mut now) = (election(None), Time::ZERO);
            election.handle(events[0], now);
            assert!(election.term().is_none_or(|term| term.master != peer(LIAR)), "before it has heard the others");
            assert_eq!(settle(&mut election, &events, &mut now), Some(term(master, 2)));
            assert!(election.counter() < lie);
        }
    }
}

#[test]
fn a_node_that_was_alone_with_a_liar_comes_down_to_the_pool() {
    let (mut election, mut now) = (election(None), Time::ZERO);
    assert_eq!(settle(&mut election, &[claims(POISON, LIAR)], &mut now), Some(term(POISON, LIAR)));
    assert_eq!(settle(&mut election, &[gone(LIAR)], &mut now), Some(term(POISON + 1, OWN)));
    assert_eq!(settle(&mut election, &[claims(8, 2)], &mut now), Some(term(8, 2)));
    assert_eq!(settle(&mut election, &[gone(2)], &mut now), Some(term(9, OWN)));
    // The same after a restart: the stored term is the poisoned one.
    let mut election = Election::new(peer(OWN), true, false, Some(term(POISON, LIAR)));
    assert_eq!(settle(&mut election, &[claims(8, 2)], &mut Time::from_secs(1)), Some(term(8, 2)));
}

/// Only a node that starts has others to hear out.
#[test]
fn a_node_that_comes_down_from_a_lie_follows_the_next_claim_at_once() {
    let (mut election, mut now) = (election(None), Time::ZERO);
    assert_eq!(settle(&mut election, &[claims(9 * LEAP, LIAR)], &mut now), Some(term(9 * LEAP, LIAR)));
    let follows = Event::Heard(peer(LIAR), says(Some(term(2 * LEAP, 2)), 2 * LEAP));
    assert_eq!(election.handle(follows, now), Some(Changed(None)));
    assert_eq!(election.handle(claims(2 * LEAP + 1, LIAR), now), Some(Changed(Some(term(2 * LEAP + 1, LIAR)))));
}

#[test]
fn a_master_that_jumps_far_ahead_loses_its_followers() {
    let (mut election, mut now) = (election(None), Time::ZERO);
    assert_eq!(settle(&mut election, &[claims(4, LIAR)], &mut now), Some(term(4, LIAR)));
    assert_eq!(settle(&mut election, &[claims(4 + POISON, LIAR)], &mut now), Some(term(5, OWN)));
}

#[test]
fn counters_start_again_after_the_last_one() {
    let (mut election, mut now) = (election(Some(term(MAX_COUNTER, 2))), Time::ZERO);
    assert_eq!(settle(&mut election, &[], &mut now), Some(term(1, OWN)));
    let mut follower = Election::new(peer(3), true, false, Some(term(MAX_COUNTER, 2)));
    assert_eq!(settle(&mut follower, &[claims(1, OWN)], &mut now), Some(term(1, OWN)));
}

#[test]
fn a_follower_of_a_liar_comes_back_to_the_master_whose_counter_the_liar_had_too() {
    // The liar's id is higher, so its claim is; the follower cannot claim anything itself.
    let mut master = election(None);
    let mut now = Time::ZERO;
    assert_eq!(settle(&mut master, &[], &mut now), Some(term(1, OWN)));
    let mut follower = Election::new(peer(3), false, false, None);
    let events = [claims(1, OWN), claims(1, LIAR)];
    assert_eq!(settle(&mut follower, &events, &mut now), Some(term(1, LIAR)));
    follower.handle(gone(LIAR), now);
    let heard = |of: &Election, number| {
        let said = says(of.term(), of.counter());
        Event::Heard(peer(number), Candidate { works: number == OWN, ..said })
    };
    for _ in 0..10 {
        now += Duration::from_millis(300);
        master.handle(heard(&follower, 3), now);
        follower.handle(heard(&master, OWN), now);
    }
    assert_eq!((master.term(), follower.term()), (Some(term(3, OWN)), Some(term(3, OWN))));
}

#[test]
fn ever_higher_counters_cause_few_claims() {
    let (mut election, mut now) = (election(None), Time::ZERO);
    assert_eq!(settle(&mut election, &[], &mut now), Some(term(1, OWN)));
    let mut claimed = 0;
    for _ in 0..100 {
        now += Duration::from_millis(50);
        let above = Event::Heard(peer(LIAR), says(None, election.counter() + 1));
        claimed += usize::from(election.handle(above, now).is_some());
    }
    assert!((1..=6).contains(&claimed), "one a second for five seconds, not {claimed}");
}

#[test]
fn a_node_whose_disk_refuses_its_claim_follows_others_and_claims_again_later() {
    let (mut election, mut now) = (election(Some(term(5, 2))), Time::ZERO);
    let own = settle(&mut election, &[], &mut now).unwrap();
    assert_eq!(own, term(6, OWN));
    assert_eq!(election.handle(Event::NotStored(own), now), Some(Changed(None)));
    assert_eq!(election.counter(), 5, "the claim never was");
    // A lower id with the same counter: the refused claim would outrank it.
    assert_eq!(election.handle(claims(6, 0), now), Some(Changed(Some(term(6, 0)))));
    assert_eq!(election.handle(Event::NotStored(own), now), None, "late news of a claim that is over");
    assert_eq!(settle(&mut election, &[gone(0)], &mut now), Some(term(7, OWN)), "it tries again");
}

/// What a liar says: any term of its own or none, and any counter.
fn any_lie() -> impl Strategy<Value = Candidate> {
    let counters =
        prop_oneof![0..50u64, LEAP - 2..LEAP + 60, Just(POISON), MAX_COUNTER - 2..=MAX_COUNTER, any::<u64>()];
    (counters.clone(), counters, any::<[bool; 3]>(), 0..100_000u64).prop_map(|(of_term, counter, flags, uptime_s)| {
        let [claims, works, force_master] = flags;
        let term = claims.then(|| term(of_term, LIAR));
        Candidate { works, force_master, uptime: Duration::from_secs(uptime_s), term, counter }
    })
}

/// A node of a [`Pool`]; its own time counts from its start.
#[derive(Debug)]
struct Node {
    number: u64,
    started: Time,
    election: Election,
}

/// Several nodes that hear each other's adverts ten times a second.
struct Pool {
    nodes: Vec<Node>,
    now: Time,
}

impl Pool {
    /// Nodes that start together, each with the counter that it stored as the master of an earlier run.
    fn of(stored: &[Option<u64>]) -> Pool {
        let mut pool = Pool { nodes: Vec::new(), now: Time::ZERO };
        (1..).zip(stored).for_each(|(number, stored)| pool.start(number, *stored));
        pool
    }

    fn start(&mut self, number: u64, stored: Option<u64>) {
        let stored = stored.map(|counter| term(counter, number));
        let election = Election::new(peer(number), true, false, stored);
        self.nodes.push(Node { number, started: self.now, election });
    }

    fn handle(&mut self, at: usize, event: Event) {
        let node = &mut self.nodes[at];
        node.election.handle(event, Time::since_epoch(self.now.since(node.started)));
    }

    fn round(&mut self) {
        let say = |node: &Node| {
            let said = says(node.election.term(), node.election.counter());
            Event::Heard(peer(node.number), Candidate { uptime: self.now.since(node.started), ..said })
        };
        let said: Vec<Event> = self.nodes.iter().map(say).collect();
        self.now += Duration::from_millis(100);
        for at in 0..self.nodes.len() {
            said.iter().for_each(|said| self.handle(at, *said));
            self.handle(at, Event::Tick);
        }
    }

    fn everyone(&mut self, event: Event) {
        (0..self.nodes.len()).for_each(|at| self.handle(at, event));
    }

    fn settled_on(&mut self, what: &str) -> Term {
        // Five seconds.
        (0..50).for_each(|_| self.round());
        let term = self.nodes[0].election.term().expect(what);
        assert!(self.nodes.iter().all(|node| node.election.term() == Some(term)), "{what}: {:?}", self.nodes);
        assert!(self.nodes.iter().any(|node| peer(node.number) == term.master), "{what}");
        term
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a liar says to whom, the pool has one master of its own within seconds after the liar is gone, and
    /// newcomers that remember nothing follow it.
    #[test]
    fn a_pool_has_one_master_soon_after_a_liar_is_gone(
        stored in prop::collection::vec(prop_oneof![Just(None), (1..40u64).prop_map(Some), Just(Some(POISON))], 2..5),
        lies in prop::collection::vec((0..4usize, any_lie(), 0..6u8), 0..60),
    ) {
        let mut pool = Pool::of(&stored);
        for (at, lie, rounds) in lies {
            let at = at % pool.nodes.len();
            pool.handle(at, Event::Heard(peer(LIAR), lie));
            (0..rounds).for_each(|_| pool.round());
        }
        pool.everyone(gone(LIAR));
        let before = pool.settled_on("after the liar");
        prop_assert!(before.counter <= MAX_COUNTER);
        pool.start(7, None);
        let after = pool.settled_on("with a newcomer");
        prop_assert_eq!(before.master, after.master);
    }

    /// A liar that says the same for ever keeps no honest node from a master, and the honest ones agree on one.
    #[test]
    fn a_constant_lie_splits_nobody(lie in any_lie(), counters in prop::collection::vec(1..40u64, 2..5)) {
        let mut pool = Pool::of(&counters.into_iter().map(Some).collect::<Vec<_>>());
        for _ in 0..120 {
            pool.everyone(Event::Heard(peer(LIAR), lie));
            pool.round();
        }
        let term = pool.nodes[0].election.term();
        prop_assert!(term.is_some());
        prop_assert!(pool.nodes.iter().all(|node| node.election.term() == term), "{:?}", pool.nodes);
        prop_assert!(term.is_none_or(|term| term.counter <= 40 + 2 * LEAP), "{term:?}");
    }
}

/// Time until the node claims a term, in milliseconds from `now`.
fn claims_within(election: &mut Election, now: Time) -> Option<u64> {
    let claims = |changed: Changed| changed.0.is_some_and(|term| term.master == peer(OWN));
    (0..10_000).find(|ms| election.handle(Event::Tick, now + Duration::from_millis(*ms)).is_some_and(claims))
}

fn millis(time: Duration) -> Option<u64> {
    u64::try_from(time.as_millis()).ok()
}

#[test]
fn ranks_compare_the_flag_then_uptimes_that_differ_then_ids() {
    let rank = |force_master, uptime_ms, number| {
        let uptime = Duration::from_millis(uptime_ms);
        Rank { force_master, uptime, peer: peer(number) }
    };
    let first = |one: Rank, other: Rank| (one.outranks(&other), other.outranks(&one));
    assert_eq!(first(rank(true, 0, 1), rank(false, 100_000, 2)), (true, false));
    assert_eq!(first(rank(true, 9000, 1), rank(true, 1000, 2)), (true, false));
    assert_eq!(first(rank(false, 3001, 1), rank(false, 1000, 2)), (true, false));
    assert_eq!(first(rank(false, 3000, 1), rank(false, 1000, 2)), (false, true), "as good as equal");
}

#[test]
fn a_node_waits_for_each_higher_ranked_one_but_for_two_at_most() {
    let (now, older) = (Time::ZERO + LISTEN, Candidate { uptime: Duration::from_secs(100), ..says(None, 0) });
    let lite = Candidate { works: false, ..older };
    let just_started = Candidate { force_master: true, uptime: Duration::ZERO, ..older };
    let forced = Candidate { force_master: true, uptime: LISTEN, ..older };
    for (others, waits) in [
        (vec![], 0),
        (vec![older], 1),
        (vec![older, older], 2),
        (vec![older; 5], MAX_CLAIM_WAITS),
        (vec![lite, lite], 0),
        (vec![just_started], 0),
        (vec![forced], 1),
    ] {
        let mut election = election(None);
        for (number, candidate) in (2..).zip(&others) {
            // A moment before it could claim a term itself.
            election.handle(Event::Heard(peer(number), *candidate), now - Duration::from_nanos(1));
        }
        assert_eq!(claims_within(&mut election, now), millis(CLAIM_WAIT * waits), "{others:?}");
    }
    // A master whose term is lower than one that this node has followed gets the time to claim a higher one.
    let mut election = election(Some(term(5, 2)));
    assert_eq!((election.handle(claims(4, 3), now), election.counter()), (None, 5));
    assert_eq!(claims_within(&mut election, now), millis(CLAIM_WAIT * 2));
    assert_eq!(election.term(), Some(term(6, OWN)));
}

#[test]
fn who_computes_nothing_who_follows_and_the_own_advert_claim_nothing() {
    let mut election = election(None);
    let lite = Candidate { works: false, ..says(Some(term(9, 2)), 9) };
    for (number, candidate) in [(2, lite), (3, says(Some(term(9, 4)), 9)), (OWN, says(Some(term(9, OWN)), 9))] {
        assert_eq!(election.handle(Event::Heard(peer(number), candidate), Time::ZERO), None);
    }
    assert_eq!((election.term(), election.counter()), (None, 9));
}

#[test]
fn only_an_own_claim_is_given_up_when_the_disk_refuses_it_and_not_made_again_at_once() {
    // What the disk refused of another master's term, or of an own one that is over, delays no later claim.
    for refused in [term(5, 2), term(4, OWN)] {
        let (mut follower, now) = (election(Some(term(4, OWN))), Time::from_secs(60));
        assert_eq!(follower.handle(claims(5, 2), now), Some(Changed(Some(term(5, 2)))));
        assert_eq!(follower.handle(Event::NotStored(refused), now), None);
        assert_eq!(follower.handle(gone(2), now), Some(Changed(None)));
        assert_eq!(claims_within(&mut follower, now), millis(GRACE_SILENT));
    }
    let (mut election, mut now) = (election(None), Time::ZERO);
    let own = settle(&mut election, &[], &mut now).unwrap();
    assert_eq!(election.handle(Event::NotStored(own), now), Some(Changed(None)));
    assert_eq!(claims_within(&mut election, now), millis(REFUSED_WAIT));
}

#[test]
fn after_a_loss_others_get_the_time_to_notice_it_and_to_say_what_they_follow() {
    let now = Time::from_secs(60);
    for (silent, grace) in [(true, GRACE_SILENT), (false, GRACE_BROKEN)] {
        let mut election = election(None);
        election.handle(claims(5, 2), now);
        assert_eq!(election.handle(Event::Gone { peer: peer(2), silent }, now), Some(Changed(None)));
        assert_eq!(claims_within(&mut election, now), millis(grace));
    }
    // The same where the master gave up its term.
    for given_up in [claims(4, 2), Event::Heard(peer(2), says(None, 5))] {
        let mut election = election(None);
        election.handle(claims(5, 2), now);
        assert_eq!(election.handle(given_up, now), Some(Changed(None)));
        assert!(claims_within(&mut election, now) >= millis(GRACE_SILENT));
    }
}

#[test]
fn a_forced_node_claims_above_a_master_that_is_not_forced_once_it_has_listened() {
    let heard = |force_master| Event::Heard(peer(2), Candidate { force_master, ..says(Some(term(7, 2)), 7) });
    for (works, master_is_forced, claims) in [(true, false, true), (true, true, false), (false, false, false)] {
        let mut election = Election::new(peer(OWN), works, true, None);
        assert_eq!(election.handle(heard(master_is_forced), Time::ZERO), Some(Changed(Some(term(7, 2)))));
        let claimed = claims_within(&mut election, Time::ZERO);
        assert_eq!(claimed, millis(LISTEN).filter(|_| claims));
        assert_eq!(election.term(), Some(if claims { term(8, OWN) } else { term(7, 2) }));
    }
}

#[test]
fn a_master_claims_nothing_where_others_know_its_own_counter() {
    let (mut election, mut now) = (election(None), Time::ZERO);
    let own = settle(&mut election, &[], &mut now);
    let knows = Event::Heard(peer(2), says(None, election.counter()));
    assert_eq!(settle(&mut election, &[knows], &mut now), own);
}
