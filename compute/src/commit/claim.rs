//! A stage's claim about its work in a session, as the bytes that the stage signs. Only parsed and written here; the
//! replay shows whether a claim is true.

use crate::engine::Bits;
use pangea_units::Digest;
use std::ops::Range;

/// How a stage's output is checked against a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// `exact/1`: whoever computes the stage again gets the claimed root.
    #[default]
    Exact,
    /// `canonical-grid/1`: the stage opens the rows under the root, and they are compared by value.
    Grid,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Profile; 2] = [Profile::Exact, Profile::Grid];

    /// The profile of an engine's claims; `None` for an engine that none describes.
    pub fn of(bits: Bits) -> Option<Profile> {
        match bits {
            Bits::Exact(_) => Some(Profile::Exact),
            Bits::Tolerance(name) => (name == Profile::Grid.name()).then_some(Profile::Grid),
        }
    }

    /// Name and version.
    pub const fn name(self) -> &'static str {
        match self {
            Profile::Exact => "exact/1",
            Profile::Grid => "canonical-grid/1",
        }
    }

    /// The profile with this name.
    pub fn from_name(name: &str) -> Option<Profile> {
        Profile::ALL.into_iter().find(|profile| profile.name() == name)
    }

    /// The first bytes of a claim: the profile and its version.
    const fn tag(self) -> &'static [u8] {
        match self {
            Profile::Exact => b"pangea exact/1 claim\0",
            Profile::Grid => b"pangea canonical-grid/1 claim\0",
        }
    }
}

/// One stage's claim about one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// How the output is checked.
    pub profile: Profile,
    /// The session.
    pub session: [u8; 16],
    /// The placement that the stage belongs to.
    pub epoch: u64,
    /// The model.
    pub model: Digest,
    /// The version of the bits ([`NUMERICS`](crate::model::NUMERICS)) that the output has, or that it approximates.
    pub numerics: u32,
    /// The stage's layers, counting from 0.
    pub layers: Range<u32>,
    /// Rows 0 to `positions` (exclusive) were computed.
    pub positions: u64,
    /// The first position whose next token the last stage chose; `positions` where it chose none.
    pub chosen_from: u64,
    /// Root over the stage's input.
    pub predecessor: [u8; 32],
    /// Digest of the [`SamplingTerms`](super::SamplingTerms) under which tokens were chosen.
    pub sampling: Digest,
    /// Root over the stage's output.
    pub output: [u8; 32],
}

/// Bytes of a claim's fields after its tag.
const FIELD_BYTES: usize = 16 + 8 + 32 + 4 + 4 + 4 + 8 + 8 + 32 + 32 + 32;

impl Claim {
    /// Maximum length of [`Claim::to_bytes`].
    pub const BYTES_MAX: usize = Profile::Grid.tag().len() + FIELD_BYTES;

