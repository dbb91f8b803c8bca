//! Nodes that ask to be admitted with nothing in their hands, and the six digits that people compare on both screens. The joiner
//! commits to its nonce before it sees the member's, so neither side, and nobody between them, can search for digits that
//! match: each attempt matches with a probability of 10⁻⁶, and few attempts fit. Pure: nonces and the time are passed in.

use std::collections::BTreeMap;
use std::net::IpAddr;

use libp2p_identity::PeerId;

use super::certificate::PoolId;
use super::invitation::Terms;
use super::join::JoinRefusal;

/// Nodes that wait at once. Each is one attempt to match somebody else's digits. An attacker that has all places and begins
/// again in each as often as it may has 80 attempts in [`WAIT_S`]: a chance of 8·10⁻⁵, in plain sight of `pangea members list`.
pub const MAX_PENDING: usize = 8;

/// Nodes of one host that wait at once, so that one stranger leaves places for others.
pub const MAX_PER_HOST: usize = 3;

/// Time that a node waits, in seconds: people walk between two machines.
pub const WAIT_S: u64 = 600;

/// Six digits, the same on both screens unless somebody stands between the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SixDigits(u32);

impl SixDigits {
    /// The digits of one exchange.
    pub fn of(
        pool: &PoolId,
        joiner: &PeerId,
        member: &PeerId,
        joiner_nonce: &[u8; 32],
        member_nonce: &[u8; 32],
    ) -> SixDigits {
        let mut hasher = blake3::Hasher::new_derive_key("pangea 2026-11 join/1 six digits");
        hasher.update(&pool.0);
        for peer in [joiner, member] {
            let id = peer.to_bytes();
            hasher.update(&(id.len() as u64).to_le_bytes());
            hasher.update(&id);
        }
        hasher.update(joiner_nonce);
        hasher.update(member_nonce);
        let hash = hasher.finalize();
        let bytes = hash.as_bytes();
        let number =
            u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
        // The remainder prefers no digits by more than one in 10¹³.
        SixDigits((number % 1_000_000) as u32)
    }

    /// The digits in a text, with or without a space or dash between them.
    pub fn parse(text: &str) -> Option<SixDigits> {
        let digits: String = text.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
        let right = digits.len() == 6 && digits.bytes().all(|c| c.is_ascii_digit());
        right.then(|| digits.parse().ok().map(SixDigits)).flatten()
    }
}

impl std::fmt::Display for SixDigits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:03} {:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// The joiner's commitment to its nonce, for one member.
pub fn commitment(joiner: &PeerId, member: &PeerId, nonce: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("pangea 2026-11 join/1 commitment");
    for peer in [joiner, member] {
        let id = peer.to_bytes();
        hasher.update(&(id.len() as u64).to_le_bytes());
        hasher.update(&id);
    }
    hasher.update(nonce);
    *hasher.finalize().as_bytes()
}

/// How far a node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has committed to a nonce and has been given ours.
    Committed { commitment: [u8; 32], our_nonce: [u8; 32] },
    /// Both sides know the digits.
    Compared(SixDigits),
    /// The owner of this node has accepted it.
    Accepted(Terms),
}

#[derive(Clone, Debug)]
struct Waiting {
    name: String,
    host: Option<IpAddr>,
    since_unix_s: u64,
    stage: Stage,
}

/// A node that waits, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingNode {
    /// The node.
    pub peer: PeerId,
    /// What it calls itself.
    pub name: String,
    /// The digits that its screen shows too.
    pub digits: SixDigits,
    /// When it asked, in seconds since 1970.
    pub since_unix_s: u64,
}

/// Why a node is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAccepted {
    /// It does not wait.
    NotPending,
    /// The digits are other ones.
    OtherDigits,
}

/// The nodes that wait for this one's owner to accept them.
#[derive(Debug)]
pub struct Pending {
    local: PeerId,
    pool: PoolId,
    waiting: BTreeMap<PeerId, Waiting>,
}

impl Pending {
    /// Nobody waits at the member `local` of `pool`.
    pub fn new(local: PeerId, pool: PoolId) -> Pending {
        Pending { local, pool, waiting: BTreeMap::new() }
    }

    fn forget_old(&mut self, now_unix_s: u64) {
        self.waiting.retain(|_, waiting| now_unix_s.saturating_sub(waiting.since_unix_s) < WAIT_S);
    }

