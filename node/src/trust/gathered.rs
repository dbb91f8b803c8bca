//! What the coordinator has of a session's claims: the chain that the last stage returned, and what earlier stages sent of it
//! themselves. Claims are put together here, and whoever may be the reason why they do not cover the answer is named: as a
//! suspect, never as proven guilty.

use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_control::generation::{ClaimsFault, SignedClaims};
use pangea_control::peers::SuspicionReason;

use super::chain::{CommitChain, Expected, FaultKind, Signed};

/// The claims of a session's stages, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Validly signed claims of the first stages about this very session; all of them, countersigned, without a fault.
    pub links: Vec<Signed>,
    /// Why they do not cover the answer, if they do not.
    pub fault: Option<ClaimsFault>,
    /// Two claims of one stage about one session that differ, both validly signed: evidence by itself.
    pub contradictions: Vec<[Signed; 2]>,
}

impl Gathered {
    /// Puts together what the stages sent, checks it, and countersigns the last claim with the coordinator's `keypair`.
    pub fn of(claims: &SignedClaims, expected: &Expected<'_>, keypair: &Keypair) -> Gathered {
        let last = expected.stages.last().map(|(peer, _)| *peer);
        let whole = claims.whole.as_deref().map(CommitChain::decode);
        let unreadable = matches!(whole, Some(Err(_)));
        let whole = whole.and_then(Result::ok);
        let parts: Vec<CommitChain> =
            claims.parts.iter().filter_map(|(_, bytes)| CommitChain::decode(bytes).ok()).collect();
        let chains = || whole.iter().chain(&parts);
        let mut gathered = Gathered::default();
        // A chain that arrived whole is taken as it is if nothing is wrong with it.
        if let Some(chain) = &whole {
            let mut closed = chain.clone();
            if closed.close(expected, keypair).is_ok() {
                gathered.links = closed.links;
            }
        }
        let mut tampered = false;
        let mut links = Vec::new();
        for (index, (peer, _)) in expected.stages.iter().enumerate() {
            let own = |chain: &&CommitChain| chain.links.get(index).is_some_and(|link| is_of(link, peer, expected));
            let mut signed = chains().filter(own).filter_map(|chain| chain.links.get(index));
            let Some(first) = signed.next() else { break };
            let other = signed.find(|other| other.claim != first.claim);
            gathered.contradictions.extend(other.map(|other| [first.clone(), other.clone()]));
            tampered |= whole.as_ref().is_some_and(|chain| chain.links.get(index).is_none_or(|link| link != first));
            links.push(first.clone());
        }
        if !gathered.contradictions.is_empty() {
            let peers = gathered.contradictions.iter().map(|[one, _]| (one.peer(), SuspicionReason::Contradicted));
            let suspects = peers.collect();
            gathered.fault = Some(ClaimsFault { why: "a stage signed two different claims".to_owned(), suspects });
            return gathered;
        }
        if !gathered.links.is_empty() {
            return gathered;
        }
        gathered.fault = Some(if unreadable || tampered {
            // Every earlier stage's part is signed, so the stage that returned the chain changed it.
            let suspects = last.map(|last| (last, SuspicionReason::BrokeProtocol)).into_iter().collect();
            ClaimsFault { why: "the last stage returned a chain of claims that was changed".to_owned(), suspects }
        } else {
            let chain = whole.unwrap_or(CommitChain { links: links.clone() });
            fault_of(&chain, claims.refused_by, expected)
        });
        gathered.links = links;
        gathered
    }
}

/// Whether a claim is validly signed by a peer and about this very session.
fn is_of(signed: &Signed, peer: &PeerId, expected: &Expected<'_>) -> bool {
    let claim = &signed.claim;
    signed.peer() == *peer
        && (claim.session, claim.epoch, claim.model) == (expected.session, expected.epoch, expected.model)
        && (claim.positions, claim.chosen_from) == (expected.positions, expected.chosen_from)
        && signed.is_signed()
}

