//! Invitations: what a token says, and which invitations of this node are open. A token has an address and a secret, never the
//! pool key; the member keeps the secret's hash only. A PIN is an invitation for one node that dies after a few tries. Pure:
//! secrets are passed in, and the caller stores what it is told to.

use std::collections::BTreeSet;

use libp2p_identity::PeerId;
use multiaddr::Multiaddr;
use thiserror::Error;

use super::certificate::{PoolId, Role};
use super::join::{JoinRefusal, SECRET_BYTES};

/// Open invitations of one node: far more than its owner hands out at once.
pub const MAX_INVITATIONS: usize = 64;

/// Nodes that may use one invitation.
pub const MAX_USES: u32 = 64;

/// Tries of a PIN. Whoever does not know it has a chance of 3 in 10⁶ before it dies.
pub const PIN_TRIES: u32 = 3;

/// Life of a PIN in seconds: someone walks to another machine and types six digits.
pub const PIN_LIFE_S: u64 = 600;

/// Addresses of a token: the host's own, over TCP.
pub const MAX_TOKEN_ADDRESSES: usize = 4;

/// Characters of the longest text that is read as a token.
pub const MAX_TOKEN_CHARS: usize = 1024;

/// What a token's text begins with.
const PREFIX: &str = "pangea1";

/// Bytes of the checksum at a token's end, so that a typing error is called one.
const CHECKSUM_BYTES: usize = 4;

/// Digits of base 32 (RFC 4648, section 6), which QR codes hold in their dense mode.
const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// What an invitation gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The role.
    pub role: Role,
    /// Validity of the certificate in seconds from the moment that the node joins.
    pub member_for_s: u64,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The member that issued it, which must be running when it is used.
    pub member: PeerId,
    /// The pool.
    pub pool: PoolId,
    /// The role.
    pub role: Role,
    /// When it expires, in seconds since 1970.
    pub expires_unix_s: u64,
    /// Its secret.
    pub secret: [u8; SECRET_BYTES],
    /// Where the member listens, without its peer id.
    pub addresses: Vec<Multiaddr>,
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It does not begin like one.
    #[error("not a token: a token begins with `{PREFIX}`, a PIN has six digits")]
    NotAToken,
    /// Characters are missing or mistyped.
    #[error("the token is damaged: copy all of it, from `{PREFIX}` to its last character")]
    Damaged,
}

impl Token {
    /// The token as text.
    pub fn to_text(&self) -> String {
        let member = self.member.to_bytes();
        let mut bytes = vec![self.role.code(), member.len() as u8];
        bytes.extend_from_slice(&member);
        bytes.extend_from_slice(&self.pool.0);
        bytes.extend_from_slice(&self.expires_unix_s.to_le_bytes());
        bytes.extend_from_slice(&self.secret);
        for address in self.addresses.iter().take(MAX_TOKEN_ADDRESSES) {
            let address = address.to_vec();
            if let Ok(length) = u8::try_from(address.len()) {
                bytes.push(length);
                bytes.extend_from_slice(&address);
            }
        }
        bytes.extend_from_slice(&checksum(&bytes));
        format!("{PREFIX}{}", base32(&bytes))
    }

    /// Parses a token, in either case and with white space anywhere, as terminals and mail break long lines.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        if text.len() > MAX_TOKEN_CHARS {
            return Err(TokenError::NotAToken);
        }
        let text: String = text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_lowercase()).collect();
        let digits = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        let bytes = from_base32(digits).ok_or(TokenError::Damaged)?;
        let at = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(TokenError::Damaged)?;
        let (fields, sum) = bytes.split_at(at);
        if checksum(fields) != sum {
            return Err(TokenError::Damaged);
        }
        Token::parse_fields(fields).ok_or(TokenError::Damaged)
    }

    fn parse_fields(bytes: &[u8]) -> Option<Token> {
        let ([role, member_bytes], rest) = bytes.split_first_chunk::<2>()?;
        let role = [Role::Member, Role::Client].into_iter().find(|known| known.code() == *role)?;
        let (member, rest) = rest.split_at_checked(usize::from(*member_bytes))?;
        let (pool, rest) = rest.split_first_chunk()?;
        let (expires, rest) = rest.split_first_chunk()?;
        let (secret, mut rest) = rest.split_first_chunk()?;
        let mut addresses = Vec::new();
        while let Some((length, behind)) = rest.split_first() {
            let (address, behind) = behind.split_at_checked(usize::from(*length))?;
            addresses.push(Multiaddr::try_from(address.to_vec()).ok()?);
            rest = behind;
        }
        (addresses.len() <= MAX_TOKEN_ADDRESSES).then_some(Token {
            member: PeerId::from_bytes(member).ok()?,
            pool: PoolId(*pool),
            role,
            expires_unix_s: u64::from_le_bytes(*expires),
            secret: *secret,
            addresses,
        })
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::derive_key("pangea 2026-11 token checksum", bytes);
    [hash[0], hash[1], hash[2], hash[3]]
}

fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    for chunk in bytes.chunks(5) {
        let mut block = [0; 8];
        block[3..3 + chunk.len()].copy_from_slice(chunk);
        let bits = u64::from_be_bytes(block);
        let digits = (chunk.len() * 8).div_ceil(5);
        text.extend((0..digits).map(|index| char::from(DIGITS[(bits >> (35 - 5 * index)) as usize & 31])));
    }
    text
}

/// The bytes of a text in base 32; `None` unless it is their one encoding.
fn from_base32(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u64> =
        text.bytes().map(|c| DIGITS.iter().position(|d| *d == c).map(|p| p as u64)).collect::<Option<_>>()?;
    let mut bytes = Vec::with_capacity(digits.len() * 5 / 8);
    for chunk in digits.chunks(8) {
        let bits = chunk.iter().enumerate().fold(0, |bits, (index, digit)| bits | digit << (35 - 5 * index));
        bytes.extend_from_slice(&bits.to_be_bytes()[3..3 + chunk.len() * 5 / 8]);
    }
    (base32(&bytes) == text).then_some(bytes)
}

/// An open invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// BLAKE3 of the secret.
    pub secret_hash: [u8; 32],
    /// What it gives.
    pub terms: Terms,
    /// When it expires, in seconds since 1970.
    pub expires_unix_s: u64,
    /// Nodes that may use it.
    pub uses: u32,
    /// Nodes that have used it.
    pub used_by: BTreeSet<PeerId>,
}

/// The hash by which a member knows a secret.
pub fn secret_hash(secret: &[u8; SECRET_BYTES]) -> [u8; 32] {
    blake3::derive_key("pangea 2026-11 invitation secret", secret)
}

/// A PIN that is open.
#[derive(Debug)]
struct Pin {
    digits: String,
    terms: Terms,
    expires_unix_s: u64,
    tries: u32,
}

/// The open invitations of a node.
#[derive(Debug, Default)]
pub struct Invitations {
    open: Vec<Invitation>,
    pin: Option<Pin>,
}

impl Invitations {
    /// Invitations that were stored.
    pub fn stored(open: Vec<Invitation>) -> Invitations {
        Invitations { open, pin: None }
    }

    /// Those with a token, to be stored. PINs are not: they live for minutes.
    pub fn open(&self) -> &[Invitation] {
        &self.open
    }

    /// Opens an invitation.
    ///
    /// # Errors
    /// [`JoinRefusal::Full`] if too many are open.
    pub fn add(&mut self, invitation: Invitation, now_unix_s: u64) -> Result<(), JoinRefusal> {
        self.open.retain(|open| open.expires_unix_s > now_unix_s);
        if self.open.len() >= MAX_INVITATIONS {
            return Err(JoinRefusal::Full);
        }
        self.open.push(invitation);
        Ok(())
    }

    /// Opens a PIN in the place of an earlier one.
    pub fn set_pin(&mut self, digits: String, terms: Terms, now_unix_s: u64) {
        let expires_unix_s = now_unix_s.saturating_add(PIN_LIFE_S);
        self.pin = Some(Pin { digits, terms, expires_unix_s, tries: 0 });
    }

