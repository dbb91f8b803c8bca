//! The plan of dials against a peer that comes and goes, against announcements and against reports of strangers.

use super::*;
use crate::net::dial_budget::MAX_ANNOUNCED;

const TCP: &str = "/ip4/10.0.0.1/tcp/7777";
const QUIC: &str = "/ip4/10.0.0.1/udp/7777/quic-v1";

fn plan() -> DialPlan {
    DialPlan::new(crate::test_peers::fresh_peer())
}

fn address(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

fn seconds(seconds: f64) -> Time {
    Time::ZERO + Duration::from_secs_f64(seconds)
}

/// A report of a member about itself.
fn report(peer: PeerId) -> Report {
    Report { peer, forwarder: peer, proven: true }
}

fn nobody(_: &PeerId) -> bool {
    false
}

#[test]
fn a_named_address_is_dialled_at_growing_intervals_until_it_answers() {
    let mut plan = plan();
    plan.add_named(address(TCP), Time::ZERO);
    let (mut now, mut waits) = (Time::ZERO, Vec::new());
    for _ in 0..8 {
        let dials = plan.due(now, nobody);
        assert_eq!(dials.len(), 1);
        assert!(plan.due(now, nobody).is_empty(), "one dial at a time");
        plan.failed(dials[0].target, Failure::Unreachable, "no answer", now);
        let start = now;
        while plan.targets[0].due > now {
            now += Duration::from_millis(100);
        }
        waits.push(now.since(start).as_millis());
    }
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 8000, 8000, 8000]);
}

#[test]
fn hosts_that_never_answer_delay_no_named_peer_and_no_newcomer() {
    let mut plan = plan();
    for number in 0..100 {
        plan.discovered(crate::test_peers::peer(number), address(TCP), Time::ZERO);
    }
    let mut now = seconds(1.0);
    let hanging = plan.due(now, nobody);
    assert_eq!(hanging.len(), MAX_ANNOUNCED);
    plan.add_named(address(QUIC), now);
    assert_eq!(plan.due(now, nobody).len(), 1, "a named peer does not wait");
    for dial in hanging {
        plan.failed(dial.target, Failure::Unreachable, "no answer", now);
    }
    let newcomer = crate::test_peers::fresh_peer();
    for _ in 0..2 {
        now += Duration::from_secs(60);
        for dial in plan.due(now, nobody) {
            plan.failed(dial.target, Failure::Unreachable, "no answer", now);
        }
    }
    now += Duration::from_secs(60);
    plan.discovered(newcomer, address(TCP), Time::ZERO);
    assert!(plan.due(now, nobody).iter().any(|dial| dial.peer == Some(newcomer)));
}

#[test]
fn a_lost_peer_is_dialled_again_soon_and_a_connected_one_is_not() {
    let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
    plan.add_named(address(TCP), Time::ZERO);
    let dial = plan.due(Time::ZERO, nobody).remove(0);
    plan.succeeded(dial.target, peer);
    assert!(plan.due(seconds(100.0), |connected| *connected == peer).is_empty());
    plan.lost(peer, seconds(100.0));
    assert!(plan.due(seconds(100.1), nobody).is_empty());
    let again = plan.due(seconds(100.5), nobody);
    assert_eq!(again[0].peer, None, "the address has no peer id, so any node there is accepted");
}

#[test]
fn tcp_is_tried_first_and_quic_right_after_it_fails() {
    let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
    plan.discovered(peer, address(QUIC), Time::ZERO);
    plan.discovered(peer, address(TCP), Time::ZERO);
    let dial = plan.due(seconds(1.0), nobody).remove(0);
    assert_eq!(dial.addresses, [address(TCP)]);
    plan.failed(dial.target, Failure::Unreachable, "no answer", seconds(1.0));
    let dial = plan.due(seconds(1.0), nobody).remove(0);
    assert_eq!(dial.addresses, [address(QUIC)]);
    plan.failed(dial.target, Failure::Unreachable, "no answer", seconds(1.0));
    assert!(plan.due(seconds(1.0), nobody).is_empty());
    assert_eq!(plan.due(seconds(2.0), nobody)[0].addresses, [address(TCP)]);
}

