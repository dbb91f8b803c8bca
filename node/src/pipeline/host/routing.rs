//! The way of a message that has arrived: whether its sender may send it, and to which stage or coordinator of this node it
//! goes. The rules are the gates'; nothing is computed here.

use std::time::Duration;

use libp2p::PeerId;
use pangea_client::ErrorKind;
use pangea_control::session::coordinated::Delivery;
use pangea_control::session::gate::{Admission, Ask, waiting_for_opening};

use super::{MESSAGE_BYTES, Pipeline, SessionEvent, StageHandle};
use crate::pipeline::links::Inbox;
use crate::pipeline::payload::Payload;
use crate::pipeline::stage::StageEvent;
use crate::pipeline::wire::{ChainId, Message, Open, SessionId};

/// What became of a message to a stage.
#[derive(Clone, Copy, Debug)]
enum StageDelivery {
    Queued,
    /// The sender's share is used up; it may come again after this delay.
    Full(Duration),
    /// There is no such stage, or the sender may not send this.
    Not,
}

/// Why an opening was not queued.
#[derive(Clone, Copy, Debug)]
enum NotOpened {
    NoStage,
    Full(Duration),
}

/// An opening that is refused, without its tokens.
struct OpeningRefusal {
    chain: ChainId,
    session: SessionId,
    choices: u16,
    /// Whether a stage before this one has accepted the opening.
    forwarded: bool,
    /// The nodes that wait for an answer.
    waiting: Vec<PeerId>,
}

impl Pipeline {
    pub(super) fn deliver(&self, from: PeerId, message: Message, payload: Payload) {
        match &message {
            Message::Open(open) => {
                let chain = open.chain();
                let Open { session, choices, coordinator, .. } = **open;
                let refusal = self.refusal_of(open, from);
                match self.to_stage(chain, from, Ask::Open { session, choices, coordinator }, message, payload) {
                    StageDelivery::Queued => {}
                    StageDelivery::Full(retry_after) => self.cannot_open(refusal, NotOpened::Full(retry_after)),
                    StageDelivery::Not => self.cannot_open(refusal, NotOpened::NoStage),
                }
            }
            Message::Frame(frame) => {
                let chain = frame.chain();
                self.to_stage(chain, from, Ask::Frame, message, payload);
            }
            Message::Stepped(stepped) => {
                let chain = stepped.chain();
                self.to_stage(chain, from, Ask::Stepped, message, payload);
            }
            Message::Close { chain, session, .. } => {
                let (chain, ask) = (*chain, Ask::Close(*session));
                self.to_stage(chain, from, ask, message, payload);
            }
            Message::Accepted { session } | Message::Refused { session, .. } => {
                let session = *session;
                self.to_coordinator(session, from, message, payload);
            }
            Message::Tokens(tokens) => {
                let session = tokens.session;
                self.to_coordinator(session, from, message, payload);
            }
            // A node that coordinates a session and has a stage of its chain gets these messages once for both.
            Message::Failed { chain, session, .. } => {
                let (chain, session) = (*chain, *session);
                self.to_stage(chain, from, Ask::Failed, message.clone(), payload.clone());
                self.to_coordinator(session, from, message, payload);
            }
            Message::Commit { chain, session, .. } => {
                let (chain, session) = (*chain, *session);
                self.to_stage(chain, from, Ask::Commit, message.clone(), payload.clone());
                self.to_coordinator(session, from, message, payload);
            }
        }
    }

    /// Whom an opening's refusal concerns.
    fn refusal_of(&self, open: &Open, from: PeerId) -> OpeningRefusal {
        OpeningRefusal {
            chain: open.chain(),
            session: open.session,
            choices: open.choices,
            forwarded: open.sequence.is_some(),
            waiting: waiting_for_opening(&self.0.local, &from, &open.stages, open.coordinator),
        }
    }

