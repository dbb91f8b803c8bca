//! Accusations between a few nodes, and at their limits.

use super::*;
use crate::test_peers::fresh_peer;

const SIZE: u64 = 1000;

fn digest(number: u64) -> Digest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Digest::from_bytes(bytes)
}

fn accusation(accuser: PeerId, accused: PeerId, number: u64) -> Accusation {
    let (kind, evidence) = (EvidenceKind::Product, digest(number));
    Accusation { accuser, accused, kind, evidence, evidence_bytes: SIZE }
}

/// A node under test whose peers are all members.
struct Node {
    accusations: Accusations,
    now: Time,
    /// Peers that are no members.
    strangers: BTreeSet<PeerId>,
}

impl Node {
    fn new() -> Node {
        Node { accusations: Accusations::new(fresh_peer()), now: Time::ZERO, strangers: BTreeSet::new() }
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.accusations.handle(event, self.now, |peer| !self.strangers.contains(peer))
    }

    fn hear(&mut self, from: PeerId, accusation: Accusation) -> Vec<Action> {
        self.handle(Event::Heard { from, accusation })
    }

    /// Fetches what is asked for and checks it with this outcome; returns the actions of the check.
    fn check(&mut self, number: u64, outcome: Recheck) -> Vec<Action> {
        let asked = self.handle(Event::Fetched(digest(number)));
        assert!(matches!(asked[..], [Action::Check(_), ..]), "{asked:?}");
        self.handle(Event::Checked(digest(number), outcome))
    }
}

fn convicted(actions: &[Action]) -> Option<(PeerId, Ground)> {
    actions.iter().find_map(|action| match action {
        Action::Convict(accusation, ground) => Some((accusation.accused, ground.clone())),
        _ => None,
    })
}

fn fetches(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Fetch { .. })).count()
}

#[test]
fn nobody_is_convicted_by_a_word() {
    let (mut node, accuser, accused) = (Node::new(), fresh_peer(), fresh_peer());
    let heard = node.hear(accuser, accusation(accuser, accused, 1));
    assert_eq!(heard, [Action::Fetch { evidence: digest(1), evidence_bytes: SIZE, from: accuser }]);
    assert_eq!(node.handle(Event::FetchFailed(digest(1))), []);
    // Told again: asked again.
    assert_eq!(fetches(&node.hear(accuser, accusation(accuser, accused, 1))), 1);
    assert_eq!(convicted(&node.check(1, Recheck::Unable)), None);
}

#[test]
fn evidence_that_this_node_checked_convicts_and_is_told_on_under_its_own_name() {
    let (mut node, accuser, accused, other) = (Node::new(), fresh_peer(), fresh_peer(), fresh_peer());
    let local = node.accusations.local;
    node.handle(Event::Up(other));
    node.hear(accuser, accusation(accuser, accused, 1));
    let done = node.check(1, Recheck::Proven);
    let own = accusation(local, accused, 1);
    let told = Action::Tell { peer: other, accusations: vec![own] };
    let convict = Action::Convict(accusation(accuser, accused, 1), Ground::Checked);
    assert_eq!(done, [convict, Action::Accuse(own), told]);
    // A peer that connects later is told as well, and everyone again after a while.
    let late = fresh_peer();
    assert_eq!(node.handle(Event::Up(late)), [Action::Tell { peer: late, accusations: vec![own] }]);
    assert_eq!(node.handle(Event::Tick), []);
    node.now += TELL_INTERVAL;
    assert_eq!(node.handle(Event::Tick).len(), 2);
    // More evidence against the same peer costs nothing.
    assert_eq!(node.hear(other, accusation(other, accused, 2)), []);
}

#[test]
fn a_refuted_accusation_convicts_nobody_and_makes_its_accuser_a_suspect() {
    let (mut node, accuser, accused) = (Node::new(), fresh_peer(), fresh_peer());
    node.hear(accuser, accusation(accuser, accused, 1));
    assert_eq!(node.check(1, Recheck::Refuted), [Action::Suspect(accuser), Action::Forget(digest(1))]);
    assert_eq!(node.hear(accuser, accusation(accuser, accused, 1)), [], "not checked again");
}

#[test]
fn an_accusation_of_this_node_by_a_member_is_reported_once() {
    let (mut node, member, stranger) = (Node::new(), fresh_peer(), fresh_peer());
    node.strangers.insert(stranger);
    let local = node.accusations.local;
    assert_eq!(node.hear(member, accusation(stranger, local, 1)), []);
    let accused = accusation(member, local, 1);
    assert_eq!(node.hear(member, accused), [Action::Accused(accused)], "and nothing is fetched");
    assert_eq!(node.hear(member, accused), [], "told again");
    for number in 2..2 * AGAINST_SELF_MAX as u64 {
        node.hear(member, accusation(member, local, number));
    }
    assert_eq!(node.accusations.against_self.len(), AGAINST_SELF_MAX);
}