    /// `joiner` has committed to a nonce. `our_nonce`: 32 fresh random bytes, which the joiner is given. A node that
    /// waits already begins again in its place, but not sooner than a tenth of [`WAIT_S`] after it began: each beginning is an
    /// attempt to match digits.
    ///
    /// # Errors
    /// [`JoinRefusal::Full`].
    pub fn committed(
        &mut self,
        joiner: PeerId,
        name: &str,
        host: Option<IpAddr>,
        commitment: [u8; 32],
        our_nonce: [u8; 32],
        now_unix_s: u64,
    ) -> Result<(), JoinRefusal> {
        self.forget_old(now_unix_s);
        let of_host = |waiting: &&Waiting| host.is_some() && waiting.host == host;
        let is_full = match self.waiting.get(&joiner) {
            Some(before) => now_unix_s.saturating_sub(before.since_unix_s) < WAIT_S / 10,
            None => self.waiting.len() >= MAX_PENDING || self.waiting.values().filter(of_host).count() >= MAX_PER_HOST,
        };
        if is_full {
            return Err(JoinRefusal::Full);
        }
        let stage = Stage::Committed { commitment, our_nonce };
        self.waiting.insert(joiner, Waiting { name: name.to_owned(), host, since_unix_s: now_unix_s, stage });
        Ok(())
    }

    /// `joiner` opens its commitment; returns the node with its digits, to be shown.
    ///
    /// # Errors
    /// [`JoinRefusal::Denied`] if it has not committed, [`JoinRefusal::Malformed`] if the nonce is another one.
    pub fn revealed(&mut self, joiner: PeerId, nonce: &[u8; 32], now_unix_s: u64) -> Result<PendingNode, JoinRefusal> {
        self.forget_old(now_unix_s);
        let waiting = self.waiting.get_mut(&joiner).ok_or(JoinRefusal::Denied)?;
        let Stage::Committed { commitment: committed, our_nonce } = waiting.stage else {
            return Err(JoinRefusal::Malformed);
        };
        if commitment(&joiner, &self.local, nonce) != committed {
            self.waiting.remove(&joiner);
            return Err(JoinRefusal::Malformed);
        }
        let digits = SixDigits::of(&self.pool, &joiner, &self.local, nonce, &our_nonce);
        waiting.stage = Stage::Compared(digits);
        Ok(PendingNode { peer: joiner, name: waiting.name.clone(), digits, since_unix_s: waiting.since_unix_s })
    }

    /// `joiner` asks what has become of it; its name and terms, or `None` if nobody has accepted it yet. Once accepted it may
    /// ask again for a while: its answer may have been lost.
    ///
    /// # Errors
    /// [`JoinRefusal::Denied`] if it does not wait, or not any longer.
    pub fn polled(&mut self, joiner: &PeerId, now_unix_s: u64) -> Result<Option<(String, Terms)>, JoinRefusal> {
        self.forget_old(now_unix_s);
        let waiting = self.waiting.get(joiner).ok_or(JoinRefusal::Denied)?;
        match waiting.stage {
            Stage::Accepted(terms) => Ok(Some((waiting.name.clone(), terms))),
            Stage::Compared(_) => Ok(None),
            Stage::Committed { .. } => Err(JoinRefusal::Denied),
        }
    }

    /// The owner accepts `joiner`, whose screen shows `digits`.
    ///
    /// # Errors
    /// [`NotAccepted`]. Other digits end the attempt: somebody may stand between the two nodes.
    pub fn accept(
        &mut self,
        joiner: &PeerId,
        digits: SixDigits,
        terms: Terms,
        now_unix_s: u64,
    ) -> Result<(), NotAccepted> {
        self.forget_old(now_unix_s);
        let waiting = self.waiting.get_mut(joiner).ok_or(NotAccepted::NotPending)?;
        match waiting.stage {
            Stage::Compared(shown) if shown == digits => {
                waiting.stage = Stage::Accepted(terms);
                Ok(())
            }
            Stage::Compared(_) => {
                self.waiting.remove(joiner);
                Err(NotAccepted::OtherDigits)
            }
            Stage::Committed { .. } | Stage::Accepted(_) => Err(NotAccepted::NotPending),
        }
    }

    /// The owner turns `joiner` away; returns whether it waited.
    pub fn dismiss(&mut self, joiner: &PeerId) -> bool {
        self.waiting.remove(joiner).is_some()
    }