/// What is wrong with a chain of claims, and who may be the reason.
fn fault_of(chain: &CommitChain, refused_by: Option<PeerId>, expected: &Expected<'_>) -> ClaimsFault {
    let Err(fault) = chain.check(expected) else { return ClaimsFault::default() };
    let at = |index: usize| expected.stages.get(index).map(|(peer, _)| *peer);
    let before = fault.stage.checked_sub(1).and_then(at);
    let last = at(expected.stages.len() - 1);
    let is_whole = chain.links.len() >= expected.stages.len();
    let contradicted = |peer: PeerId| (peer, SuspicionReason::Contradicted);
    let suspects: Vec<_> = match fault.kind {
        // A stage that says so may have been sent something else than its predecessor claims.
        FaultKind::Unsigned if refused_by == Some(fault.peer) => {
            before.into_iter().chain([fault.peer]).map(contradicted).collect()
        }
        FaultKind::Unsigned => vec![(fault.peer, SuspicionReason::Unsigned)],
        FaultKind::Uncountersigned => {
            at(fault.stage + 1).map(|next| (next, SuspicionReason::Unsigned)).into_iter().collect()
        }
        // A stage passes on what was asked for, so either of the two is wrong.
        FaultKind::OtherWork => before.into_iter().chain([fault.peer]).map(contradicted).collect(),
        // The last stage has told the first one its tokens, and an honest one signs only if the first claims them.
        FaultKind::OtherInput if fault.stage == 0 && is_whole => last.map(contradicted).into_iter().collect(),
        FaultKind::OtherInput if fault.stage == 0 => {
            [Some(fault.peer), last].into_iter().flatten().map(contradicted).collect()
        }
        FaultKind::OtherInput => before.into_iter().chain([fault.peer]).map(contradicted).collect(),
        FaultKind::OtherTokens => vec![contradicted(fault.peer)],
        FaultKind::Beyond => last.map(|last| (last, SuspicionReason::BrokeProtocol)).into_iter().collect(),
    };
    let why = match last {
        // The claim that does not fit is that of an honest stage, which signed the tokens that it was told.
        Some(last) if fault.kind == FaultKind::OtherInput && fault.stage == 0 && is_whole => {
            format!("peer {last}: it sent the coordinator other tokens than the first stage")
        }
        _ => fault.to_string(),
    };
    ClaimsFault { why, suspects }
}

#[cfg(test)]
mod tests {
    use super::super::chain::tests::{claim, expected, honest, keypair, peer, stages};
    use super::*;

    fn gather(whole: Option<&CommitChain>, parts: &[(u8, &CommitChain)], refused_by: Option<u8>) -> Gathered {
        let claims = SignedClaims {
            whole: whole.map(CommitChain::encode),
            parts: parts.iter().map(|(from, chain)| (peer(*from), chain.encode())).collect(),
            refused_by: refused_by.map(peer),
        };
        Gathered::of(&claims, &expected(&stages()), &keypair(9))
    }

    fn first(count: usize) -> CommitChain {
        CommitChain { links: honest().links[..count].to_vec() }
    }

    fn suspects(gathered: &Gathered) -> Vec<(PeerId, SuspicionReason)> {
        gathered.fault.as_ref().expect("the answer is not covered").suspects.clone()
    }

    #[test]
    fn a_whole_chain_covers_the_answer_and_is_countersigned() {
        let gathered = gather(Some(&honest()), &[(1, &first(1)), (2, &first(2))], None);
        assert!(gathered.fault.is_none() && gathered.contradictions.is_empty());
        assert_eq!(gathered.links.len(), 3);
        assert_eq!(gathered.links[2].receiver(), Some(peer(9)));
    }

    #[test]
    fn the_first_stage_without_a_signature_is_the_suspect_and_what_is_signed_is_kept() {
        for (parts, signed) in [(&[][..], 0), (&[(1, 1)], 1), (&[(1, 1), (2, 2)], 2)] {
            let chains: Vec<_> = parts.iter().map(|(from, count)| (*from, first(*count))).collect();
            let parts: Vec<_> = chains.iter().map(|(from, chain)| (*from, chain)).collect();
            let gathered = gather(None, &parts, None);
            assert_eq!(suspects(&gathered), [(peer(signed as u8 + 1), SuspicionReason::Unsigned)]);
            assert_eq!(gathered.links.len(), signed);
        }
    }

