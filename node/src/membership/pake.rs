//! The exchange that lets a PIN of six digits protect a grant: SPAKE2 over ed25519, with both peer ids as identities. Whoever does
//! not know the PIN has one guess per exchange, and learns nothing that could be tried later. Pure but for its randomness.

use libp2p::PeerId;
use pangea_control::membership::join::{PAKE_BYTES, PinSide, pake_identity};
use spake2::{Ed25519Group, Identity, Password, Spake2};

/// One side that waits for the other one's message.
pub struct Pake {
    state: Spake2<Ed25519Group>,
    message: [u8; PAKE_BYTES],
}

impl Pake {
    /// Begins as `side` of the exchange between `joiner` and `member`.
    pub fn begin(side: PinSide, pin: &str, joiner: &PeerId, member: &PeerId) -> Pake {
        let password = Password::new(pin.as_bytes());
        let joiner = Identity::new(&pake_identity(PinSide::Joiner, joiner));
        let member = Identity::new(&pake_identity(PinSide::Member, member));
        let (state, message) = match side {
            PinSide::Joiner => Spake2::start_a_with_rng(&password, &joiner, &member, rand::rng()),
            PinSide::Member => Spake2::start_b_with_rng(&password, &joiner, &member, rand::rng()),
        };
        // A side and a point of 32 bytes, whatever the PIN.
        let message = message.try_into().unwrap_or([0; PAKE_BYTES]);
        Pake { state, message }
    }

    /// The message for the other side.
    pub fn message(&self) -> [u8; PAKE_BYTES] {
        self.message
    }

    /// The key that both sides have if they used the same PIN; `None` if the other side's message is none.
    pub fn finish(self, message: &[u8; PAKE_BYTES]) -> Option<Vec<u8>> {
        self.state.finish(message).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(joiner_pin: &str, member_pin: &str, ids: [&PeerId; 4]) -> (Vec<u8>, Vec<u8>) {
        let joiner = Pake::begin(PinSide::Joiner, joiner_pin, ids[0], ids[1]);
        let member = Pake::begin(PinSide::Member, member_pin, ids[2], ids[3]);
        let (to_member, to_joiner) = (joiner.message(), member.message());
        (joiner.finish(&to_joiner).unwrap(), member.finish(&to_member).unwrap())
    }

    #[test]
    fn only_the_same_pin_between_the_same_two_peers_gives_one_key() {
        let [a, b, c] = [(); 3].map(|()| PeerId::random());
        let (one, other) = keys("123456", "123456", [&a, &b, &a, &b]);
        assert_eq!(one, other);
        let (one, other) = keys("123456", "123457", [&a, &b, &a, &b]);
        assert_ne!(one, other);
        let (one, other) = keys("123456", "123456", [&a, &c, &a, &b]);
        assert_ne!(one, other, "a third node in between");
        let (again, _) = keys("123456", "123456", [&a, &b, &a, &b]);
        assert_ne!(again, one, "every exchange has a key of its own");
    }

    #[test]
    fn a_message_that_is_none_gives_no_key() {
        let [a, b] = [(); 2].map(|()| PeerId::random());
        let joiner = || Pake::begin(PinSide::Joiner, "123456", &a, &b);
        let own = joiner().message();
        assert!(joiner().finish(&own).is_none(), "the own message, reflected");
        assert!(joiner().finish(&[0x42; PAKE_BYTES]).is_none(), "not a point");
    }
}