#[test]
fn one_of_two_nodes_that_discover_each_other_dials_first() {
    let (a, b) = (crate::test_peers::fresh_peer(), crate::test_peers::fresh_peer());
    let (mut at_a, mut at_b) = (DialPlan::new(a), DialPlan::new(b));
    assert!(at_a.discovered(b, address(TCP), Time::ZERO));
    assert!(at_b.discovered(a, address(TCP), Time::ZERO));
    assert!(!at_b.discovered(a, address(QUIC), Time::ZERO), "new once only");
    assert_eq!(at_a.due(Time::ZERO, nobody).len() + at_b.due(Time::ZERO, nobody).len(), 1);
    assert_eq!(
        at_a.due(Time::ZERO + YIELD, nobody).len() + at_b.due(Time::ZERO + YIELD, nobody).len(),
        1,
        "the other one dials if the first does not"
    );
}

#[test]
fn a_list_that_changes_adds_and_drops_targets() {
    let mut plan = plan();
    plan.set_listed(&[address(TCP), address(QUIC)], Time::ZERO);
    assert_eq!(plan.due(Time::ZERO, nobody).len(), 2);
    plan.set_listed(&[address(QUIC), address("/ip4/10.0.0.2/tcp/1")], Time::ZERO);
    let dials = plan.due(Time::ZERO, nobody);
    assert_eq!(dials.len(), 1, "a dial in progress is not repeated");
    assert_eq!(dials[0].addresses, [address("/ip4/10.0.0.2/tcp/1")]);
    assert_eq!(plan.targets.len(), 2);
}

#[test]
fn the_own_address_is_never_dialled_again() {
    let mut plan = plan();
    let own = plan.local;
    plan.add_named(address(&format!("{TCP}/p2p/{own}")), Time::ZERO);
    assert!(plan.due(seconds(1.0), nobody).is_empty());
    plan.add_named(address(TCP), Time::ZERO);
    let dial = plan.due(seconds(1.0), nobody).remove(0);
    plan.failed(dial.target, Failure::Own, "no answer", seconds(1.0));
    assert!(plan.due(seconds(1e6), nobody).is_empty());
}

#[test]
fn expired_announcements_are_removed_and_may_return() {
    let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
    assert!(plan.discovered(peer, address(TCP), Time::ZERO));
    plan.expired(peer, &address(TCP));
    assert!(!plan.is_discovered(&peer));
    assert!(plan.due(seconds(9.0), nobody).is_empty());
}

#[test]
fn strangers_on_the_network_cannot_fill_the_plan() {
    let mut plan = plan();
    for _ in 0..MAX_DISCOVERED + 10 {
        plan.discovered(crate::test_peers::fresh_peer(), address(TCP), Time::ZERO);
    }
    assert_eq!(plan.targets.len(), MAX_DISCOVERED);
}

#[test]
fn reported_addresses_are_dialled_less_and_less_often_and_then_removed() {
    let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
    plan.heard_of(report(peer), &[address(TCP)], &[], Time::ZERO);
    let (mut now, mut dials) = (Time::ZERO, 0);
    while now < seconds(7200.0) {
        now += Duration::from_millis(250);
        // The peer reports the same addresses repeatedly.
        if dials < HEARD_FAILURES {
            plan.heard_of(report(peer), &[address(TCP)], &[], now);
        }
        for dial in plan.due(now, nobody) {
            assert_eq!((dial.found_by, dial.peer), (FoundBy::Gossip, Some(peer)));
            plan.failed(dial.target, Failure::Unreachable, "no answer", now);
            dials += 1;
        }
    }
    assert_eq!(dials, HEARD_FAILURES);
    assert_eq!(plan.found(&peer), None, "forgotten");
}

