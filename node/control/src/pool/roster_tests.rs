//! Who is in the pool, against replays, forgeries and floods.

use super::*;
use crate::pool::Term;
use crate::pool::election::{Candidate, Changed, Election, Event};
use crate::pool::{advert_of, link_to};
use crate::test_peers::{fresh_peer, peer};

fn ms(ms: u64) -> Time {
    Time::from_millis(ms)
}

/// One peer that passes on what it likes.
const FORGER: u64 = 1;

/// An advert whose author proves that it belongs to the pool.
fn member(forwarder: PeerId) -> Delivery {
    Delivery { forwarder, proven: true }
}

struct Case {
    roster: Roster,
    peer: PeerId,
}

impl Case {
    fn new() -> Case {
        Case { roster: Roster::new(fresh_peer(), true), peer: fresh_peer() }
    }

    /// With a peer of which one advert is known.
    fn noted() -> Case {
        let mut case = Case::new();
        assert_eq!(case.hear(1, 1, 0), Heard::Noted);
        case
    }

    fn hear(&mut self, incarnation: u64, sequence: u64, at: u64) -> Heard {
        let advert = Advert { incarnation, sequence, ..advert_of(self.peer) };
        self.roster.heard(advert, member(self.peer), ms(at))
    }

    fn forged(&mut self, sequence: u64, at: u64) -> Heard {
        let advert = Advert { incarnation: 5, sequence, ..advert_of(self.peer) };
        self.roster.heard(advert, Delivery { forwarder: peer(FORGER), proven: false }, ms(at))
    }
}

#[test]
fn copies_and_older_adverts_are_ignored() {
    let mut case = Case::noted();
    assert_eq!(case.hear(5, 1, 0), Heard::Joined);
    assert_eq!(case.hear(5, 2, 0), Heard::Newer);
    assert_eq!(case.hear(5, 2, 0), Heard::Old);
    assert_eq!(case.hear(5, 1, 0), Heard::Old);
    assert_eq!(case.hear(4, 9, 0), Heard::Old, "an earlier run");
    assert_eq!(case.hear(6, 1, 0), Heard::Newer, "a later run");
    let own = Advert { peer: case.roster.local, ..advert_of(case.peer) };
    assert_eq!(case.roster.heard(own, member(case.peer), ms(0)), Heard::Old);
}

#[test]
fn an_author_that_is_connected_to_everyone_told_everyone_itself() {
    let mut case = Case::noted();
    case.hear(5, 1, 0);
    let (local, author, other) = (case.roster.local, case.peer, peer(7));
    let linked = |to: &[PeerId]| Advert { links: to.iter().map(|to| link_to(*to)).collect(), ..advert_of(author) };
    assert!(!case.roster.is_connected_to_all(&linked(&[])), "this node heard it through others");
    assert!(case.roster.is_connected_to_all(&linked(&[local])));
    // A peer that publishes nothing, such as a lite client, counts as well.
    case.roster.connected(other, ms(0));
    assert!(!case.roster.is_connected_to_all(&linked(&[local])));
    assert!(case.roster.is_connected_to_all(&linked(&[other, local])));
}

#[test]
fn adverts_are_needed_while_a_node_is_heard_through_others_or_follows_another_master() {
    let mut case = Case::noted();
    case.hear(5, 1, 0);
    assert!(case.roster.is_unsettled(None), "the author is not connected to this node");
    case.roster.connected(case.peer, ms(0));
    assert!(!case.roster.is_unsettled(None));
    assert!(case.roster.is_unsettled(Some(Term { counter: 1, master: case.peer })));
}

#[test]
fn adverts_in_flight_when_a_node_died_do_not_bring_it_back() {
    let mut case = Case::new();
    case.roster.connected(case.peer, ms(0));
    case.hear(5, 7, 0);
    assert!(case.roster.disconnected(case.peer, ms(1000)));
    assert!(!case.roster.contains(&case.peer));
    assert_eq!(case.hear(5, 7, 1001), Heard::Old, "a copy");
    assert_eq!(case.hear(5, 8, 1200), Heard::Old, "sent before it died, relayed late");
    assert_eq!(case.hear(5, 8, 9000), Heard::Old, "the same, much later");
    assert_eq!(case.hear(5, 9, 9000), Heard::Joined, "a newer advert: only the connection had failed");
}

#[test]
fn a_node_that_restarts_or_reconnects_is_back_at_once() {
    let mut case = Case::noted();
    case.hear(5, 7, 0);
    case.roster.disconnected(case.peer, ms(1000));
    assert_eq!(case.hear(6, 1, 1001), Heard::Joined);
    case.roster.disconnected(case.peer, ms(2000));
    case.roster.connected(case.peer, ms(0));
    assert_eq!(case.hear(6, 2, 2001), Heard::Joined);
}

