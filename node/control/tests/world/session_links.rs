//! The session streams of a node: which of them make the link to a peer is the binary's to decide; this file opens, carries and
//! ends them.

use std::collections::BTreeMap;

use pangea_control::session::link_state::{Action, Event, LinkStates, StreamId};
use pangea_units::{Error, ErrorKind};

use crate::chat_messages::SessionMessage;
use crate::checks::Broken;
use crate::network::{Message, Protocol, StreamNumber};
use crate::scenario::Micros;
use crate::world::{Happening, World};

/// The session streams of a run.
#[derive(Default)]
pub(crate) struct SessionLinks {
    states: LinkStates,
    /// Streams that are read or written, with the numbers that the link's state knows them by.
    streams: BTreeMap<StreamNumber, StreamId>,
    /// The stream that messages for a peer go to.
    routes: BTreeMap<usize, StreamNumber>,
}

impl SessionLinks {
    fn number_of(&self, id: StreamId) -> Option<StreamNumber> {
        self.streams.iter().find(|(_, of)| **of == id).map(|(number, _)| *number)
    }
}

impl World {
    /// Whether a node can send to another, or itself.
    pub(crate) fn reaches(&self, at: usize, of: usize) -> bool {
        at == of || self.nodes[at].run.as_ref().is_some_and(|run| run.session_links.routes.contains_key(&of))
    }

    /// Sends a message of a session, to this node itself, too.
    pub(crate) fn send_session(
        &mut self,
        at: usize,
        to: usize,
        message: SessionMessage,
        delay: Micros,
    ) -> Result<(), Error> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        if at == to {
            let run = run.number;
            self.after(delay, Happening::ToSelf { node: at, run, message });
            return Ok(());
        }
        let none = || Error::new(ErrorKind::Unavailable, "there is no session stream");
        let stream = run.session_links.routes.get(&to).copied().ok_or_else(none)?;
        let bytes = match &message {
            SessionMessage::Frame(frame) => frame.activations.len() as u64 * 2048,
            _ => 0,
        };
        self.send_later(at, stream, delay, bytes, Message::Session(message));
        Ok(())
    }

    /// Does what follows from an event of a link.
    pub(crate) fn link_event(&mut self, at: usize, of: usize, event: Event) -> Result<(), Broken> {
        let (now, peer) = (self.now, self.nodes[of].peer);
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let (time, number) = (run.time(now), run.number);
        for action in run.session_links.states.handle(peer, event, time) {
            match action {
                Action::Open(id, after) => {
                    let delay = after.as_micros() as Micros + self.link(at, of).rtt;
                    self.after(delay, Happening::OpenSessions { at, run: number, of, id });
                }
                Action::Route(id) => {
                    let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
                    if let Some(stream) = run.session_links.number_of(id) {
                        run.session_links.routes.insert(of, stream);
                    }
                }
                Action::Drop(id) => {
                    let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
                    if let Some(stream) = run.session_links.number_of(id) {
                        run.session_links.streams.remove(&stream);
                        self.end_stream(stream);
                    }
                }
                Action::Gone(_) => {
                    let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
                    run.session_links.routes.remove(&of);
                    self.session_peer_gone(at, of)?;
                }
            }
        }
        Ok(())
    }

    /// A session stream is to be opened.
    pub(crate) fn open_sessions(&mut self, at: usize, of: usize, id: StreamId) -> Result<(), Broken> {
        let asking = self.nodes[at].peer;
        let takes = self.nodes[of].run.as_ref().is_some_and(|run| run.directory.may_compute(&asking));
        let opened = if takes { self.open_stream(at, of, Protocol::Sessions) } else { None };
        let Some(stream) = opened else {
            return self.link_event(at, of, Event::Ended(id, "it could not be opened".to_owned()));
        };
        if let Some(run) = &mut self.nodes[at].run {
            run.session_links.streams.insert(stream, id);
        }
        if let Some(run) = &mut self.nodes[of].run {
            let accepted = run.session_links.states.number();
            run.session_links.streams.insert(stream, accepted);
            self.link_event(of, at, Event::Accepted(accepted))?;
        }
        self.link_event(at, of, Event::Opened(id))
    }

    /// A session stream ended.
    pub(crate) fn session_stream_ended(&mut self, at: usize, of: usize, stream: StreamNumber) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        match run.session_links.streams.remove(&stream) {
            Some(id) => self.link_event(at, of, Event::Ended(id, "it broke".to_owned())),
            None => Ok(()),
        }
    }

    /// Something came on a session stream.
    pub(crate) fn session_says(
        &mut self,
        at: usize,
        from: usize,
        stream: StreamNumber,
        message: SessionMessage,
    ) -> Result<(), Broken> {
        let reads = self.nodes[at].run.as_ref().is_some_and(|run| run.session_links.streams.contains_key(&stream));
        if reads { self.deliver(at, from, message) } else { Ok(()) }
    }
}