#[test]
fn where_a_node_cannot_check_two_members_that_did_are_needed() {
    let (mut node, accused) = (Node::new(), fresh_peer());
    let [first, second, stranger] = [fresh_peer(), fresh_peer(), fresh_peer()];
    node.strangers.insert(stranger);
    node.hear(first, accusation(first, accused, 1));
    assert_eq!(convicted(&node.check(1, Recheck::Unable)), None);
    assert_eq!(node.hear(first, accusation(first, accused, 1)), [], "the same member counts once");
    assert_eq!(node.hear(first, accusation(stranger, accused, 1)), [], "strangers do not count");
    assert_eq!(node.hear(first, accusation(accused, accused, 1)), []);
    let other_facts = Accusation { accused: fresh_peer(), ..accusation(second, accused, 1) };
    assert_eq!(node.hear(second, other_facts), [], "another accusation");
    let (peer, ground) = convicted(&node.hear(second, accusation(second, accused, 1))).unwrap();
    assert_eq!((peer, ground), (accused, Ground::Confirmed(BTreeSet::from([first, second]).into_iter().collect())));
    // What this node did not check it tells on in the words of those who did.
    let late = fresh_peer();
    let told = node.handle(Event::Up(late));
    let words = [accusation(first, accused, 1), accusation(second, accused, 1)];
    assert!(
        matches!(&told[..], [Action::Tell { accusations, .. }] if words.iter().all(|said| accusations.contains(said)))
    );
}

#[test]
fn a_member_that_lost_its_standing_confirms_nothing() {
    let (mut node, accused, [first, second]) = (Node::new(), fresh_peer(), [fresh_peer(), fresh_peer()]);
    node.hear(first, accusation(first, accused, 1));
    node.check(1, Recheck::Unable);
    node.strangers.insert(first);
    assert_eq!(convicted(&node.hear(second, accusation(second, accused, 1))), None);
}

#[test]
fn one_accuser_takes_neither_the_place_nor_the_time_of_another() {
    let (mut node, loud, quiet, liar) = (Node::new(), fresh_peer(), fresh_peer(), fresh_peer());
    let mut asked = 0;
    for number in 0..10 * CASES_PER_ACCUSER as u64 {
        asked += fetches(&node.hear(loud, accusation(loud, fresh_peer(), number)));
    }
    assert_eq!((asked, node.accusations.cases.len()), (1, CASES_PER_ACCUSER));
    node.hear(quiet, accusation(quiet, liar, 1_000_000));
    // The first of the loud one is under way; the quiet one is next.
    let next = node.check(0, Recheck::Refuted);
    assert!(
        next.contains(&Action::Fetch { evidence: digest(1_000_000), evidence_bytes: SIZE, from: quiet }),
        "{next:?}"
    );
    assert_eq!(convicted(&node.check(1_000_000, Recheck::Proven)), Some((liar, Ground::Checked)));
    // Nor does large evidence.
    let large = Accusation { evidence_bytes: BYTES_PER_ACCUSER + 1, ..accusation(quiet, fresh_peer(), 2_000_000) };
    let before = node.accusations.cases.len();
    node.hear(quiet, large);
    assert_eq!(node.accusations.cases.len(), before);
}

#[test]
fn a_flood_of_false_accusations_lets_no_convicted_peer_out() {
    let (mut node, accuser, liar) = (Node::new(), fresh_peer(), fresh_peer());
    node.hear(accuser, accusation(accuser, liar, 0));
    node.check(0, Recheck::Proven);
    let mut number = 1;
    while number < 2 * CASES_MAX as u64 {
        let sybil = fresh_peer();
        for _ in 0..CASES_PER_ACCUSER {
            let heard = node.hear(sybil, accusation(sybil, fresh_peer(), number));
            assert_eq!(fetches(&heard), 1);
            node.check(number, Recheck::Refuted);
            number += 1;
        }
    }
    assert!(node.accusations.cases.len() <= CASES_MAX);
    assert!(node.accusations.is_proven(&digest(0)));
}

#[test]
fn own_findings_and_those_of_earlier_runs_are_told() {
    let (mut node, accused, peer) = (Node::new(), fresh_peer(), fresh_peer());
    let own = accusation(node.accusations.local, accused, 1);
    assert_eq!(node.handle(Event::Found(own)), []);
    assert_eq!(node.handle(Event::Up(peer)), [Action::Tell { peer, accusations: vec![own] }]);
}

#[test]
fn evidence_is_fetched_from_whoever_says_to_have_it_until_one_gives_it() {
    let (mut node, accused, [first, second]) = (Node::new(), fresh_peer(), [fresh_peer(), fresh_peer()]);
    node.hear(first, accusation(first, accused, 1));
    node.hear(second, accusation(second, accused, 1));
    let next = node.handle(Event::FetchFailed(digest(1)));
    assert_eq!(next, [Action::Fetch { evidence: digest(1), evidence_bytes: SIZE, from: second }]);
    node.handle(Event::Down(second));
    assert_eq!(node.handle(Event::FetchFailed(digest(1))), []);
    assert_eq!(fetches(&node.hear(first, accusation(first, accused, 1))), 1);
}