    /// Notifies the nodes that wait for a request's sessions that this node did not accept their opening.
    fn cannot_open(&self, refusal: OpeningRefusal, why: NotOpened) {
        let OpeningRefusal { chain, session, choices, forwarded, waiting } = refusal;
        let (kind, message, retry_after) = match why {
            NotOpened::NoStage => (ErrorKind::Unavailable, "this node has no such layers", Duration::from_secs(1)),
            NotOpened::Full(retry_after) => {
                let message =
                    "this node has as many messages or sessions of the request's node as it takes; try again later";
                (ErrorKind::Overloaded, message, retry_after)
            }
        };
        // A refusal of the first session refuses the whole request.
        for session in (0..if forwarded { choices } else { 1 }).map(|choice| session.choice(choice)) {
            let message = message.to_owned();
            let notice = match forwarded {
                true => Message::Failed { chain, session, kind, message },
                false => {
                    let retry_after_ms = Some(u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX));
                    Message::Refused { session, kind, message, retry_after_ms }
                }
            };
            for peer in &waiting {
                // If the link is lost, that node notices it.
                let _ = self.send(*peer, notice.clone(), Payload::empty());
            }
        }
    }

    /// Whether the stage of a chain takes such messages of a sender.
    fn stage_permits(&self, chain: ChainId, from: &PeerId, ask: Ask) -> bool {
        self.stages().get(&chain).is_some_and(|stage| stage.gate.permits(from, ask))
    }

    /// Tries to start the stage of a chain that a message makes known. Every message passes here once, before it is delivered.
    pub(super) fn start_unknown(&self, message: &Message) {
        let chain = match message {
            Message::Open(open) => open.chain(),
            Message::Frame(frame) => frame.chain(),
            _ => return,
        };
        if let Some(call) = self.0.on_unknown.get().filter(|_| !self.has(chain)) {
            call(chain);
        }
    }

    /// Passes a message to the stage of a chain if its sender may send it, and has room left in the stage's queue.
    fn to_stage(&self, chain: ChainId, from: PeerId, ask: Ask, message: Message, payload: Payload) -> StageDelivery {
        let tokens = match &message {
            Message::Open(open) => size_of_val(open.tokens.as_slice()),
            _ => 0,
        };
        let bytes = MESSAGE_BYTES + (payload.len() + tokens) as u64;
        let mut stages = self.stages();
        let Some(stage) = stages.get_mut(&chain) else { return StageDelivery::Not };
        // Its thread may have ended, and nobody would read the opening.
        if stage.broken && matches!(ask, Ask::Open { .. }) {
            return StageDelivery::Not;
        }
        match stage.gate.admits(&from, ask, bytes) {
            Admission::Admitted => {}
            Admission::Forbidden => {
                drop(stages);
                tracing::debug!(event = "session_message_ignored", %from, ?ask);
                return StageDelivery::Not;
            }
            Admission::Full(retry_after) => {
                drop(stages);
                tracing::debug!(event = "stage_share_full", %from, ?ask, "a peer's share of a stage's queue is full");
                return StageDelivery::Full(retry_after);
            }
        }
        // A session to be signed is not cut off: what was computed of it is delivered.
        if let (Message::Close { session, commit: None, .. }, Some(running)) = (&message, &stage.running) {
            running.close(*session);
        }
        if stage.events.try_send(StageEvent::Message { queued: (from, bytes), message, payload }).is_ok() {
            return StageDelivery::Queued;
        }
        // The stage has ended; its queue has a place for every admitted message.
        stage.gate.taken(&from, bytes);
        if let Ask::Open { session, choices, .. } = ask {
            (0..choices).for_each(|choice| stage.gate.over(&session.choice(choice)));
        }
        StageDelivery::Not
    }

    /// Passes a message to the coordinator of a session if its sender is a stage of the session, and has room left.
    fn to_coordinator(&self, session: SessionId, from: PeerId, message: Message, payload: Payload) {
        let sessions = self.sessions();
        let why = match sessions.delivery(&session, &from) {
            None => "the sender is no stage of the session",
            Some(Delivery::Half(events)) if events.capacity() <= events.max_capacity() / 2 => "the queue is half full",
            Some(Delivery::Any(events) | Delivery::Half(events)) => {
                match events.try_send(SessionEvent::Message { from, message, payload }) {
                    Ok(()) => return,
                    Err(_) => "the queue is full or closed",
                }
            }
        };
        drop(sessions);
        tracing::debug!(event = "session_message_ignored", %from, %session, why);
    }
}

impl Inbox for Pipeline {
    fn admits(&self, from: PeerId, message: &Message) -> bool {
        self.start_unknown(message);
        match message {
            Message::Open(open) => {
                let chain = open.chain();
                let Open { session, choices, coordinator, .. } = **open;
                let permitted = self.stage_permits(chain, &from, Ask::Open { session, choices, coordinator });
                if !permitted {
                    self.cannot_open(self.refusal_of(open, from), NotOpened::NoStage);
                }
                permitted
            }
            Message::Frame(frame) => self.stage_permits(frame.chain(), &from, Ask::Frame),
            Message::Commit { chain, session, .. } => {
                self.stage_permits(*chain, &from, Ask::Commit) || self.sessions().delivery(session, &from).is_some()
            }
            // They have no payload, and are judged when they are delivered.
            Message::Accepted { .. }
            | Message::Refused { .. }
            | Message::Close { .. }
            | Message::Stepped(_)
            | Message::Tokens(_)
            | Message::Failed { .. } => true,
        }
    }

    fn message(&self, from: PeerId, message: Message, payload: Payload) {
        self.deliver(from, message, payload);
    }

    fn peer_gone(&self, peer: PeerId, why: &str) {
        let concerns = |stage: &&StageHandle| stage.gate.knows(&peer);
        let stages: Vec<_> = self.stages().values().filter(concerns).map(|stage| stage.events.clone()).collect();
        for events in stages {
            let _ = events.try_send(StageEvent::PeerGone { peer, why: why.to_owned() });
        }
        let sessions: Vec<_> = self.sessions().of_peer(&peer).cloned().collect();
        for events in sessions {
            let _ = events.try_send(SessionEvent::PeerGone { peer, why: why.to_owned() });
        }
    }
}
