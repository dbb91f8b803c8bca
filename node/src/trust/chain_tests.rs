//! Valid and invalid chains, and the pinned bytes of one chain.

use super::*;
use proptest::prelude::*;

pub(in crate::trust) fn keypair(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).unwrap()
}

pub(in crate::trust) fn peer(n: u8) -> PeerId {
    keypair(n).public().to_peer_id()
}

const ROOTS: [[u8; 32]; 4] = [[10; 32], [11; 32], [12; 32], [13; 32]];

/// The claim of stage `index` of three.
pub(in crate::trust) fn claim(index: usize) -> Claim {
    Claim {
        profile: Profile::Exact,
        session: [1; 16],
        epoch: 2,
        model: Digest::from_bytes([3; 32]),
        numerics: 1,
        layers: 4 * index as u32..4 * index as u32 + 4,
        positions: 20,
        chosen_from: 9,
        predecessor: ROOTS[index],
        sampling: Digest::from_bytes([5; 32]),
        output: ROOTS[index + 1],
    }
}

pub(in crate::trust) fn stages() -> Vec<(PeerId, Range<u32>)> {
    (0..3).map(|index| (peer(index as u8 + 1), claim(index).layers)).collect()
}

pub(in crate::trust) fn expected(stages: &[(PeerId, Range<u32>)]) -> Expected<'_> {
    let claim = claim(0);
    Expected {
        session: claim.session,
        epoch: claim.epoch,
        model: claim.model,
        numerics: claim.numerics,
        stages,
        positions: claim.positions,
        chosen_from: claim.chosen_from,
        sampling: claim.sampling,
        input: ROOTS[0],
        output: ROOTS[3],
    }
}

/// A valid chain as it arrives at the coordinator.
pub(in crate::trust) fn honest() -> CommitChain {
    let mut chain = CommitChain::new();
    for index in 0..3 {
        chain.pass(claim(index), &keypair(index as u8 + 1)).unwrap();
    }
    chain
}

#[test]
fn a_valid_chain_is_countersigned_by_every_receiver() {
    let mut chain = honest();
    let stages = stages();
    assert_eq!(chain.links.iter().map(Signed::receiver).collect::<Vec<_>>(), [Some(peer(2)), Some(peer(3)), None]);
    chain.close(&expected(&stages), &keypair(9)).unwrap();
    assert_eq!(chain.links[2].receiver(), Some(peer(9)));
    chain.check(&expected(&stages)).unwrap();
    let json = serde_json::to_string(&chain.links).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Signed>>(&json).unwrap(), chain.links);
}

#[test]
fn a_stage_countersigns_only_what_it_received() {
    let first = Signed::new(claim(0), &keypair(1)).unwrap();
    let forged = Signed { signature: Signature::make(&keypair(1), b"something").unwrap(), ..first.clone() };
    let other = |change: fn(&mut Claim)| {
        let mut claim = claim(1);
        change(&mut claim);
        claim
    };
    for (before, mine, why) in [
        (&first, other(|claim| claim.predecessor[0] ^= 1), "another output than arrived here"),
        (&first, other(|claim| claim.positions += 1), "does not precede"),
        (&first, other(|claim| claim.layers.start += 1), "does not precede"),
        (&first, other(|claim| claim.session[3] ^= 1), "does not precede"),
        (&forged, claim(1), "signature of its claim is invalid"),
    ] {
        let mut chain = CommitChain { links: vec![before.clone()] };
        let error = chain.pass(mine, &keypair(2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VerificationFailed);
        assert!(error.message().contains(why) && error.message().contains(&peer(1).to_string()), "{error}");
        assert_eq!(chain.links, std::slice::from_ref(before), "nothing is signed");
    }
}

#[test]
fn every_unexpected_claim_is_reported_with_its_peer() {
    let stages = stages();
    let check = |chain: &CommitChain| chain.check(&expected(&stages));
    let resigned = |index: usize, change: fn(&mut Claim)| {
        let mut chain = honest();
        let received = chain.links[index].received.clone();
        let mut claim = claim(index);
        change(&mut claim);
        chain.links[index] = Signed::new(claim, &keypair(index as u8 + 1)).unwrap();
        if received.is_some() {
            chain.links[index].countersign(&keypair(index as u8 + 2)).unwrap();
        }
        chain
    };
    for (chain, at, why) in [
        (resigned(0, |claim| claim.epoch += 1), 1, "other work than was requested"),
        (resigned(1, |claim| claim.positions -= 1), 2, "other work than was requested"),
        (resigned(1, |claim| claim.layers.end += 1), 2, "other work than was requested"),
        (resigned(2, |claim| claim.sampling = Digest::from_bytes([0; 32])), 3, "other sampling terms"),
        (resigned(0, |claim| claim.predecessor[0] ^= 1), 1, "another input than it was sent"),
        (resigned(0, |claim| claim.output[0] ^= 1), 2, "another input than it was sent"),
        (resigned(2, |claim| claim.output[0] ^= 1), 3, "other tokens"),
    ] {
        let fault = check(&chain).unwrap_err();
        assert_eq!(fault.peer, peer(at), "{fault}");
        assert!(fault.why.contains(why), "{fault}");
    }
    let mut short = honest();
    short.links.pop();
    let why = "did not sign a claim".to_owned();
    let fault = ChainFault { peer: peer(3), stage: 2, kind: FaultKind::Unsigned, why };
    assert_eq!(check(&short).unwrap_err(), fault);
    let mut long = honest();
    long.links.push(long.links[2].clone());
    assert!(check(&long).unwrap_err().why.contains("not a stage"));
    let mut unsigned = honest();
    unsigned.links[1].received = None;
    assert_eq!(check(&unsigned).unwrap_err().peer, peer(2));
    let mut other = honest();
    other.links[1].countersign(&keypair(7)).unwrap();
    assert_eq!(check(&other).unwrap_err().peer, peer(2), "not the next stage's");
    let mut swapped = honest();
    swapped.links[1] = Signed::new(claim(1), &keypair(7)).unwrap();
    assert_eq!(check(&swapped).unwrap_err().peer, peer(2), "a stranger's");
}

#[test]
fn the_encoding_of_a_chain_is_pinned() {
    let mut chain = honest();
    chain.close(&expected(&stages()), &keypair(9)).unwrap();
    let bytes = chain.encode();
    assert_eq!(bytes.len(), 5 + 3 * (claim(0).to_bytes().len() + 2 * Signature::BYTES + 1));
    assert_eq!(&bytes[..5], b"pgc1\x03");
    // Ed25519 signatures are deterministic.
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "fe333951a652643b47732b815e7a6dd73614981eb74b864e5edc6afc83a79caa"
    );
    assert_eq!(CommitChain::decode(&bytes).unwrap(), chain);
    assert_eq!(CommitChain::decode(&CommitChain::new().encode()).unwrap(), CommitChain::new());
}