    #[test]
    fn a_stage_that_says_it_cannot_sign_is_a_suspect_together_with_its_predecessor() {
        let gathered = gather(None, &[(1, &first(1))], Some(2));
        let contradicted = |n| (peer(n), SuspicionReason::Contradicted);
        assert_eq!(suspects(&gathered), [contradicted(1), contradicted(2)]);
        // A later stage cannot blame itself out of turn.
        assert_eq!(suspects(&gather(None, &[(1, &first(1))], Some(3))), [(peer(2), SuspicionReason::Unsigned)]);
    }

    #[test]
    fn a_last_stage_that_tells_the_first_one_other_tokens_is_the_only_suspect() {
        // The first stage signs what it was told, which is not what the coordinator was told.
        let mut chain = CommitChain::new();
        for index in 0..3 {
            let mut claim = claim(index);
            if index == 0 {
                claim.predecessor[0] ^= 1;
            }
            chain.pass(claim, &keypair(index as u8 + 1)).unwrap();
        }
        assert_eq!(suspects(&gather(Some(&chain), &[], None)), [(peer(3), SuspicionReason::Contradicted)]);
        // It signs the first stage's tokens.
        let mut chain = first(2);
        let mut last = claim(2);
        last.output[0] ^= 1;
        chain.pass(last, &keypair(3)).unwrap();
        assert_eq!(suspects(&gather(Some(&chain), &[], None)), [(peer(3), SuspicionReason::Contradicted)]);
    }

    #[test]
    fn a_last_stage_cannot_make_an_honest_one_look_guilty() {
        let mut forged = honest();
        forged.links[0] = Signed::new(claim(0), &keypair(7)).unwrap();
        for (chain, signed) in [(forged, 3), (CommitChain::new(), 2)] {
            let gathered = gather(Some(&chain), &[(1, &first(1)), (2, &first(2))], None);
            assert_eq!(suspects(&gathered), [(peer(3), SuspicionReason::BrokeProtocol)]);
            assert_eq!(gathered.links.len(), signed, "what honest stages signed is kept");
        }
        let garbage = SignedClaims { whole: Some(vec![1, 2, 3]), parts: Vec::new(), refused_by: None };
        let gathered = Gathered::of(&garbage, &expected(&stages()), &keypair(9));
        assert_eq!(suspects(&gathered), [(peer(3), SuspicionReason::BrokeProtocol)]);
    }

    #[test]
    fn two_different_claims_of_one_stage_are_evidence_against_it_alone() {
        let mut other = claim(1);
        other.output[0] ^= 1;
        let mut part = first(1);
        part.pass(other.clone(), &keypair(2)).unwrap();
        let gathered = gather(Some(&honest()), &[(1, &first(1)), (2, &part)], None);
        let [[one, two]] = &gathered.contradictions[..] else { panic!("{:?}", gathered.contradictions) };
        assert_eq!((one.peer(), &one.claim, two.peer(), &two.claim), (peer(2), &claim(1), peer(2), &other));
        assert_eq!(suspects(&gathered), [(peer(2), SuspicionReason::Contradicted)]);
        // Nobody can sign for another: a forged claim contradicts nothing.
        let mut forged = first(1);
        forged.links.push(Signed { claim: other, ..honest().links[1].clone() });
        let gathered = gather(Some(&honest()), &[(2, &forged)], None);
        assert!(gathered.contradictions.is_empty() && gathered.fault.is_none());
        // Another session's claim is another thing.
        let mut earlier = claim(1);
        earlier.positions -= 1;
        let mut part = CommitChain::new();
        part.links = vec![honest().links[0].clone(), Signed::new(earlier, &keypair(2)).unwrap()];
        assert!(gather(Some(&honest()), &[(2, &part)], None).contradictions.is_empty());
    }
}
