//! The directory against reports in every order, and at its limits.

use super::*;
use crate::test_peers::fresh_peer;

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

fn up(peer: PeerId) -> Event {
    Event::Up { peer, address: "/ip4/10.0.0.1/tcp/1".into(), transport: "tcp".into(), found_by: "mdns".into() }
}

fn hello(peer: PeerId) -> Event {
    let hello = WorkerHello {
        name: "two".into(),
        threads: 2,
        f32_flops_per_s: 1e9,
        f64_flops_per_s: 1e9,
        i8_flops_per_s: 1e9,
        store_bytes: 1 << 20,
        tasks_max: 8,
        works: true,
    };
    Event::Hello { peer, hello }
}

fn opens(actions: &[Action]) -> Option<Duration> {
    actions.iter().find_map(|action| match action {
        Action::OpenStream { after, .. } => Some(*after),
        _ => None,
    })
}

#[test]
fn a_convicted_peer_may_not_compute_and_is_cut_off_once() {
    let (mut directory, peer) = (Directory::default(), fresh_peer());
    assert!(directory.may_compute(&peer));
    directory.handle(up(peer), at(0));
    directory.handle(hello(peer), at(1));
    let convicted = |why: &str| Event::Convicted { peer, why: why.into() };
    let cut = directory.handle(convicted("a wrong product"), at(2));
    assert_eq!(cut, [Action::CutOff { peer, why: "a wrong product".into() }]);
    assert_eq!(directory.handle(convicted("another"), at(3)), [], "once is enough");
    assert_eq!(directory.why_not(&peer), Some("a wrong product"));
    assert_eq!(directory.excluded(), BTreeSet::from([peer]));
    assert_eq!(opens(&directory.handle(Event::StreamEnded(peer), at(4))), None);
    assert_eq!(opens(&directory.handle(up(peer), at(5))), None);
    assert_eq!(directory.get(&peer).map(|peer| peer.trust(at(5))), Some(0.0));
}

#[test]
fn evidence_found_at_start_blocks_like_new_evidence_and_is_never_forgotten() {
    let (mut directory, liar) = (Directory::default(), fresh_peer());
    let cut = directory.handle(Event::Convicted { peer: liar, why: "kept evidence".into() }, at(0));
    assert_eq!(cut, [Action::CutOff { peer: liar, why: "kept evidence".into() }]);
    assert_eq!(directory.get(&liar).map(|peer| peer.state), Some(PeerState::Gone));
    for _ in 0..PEERS_MAX + 10 {
        let peer = fresh_peer();
        directory.handle(up(peer), at(1));
        directory.handle(Event::Down { peer, why: "bye".into() }, at(2));
    }
    assert_eq!(directory.iter().count(), PEERS_MAX + 1);
    assert!(!directory.may_compute(&liar));
}

#[test]
fn no_flood_of_liars_lets_a_quarantined_peer_out() {
    let (mut directory, worked, late) = (Directory::default(), fresh_peer(), fresh_peer());
    directory.handle(up(worked), at(0));
    directory.handle(hello(worked), at(0));
    directory.handle(Event::ResultPassed(worked), at(0));
    let liars: Vec<PeerId> = (0..QUARANTINED_MAX + 100).map(|_| fresh_peer()).collect();
    for liar in &liars {
        directory.handle(Event::Convicted { peer: *liar, why: "a wrong product".into() }, at(1));
    }
    for _ in 0..2 * PEERS_MAX {
        let peer = fresh_peer();
        directory.handle(up(peer), at(2));
        directory.handle(Event::Down { peer, why: "bye".into() }, at(2));
    }
    assert!(liars.iter().all(|liar| !directory.may_compute(liar)));
    assert!(directory.iter().count() <= QUARANTINED_MAX + PEERS_MAX);
    assert!(directory.may_compute(&worked) && !directory.may_compute(&late));
    // Nor does one that worked well before.
    let convicted = directory.handle(Event::Convicted { peer: worked, why: "a wrong product".into() }, at(3));
    assert!(matches!(convicted[..], [Action::CutOff { .. }, ..]) && !directory.may_compute(&worked));
}