#[test]
fn bytes_that_encode_no_chain_are_refused() {
    let bytes = honest().encode();
    for wrong in [&[][..], b"pgc1", b"pgc2\0", b"pgc1\x81", b"pgc1\x01", &bytes[..bytes.len() - 1]] {
        assert_eq!(CommitChain::decode(wrong).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert!(CommitChain::decode(&[&bytes[..], &[0]].concat()).is_err());
    let mut flag = bytes.clone();
    flag[5 + claim(0).to_bytes().len() + Signature::BYTES] = 2;
    assert!(CommitChain::decode(&flag).is_err());
}

#[test]
fn stages_of_both_profiles_make_one_chain() {
    let grid = |index: usize| Claim { profile: Profile::Grid, ..claim(index) };
    for by_value in [[true, false, false], [false, true, true], [true; 3]] {
        let mut chain = CommitChain::new();
        for (index, by_value) in by_value.into_iter().enumerate() {
            let claim = if by_value { grid(index) } else { claim(index) };
            chain.pass(claim, &keypair(index as u8 + 1)).unwrap();
        }
        chain.close(&expected(&stages()), &keypair(9)).unwrap();
        let bytes = chain.encode();
        assert!(bytes.len() <= CHAIN_BYTES_MAX);
        assert_eq!(CommitChain::decode(&bytes).unwrap(), chain);
        assert!(CommitChain::decode(&bytes[..bytes.len() - 1]).is_err());
        let json = serde_json::to_string(&chain.links).unwrap();
        assert_eq!(json.matches(r#""profile":"canonical-grid/1""#).count(), by_value.iter().filter(|is| **is).count());
        assert_eq!(serde_json::from_str::<Vec<Signed>>(&json).unwrap(), chain.links);
        // A claim cannot be taken for one of the other profile.
        let mut other = chain.clone();
        let profile = &mut other.links[1].claim.profile;
        *profile = if *profile == Profile::Grid { Profile::Exact } else { Profile::Grid };
        assert!(other.check(&expected(&stages())).is_err());
    }
    let longest = Signed::new(grid(0), &keypair(1)).unwrap();
    assert_eq!(LINK_BYTES_MAX, longest.claim.to_bytes().len() + 2 * Signature::BYTES + 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// A changed bit anywhere in a chain is detected.
    #[test]
    fn every_bit_counts(bit in any::<prop::sample::Index>()) {
        let mut bytes = honest().encode();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(chain) = CommitChain::decode(&bytes) {
            prop_assert_eq!(chain.encode(), bytes);
            prop_assert!(chain.check(&expected(&stages())).is_err());
        }
    }
}
