//! What is bent in sessions: what a stage computes, what it says to coordinators and other stages, and what it sends to chains that
//! it has no part in.

use libp2p_identity::PeerId;
use pangea_control::generation::ReportedTokens;
use pangea_control::session::{ChainId, SessionId, SteppedSequence, TokenOut};
use pangea_units::{Error, ErrorKind};

use crate::chat_messages::SessionMessage;
use crate::deviations::Deviation;
use crate::pseudo_model::VOCABULARY;
use crate::scenario::{Micros, SECOND};
use crate::world::World;

/// Just under the shortest time after which a chain without a token is given up.
const STALL: Micros = 4 * SECOND + SECOND / 2;

/// Just over the time after which the first token of a short prompt is late.
const HOLD: Micros = 7 * SECOND;

/// How a stage lies about what it computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// What it keeps and what it sends are wrong alike, so that it signs the lie, if it signs.
    Whole,
    /// What it sends is wrong, and what it keeps and signs is right.
    Sent,
}

impl World {
    /// How a stage lies in this pass, if it does, for a session.
    pub(crate) fn lie(&mut self, at: usize, chain: ChainId, session: Option<SessionId>) -> Option<Lie> {
        if self.nodes[at].spec.deviations.is_empty() {
            return None;
        }
        let session = session?;
        if self.deviates(at, Deviation::LiesSigned) {
            return Some(Lie::Whole);
        }
        if self.deviates(at, Deviation::LiesUnsigned) {
            let stage = self.nodes[at].run.as_mut()?.stages.get_mut(&chain)?;
            stage.lied.insert(session);
            return Some(Lie::Whole);
        }
        self.deviates(at, Deviation::SendsOtherwise).then_some(Lie::Sent)
    }

    /// How much longer than it takes a stage works on a pass.
    pub(crate) fn stalls_pass(&mut self, at: usize) -> Micros {
        if self.deviates(at, Deviation::StallsSession) { STALL } else { 0 }
    }

    /// How long a first stage keeps a new request before it looks at it.
    pub(crate) fn holds_request(&mut self, at: usize) -> Micros {
        if self.deviates(at, Deviation::HoldsFirstTokens) { HOLD } else { 0 }
    }

    /// A stage that is not the last one tells a coordinator a token of its own.
    pub(crate) fn speak_out_of_turn(&mut self, at: usize, coordinator: PeerId, session: SessionId, position: u32) {
        if self.deviates(at, Deviation::SpeaksOutOfTurn) {
            let out = TokenOut { token: self.chance.index(VOCABULARY) as u32, ..TokenOut::default() };
            let tokens = ReportedTokens { position, tokens: vec![out], ..ReportedTokens::default() };
            let message = SessionMessage::Tokens { session, tokens };
            // A coordinator that is gone hears nothing.
            let _ = self.send_session(at, self.index_of(&coordinator), message, 0);
        }
    }

    /// Why a stage refuses a session that it could take part in.
    pub(crate) fn refuses_session(&mut self, at: usize) -> Option<Error> {
        let refuses = self.deviates(at, Deviation::RefusesSession);
        refuses.then(|| Error::new(ErrorKind::InvalidInput, "the request has no tokens"))
    }

    /// Once a second, a node sends to the stages of chains what only others may say, and to first stages reports of frames that
    /// there are not.
    pub(crate) fn meddle(&mut self, at: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != at) {
            for chain in self.chains_of(other) {
                let stages = self.peers_of(other, chain);
                let peer = self.nodes[at].peer;
                let is_last = stages.last() == Some(&peer) && stages[0] == self.nodes[other].peer;
                if is_last && self.deviates(at, Deviation::StepsWildly) {
                    let number = self.chance.below(400);
                    let (sequence, computed) = (self.chance.below(20), self.chance.below(200) as u32);
                    let (chosen, ended) = (vec![self.chance.below(60) as u32], self.chance.one_in(2));
                    let advances = vec![SteppedSequence { sequence, computed, chosen, ended, failed: false }];
                    let _ = self.send_session(at, other, SessionMessage::Stepped { chain, number, advances }, 0);
                }
                if stages.contains(&peer) || !self.deviates(at, Deviation::Meddles) {
                    continue;
                }
                let Some(session) = self.some_session(other, chain) else { continue };
                let (kind, message) = (ErrorKind::Internal, "no".to_owned());
                let messages = [
                    SessionMessage::Close { chain, session, commit: None },
                    SessionMessage::Failed { chain, session, kind, message },
                    SessionMessage::Commit { chain, session, positions: 1, claims: Vec::new() },
                    SessionMessage::Stepped { chain, number: 0, advances: Vec::new() },
                ];
                for message in messages {
                    let _ = self.send_session(at, other, message, 0);
                }
            }
        }
    }

    fn some_session(&self, at: usize, chain: ChainId) -> Option<SessionId> {
        let stage = self.nodes[at].run.as_ref()?.stages.get(&chain)?;
        stage.coordinators.keys().next().copied()
    }

    /// A coordinator suspects or leaves out a node, or finds it wrong, which tells what it did.
    pub(crate) fn noticed(&mut self, of: usize, which: &[Deviation]) {
        for deviation in which {
            if self.is_one_that(of, *deviation) {
                self.checks.caught(*deviation);
            }
        }
    }
}
