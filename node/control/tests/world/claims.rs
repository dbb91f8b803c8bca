//! What stages sign in the world, and how a coordinator reads it: claims about what came in and what went out, with the name of the
//! node in place of a signature, which nobody else can write. A replay recomputes an answer and says who was wrong.

use libp2p_identity::PeerId;
use pangea_control::generation::{ClaimsFault, Segment, SignedClaims};
use pangea_control::peers::SuspicionReason;
use pangea_control::session::stage::{Action, Event};
use pangea_control::session::{ChainId, SessionId};
use pangea_units::{Error, ErrorKind, SplitMix64};

use crate::chat_messages::SessionMessage;
use crate::deviations::Deviation;
use crate::node::size;
use crate::pseudo_model::{Cache, chosen, embedded};
use crate::scenario::Micros;
use crate::world::World;

/// What a stage signs of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The node that signs.
    pub(crate) node: usize,
    pub(crate) session: SessionId,
    pub(crate) positions: u32,
    /// Roots of what came in and what went out at these positions.
    pub(crate) input: u64,
    pub(crate) output: u64,
    /// On the last stage, the root of the tokens.
    pub(crate) tokens: u64,
}

/// The root of some values.
pub(crate) fn root(values: impl Iterator<Item = u64>) -> u64 {
    values.fold(1, |root, value| SplitMix64::at(root.rotate_left(23) ^ value))
}

/// The root of tokens.
pub(crate) fn tokens_root(tokens: &[u32]) -> u64 {
    root(tokens.iter().map(|token| u64::from(*token)))
}

/// Bytes of one claim.
const CLAIM_BYTES: usize = 1 + 16 + 4 + 3 * 8;

/// Claims as bytes.
pub(crate) fn encode(claims: &[Claim]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(claims.len() * CLAIM_BYTES);
    for claim in claims {
        bytes.push(claim.node as u8);
        bytes.extend(claim.session.0);
        bytes.extend(claim.positions.to_le_bytes());
        for root in [claim.input, claim.output, claim.tokens] {
            bytes.extend(root.to_le_bytes());
        }
    }
    bytes
}

fn decode(bytes: &[u8]) -> Vec<Claim> {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let claim = |bytes: &[u8]| Claim {
        node: bytes[0].into(),
        session: SessionId(bytes[1..17].try_into().unwrap()),
        positions: u32::from_le_bytes(bytes[17..21].try_into().unwrap()),
        input: number(&bytes[21..29]),
        output: number(&bytes[29..37]),
        tokens: number(&bytes[37..45]),
    };
    bytes.chunks_exact(CLAIM_BYTES).map(claim).collect()
}

/// What a coordinator has of the claims of a session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gathered {
    /// Claims of the first stages, in order.
    pub(crate) claims: Vec<Claim>,
    /// Why they do not cover the answer, if they do not.
    pub(crate) fault: Option<ClaimsFault>,
    /// A node that signed two different claims of the session.
    pub(crate) contradicted: Option<usize>,
}

/// Reads what the stages of a session signed. `index_of`: the node with a peer id.
pub(crate) fn gather(
    signed: &SignedClaims,
    segment: &Segment,
    tokens: &[u32],
    index_of: impl Fn(&PeerId) -> usize,
) -> Gathered {
    let positions = tokens.len() as u32 - 1;
    let mut all = signed.whole.as_deref().map(decode).unwrap_or_default();
    let whole = all.clone();
    all.extend(signed.parts.iter().flat_map(|(_, bytes)| decode(bytes)));
    let mut gathered = Gathered::default();
    let fault =
        |why: &str, suspects: Vec<(PeerId, SuspicionReason)>| Some(ClaimsFault { why: why.to_owned(), suspects });
    let mut before = root(tokens[..tokens.len() - 1].iter().map(|token| embedded(*token)));
    for (index, stage) in segment.stages.iter().enumerate() {
        let node = index_of(&stage.peer);
        let mut own = all.iter().filter(|claim| claim.node == node && claim.session == segment.session);
        let first = own.next().copied();
        if own.any(|other| Some(*other) != first) {
            gathered.contradicted = Some(node);
            gathered.fault = fault("two claims differ", vec![(stage.peer, SuspicionReason::Contradicted)]);
            return gathered;
        }
        let Some(claim) = first.filter(|claim| claim.positions == positions) else {
            gathered.fault = fault("a claim is missing", vec![(stage.peer, SuspicionReason::Unsigned)]);
            return gathered;
        };
        if claim.input != before {
            let mut suspects = vec![(stage.peer, SuspicionReason::Contradicted)];
            if index > 0 {
                suspects.push((segment.stages[index - 1].peer, SuspicionReason::Contradicted));
            }
            gathered.fault = fault("what was sent is not what came", suspects);
            return gathered;
        }
        before = claim.output;
        gathered.claims.push(claim);
    }
    let last = gathered.claims.last();
    if last.is_none_or(|last| last.tokens != tokens_root(tokens)) {
        let peers = segment.stages.last().map(|stage| (stage.peer, SuspicionReason::Contradicted));
        gathered.fault = fault("other tokens were signed than came", peers.into_iter().collect());
    } else if whole.len() != segment.stages.len() {
        gathered.fault = fault("the last stage did not return all claims", Vec::new());
    }
    gathered
}