#[test]
fn a_relayed_node_is_gone_when_it_falls_silent() {
    let mut case = Case::noted();
    case.hear(5, 1, 0);
    assert!(case.roster.silent(ms(3999)).is_empty());
    assert_eq!(case.roster.silent(ms(4000)), [case.peer]);
    assert!(case.roster.silent(ms(5000)).is_empty(), "once");
    case.roster.connected(case.peer, ms(0));
    assert_eq!(case.hear(5, 2, 5000), Heard::Joined);
    assert!(case.roster.silent(ms(60_000)).is_empty(), "the network decides when a connected node is dead");
}

#[test]
fn a_quarantined_node_is_gone_and_its_adverts_are_ignored() {
    let mut case = Case::noted();
    let mut election = Election::new(case.roster.local, true, false, None);
    let term = Term { counter: 3, master: case.peer };
    let claims = |sequence| Advert {
        incarnation: 5,
        sequence,
        term: Some(term),
        works: true,
        force_master: true,
        uptime: Duration::from_secs(3600),
        ..advert_of(case.peer)
    };
    let voice = Candidate::of(&claims(1));
    assert_eq!(case.roster.heard(claims(1), member(case.peer), ms(0)), Heard::Joined);
    assert_eq!(election.handle(Event::Heard(case.peer, voice), ms(0)), Some(Changed(Some(term))));

    assert!(case.roster.exclude(case.peer, ms(1000)));
    assert_eq!(election.handle(Event::Gone { peer: case.peer, silent: true }, ms(1000)), Some(Changed(None)));
    assert_eq!(case.roster.heard(claims(2), member(case.peer), ms(1100)), Heard::Old);
    case.roster.connected(case.peer, ms(0));
    assert_eq!(
        case.roster.heard(Advert { incarnation: 6, ..claims(1) }, member(case.peer), ms(60_000)),
        Heard::Old,
        "a later run"
    );
    assert!(!case.roster.contains(&case.peer));
    let own = Term { counter: 4, master: case.roster.local };
    assert_eq!(election.handle(Event::Tick, ms(10_000)), Some(Changed(Some(own))));
    assert!(!case.roster.exclude(case.peer, ms(60_001)), "it was no longer a member");
}

#[test]
fn authors_that_were_never_admitted_do_not_exist_however_many_one_connection_forges() {
    let mut case = Case::new();
    case.roster.connected(peer(FORGER), ms(0));
    for _ in 0..1100 {
        case.peer = fresh_peer();
        assert_eq!(case.forged(1, 0), Heard::Stranger);
        assert_eq!(case.forged(2, 10), Heard::Stranger);
    }
    assert_eq!(case.roster.adverts().count(), 0);
    // The forger itself is admitted, and so is a newcomer.
    for newcomer in [peer(FORGER), fresh_peer()] {
        case.peer = newcomer;
        case.roster.connected(newcomer, ms(10));
        assert_eq!(case.forged(1, 20), Heard::Joined);
    }
}

#[test]
fn a_node_without_a_proof_counts_while_and_after_it_is_connected() {
    let mut case = Case::new();
    assert_eq!(case.forged(1, 0), Heard::Stranger);
    case.roster.connected(case.peer, ms(1));
    assert_eq!(case.forged(2, 2), Heard::Joined);
    case.roster.disconnected(case.peer, ms(1000));
    assert_eq!(case.forged(3, 2000), Heard::Joined, "through another node");
}

#[test]
fn a_replayed_advert_of_a_node_that_died_earlier_never_makes_it_present() {
    // Known from nowhere, proven by the certificate in the advert.
    let mut case = Case::new();
    for at in [0, 100, 5000, 60_000] {
        assert_ne!(case.hear(5, 7, at), Heard::Joined);
    }
    assert_ne!(case.hear(5, 6, 60_001), Heard::Joined);
    assert_eq!(case.hear(5, 8, 60_002), Heard::Joined, "only the living publish another one");
    // It dies; what it had said is replayed in order, also after it was connected.
    case.roster.silent(ms(120_000));
    case.roster.connected(case.peer, ms(121_000));
    case.roster.disconnected(case.peer, ms(122_000));
    for sequence in 1..=8 {
        assert_eq!(case.hear(5, sequence, 130_000 + sequence), Heard::Old);
    }
    // The same where no advert of it arrived while it was connected.
    let mut case = Case::new();
    case.roster.connected(case.peer, ms(0));
    case.roster.disconnected(case.peer, ms(10));
    assert_eq!(case.hear(5, 7, 1000), Heard::Noted);
    assert_eq!(case.hear(5, 7, 2000), Heard::Old);
}