#[test]
fn invalid_and_own_addresses_are_not_dialled() {
    let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
    let said = ["/ip4/127.0.0.1/tcp/7777", "/ip4/0.0.0.0/tcp/7777", "/ip4/10.0.0.1/tcp/0", "/ip4/10.0.0.1", "/unix/x"];
    plan.heard_of(report(peer), &said.map(address), &[address("/ip4/127.0.0.1/tcp/7777")], Time::ZERO);
    assert!(plan.due(seconds(9.0), nobody).is_empty());
    let named = address(&format!("{TCP}/p2p/{peer}"));
    plan.heard_of(report(peer), &[address("/ip4/127.0.0.1/tcp/9"), named], &[], seconds(9.0));
    let dial = plan.due(seconds(10.0), nobody).remove(0);
    assert_eq!(dial.addresses, [address("/ip4/127.0.0.1/tcp/9"), address(TCP)]);
    plan.failed(dial.target, Failure::Own, "no answer", seconds(10.0));
    assert_eq!(
        plan.due(seconds(12.0), nobody).len(),
        1,
        "one of several addresses is this node's own; the others may not be"
    );
    plan.heard_of(report(plan.local), &[address(TCP)], &[], seconds(12.0));
    assert_eq!(plan.targets.len(), 1);
}

#[test]
fn a_peer_being_dialled_is_not_dialled_at_reported_addresses_as_well() {
    let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
    plan.discovered(peer, address(TCP), Time::ZERO);
    assert_eq!(plan.due(seconds(1.0), nobody).len(), 1);
    plan.heard_of(report(peer), &[address(QUIC)], &[], seconds(1.0));
    assert!(plan.due(seconds(5.0), nobody).is_empty());
}

/// Reports of strangers through one connection, each with addresses at hosts of its own.
fn forge(plan: &mut DialPlan, forwarder: PeerId, strangers: u8, now: Time) {
    for number in 0..strangers {
        let host =
            |n: u8| [format!("/ip4/203.0.{number}.{n}/tcp/80"), format!("/ip4/203.0.{number}.{n}/udp/80/quic-v1")];
        let addresses: Vec<Multiaddr> = (0..8).flat_map(host).map(|text| address(&text)).collect();
        let report = Report { peer: crate::test_peers::peer(u64::from(number)), forwarder, proven: false };
        plan.heard_of(report, &addresses, &[], now);
    }
}

#[test]
fn forged_reports_make_few_dials_and_delay_none_that_is_wanted() {
    let (mut plan, forger) = (plan(), crate::test_peers::fresh_peer());
    let (mut now, mut addresses) = (Time::ZERO, 0);
    let mut hanging: Vec<(TargetId, Time)> = Vec::new();
    while now < seconds(60.0) {
        forge(&mut plan, forger, 80, now);
        for dial in plan.due(now, nobody) {
            addresses += dial.addresses.len();
            hanging.push((dial.target, now + Duration::from_secs(5)));
        }
        let (over, still) = hanging.into_iter().partition(|(_, until)| *until <= now);
        hanging = still;
        for (target, _) in over {
            plan.failed(target, Failure::Unreachable, "no answer", now);
        }
        assert!(hanging.len() <= 4, "black holes take few places: {}", hanging.len());
        now += Duration::from_millis(250);
    }
    assert!(addresses <= 32 + 60, "{addresses} addresses in a minute");
    let (named, found, member) = (address("/ip4/10.0.0.9/tcp/1"), address("/ip4/10.0.0.8/tcp/1"), address(TCP));
    plan.add_named(named.clone(), now);
    plan.discovered(crate::test_peers::fresh_peer(), found.clone(), now);
    let proven = Report { forwarder: crate::test_peers::fresh_peer(), ..report(crate::test_peers::fresh_peer()) };
    plan.heard_of(proven, std::slice::from_ref(&member), &[], now);
    let dials = plan.due(now + YIELD, nobody);
    assert_eq!(dials[0].addresses, [named], "first of all");
    assert_eq!(dials[1].addresses, [found]);
    assert_eq!(dials[2].addresses, [member]);
}

#[test]
fn several_forgers_together_are_limited_too() {
    let (mut plan, mut now, mut addresses) = (plan(), Time::ZERO, 0);
    while now < seconds(30.0) {
        // A new identity each time.
        forge(&mut plan, crate::test_peers::fresh_peer(), 8, now);
        for dial in plan.due(now, nobody) {
            addresses += dial.addresses.len();
            plan.failed(dial.target, Failure::Unreachable, "no answer", now);
        }
        now += Duration::from_millis(250);
    }
    assert!(addresses <= 96 + 4 * 30, "{addresses} addresses in half a minute");
}