#[test]
fn a_suspect_is_trusted_less_for_a_while_and_never_quarantined() {
    let (mut directory, peer, other) = (Directory::default(), fresh_peer(), fresh_peer());
    directory.handle(up(peer), at(0));
    directory.handle(hello(peer), at(0));
    let trust = |directory: &Directory, now| directory.get(&peer).unwrap().trust(now);
    let before = trust(&directory, at(0));
    for _ in 0..100 {
        let reason = SuspicionReason::WrongUnsigned;
        assert_eq!(directory.handle(Event::Suspected { peer, reason }, at(1)), []);
    }
    assert!(directory.may_compute(&peer) && trust(&directory, at(1)) < before / 2.0);
    assert_eq!((directory.suspects(at(1)), directory.is_suspect(&other, at(1))), (vec![peer], false));
    let later = at(24 * 3_600_000);
    assert!(!directory.is_suspect(&peer, later) && (before - trust(&directory, later)).abs() < 1e-3);
    // Other identities do not push a suspect out: it would come back as a newcomer.
    for _ in 0..PEERS_MAX + 10 {
        let peer = fresh_peer();
        directory.handle(up(peer), at(2));
        directory.handle(Event::Down { peer, why: "bye".into() }, at(2));
    }
    directory.handle(Event::Down { peer, why: "bye".into() }, at(3));
    directory.handle(up(fresh_peer()), at(4));
    assert!(directory.is_suspect(&peer, at(4)));
}

#[test]
fn a_stream_that_keeps_ending_is_reopened_with_growing_delays() {
    let (mut directory, peer) = (Directory::default(), fresh_peer());
    assert_eq!(opens(&directory.handle(up(peer), at(0))), Some(Duration::ZERO));
    let mut now = 0;
    let delays: Vec<Duration> = (0..12)
        .filter_map(|_| {
            now += 10;
            directory.handle(hello(peer), at(now));
            opens(&directory.handle(Event::StreamEnded(peer), at(now)))
        })
        .collect();
    assert_eq!((delays[0], delays[1]), (Duration::from_millis(100), Duration::from_millis(200)));
    assert_eq!(delays.last(), Some(&Duration::from_secs(30)));
    directory.handle(hello(peer), at(now));
    let lasted = directory.handle(Event::StreamEnded(peer), at(now + 30_001));
    assert_eq!(opens(&lasted), Some(Duration::from_millis(100)));
    directory.handle(Event::Down { peer, why: "gone".into() }, at(now + 30_002));
    assert_eq!(opens(&directory.handle(Event::StreamEnded(peer), at(now + 30_003))), None);
}

#[test]
fn calls_end_with_the_hello_the_deadline_a_refusal_or_a_conviction() {
    let mut directory = Directory::default();
    let [a, b, c, d] = [fresh_peer(), fresh_peer(), fresh_peer(), fresh_peer()];
    for (call, peer) in [(1, a), (2, b), (3, c), (4, d)] {
        directory.handle(up(peer), at(0));
        directory.handle(Event::CallWaits { call, peer, until: at(100) }, at(0));
    }
    let failed = |actions: Vec<Action>| {
        actions.into_iter().find_map(|action| match action {
            Action::CallFailed { call, .. } => Some(call),
            _ => None,
        })
    };
    assert!(directory.handle(hello(a), at(1)).contains(&Action::CallReady { call: 1, peer: a }));
    assert_eq!(failed(directory.handle(Event::StreamRefused { peer: b, why: "no".into() }, at(2))), Some(2));
    assert_eq!(failed(directory.handle(Event::Convicted { peer: c, why: "lied".into() }, at(3))), Some(3));
    assert_eq!(failed(directory.handle(Event::Tick, at(99))), None);
    assert_eq!(failed(directory.handle(Event::Tick, at(100))), Some(4));
    let late = directory.handle(Event::CallWaits { call: 5, peer: c, until: at(500) }, at(101));
    assert_eq!(failed(late), Some(5), "a call does not wait for a quarantined peer");
}

