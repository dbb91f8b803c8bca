//! The servers of a model as one node sees them: what their adverts say, and the requests that this node has sent and that no
//! advert tells yet. Nothing is chosen here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use crate::pool::{Advert, ServingAdvert, View};

/// A node that answers requests to a model with all layers of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// The node.
    pub peer: PeerId,
    /// Whether it is this node.
    pub is_local: bool,
    /// Requests that run or wait there.
    pub load: u32,
    /// Tokens of a single answer per second; 0 until measured.
    pub tokens_per_s: u32,
    /// Round-trip time to it.
    pub rtt: Duration,
    /// Tokens of the prompt that it has read before.
    pub known_tokens: usize,
}

/// Whether a working node of the view, this one included, can compute a model with this node's version of the numerics: it serves
/// the model or has layers of it.
pub fn has_numerics(view: &View, model: &Digest) -> bool {
    let computes = |advert: &Advert| {
        advert.serving.iter().any(|said| said.model == *model)
            || advert.models.iter().any(|known| known.served && known.digest == *model)
            || advert.stages.iter().any(|stage| stage.model == *model)
    };
    view.everyone().any(|advert| advert.works && advert.numerics == view.own.numerics && computes(advert))
}

/// The requests that this node has sent to servers and that have not ended.
#[derive(Debug, Default)]
pub struct Servers {
    sent: BTreeMap<(Digest, PeerId), u32>,
}

impl Servers {
    /// A request was sent to a server.
    pub fn sent(&mut self, model: Digest, server: PeerId) {
        *self.sent.entry((model, server)).or_default() += 1;
    }

    /// A request to a server has ended.
    pub fn ended(&mut self, model: Digest, server: PeerId) {
        if let Some(sent) = self.sent.get_mut(&(model, server)) {
            *sent -= 1;
            if *sent == 0 {
                self.sent.remove(&(model, server));
            }
        }
    }

    /// Requests that this node has at a server.
    fn at(&self, model: Digest, server: PeerId) -> u32 {
        self.sent.get(&(model, server)).copied().unwrap_or(0)
    }

    /// This node as a server of a model that it has loaded. `said`: what its advert would say now.
    pub fn local(&self, local: PeerId, said: &ServingAdvert) -> Server {
        self.server(local, true, said, Duration::ZERO)
    }

    /// The other servers of a model.
    pub fn others(&self, view: &View, model: &Digest) -> Vec<Server> {
        let serving = |advert: &Advert| {
            let said = advert.serving.iter().find(|said| said.model == *model)?;
            // Another version of the numerics would refuse the session.
            (advert.works && advert.numerics == view.own.numerics).then(|| self.placed(advert.peer, said, view))
        };
        view.nodes.values().filter_map(|advert| serving(advert)).collect()
    }

    /// The nodes that answer whole requests to a model, whatever their numerics: those with all its layers, or else those that a
    /// person asked to serve it, which coordinate a chain of stages.
    pub fn whole(&self, view: &View, model: &Digest) -> Vec<Server> {
        let working = || view.nodes.values().filter(|advert| advert.works);
        let serving = |advert: &Arc<Advert>| advert.serving.iter().find(|said| said.model == *model).copied();
        let alone: Vec<Server> =
            working().filter_map(|advert| Some(self.placed(advert.peer, &serving(advert)?, view))).collect();
        if !alone.is_empty() {
            return alone;
        }
        let said = ServingAdvert { model: *model, places: 0, running: 0, waiting: 0, tokens_per_s: 0 };
        let owners =
            working().filter(|advert| advert.models.iter().any(|known| known.served && known.digest == *model));
        owners.map(|advert| self.placed(advert.peer, &said, view)).collect()
    }

    /// Another node as a server.
    pub fn placed(&self, peer: PeerId, said: &ServingAdvert, view: &View) -> Server {
        let rtt = view.link(&view.local, &peer).map_or(Duration::ZERO, |link| link.rtt);
        self.server(peer, false, said, rtt)
    }

