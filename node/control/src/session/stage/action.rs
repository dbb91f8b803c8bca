//! What the driver of a stage is to do. Values only.

use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Error;

#[cfg(doc)]
use super::Event;
use crate::session::{FrameRows, SessionId, Start, SteppedSequence};

/// A message without payload to a coordinator or another stage.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A request is taken in.
    Accepted,
    /// A request is not taken in.
    Refused {
        /// Why.
        error: Error,
        /// When to try again, if that may help.
        retry_after: Option<Duration>,
    },
    /// A session cannot go on.
    Failed(Error),
    /// Nobody wants a session any more.
    Close,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// A request was refused because the queue was full.
    Refused,
    /// The coordinator of a session went away.
    Cancelled,
}

/// What is to be done, in this order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Make ready for the sessions of the request that was handed in last, then say [`Event::Joined`] or
    /// [`Event::CannotJoin`].
    Join {
        /// Number of the first answer's sequence.
        sequence: u64,
    },
    /// Pass that request on to the next stage.
    ForwardOpen(PeerId),
    /// Send a message.
    Send {
        /// To whom.
        to: PeerId,
        /// The session that it is about.
        session: SessionId,
        /// What it says.
        notice: Notice,
    },
    /// Sign for a session, behind what came with [`Event::Commit`], and send that on; [`Event::NotSigned`] where it cannot be
    /// done.
    Sign {
        /// The session.
        session: SessionId,
        /// Its sequence.
        sequence: u64,
        /// Number of positions, from the first.
        positions: u32,
        /// The next stage, or the coordinator.
        to: PeerId,
        /// On the first stage: the prompt and what was chosen.
        tokens: Option<Vec<u32>>,
    },
    /// Forget everything about a session.
    Forget(SessionId),
    /// The cache of a sequence goes.
    Drop {
        /// The sequence.
        sequence: u64,
        /// The open session whose sequence it is: what was signed for up to here is still needed.
        session: Option<SessionId>,
    },
    /// A sequence begins.
    Start {
        /// Which, and from what.
        start: Start,
        /// The open session whose cache is taken over: what was signed for up to here is still needed.
        taken_from: Option<SessionId>,
    },
    /// Compute rows in one pass, then say [`Event::Computed`] or [`Event::Exhausted`].
    Compute {
        /// What to compute.
        rows: Vec<FrameRows>,
        /// On the first stage, the token ids of all rows.
        tokens: Vec<u32>,
    },
    /// Send a frame to the next stage, with the activations of its rows; [`Event::NotSent`] where it cannot be sent.
    Frame {
        /// The next stage.
        to: PeerId,
        /// Number of the frame.
        number: u64,
        /// Sequences to forget.
        drops: Vec<u64>,
        /// Sequences that begin.
        starts: Vec<Start>,
        /// What to compute.
        rows: Vec<FrameRows>,
    },
    /// On the last stage: send the tokens that were chosen to the coordinators, and the report of a frame to the first stage,
    /// where that is another one; [`Event::NotSent`] where the report cannot be sent.
    Report {
        /// The first stage, where it is another one, and what became of each sequence.
        to: Option<(PeerId, Vec<SteppedSequence>)>,
        /// Number of the frame.
        number: u64,
    },
    /// The chain is of no use any more: all sessions, sequences and caches go.
    Break {
        /// Why, a clause.
        why: String,
    },
    /// Count something.
    Count(Count),
}
