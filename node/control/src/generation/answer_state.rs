//! One answer of a request as the request sees it: its session, its route, and who computed which part of it. Nothing is decided
//! here.

use libp2p_identity::PeerId;

use super::action::Route;
use super::answer_session::AnswerSession;
use super::event::ClaimsFault;
use super::retired::RetiredSessions;
use super::segment::Segment;

/// One answer of the request with its route.
#[derive(Debug)]
pub(super) struct AnswerState {
    pub(super) session: AnswerSession,
    /// The chain that computes the answer now.
    pub(super) route: Option<Route>,
    /// Which stages computed which part of the answer, in order.
    pub(super) segments: Vec<Segment>,
    /// Sessions that the answer left and whose stages still sign.
    pub(super) retired: RetiredSessions,
    /// Why the stages' signatures do not cover the answer, if they do not.
    pub(super) fault: Option<ClaimsFault>,
}

impl AnswerState {
    /// Whether only this node ever computed a part of the answer.
    pub(super) fn is_alone(&self, local: PeerId) -> bool {
        self.helpers(local).next().is_none()
    }

    /// The other nodes that computed a part of the answer.
    pub(super) fn helpers(&self, local: PeerId) -> impl Iterator<Item = PeerId> {
        let stages = self.segments.iter().flat_map(|segment| &segment.stages);
        stages.map(|stage| stage.peer).filter(move |peer| *peer != local)
    }
}