    fn server(&self, peer: PeerId, is_local: bool, said: &ServingAdvert, rtt: Duration) -> Server {
        // The advert counts this node's requests as well, but is up to a second old.
        let load = self.at(said.model, peer).max(u32::from(said.running) + u32::from(said.waiting));
        Server { peer, is_local, load, tokens_per_s: said.tokens_per_s.into(), rtt, known_tokens: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pool::{ModelAdvert, ModelSize, advert_of};
    use crate::test_peers::peer;

    const MODEL: Digest = Digest([1; 32]);

    #[test]
    fn a_server_has_the_load_that_it_says_or_that_was_sent_to_it() {
        let said = |running| ServingAdvert { model: MODEL, places: 8, running, waiting: 1, tokens_per_s: 30 };
        let advert = |number, numerics, running| {
            let serving = vec![said(running)];
            Arc::new(Advert { serving, numerics, ..advert_of(peer(number)) })
        };
        let nodes = [advert(2, 1, 3), advert(3, 2, 0)].map(|advert| (advert.peer, advert)).into();
        let own = Arc::new(Advert { numerics: 1, ..advert_of(peer(1)) });
        let view = View { local: peer(1), own, term: None, nodes, connected: BTreeSet::new() };
        let mut servers = Servers::default();
        let loads = |servers: &Servers| -> Vec<(PeerId, u32)> {
            servers.others(&view, &MODEL).into_iter().map(|server| (server.peer, server.load)).collect()
        };
        assert_eq!(loads(&servers), [(peer(2), 4)], "the third has other numerics");
        (0..6).for_each(|_| servers.sent(MODEL, peer(2)));
        assert_eq!(loads(&servers), [(peer(2), 6)]);
        (0..6).for_each(|_| servers.ended(MODEL, peer(2)));
        assert_eq!((loads(&servers), servers.sent.len()), (vec![(peer(2), 4)], 0));
        servers.ended(MODEL, peer(2));
        assert_eq!(servers.local(peer(1), &said(0)).load, 1);
    }

    #[test]
    fn whole_requests_go_to_nodes_with_all_layers_or_else_to_owners_of_any_numerics() {
        let said = ServingAdvert { model: MODEL, places: 8, running: 1, waiting: 0, tokens_per_s: 30 };
        let owned = |served| ModelAdvert {
            digest: MODEL,
            name: "m".to_owned(),
            served,
            whole: true,
            split: true,
            pinned: None,
            size: ModelSize::default(),
        };
        let own = Arc::new(Advert { numerics: 1, works: false, ..advert_of(peer(1)) });
        let view = |adverts: Vec<Advert>| View {
            local: peer(1),
            own: Arc::clone(&own),
            term: None,
            nodes: adverts.into_iter().map(|advert| (advert.peer, Arc::new(advert))).collect(),
            connected: BTreeSet::new(),
        };
        let found = |view: &View| -> Vec<PeerId> {
            Servers::default().whole(view, &MODEL).into_iter().map(|server| server.peer).collect()
        };
        let alone = Advert { serving: vec![said], numerics: 2, ..advert_of(peer(2)) };
        let owner = Advert { models: vec![owned(true)], numerics: 1, ..advert_of(peer(3)) };
        let holder = Advert { models: vec![owned(false)], numerics: 1, ..advert_of(peer(4)) };
        let client = Advert { serving: vec![said], works: false, numerics: 1, ..advert_of(peer(5)) };
        let all = view(vec![alone.clone(), owner.clone(), holder.clone(), client.clone()]);
        assert_eq!((found(&all), has_numerics(&all, &MODEL)), (vec![peer(2)], true));
        let split = view(vec![owner, holder.clone(), client.clone()]);
        assert_eq!((found(&split), has_numerics(&split, &MODEL)), (vec![peer(3)], true));
        let foreign = view(vec![alone, holder, client]);
        assert_eq!((found(&foreign), has_numerics(&foreign, &MODEL)), (vec![peer(2)], false));
    }
}