    /// `peer` shows a secret. The node that used it last may do so again: its answer may have been lost. The caller stores the
    /// invitations before it answers.
    ///
    /// # Errors
    /// [`JoinRefusal::Unknown`], [`JoinRefusal::Expired`], [`JoinRefusal::Used`].
    pub fn redeem(&mut self, peer: PeerId, secret: &[u8; SECRET_BYTES], now_unix_s: u64) -> Result<Terms, JoinRefusal> {
        let hash = blake3::Hash::from(secret_hash(secret));
        // blake3::Hash compares in constant time.
        let open = self.open.iter_mut().find(|open| hash == open.secret_hash).ok_or(JoinRefusal::Unknown)?;
        if open.expires_unix_s <= now_unix_s {
            return Err(JoinRefusal::Expired);
        }
        if !open.used_by.contains(&peer) && open.used_by.len() >= open.uses as usize {
            return Err(JoinRefusal::Used);
        }
        open.used_by.insert(peer);
        Ok(open.terms)
    }

    /// A node tries the PIN; returns the digits to compare with. Every try counts, whatever becomes of it.
    ///
    /// # Errors
    /// [`JoinRefusal::NoPin`] if none is open.
    pub fn try_pin(&mut self, now_unix_s: u64) -> Result<String, JoinRefusal> {
        let pin = self.pin.as_mut().filter(|pin| pin.expires_unix_s > now_unix_s).ok_or(JoinRefusal::NoPin)?;
        pin.tries += 1;
        let digits = pin.digits.clone();
        // After its last try the PIN is open to that node only: `pin_was_right` closes it.
        if pin.tries > PIN_TRIES {
            self.pin = None;
            return Err(JoinRefusal::NoPin);
        }
        Ok(digits)
    }

    /// The node that tried `digits` has proved that it knows them: the PIN is used.
    ///
    /// # Errors
    /// [`JoinRefusal::NoPin`] if the PIN was used, replaced or expired meanwhile.
    pub fn pin_was_right(&mut self, digits: &str, now_unix_s: u64) -> Result<Terms, JoinRefusal> {
        let right = self.pin.take_if(|pin| pin.digits == digits && pin.expires_unix_s > now_unix_s);
        right.map(|pin| pin.terms).ok_or(JoinRefusal::NoPin)
    }