#[test]
fn large_transfers_correct_a_links_speed_and_small_ones_do_not() {
    let (mut directory, peer) = (Directory::default(), fresh_peer());
    directory.handle(up(peer), at(0));
    let speed = |directory: &Directory| directory.get(&peer).and_then(|peer| peer.bytes_per_s);
    directory.handle(Event::Sent { peer, bytes: 1000, seconds: 1.0 }, at(1));
    assert_eq!(speed(&directory), None);
    let probed = directory.handle(Event::LinkProbed { peer, bytes_per_s: 50e6, repeated: false }, at(2));
    assert_eq!(probed, [Action::LinkChanged(peer)]);
    let slower = directory.handle(Event::LinkProbed { peer, bytes_per_s: 40e6, repeated: true }, at(2));
    assert_eq!((slower, speed(&directory)), (vec![], Some(50e6)), "the processor was busy");
    let faster = directory.handle(Event::LinkProbed { peer, bytes_per_s: 100e6, repeated: true }, at(2));
    assert_eq!((faster, speed(&directory)), (vec![Action::LinkChanged(peer)], Some(100e6)));
    for _ in 0..40 {
        directory.handle(Event::Sent { peer, bytes: 10_000_000, seconds: 1.0 }, at(3));
    }
    let corrected = speed(&directory).unwrap();
    assert!((10e6..10.1e6).contains(&corrected), "{corrected}");
    directory.handle(Event::RoundTrip { peer, rtt: Duration::from_millis(2) }, at(4));
    directory.handle(Event::RoundTrip { peer, rtt: Duration::from_millis(90) }, at(5));
    assert_eq!(directory.get(&peer).and_then(|peer| peer.rtt), Some(Duration::from_micros(2100)));
}

#[test]
fn a_peer_that_says_hello_is_ready_before_nobody_is_expected_any_more() {
    let (mut directory, peer) = (Directory::default(), fresh_peer());
    directory.handle(up(peer), at(0));
    assert_eq!(directory.handle(hello(peer), at(1)), [Action::Ready(peer), Action::Connecting(0)]);
}

#[test]
fn a_found_peer_counts_as_connecting_for_some_seconds() {
    let (mut directory, peer) = (Directory::default(), fresh_peer());
    assert_eq!(directory.handle(Event::Discovered(peer), at(0)), [Action::Connecting(1)]);
    assert_eq!(directory.handle(Event::Tick, at(4999)), []);
    assert_eq!(directory.handle(Event::Tick, at(5000)), [Action::Connecting(0)]);
}

fn state(directory: &Directory, peer: &PeerId) -> Option<PeerState> {
    directory.get(peer).map(|peer| peer.state)
}

#[test]
fn only_admitted_honest_peers_with_a_hello_count_as_connected() {
    let (mut directory, [a, b, liar]) = (Directory::default(), [fresh_peer(), fresh_peer(), fresh_peer()]);
    assert_eq!(directory.connected(), 0);
    for peer in [a, b, liar] {
        directory.handle(up(peer), at(0));
        assert_eq!(directory.connected(), 0, "no hello yet");
    }
    assert_eq!(directory.get(&a).unwrap().name(), "");
    for (peer, connected) in [(a, 1), (b, 2), (liar, 3)] {
        directory.handle(hello(peer), at(1));
        assert_eq!(directory.get(&peer).unwrap().name(), "two");
        assert_eq!(directory.connected(), connected);
    }
    directory.handle(Event::Convicted { peer: liar, why: "a wrong product".into() }, at(2));
    assert_eq!(directory.connected(), 2);
    directory.handle(Event::Down { peer: a, why: "bye".into() }, at(3));
    assert_eq!((directory.connected(), state(&directory, &a)), (1, Some(PeerState::Gone)));
}