#[test]
fn reports_name_one_host_only_so_often() {
    let (mut plan, mut now, mut dialled) = (plan(), Time::ZERO, 0);
    while now < seconds(20.0) {
        for port in 1..60 {
            let proven = report(crate::test_peers::peer(port));
            plan.heard_of(proven, &[address(&format!("/ip4/203.0.113.1/tcp/{port}"))], &[], now);
        }
        for dial in plan.due(now, nobody) {
            dialled += dial.addresses.len();
            plan.failed(dial.target, Failure::Unreachable, "no answer", now);
        }
        now += Duration::from_millis(250);
    }
    assert!((16..=16 + 20).contains(&dialled), "{dialled}");
}

#[test]
fn strangers_that_are_reached_are_connected_to_without_delay() {
    let (mut plan, hub) = (plan(), crate::test_peers::fresh_peer());
    let mut reached = std::collections::BTreeSet::new();
    let mut now = Time::ZERO;
    while now < seconds(20.0) {
        // A hub in a pool of a hundred nodes passes on what they say, once a second.
        for number in 0..100u64 {
            let peer = crate::test_peers::peer(number);
            let addresses: Vec<Multiaddr> =
                (1..=6).map(|net| address(&format!("/ip4/10.{net}.0.{number}/tcp/7777"))).collect();
            if !reached.contains(&peer) {
                plan.heard_of(Report { peer, forwarder: hub, proven: false }, &addresses, &[], now);
            }
        }
        for dial in plan.due(now, |peer| reached.contains(peer)) {
            plan.succeeded(dial.target, dial.peer.unwrap());
            reached.extend(dial.peer);
        }
        now += Duration::from_millis(250);
    }
    assert_eq!(reached.len(), 100);
}

#[test]
fn a_stranger_that_cannot_be_reached_gives_its_place_to_another() {
    let (mut plan, hub) = (plan(), crate::test_peers::fresh_peer());
    forge(&mut plan, hub, 8, Time::ZERO);
    let honest = crate::test_peers::fresh_peer();
    let reported = Report { peer: honest, forwarder: hub, proven: false };
    plan.heard_of(reported, &[address(TCP)], &[], Time::ZERO);
    assert_eq!(plan.found(&honest), None, "all places are taken");
    for dial in plan.due(seconds(1.0), nobody) {
        plan.failed(dial.target, Failure::Unreachable, "no answer", seconds(1.0));
    }
    for dial in plan.due(seconds(1.0), nobody) {
        plan.failed(dial.target, Failure::Unreachable, "no answer", seconds(1.0));
    }
    plan.heard_of(reported, &[address(TCP)], &[], seconds(1.0));
    assert_eq!(plan.found(&honest), Some(FoundBy::Gossip));
    assert_eq!(plan.targets.len(), 8);
}

#[test]
fn a_person_hears_once_of_a_named_address_that_fails_and_how_often_is_counted() {
    let mut plan = plan();
    plan.add_named(address(TCP), Time::ZERO);
    let id = plan.targets[0].id;
    assert_eq!(plan.unconnected(nobody)[0].failed, None);
    assert_eq!(plan.failed(id, Failure::Unreachable, "refused by the host", Time::ZERO), Some(address(TCP)));
    assert_eq!(plan.failed(id, Failure::Unreachable, "no route", Time::ZERO), None);
    let failed = FailedDials { is_refused: false, why: "no route".to_owned(), count: 2 };
    assert_eq!(plan.unconnected(nobody)[0].failed, Some(failed));
    assert_eq!(plan.failed(id, Failure::Refused, "another pool", Time::ZERO), None, "that is logged elsewhere");
    let failed = FailedDials { is_refused: true, why: "another pool".to_owned(), count: 1 };
    assert_eq!(plan.unconnected(nobody)[0].failed, Some(failed));
    plan.succeeded(id, crate::test_peers::fresh_peer());
    assert_eq!(plan.unconnected(nobody)[0].failed, None);
    assert_eq!(plan.failed(id, Failure::Unreachable, "no route", Time::ZERO), Some(address(TCP)), "again, later");
    // Nobody named what the network announces.
    plan.discovered(crate::test_peers::fresh_peer(), address(QUIC), Time::ZERO);
    let announced = plan.targets[1].id;
    assert_eq!(plan.failed(announced, Failure::Unreachable, "no route", Time::ZERO), None);
}