    /// Whether `joiner` waits, also if it was accepted and has not heard of it yet.
    pub fn waits(&self, joiner: &PeerId) -> bool {
        self.waiting.contains_key(joiner)
    }

    /// The nodes that can be accepted, by peer id.
    pub fn list(&mut self, now_unix_s: u64) -> Vec<PendingNode> {
        self.forget_old(now_unix_s);
        let shown = |(peer, waiting): (&PeerId, &Waiting)| match waiting.stage {
            Stage::Compared(digits) => Some(PendingNode {
                peer: *peer,
                name: waiting.name.clone(),
                digits,
                since_unix_s: waiting.since_unix_s,
            }),
            Stage::Committed { .. } | Stage::Accepted(_) => None,
        };
        self.waiting.iter().filter_map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::certificate::Role;
    use super::*;
    use crate::test_peers::{fresh_peer, peer};

    const NOW: u64 = 1_800_000_000;
    const TERMS: Terms = Terms { role: Role::Member, member_for_s: 100 };
    const POOL: PoolId = PoolId([3; 32]);

    fn at_member() -> Pending {
        Pending::new(peer(1), POOL)
    }

    /// `joiner` commits and reveals; what the member shows then.
    fn compared(pending: &mut Pending, joiner: PeerId, nonce: u8, now: u64) -> Result<PendingNode, JoinRefusal> {
        pending.committed(
            joiner,
            "mac2",
            None,
            commitment(&joiner, &peer(1), &[nonce; 32]),
            [nonce ^ 0xff; 32],
            now,
        )?;
        pending.revealed(joiner, &[nonce; 32], now)
    }

    #[test]
    fn both_sides_show_the_same_digits_and_a_node_is_admitted_once_they_are_accepted() {
        let mut pending = at_member();
        let node = compared(&mut pending, peer(2), 7, NOW).unwrap();
        assert_eq!(node.digits, SixDigits::of(&POOL, &peer(2), &peer(1), &[7; 32], &[0xf8; 32]));
        assert_eq!(pending.list(NOW), std::slice::from_ref(&node));
        assert_eq!(pending.polled(&peer(2), NOW), Ok(None));
        assert_eq!(pending.accept(&peer(2), node.digits, TERMS, NOW), Ok(()));
        assert_eq!(pending.polled(&peer(2), NOW), Ok(Some(("mac2".to_owned(), TERMS))));
        assert!(pending.list(NOW).is_empty() && pending.waits(&peer(2)) && !pending.waits(&peer(3)));
        assert_eq!(pending.polled(&peer(3), NOW), Err(JoinRefusal::Denied));
    }

    #[test]
    fn the_digits_depend_on_everything_that_an_attacker_could_change() {
        let digits = SixDigits::of(&POOL, &peer(2), &peer(1), &[7; 32], &[8; 32]);
        for other in [
            SixDigits::of(&PoolId([4; 32]), &peer(2), &peer(1), &[7; 32], &[8; 32]),
            SixDigits::of(&POOL, &peer(1), &peer(2), &[7; 32], &[8; 32]),
            SixDigits::of(&POOL, &peer(3), &peer(1), &[7; 32], &[8; 32]),
            SixDigits::of(&POOL, &peer(2), &peer(1), &[8; 32], &[8; 32]),
            SixDigits::of(&POOL, &peer(2), &peer(1), &[7; 32], &[7; 32]),
        ] {
            assert_ne!(digits, other);
        }
        let shown = digits.to_string();
        assert_eq!((shown.len(), SixDigits::parse(&shown)), (7, Some(digits)));
        assert_eq!(SixDigits::parse(&shown.replace(' ', "")), Some(digits));
        for text in ["", "12345", "1234567", "12345a", "+12345"] {
            assert_eq!(SixDigits::parse(text), None, "{text}");
        }
        assert_eq!(SixDigits(42).to_string(), "000 042");
    }

    #[test]
    fn a_nonce_chosen_after_the_members_does_not_open_the_commitment() {
        let mut pending = at_member();
        let committed = commitment(&peer(2), &peer(1), &[7; 32]);
        pending.committed(peer(2), "mac2", None, committed, [8; 32], NOW).unwrap();
        assert_eq!(pending.revealed(peer(2), &[9; 32], NOW), Err(JoinRefusal::Malformed));
        assert_eq!(pending.revealed(peer(2), &[7; 32], NOW), Err(JoinRefusal::Denied), "there is no second try");
        assert!(pending.list(NOW).is_empty());
        // A commitment made for another member is none here.
        let elsewhere = commitment(&peer(3), &peer(9), &[7; 32]);
        pending.committed(peer(3), "mac3", None, elsewhere, [8; 32], NOW).unwrap();
        assert_eq!(pending.revealed(peer(3), &[7; 32], NOW), Err(JoinRefusal::Malformed));
    }

    #[test]
    fn other_digits_end_the_attempt() {
        let mut pending = at_member();
        let node = compared(&mut pending, peer(2), 7, NOW).unwrap();
        let other = SixDigits((node.digits.0 + 1) % 1_000_000);
        assert_eq!(pending.accept(&peer(2), other, TERMS, NOW), Err(NotAccepted::OtherDigits));
        assert_eq!(pending.accept(&peer(2), node.digits, TERMS, NOW), Err(NotAccepted::NotPending));
        assert_eq!(pending.polled(&peer(2), NOW), Err(JoinRefusal::Denied));
    }

    #[test]
    fn a_node_waits_for_a_limited_time_and_can_be_turned_away() {
        let mut pending = at_member();
        let node = compared(&mut pending, peer(2), 7, NOW).unwrap();
        assert_eq!(pending.polled(&peer(2), NOW + WAIT_S - 1), Ok(None));
        assert_eq!(pending.polled(&peer(2), NOW + WAIT_S), Err(JoinRefusal::Denied));
        assert_eq!(pending.accept(&peer(2), node.digits, TERMS, NOW + WAIT_S), Err(NotAccepted::NotPending));
        compared(&mut pending, peer(3), 7, NOW).unwrap();
        assert!(pending.dismiss(&peer(3)) && !pending.dismiss(&peer(3)));
        assert_eq!(pending.polled(&peer(3), NOW), Err(JoinRefusal::Denied));
    }

    #[test]
    fn few_attempts_fit_and_a_node_does_not_draw_digits_in_a_row() {
        let mut pending = at_member();
        let attempts = (0..100).filter(|_| compared(&mut pending, fresh_peer(), 7, NOW).is_ok()).count();
        assert_eq!(attempts, MAX_PENDING);
        let mut pending = at_member();
        let again = |pending: &mut Pending, now| compared(pending, peer(2), 7, now).is_ok();
        assert!(again(&mut pending, NOW) && !again(&mut pending, NOW + WAIT_S / 10 - 1));
        assert!(again(&mut pending, NOW + WAIT_S / 10));
        let mut pending = at_member();
        let mut from = |host: [u8; 4]| {
            let joiner = fresh_peer();
            pending.committed(joiner, "mac2", Some(IpAddr::from(host)), [0; 32], [8; 32], NOW).is_ok()
        };
        assert_eq!((0..MAX_PENDING).filter(|_| from([10, 0, 0, 1])).count(), MAX_PER_HOST);
        assert!(from([10, 0, 0, 2]));
    }

    proptest! {
        #[test]
        fn only_the_owners_word_admits(steps in prop::collection::vec((0..4u8, 0..3u64, 0..3u8, 0..700u64), 1..60)) {
            let (mut pending, mut now) = (at_member(), NOW);
            let mut accepted = std::collections::BTreeSet::new();
            for (step, who, nonce, later) in steps {
                let joiner = peer(10 + who);
                now += later / 50;
                match step {
                    0 => {
                        if pending.committed(joiner, "x", None, commitment(&joiner, &peer(1), &[nonce; 32]), [1; 32], now).is_ok() {
                            accepted.remove(&joiner);
                        }
                    }
                    1 => drop(pending.revealed(joiner, &[nonce; 32], now)),
                    2 => {
                        let shown = pending.list(now).into_iter().find(|node| node.peer == joiner);
                        if let Some(node) = shown {
                            prop_assert_eq!(pending.accept(&joiner, node.digits, TERMS, now), Ok(()));
                            accepted.insert(joiner);
                        }
                    }
                    _ => {
                        let granted = matches!(pending.polled(&joiner, now), Ok(Some(_)));
                        prop_assert!(!granted || accepted.contains(&joiner));
                    }
                }
                prop_assert!(pending.waiting.len() <= MAX_PENDING);
            }
        }
    }
}
