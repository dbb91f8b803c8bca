//! Sessions of an answer that went on elsewhere although their chain still works: their stages are asked to sign what they did,
//! so that a failover wipes nothing out. The claims are kept for the audit; nobody waits for them.

use libp2p_identity::PeerId;

use super::answer_session::SignedClaims;
use super::reply::Reply;
use crate::session::{SessionId, StageAt};

/// A session whose stages were asked to sign when the answer left them.
#[derive(Debug)]
struct Retired {
    session: SessionId,
    segment: usize,
    stages: Vec<PeerId>,
    claims: SignedClaims,
}

/// The sessions of one answer that were asked to sign; at most one per failover.
#[derive(Debug, Default)]
pub(super) struct RetiredSessions(Vec<Retired>);

impl RetiredSessions {
    /// The stages of a session were asked to sign for a segment of the answer.
    pub(super) fn add(&mut self, session: SessionId, segment: usize, stages: &[StageAt]) {
        let stages = stages.iter().map(|stage| stage.peer).collect();
        self.0.push(Retired { session, segment, stages, claims: SignedClaims::default() });
    }

    /// Processes a stage's message about such a session. Returns the segment and its claims once no more can follow, with the
    /// session.
    pub(super) fn handle(
        &mut self,
        from: PeerId,
        session: SessionId,
        reply: Reply,
    ) -> Option<(SessionId, usize, SignedClaims)> {
        let at = self.0.iter().position(|retired| retired.session == session && retired.stages.contains(&from))?;
        let retired = &mut self.0[at];
        match reply {
            Reply::Committed { claims } if retired.stages.last() == Some(&from) => {
                retired.claims.whole = Some(claims);
            }
            Reply::Committed { claims } => {
                if retired.claims.parts.iter().all(|(stage, _)| *stage != from) {
                    retired.claims.parts.push((from, claims));
                }
                return None;
            }
            _ => return None,
        }
        let Retired { session, segment, claims, .. } = self.0.remove(at);
        Some((session, segment, claims))
    }

    /// Takes all sessions, with what they have sent: the answer is complete.
    pub(super) fn take(&mut self) -> Vec<(SessionId, usize, SignedClaims)> {
        std::mem::take(&mut self.0).into_iter().map(|one| (one.session, one.segment, one.claims)).collect()
    }
}