    /// Tries that the open PIN has left.
    pub fn pin_tries_left(&self) -> u32 {
        self.pin.as_ref().map_or(0, |pin| PIN_TRIES.saturating_sub(pin.tries))
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;
    use proptest::prelude::*;

    use super::*;
    use crate::test_peers::{fresh_peer, peer};

    const NOW: u64 = 1_800_000_000;
    const TERMS: Terms = Terms { role: Role::Member, member_for_s: 100 };

    fn token(addresses: &[&str]) -> Token {
        Token {
            member: Keypair::ed25519_from_bytes([2; 32]).unwrap().public().to_peer_id(),
            pool: PoolId([9; 32]),
            role: Role::Member,
            expires_unix_s: NOW,
            secret: [7; SECRET_BYTES],
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    fn invitation(secret: u8, uses: u32) -> Invitation {
        let secret_hash = secret_hash(&[secret; SECRET_BYTES]);
        Invitation { secret_hash, terms: TERMS, expires_unix_s: NOW + 10, uses, used_by: BTreeSet::new() }
    }

    #[test]
    fn the_text_of_a_token_is_pinned_and_reads_back_however_it_was_copied() {
        let token = token(&["/ip4/192.168.1.20/tcp/7777", "/ip6/fd00::7/tcp/1"]);
        let text = token.to_text();
        assert_eq!(&text[..64], "pangea1aetaajaiaejcbajzo4hkq7ixl5lkgvdgyngh5tglrwfjdnhog6rf35qpl");
        assert_eq!(Token::parse(&text), Ok(token.clone()));
        let (start, end) = text.split_at(80);
        assert_eq!(Token::parse(&format!(" {}\n  {} ", start.to_uppercase(), end)), Ok(token));
    }

    #[test]
    fn a_damaged_token_is_called_damaged() {
        let text = token(&["/ip4/10.0.0.1/tcp/1"]).to_text();
        for damaged in [&text[..text.len() - 1], &text.replacen("pangea1a", "pangea1b", 1), "pangea1", "pangea1!"] {
            assert_eq!(Token::parse(damaged), Err(TokenError::Damaged), "{damaged}");
        }
        for other in ["", "123456", "pangea", &"pangea1".repeat(1000)] {
            assert_eq!(Token::parse(other), Err(TokenError::NotAToken), "{other}");
        }
    }

    #[test]
    fn an_invitation_is_used_once_and_its_user_may_ask_again() {
        let mut invitations = Invitations::default();
        invitations.add(invitation(1, 1), NOW).unwrap();
        let mut redeem = |peer, secret: u8, now| invitations.redeem(peer, &[secret; SECRET_BYTES], now);
        assert_eq!(redeem(peer(1), 2, NOW), Err(JoinRefusal::Unknown));
        assert_eq!(redeem(peer(1), 1, NOW), Ok(TERMS));
        assert_eq!(redeem(peer(1), 1, NOW), Ok(TERMS), "its answer was lost");
        assert_eq!(redeem(peer(2), 1, NOW), Err(JoinRefusal::Used));
        assert_eq!(redeem(peer(1), 1, NOW + 10), Err(JoinRefusal::Expired));
    }

    #[test]
    fn an_invitation_has_as_many_uses_as_it_says() {
        let mut invitations = Invitations::default();
        invitations.add(invitation(1, 3), NOW).unwrap();
        let used = (0..5).filter(|_| invitations.redeem(fresh_peer(), &[1; SECRET_BYTES], NOW).is_ok()).count();
        assert_eq!(used, 3);
    }

    #[test]
    fn open_invitations_are_limited_and_expired_ones_make_room() {
        let mut invitations = Invitations::default();
        for secret in 0..MAX_INVITATIONS {
            invitations.add(invitation(secret as u8, 1), NOW).unwrap();
        }
        assert_eq!(invitations.add(invitation(99, 1), NOW + 9), Err(JoinRefusal::Full));
        assert_eq!(invitations.add(invitation(99, 1), NOW + 10), Ok(()));
        assert_eq!(invitations.open().len(), 1);
    }

    #[test]
    fn a_pin_dies_after_its_tries_its_use_its_time_or_another_one() {
        let mut invitations = Invitations::default();
        assert_eq!(invitations.try_pin(NOW), Err(JoinRefusal::NoPin));
        invitations.set_pin("123456".to_owned(), TERMS, NOW);
        for left in (0..PIN_TRIES).rev() {
            assert_eq!(invitations.try_pin(NOW).as_deref(), Ok("123456"));
            assert_eq!(invitations.pin_tries_left(), left);
        }
        assert_eq!(invitations.try_pin(NOW), Err(JoinRefusal::NoPin), "the tries are used up");
        assert_eq!(invitations.pin_was_right("123456", NOW), Err(JoinRefusal::NoPin));
        invitations.set_pin("123456".to_owned(), TERMS, NOW);
        invitations.try_pin(NOW).unwrap();
        assert_eq!(invitations.pin_was_right("654321", NOW), Err(JoinRefusal::NoPin), "the PIN before it");
        assert_eq!(invitations.pin_was_right("123456", NOW), Ok(TERMS));
        assert_eq!(invitations.pin_was_right("123456", NOW), Err(JoinRefusal::NoPin), "it is used");
        invitations.set_pin("123456".to_owned(), TERMS, NOW);
        assert!(invitations.try_pin(NOW + PIN_LIFE_S - 1).is_ok());
        assert_eq!(invitations.try_pin(NOW + PIN_LIFE_S), Err(JoinRefusal::NoPin));
        assert_eq!(invitations.pin_was_right("123456", NOW + PIN_LIFE_S), Err(JoinRefusal::NoPin));
    }

    #[test]
    fn the_last_try_of_a_pin_may_be_the_right_one() {
        let mut invitations = Invitations::default();
        invitations.set_pin("000000".to_owned(), TERMS, NOW);
        (0..PIN_TRIES).for_each(|_| drop(invitations.try_pin(NOW).unwrap()));
        assert_eq!(invitations.pin_was_right("000000", NOW), Ok(TERMS));
    }

    proptest! {
        #[test]
        fn base_32_has_one_text_for_all_bytes(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(from_base32(&base32(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_a_token_or_an_error(text in "(pangea1)?[a-z2-7 ]{0,300}") {
            if let Ok(token) = Token::parse(&text) {
                prop_assert_eq!(Token::parse(&token.to_text()), Ok(token));
            }
        }
    }
}
