//! The turns of the streams on which peers are answered: who waits, and who is told to close.
//! `pangea_control::blob::uploads` decides. This file does not know what is asked.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use libp2p::PeerId;
use pangea_control::blob::uploads::{StreamNumber, Turn as Decision, Uploads};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::limits::UPLOADS;
use crate::clock;

/// Interval at which streams that take little are looked for.
const TICK: Duration = Duration::from_secs(1);

/// The turns of all streams. Clones share them.
#[derive(Clone)]
pub(super) struct Turns(Rc<RefCell<State>>);

struct State {
    uploads: Uploads,
    streams: HashMap<StreamNumber, Handle>,
}

#[derive(Clone, Default)]
struct Handle {
    /// Notified when it is the stream's turn.
    start: Rc<Notify>,
    closed: CancellationToken,
}

/// One stream's turns; dropping it ends them.
pub(super) struct Turn {
    turns: Turns,
    number: StreamNumber,
    handle: Handle,
}

impl Turns {
    /// No streams yet.
    pub(super) fn new() -> Turns {
        Turns(Rc::new(RefCell::new(State { uploads: Uploads::new(UPLOADS), streams: HashMap::new() })))
    }

    /// `peer` has opened a stream.
    pub(super) fn open(&self, peer: PeerId) -> Turn {
        let mut state = self.0.borrow_mut();
        let (number, handle) = (state.uploads.opened(peer), Handle::default());
        state.streams.insert(number, handle.clone());
        Turn { turns: self.clone(), number, handle }
    }

    /// Looks for streams that take little, for ever.
    pub(super) async fn run(self) {
        let mut tick = clock::ticks(TICK);
        loop {
            tick.tick().await;
            self.decide(|uploads| uploads.tick(clock::now()));
        }
    }

    fn decide(&self, what: impl FnOnce(&mut Uploads) -> Vec<Decision>) {
        let mut state = self.0.borrow_mut();
        for decision in what(&mut state.uploads) {
            match decision {
                Decision::Start(stream) => {
                    if let Some(handle) = state.streams.get(&stream) {
                        handle.start.notify_one();
                    }
                }
                Decision::Close(stream) => {
                    if let Some(handle) = state.streams.get(&stream) {
                        handle.closed.cancel();
                    }
                }
            }
        }
    }
}

impl Turn {
    /// Waits until a question may be answered.
    pub(super) async fn come(&self) {
        if !self.turns.0.borrow().uploads.is_answered(self.number) {
            self.turns.decide(|uploads| uploads.asks(self.number, clock::now()));
            self.handle.start.notified().await;
        }
    }

    /// The stream has taken `bytes` of its answer.
    pub(super) fn took(&self, bytes: u64) {
        self.turns.0.borrow_mut().uploads.took(self.number, bytes);
    }

    /// An answer is complete; `asks_more` if the next question is there already.
    pub(super) fn answered(&self, asks_more: bool) {
        self.turns.decide(|uploads| uploads.answered(self.number, asks_more, clock::now()));
    }

    /// Cancelled when the stream must close.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.handle.closed
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.0.borrow_mut().streams.remove(&self.number);
        self.turns.decide(|uploads| uploads.ended(self.number, clock::now()));
    }
}