#[test]
fn a_peer_that_is_found_again_is_expected_unless_it_is_connected() {
    let (mut directory, [gone, here]) = (Directory::default(), [fresh_peer(), fresh_peer()]);
    directory.handle(Event::Down { peer: gone, why: "bye".into() }, at(0));
    directory.handle(up(here), at(0));
    directory.handle(hello(here), at(0));
    assert_eq!(directory.handle(Event::Discovered(gone), at(1)), [Action::Connecting(1)]);
    assert_eq!(directory.handle(Event::Discovered(here), at(1)), []);
    assert_eq!(state(&directory, &here), Some(PeerState::Connected));
}

#[test]
fn suspicion_and_conviction_leave_what_is_known_of_the_connection() {
    let (mut directory, [known, convicted, stranger]) =
        (Directory::default(), [fresh_peer(), fresh_peer(), fresh_peer()]);
    let suspected = |peer| Event::Suspected { peer, reason: SuspicionReason::Unsigned };
    for peer in [known, convicted] {
        directory.handle(up(peer), at(0));
        directory.handle(hello(peer), at(0));
    }
    directory.handle(suspected(known), at(1));
    directory.handle(suspected(stranger), at(1));
    directory.handle(Event::Convicted { peer: convicted, why: "a wrong product".into() }, at(1));
    let states = [known, convicted, stranger].map(|peer| state(&directory, &peer));
    assert_eq!(states, [PeerState::Connected, PeerState::Connected, PeerState::Gone].map(Some));
    assert_eq!(directory.handle(Event::Tick, at(2)), [], "a stranger that is suspected is not expected");
}

#[test]
fn a_call_of_a_peer_that_said_hello_is_ready_at_once_and_another_ones_hello_answers_no_call() {
    let (mut directory, [here, other, asked]) = (Directory::default(), [fresh_peer(), fresh_peer(), fresh_peer()]);
    let waits = |call, peer| Event::CallWaits { call, peer, until: at(100) };
    directory.handle(up(here), at(0));
    directory.handle(hello(here), at(0));
    assert_eq!(directory.handle(waits(1, here), at(1)), [Action::CallReady { call: 1, peer: here }]);
    assert_eq!(directory.handle(waits(2, asked), at(1)), []);
    assert_eq!(directory.handle(hello(other), at(2)), [Action::Ready(other)]);
    let ready = directory.handle(hello(asked), at(3));
    assert_eq!(ready, [Action::Ready(asked), Action::CallReady { call: 2, peer: asked }]);
}

#[test]
fn a_measurement_that_is_none_and_an_empty_list_of_addresses_change_nothing() {
    let (mut directory, peer) = (Directory::default(), fresh_peer());
    directory.handle(up(peer), at(0));
    let probed = |bytes_per_s, repeated| Event::LinkProbed { peer, bytes_per_s, repeated };
    for none in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(directory.handle(probed(none, false), at(1)), []);
    }
    assert_eq!(directory.handle(probed(5e6, false), at(2)), [Action::LinkChanged(peer)]);
    assert_eq!(directory.handle(probed(5e6, true), at(3)), [], "the same again");
    assert_eq!(directory.handle(probed(4e6, false), at(3)), [Action::LinkChanged(peer)], "a new stream");
    let changed = |addresses: &[&str]| Event::AddressesChanged {
        peer,
        addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
    };
    for addresses in [&["/ip4/10.0.0.9/tcp/9"][..], &[]] {
        directory.handle(changed(addresses), at(4));
        assert_eq!(directory.get(&peer).unwrap().addresses, ["/ip4/10.0.0.9/tcp/9"]);
    }
}

#[test]
fn strangers_push_out_no_connected_peer() {
    let (mut directory, peer) = (Directory::default(), fresh_peer());
    directory.handle(up(peer), at(0));
    directory.handle(hello(peer), at(0));
    for _ in 0..PEERS_MAX + 10 {
        let peer = fresh_peer();
        directory.handle(up(peer), at(1));
        directory.handle(Event::Down { peer, why: "bye".into() }, at(2));
    }
    assert_eq!((directory.iter().count(), state(&directory, &peer)), (PEERS_MAX, Some(PeerState::Connected)));
}
