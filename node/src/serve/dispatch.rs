//! What this node remembers of the requests that it sends to servers: how many are under way at each, and which prompts each has
//! read. `pangea_control::routing` chooses.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use pangea_compute::Digest;
use pangea_control::routing::{Prefix, ReadPrefixes, Server, Servers, choose};

use crate::pool::{ServingAdvert, View};

/// The requests of this node at all servers; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Dispatch {
    state: Arc<Mutex<State>>,
    /// Drawn at random, so that nobody can choose prompts that are taken for each other.
    key: u64,
}

#[derive(Debug, Default)]
struct State {
    servers: Servers,
    read: ReadPrefixes,
}

/// A request at a server; it has ended when this is dropped.
struct Sent {
    state: Arc<Mutex<State>>,
    model: Digest,
    server: PeerId,
}

impl Drop for Sent {
    fn drop(&mut self) {
        lock(&self.state).servers.ended(self.model, self.server);
    }
}

impl Default for Dispatch {
    fn default() -> Dispatch {
        Dispatch { state: Arc::default(), key: rand::random() }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Dispatch {
    /// The start of a prompt.
    pub(super) fn prefix(&self, prompt: &[u32]) -> Prefix {
        Prefix::of(prompt, self.key)
    }

    /// The start of a prompt whose tokens this node does not know.
    pub(super) fn text_prefix(&self, prompt: &[u8]) -> Prefix {
        Prefix::of_text(prompt, self.key)
    }

    /// Whether a node takes whole requests to a model.
    pub(super) fn has_whole(&self, model: Digest, view: &View) -> bool {
        let servers = lock(&self.state).servers.whole(view, &model);
        servers.iter().any(|server| view.connected.contains(&server.peer))
    }

    /// The best node for a whole request to a model, without those that `may_take` refuses. The request counts there until the
    /// returned value is dropped.
    pub(super) fn send_whole(
        &self,
        model: Digest,
        view: &View,
        may_take: impl Fn(&PeerId) -> bool,
        prompt: &Prefix,
    ) -> Option<(PeerId, Arc<dyn Any + Send + Sync>)> {
        let mut state = lock(&self.state);
        let servers = state.servers.whole(view, &model);
        self.send_to(&mut state, model, servers, may_take, prompt)
    }

    /// The best server of a model for a prompt among this node, if it serves the model, those of the view and `placed`, a node
    /// that computes the only stage of a placement; without those that `may_take` refuses. The request counts there until the
    /// returned value is dropped.
    pub(super) fn send(
        &self,
        model: Digest,
        view: &View,
        [own, placed]: [Option<(PeerId, ServingAdvert)>; 2],
        may_take: impl Fn(&PeerId) -> bool,
        prompt: &Prefix,
    ) -> Option<(PeerId, Arc<dyn Any + Send + Sync>)> {
        let mut state = lock(&self.state);
        let mut servers: Vec<Server> = own.map(|(local, said)| state.servers.local(local, &said)).into_iter().collect();
        servers.extend(state.servers.others(view, &model));
        if let Some((peer, said)) = placed.filter(|(peer, _)| servers.iter().all(|server| server.peer != *peer)) {
            servers.push(state.servers.placed(peer, &said, view));
        }
        self.send_to(&mut state, model, servers, may_take, prompt)
    }

    /// Sends a request to the best of these servers.
    fn send_to(
        &self,
        state: &mut State,
        model: Digest,
        mut servers: Vec<Server>,
        may_take: impl Fn(&PeerId) -> bool,
        prompt: &Prefix,
    ) -> Option<(PeerId, Arc<dyn Any + Send + Sync>)> {
        servers.retain(|server| may_take(&server.peer));
        for server in &mut servers {
            server.known_tokens = state.read.known_tokens(model, server.peer, prompt);
        }
        let server = servers[choose(&servers, prompt.tokens())?].peer;
        state.servers.sent(model, server);
        state.read.reads(model, server, prompt);
        Some((server, Arc::new(Sent { state: Arc::clone(&self.state), model, server })))
    }
}
