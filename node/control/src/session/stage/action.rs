//! Actions of the driver of a stage. Values only.

use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Error;

#[cfg(doc)]
use super::Event;
use crate::session::{FrameRows, SessionId, Start, SteppedSequence};

/// A message without payload to a coordinator or another stage.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A request is accepted.
    Accepted,
    /// A request is refused.
    Refused {
        /// Why.
        error: Error,
        /// Delay after which a retry may succeed, if any.
        retry_after: Option<Duration>,
    },
    /// A session cannot continue.
    Failed(Error),
    /// A session is no longer wanted.
    Close,
}

/// An event to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// A request was refused because the queue was full.
    Refused,
    /// The coordinator of a session went away.
    Cancelled,
}

/// What the driver does next, in order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Prepare for the sessions of the request that arrived last, then report [`Event::Joined`] or
    /// [`Event::CannotJoin`].
    Join {
        /// Number of the first answer's sequence.
        sequence: u64,
    },
    /// Forward that request to the next stage.
    ForwardOpen(PeerId),
    /// Send a message.
    Send {
        /// The receiver.
        to: PeerId,
        /// The session that it is about.
        session: SessionId,
        /// Content of the message.
        notice: Notice,
    },
    /// Sign for a session, append the signature to the chain from [`Event::Commit`], and send that on, with a copy to the
    /// coordinator, who learns from it which stage signed if the chain does not arrive; report [`Event::NotSigned`] if that
    /// fails.
    Sign {
        /// The session.
        session: SessionId,
        /// Id of its sequence.
        sequence: u64,
        /// Number of positions, from the first.
        positions: u32,
        /// The next stage, or the coordinator.
        to: PeerId,
        /// The coordinator.
        coordinator: PeerId,
        /// On the first stage: the prompt and the chosen tokens.
        tokens: Option<Vec<u32>>,
    },
    /// Remove all state of a session.
    Forget(SessionId),
    /// Drop the cache of a sequence.
    Drop {
        /// The sequence.
        sequence: u64,
        /// The open session of the sequence, whose commitment up to here is still needed.
        session: Option<SessionId>,
    },
    /// Start a sequence.
    Start {
        /// The sequence and the origin of its cache.
        start: Start,
        /// The open session whose cache is taken over, whose commitment up to here is still needed.
        taken_from: Option<SessionId>,
    },
    /// Compute rows in one pass, then report [`Event::Computed`] or [`Event::Exhausted`].
    Compute {
        /// Rows to compute.
        rows: Vec<FrameRows>,
        /// On the first stage, the token ids of all rows.
        tokens: Vec<u32>,
    },
    /// Send a frame to the next stage, with the activations of its rows; report [`Event::NotSent`] if that fails.
    Frame {
        /// The next stage.
        to: PeerId,
        /// Number of the frame.
        number: u64,
        /// Sequences to drop.
        drops: Vec<u64>,
        /// Sequences that start.
        starts: Vec<Start>,
        /// Rows to compute.
        rows: Vec<FrameRows>,
    },
    /// On the last stage: send the chosen tokens to the coordinators, and the report of a frame to the first stage,
    /// if that is another node; report [`Event::NotSent`] if that fails.
    Report {
        /// The first stage, if it is another node, and the results of each sequence.
        to: Option<(PeerId, Vec<SteppedSequence>)>,
        /// Number of the frame.
        number: u64,
    },
    /// The chain has failed: end all sessions, sequences and caches.
    Break {
        /// Reason, a clause.
        why: String,
    },
    /// Count an event.
    Count(Count),
}