#[test]
fn one_forwarder_fills_neither_the_pool_nor_keeps_others_out() {
    let (mut case, mut joined) = (Case::new(), 0);
    case.roster.connected(peer(FORGER), ms(0));
    for _ in 0..2000 {
        let author = fresh_peer();
        for sequence in 1..3 {
            let advert = Advert { sequence, ..advert_of(author) };
            joined += usize::from(case.roster.heard(advert, member(peer(FORGER)), ms(sequence)) == Heard::Joined);
        }
    }
    assert_eq!((joined, case.roster.noted.len() <= MAX_OF_FORWARDER), (MAX_OF_FORWARDER, true));
    // Another one's authors have a place, up to the size of the pool; connected nodes always have.
    for _ in 0..2000 {
        let (author, forwarder) = (fresh_peer(), fresh_peer());
        for sequence in 1..3 {
            case.roster.heard(Advert { sequence, ..advert_of(author) }, member(forwarder), ms(sequence));
        }
    }
    assert_eq!(case.roster.adverts().count(), MAX_RELAYED);
    case.roster.connected(case.peer, ms(5));
    assert_eq!(case.hear(1, 1, 6), Heard::Joined);
}

#[test]
fn a_forwarder_and_an_author_that_flood_are_ignored_beyond_their_rate() {
    let mut case = Case::noted();
    case.roster.connected(peer(FORGER), ms(0));
    let passed = (0..5000).filter(|_| case.roster.may_forward(&peer(FORGER), ms(0))).count();
    assert_eq!(passed, ADVERTS_OF_FORWARDER.burst as usize);
    assert!(case.roster.may_forward(&peer(FORGER), ms(1000)), "the next second");
    let newer = (2..1000).filter(|sequence| case.hear(1, *sequence, 0) == Heard::Newer).count();
    assert_eq!(newer, ADVERTS_OF_AUTHOR.burst as usize);
}

#[test]
fn what_is_remembered_of_nodes_is_limited() {
    let mut case = Case::new();
    for at in 0..MAX_GONE as u64 + 10 {
        case.peer = fresh_peer();
        case.roster.connected(case.peer, ms(at));
        case.hear(1, 1, at);
        case.roster.disconnected(case.peer, ms(at));
    }
    assert_eq!((case.roster.gone.len(), case.roster.admitted.len()), (MAX_GONE, MAX_ADMITTED));
    assert!(case.roster.forwarders.is_empty() && case.roster.noted.is_empty());
}

#[test]
fn an_advert_without_a_proof_replaces_only_that_of_a_node_that_was_connected() {
    let mut case = Case::noted();
    assert_eq!(case.hear(5, 1, 0), Heard::Joined);
    assert_eq!(case.forged(2, 1), Heard::Stranger, "in the name of a node that proves itself");
    assert!(case.roster.adverts().all(|advert| advert.sequence == 1));
    case.roster.connected(case.peer, ms(2));
    assert_eq!((case.forged(2, 3), case.forged(2, 4)), (Heard::Newer, Heard::Old));
}

#[test]
fn what_one_forwarder_lets_note_pushes_out_its_own_notes_only() {
    let (mut case, other) = (Case::new(), fresh_peer());
    let hear = |roster: &mut Roster, author, sequence, forwarder, at| {
        roster.heard(Advert { sequence, ..advert_of(author) }, member(forwarder), ms(at))
    };
    assert_eq!(hear(&mut case.roster, case.peer, 1, other, 0), Heard::Noted);
    let forged: Vec<PeerId> = (0..=2 * MAX_OF_FORWARDER as u64).map(|_| fresh_peer()).collect();
    for (at, author) in (1..).zip(&forged) {
        assert_eq!(hear(&mut case.roster, *author, 1, peer(FORGER), at), Heard::Noted);
    }
    assert_eq!(case.roster.noted.len(), MAX_OF_FORWARDER + 1);
    let late = forged.len() as u64 + 1;
    assert_eq!(hear(&mut case.roster, case.peer, 2, other, late), Heard::Joined);
    assert_eq!(hear(&mut case.roster, forged[0], 2, peer(FORGER), late), Heard::Noted, "the oldest note is forgotten");
    // All forwarders together have a limit as well.
    for _ in 0..2 * MAX_RELAYED {
        hear(&mut case.roster, fresh_peer(), 1, fresh_peer(), late);
    }
    assert_eq!(case.roster.noted.len(), MAX_RELAYED);
}

#[test]
fn strangers_that_come_and_go_push_out_no_connected_node() {
    let mut case = Case::new();
    case.roster.connected(case.peer, ms(0));
    let first = fresh_peer();
    for (at, stranger) in (1..).zip(std::iter::once(first).chain((0..MAX_ADMITTED).map(|_| fresh_peer()))) {
        case.roster.connected(stranger, ms(at));
        assert!(!case.roster.disconnected(stranger, ms(at)), "it has published nothing");
    }
    assert!(case.roster.was_admitted(&case.peer) && case.roster.is_connected(&case.peer));
    assert!(!case.roster.was_admitted(&first) && !case.roster.is_connected(&first));
    assert_eq!(case.roster.connections(), &BTreeSet::from([case.peer]));
    assert!(!case.roster.contains(&case.peer));
    assert_eq!(case.forged(1, 5000), Heard::Joined);
    assert!(case.roster.contains(&case.peer));
}