/// An answer as its coordinator keeps it for an audit.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) seed: u64,
    pub(crate) prompt_len: usize,
    pub(crate) tokens: Vec<u32>,
    pub(crate) segments: Vec<Segment>,
    /// Claims of the last segment's stages.
    pub(crate) claims: Vec<Claim>,
    /// Whether the claims cover the answer.
    pub(crate) is_signed: bool,
}

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Replayed {
    /// Nodes that signed what is wrong.
    pub(crate) liars: Vec<usize>,
    /// Stages of which one or more computed what is wrong, and which did not sign it.
    pub(crate) wrong: Vec<PeerId>,
}

/// Recomputes an answer.
pub(crate) fn replay(receipt: &Receipt, index_of: impl Fn(&PeerId) -> usize) -> Replayed {
    let mut replayed = Replayed::default();
    let positions = receipt.tokens.len() - 1;
    let mut activations: Vec<u64> = receipt.tokens[..positions].iter().map(|token| embedded(*token)).collect();
    let Some(last) = receipt.segments.last() else { return replayed };
    // What the stages of the last segment signed.
    for (stage, claim) in last.stages.iter().zip(&receipt.claims) {
        let mut cache = Cache::new(stage.layers.end - stage.layers.start);
        activations = activations.into_iter().map(|input| cache.forward(stage.layers.start, input)).collect();
        if claim.output != root(activations.iter().copied()) {
            replayed.liars.push(index_of(&stage.peer));
            replayed.wrong.push(stage.peer);
            return replayed;
        }
    }
    // Which tokens follow.
    let mut cache = Cache::new(size().layers);
    let right: Vec<u64> = receipt.tokens[..positions].iter().map(|token| cache.forward(0, embedded(*token))).collect();
    let is_wrong = |at: &usize| chosen(receipt.seed, right[*at - 1], receipt.tokens[*at - 1]) != receipt.tokens[*at];
    let Some(at) = (receipt.prompt_len..receipt.tokens.len()).find(is_wrong) else { return replayed };
    let of = receipt.segments.iter().rposition(|segment| segment.chosen_from < at as u64);
    let segment = of.and_then(|of| receipt.segments.get(of)).unwrap_or(last);
    let is_last = of.is_none_or(|of| of + 1 == receipt.segments.len());
    if is_last && receipt.claims.len() == segment.stages.len() {
        // All activations are right, and the token is not: the last stage signed it.
        let stage = &segment.stages[segment.stages.len() - 1];
        if receipt.claims.last().is_some_and(|claim| claim.tokens == tokens_root(&receipt.tokens)) {
            replayed.liars.push(index_of(&stage.peer));
        }
        replayed.wrong.push(stage.peer);
    } else {
        replayed.wrong.extend(segment.stages.iter().map(|stage| stage.peer));
    }
    replayed
}

impl World {
    /// A stage signs what came in and what went out of a session, behind the claims of the stages before, for the next stage and
    /// the coordinator.
    pub(crate) fn sign(
        &mut self,
        (at, chain): (usize, ChainId),
        (session, sequence): (SessionId, u64),
        positions: u32,
        [to, coordinator]: [PeerId; 2],
        delay: Micros,
        following: &mut Vec<Action>,
    ) {
        let Some(stage) = self.nodes[at].run.as_mut().and_then(|run| run.stages.get_mut(&chain)) else { return };
        let is_last = stage.index + 1 == stage.stages.len();
        let mut claims = stage.claims.remove(&session).unwrap_or_default();
        let retained = stage.retained.remove(&session);
        let hides = stage.lied.remove(&session);
        let cache = stage.caches.get(&sequence).or(retained.as_ref());
        let Some(cache) = cache.filter(|cache| cache.len() >= positions as usize) else {
            let error = &Error::new(ErrorKind::Internal, "positions are missing");
            return self.tell_stage(at, chain, Event::NotSigned { session, coordinator, error }, following);
        };
        let chooser = stage.choosers.get(&session).filter(|_| is_last);
        let claim = Claim {
            node: at,
            session,
            positions,
            input: root(cache.inputs(positions as usize)),
            output: root(cache.outputs(positions as usize)),
            tokens: chooser.map_or(0, |(_, chooser)| tokens_root(&chooser.tokens)),
        };
        let other = Claim { output: claim.output ^ 1, ..claim };
        if hides || self.deviates(at, Deviation::WithholdsSignature) {
            return;
        }
        claims.push(if self.deviates(at, Deviation::SignsOtherwise) { other } else { claim });
        let commit = |claims| SessionMessage::Commit { chain, session, positions, claims };
        // Whoever cannot be reached is reported as gone.
        let _ = self.send_session(at, self.index_of(&to), commit(claims.clone()), delay);
        if coordinator != to {
            if self.deviates(at, Deviation::SignsTwice) {
                claims.pop();
                claims.push(Claim { input: claim.input ^ 1, ..claim });
            }
            let _ = self.send_session(at, self.index_of(&coordinator), commit(claims), delay);
        }
    }
}