#[test]
fn an_accusation_that_was_heard_is_known_and_only_a_conviction_proves_it() {
    let (mut node, accuser, other, accused) = (Node::new(), fresh_peer(), fresh_peer(), fresh_peer());
    node.hear(accuser, accusation(accuser, accused, 1));
    let known = |node: &Node, accuser, number| node.accusations.knows(accuser, &digest(number));
    assert!(known(&node, &accuser, 1) && !known(&node, &other, 1) && !known(&node, &accuser, 2));
    assert!(!node.accusations.is_proven(&digest(1)));
    node.check(1, Recheck::Proven);
    assert!(node.accusations.is_proven(&digest(1)) && !node.accusations.is_proven(&digest(2)));
}

#[test]
fn what_is_not_proven_or_has_no_evidence_is_not_told() {
    let (mut node, accuser, accused) = (Node::new(), fresh_peer(), fresh_peer());
    node.hear(accuser, accusation(accuser, accused, 1));
    assert_eq!(node.handle(Event::Up(fresh_peer())), [], "only heard");
    node.check(1, Recheck::Unable);
    assert_eq!(node.handle(Event::Up(fresh_peer())), [], "one member says so, and this node cannot check it");
    // A finding of an earlier run whose evidence is lost.
    let own = accusation(node.accusations.local, fresh_peer(), 2);
    assert_eq!(node.handle(Event::Found(Accusation { evidence_bytes: 0, ..own })), []);
    assert_eq!(node.handle(Event::Up(fresh_peer())), []);
}

#[test]
fn the_own_accusation_that_comes_back_is_not_checked_again() {
    let (mut node, peer, accused) = (Node::new(), fresh_peer(), fresh_peer());
    let own = accusation(node.accusations.local, accused, 1);
    assert_eq!(node.hear(peer, own), []);
    assert!(node.accusations.cases.is_empty());
}

#[test]
fn a_case_remembers_so_many_accusers_and_no_more() {
    let (mut node, accused) = (Node::new(), fresh_peer());
    let accusers: Vec<PeerId> = (0..=ACCUSERS_PER_CASE).map(|_| fresh_peer()).collect();
    for accuser in &accusers {
        node.hear(*accuser, accusation(*accuser, accused, 1));
    }
    let known: Vec<bool> = accusers.iter().map(|accuser| node.accusations.knows(accuser, &digest(1))).collect();
    assert_eq!(known, [vec![true; ACCUSERS_PER_CASE], vec![false]].concat());
}

#[test]
fn a_peer_that_is_convicted_takes_no_more_place_whatever_else_it_is_accused_of() {
    let (mut node, accuser, accused) = (Node::new(), fresh_peer(), fresh_peer());
    node.hear(accuser, accusation(accuser, accused, 1));
    node.hear(accuser, accusation(accuser, accused, 2));
    assert_eq!(fetches(&node.check(1, Recheck::Proven)), 0, "the other evidence is not needed any more");
    node.hear(accuser, accusation(accuser, accused, 3));
    assert_eq!(node.accusations.cases.len(), 2);
}

#[test]
fn all_evidence_of_one_accuser_has_a_limit() {
    let size_of = |evidence_bytes, accuser, number| {
        let accused = fresh_peer();
        Accusation { evidence_bytes, ..accusation(accuser, accused, number) }
    };
    let (mut node, one, other) = (Node::new(), fresh_peer(), fresh_peer());
    node.hear(one, size_of(BYTES_PER_ACCUSER, one, 1));
    assert_eq!(node.accusations.cases.len(), 1, "at the limit");
    node.hear(one, size_of(1, one, 2));
    assert_eq!(node.accusations.cases.len(), 1, "one byte more");
    node.hear(other, size_of(BYTES_PER_ACCUSER / 2, other, 3));
    node.hear(other, size_of(BYTES_PER_ACCUSER / 2 + 1, other, 4));
    assert_eq!(node.accusations.cases.len(), 2, "one byte more in two parts");
    node.hear(other, size_of(BYTES_PER_ACCUSER / 2, other, 5));
    assert_eq!(node.accusations.cases.len(), 3);
}

#[test]
fn evidence_that_nobody_has_keeps_no_other_from_its_check() {
    let (mut node, gone, accuser) = (Node::new(), fresh_peer(), fresh_peer());
    node.hear(gone, accusation(gone, fresh_peer(), 1));
    assert_eq!(node.handle(Event::FetchFailed(digest(1))), []);
    let next = node.hear(accuser, accusation(accuser, fresh_peer(), 2));
    assert_eq!(next, [Action::Fetch { evidence: digest(2), evidence_bytes: SIZE, from: accuser }]);
    // The accuser that has cost no check yet is next, and an older case before a newer one.
    let [third, fourth] = [3, 4].map(|number| accusation(accuser, fresh_peer(), number));
    assert_eq!((node.hear(accuser, fourth), node.hear(accuser, third)), (vec![], vec![]));
    let next = node.check(2, Recheck::Unable);
    assert_eq!(next, [Action::Fetch { evidence: digest(4), evidence_bytes: SIZE, from: accuser }]);
}
