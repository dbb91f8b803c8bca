//! The requests that one stage works on: which request a session belongs to, and how many answers of each are open. What the log and
//! traces show of a request is theirs to say; which sessions there are is decided by the protocol.

use std::collections::BTreeMap;

use libp2p::PeerId;
use pangea_units::LayerRange;

use super::request_log::LoggedRequest;
use super::spans::{Pass, TracedRequest};
use super::wire::{FrameRows, Open, SessionId, StageAt};

/// What a stage says of itself.
pub(super) struct StageFacts {
    /// Its node.
    pub(super) local: PeerId,
    /// Name of the model.
    pub(super) model: String,
    pub(super) layers: LayerRange,
}

/// The requests of one stage that are logged or traced.
pub(super) struct StageRequests {
    stage: StageFacts,
    /// Requests under way, by the session of their first answer.
    requests: BTreeMap<SessionId, StageRequest>,
    /// The request of each session.
    sessions: BTreeMap<SessionId, SessionId>,
}

/// One request.
struct StageRequest {
    /// Answers that have not ended.
    open: u16,
    logged: Option<LoggedRequest>,
    traced: Option<TracedRequest>,
}

impl StageRequests {
    /// The requests of the stage of `local` at `stage` of a model with this name.
    pub(super) fn new(local: PeerId, model: String, stage: &StageAt) -> StageRequests {
        let stage = StageFacts { local, model, layers: LayerRange::from(&stage.layers) };
        StageRequests { stage, requests: BTreeMap::new(), sessions: BTreeMap::new() }
    }

    /// A request was accepted by this stage.
    pub(super) fn began(&mut self, open: &Open) {
        let request = StageRequest {
            open: open.choices,
            logged: LoggedRequest::began(open, &self.stage),
            traced: TracedRequest::began(open, &self.stage),
        };
        if request.logged.is_none() && request.traced.is_none() {
            return;
        }
        for choice in 0..open.choices {
            self.sessions.insert(open.session.choice(choice), open.session);
        }
        self.requests.insert(open.session, request);
    }

    fn of(&mut self, session: &SessionId) -> Option<(SessionId, &mut StageRequest)> {
        let first = *self.sessions.get(session)?;
        Some((first, self.requests.get_mut(&first)?))
    }

    /// A pass over these rows begins; `session_of` gives the session of a sequence.
    pub(super) fn pass(&mut self, rows: &[FrameRows], session_of: impl Fn(u64) -> Option<SessionId>) -> Pass {
        let mut pass = Pass::default();
        if self.requests.is_empty() {
            return pass;
        }
        for rows in rows {
            let Some(session) = session_of(rows.sequence) else { continue };
            if let Some((first, StageRequest { traced: Some(traced), .. })) = self.of(&session) {
                traced.enters(&mut pass, first, rows);
            }
        }
        pass
    }

    /// The pass has ended.
    pub(super) fn passed(&mut self, pass: Pass) {
        let Some((requests, took)) = pass.ended() else { return };
        for request in requests {
            if let Some(traced) = self.requests.get_mut(&request).and_then(|request| request.traced.as_mut()) {
                traced.passed(took);
            }
        }
    }

    /// The stage has computed the positions of a session below `end`.
    pub(super) fn computed(&mut self, session: SessionId, end: u32) {
        if let Some((_, StageRequest { logged: Some(logged), .. })) = self.of(&session) {
            logged.computed(session, end);
        }
    }

    /// A session has ended here.
    pub(super) fn ended(&mut self, session: SessionId) {
        let Some(first) = self.sessions.remove(&session) else { return };
        let Some(request) = self.requests.get_mut(&first) else { return };
        request.open -= 1;
        if let Some(logged) = &mut request.logged {
            logged.answer_ended(session);
        }
        if request.open > 0 {
            return;
        }
        let Some(StageRequest { logged, traced, .. }) = self.requests.remove(&first) else { return };
        if let Some(logged) = logged {
            logged.ended(&self.stage);
        }
        if let Some(traced) = traced {
            traced.ended();
        }
    }

    /// All sessions have ended, because the chain failed.
    pub(super) fn clear(&mut self) {
        for session in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.ended(session);
        }
    }
}

#[cfg(test)]
mod tests {
    use pangea_compute::Digest;
    use pangea_compute::sample::{AnswerFormat, Sampling};

    use super::*;
    use crate::wire::TraceParent;

    fn open(coordinator: PeerId, session: u8, choices: u16, trace: Option<TraceParent>) -> Open {
        Open {
            session: SessionId([session; 16]),
            coordinator,
            model: Digest::from_bytes([1; 32]),
            epoch: 1,
            numerics: 1,
            stages: vec![StageAt { peer: coordinator, layers: 0..4 }],
            choices,
            sequence: None,
            prompt_len: 3,
            max_new_tokens: 10,
            sampling: Sampling::greedy(),
            format: AnswerFormat::Text,
            prompt_logprobs: false,
            trace,
            tokens: vec![1, 2, 3],
        }
    }

    #[test]
    fn a_request_is_over_with_the_last_of_its_answers() {
        let [local, other] = [PeerId::random(), PeerId::random()];
        let mut requests = StageRequests::new(local, "tiny".to_owned(), &StageAt { peer: local, layers: 0..4 });
        let known = |requests: &StageRequests| (requests.requests.len(), requests.sessions.len());
        requests.began(&open(local, 1, 2, None));
        assert_eq!(known(&requests), (0, 0), "its coordinator logs it, and nobody traces it");
        let (two, one) = (open(other, 2, 2, None), open(other, 9, 1, None));
        requests.began(&two);
        requests.began(&one);
        assert_eq!(known(&requests), (2, 3));
        requests.ended(two.session.choice(1));
        requests.ended(two.session.choice(1));
        assert_eq!(known(&requests), (2, 2), "a session ends once");
        requests.computed(two.session, 5);
        requests.ended(two.session);
        assert_eq!(known(&requests), (1, 1));
        requests.began(&two);
        requests.clear();
        assert_eq!(known(&requests), (0, 0));
    }
}