    /// The canonical bytes of this claim: the tag `"pangea exact/1 claim\0"` or `"pangea canonical-grid/1 claim\0"`, then the
    /// other fields in their order, numbers little-endian, the layers as two u32.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Claim::BYTES_MAX);
        bytes.extend(self.profile.tag());
        bytes.extend(self.session);
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.model.as_bytes());
        bytes.extend(self.numerics.to_le_bytes());
        bytes.extend(self.layers.start.to_le_bytes());
        bytes.extend(self.layers.end.to_le_bytes());
        bytes.extend(self.positions.to_le_bytes());
        bytes.extend(self.chosen_from.to_le_bytes());
        bytes.extend(self.predecessor);
        bytes.extend(self.sampling.as_bytes());
        bytes.extend(self.output);
        bytes
    }

    /// Parses a claim. `None` for bytes that are not canonical, for a claim without layers, and for one whose first
    /// choice lies after its positions.
    pub fn parse(bytes: &[u8]) -> Option<Claim> {
        let (claim, rest) = Claim::split_off(bytes)?;
        rest.is_empty().then_some(claim)
    }

    /// As [`Claim::parse`], for a claim at the start of `bytes`; returns the bytes after it too.
    pub fn split_off(bytes: &[u8]) -> Option<(Claim, &[u8])> {
        let tagged = |profile: Profile| bytes.strip_prefix(profile.tag()).map(|rest| (profile, rest));
        let (profile, mut rest) = Profile::ALL.into_iter().find_map(tagged)?;
        let claim = Claim {
            profile,
            session: take(&mut rest)?,
            epoch: u64::from_le_bytes(take(&mut rest)?),
            model: Digest(take(&mut rest)?),
            numerics: u32::from_le_bytes(take(&mut rest)?),
            layers: u32::from_le_bytes(take(&mut rest)?)..u32::from_le_bytes(take(&mut rest)?),
            positions: u64::from_le_bytes(take(&mut rest)?),
            chosen_from: u64::from_le_bytes(take(&mut rest)?),
            predecessor: take(&mut rest)?,
            sampling: Digest(take(&mut rest)?),
            output: take(&mut rest)?,
        };
        let possible = !claim.layers.is_empty() && claim.chosen_from <= claim.positions;
        possible.then_some((claim, rest))
    }

    /// BLAKE3 of [`Claim::to_bytes`].
    pub fn digest(&self) -> Digest {
        Digest(*blake3::hash(&self.to_bytes()).as_bytes())
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim() -> Claim {
        Claim {
            profile: Profile::Exact,
            session: [1; 16],
            epoch: 2,
            model: Digest([3; 32]),
            numerics: 4,
            layers: 5..6,
            positions: 8,
            chosen_from: 7,
            predecessor: [9; 32],
            sampling: Digest([10; 32]),
            output: [11; 32],
        }
    }

    #[test]
    fn the_bytes_stay_as_they_are() {
        let bytes = claim().to_bytes();
        let mut by_hand = b"pangea exact/1 claim\0".to_vec();
        by_hand.extend([1; 16]);
        by_hand.extend([2, 0, 0, 0, 0, 0, 0, 0]);
        by_hand.extend([3; 32]);
        by_hand.extend([4, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0]);
        by_hand.extend([8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        by_hand.extend([9; 32]);
        by_hand.extend([10; 32]);
        by_hand.extend([11; 32]);
        assert_eq!(bytes, by_hand);
        assert_eq!(claim().digest().0, *blake3::hash(&by_hand).as_bytes());
        assert_eq!(Claim::parse(&bytes), Some(claim()));

        let grid = Claim { profile: Profile::Grid, ..claim() };
        let by_hand = [b"pangea canonical-grid/1 claim\0", &by_hand[21..]].concat();
        assert_eq!(grid.to_bytes(), by_hand);
        assert_eq!(by_hand.len(), Claim::BYTES_MAX);
        assert_eq!(Claim::parse(&by_hand), Some(grid.clone()));
        assert_eq!(Claim::split_off(&[&by_hand[..], &[1, 2]].concat()), Some((grid, &[1, 2][..])));
    }

    #[test]
    fn every_engine_s_bits_have_a_profile() {
        assert_eq!(Profile::of(Bits::Exact(7)), Some(Profile::Exact));
        assert_eq!(Profile::of(Bits::Tolerance("canonical-grid/1")), Some(Profile::Grid));
        assert_eq!(Profile::of(Bits::Tolerance("canonical-grid/2")), None);
        assert!(Profile::ALL.into_iter().all(|profile| Profile::from_name(profile.name()) == Some(profile)));
    }

    #[test]
    fn what_no_claim_can_be_is_refused() {
        let bytes = claim().to_bytes();
        assert_eq!(Claim::parse(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Claim::parse(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(Claim::parse(&Claim { layers: 5..5, ..claim() }.to_bytes()), None);
        assert_eq!(Claim::parse(&Claim { chosen_from: 9, ..claim() }.to_bytes()), None);
        let mut other = bytes;
        other[14] = b'2';
        assert_eq!(Claim::parse(&other), None, "another version");
    }

    proptest! {
        #[test]
        fn every_bit_of_a_claim_counts(bit in any::<prop::sample::Index>(), profile in prop::sample::select(&Profile::ALL)) {
            let claim = Claim { profile, ..claim() };
            let mut bytes = claim.to_bytes();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Some(other) = Claim::parse(&bytes) {
                prop_assert_eq!(other.to_bytes(), bytes);
                prop_assert_ne!(other.digest(), claim.digest());
            }
        }
    }
}
