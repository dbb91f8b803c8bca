//! The chains that a node has stages of: started as placements say, kept as long as the binary keeps them, told to the placer.

use std::sync::Arc;

use pangea_control::placement::{Event, Placement, broken_elsewhere, pool_facts, room_positions};
use pangea_control::pool::View;
use pangea_control::session::chains::ChainUse;
use pangea_control::session::{ChainId, StageAt};

use crate::checks::Broken;
use crate::node::{StageKey, position_bytes, size};
use crate::world::World;

impl World {
    /// Starts this node's stages of the placements that are ready, and ends those of placements long replaced.
    pub(crate) fn follow(&mut self, at: usize, view: &View) -> Result<(), Broken> {
        let Some(placements) = pool_facts::placements(view) else { return Ok(()) };
        let now = self.now;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let time = run.time(now);
        run.published_placements.observe(&placements, time);
        for placement in &placements {
            self.join_chain(at, view, placement)?;
        }
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let broken = |chain: &ChainId| run.stages.get(chain).is_some_and(|stage| stage.broken);
        let going: Vec<ChainId> = run.chains.all().into_iter().filter(|chain| !broken(chain)).collect();
        for chain in going {
            let peers = self.peers_of(at, chain);
            if let Some(peer) = broken_elsewhere(view, &chain, &peers) {
                self.break_off(at, chain, peer)?;
            }
        }
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let stages = &run.stages;
        let state = |chain: &ChainId| ChainUse {
            named: placements.iter().any(|other| other.model == chain.model && other.epoch == chain.epoch),
            placed: placements.iter().any(|other| other.model == chain.model),
            broken: stages.get(chain).is_some_and(|stage| stage.broken),
            sessions: stages.get(chain).map_or(0, |stage| stage.protocol.sessions()),
        };
        run.chains.sweep(time, state).into_iter().try_for_each(|ended| self.end_stage(at, ended))
    }

    /// Starts the stage of a chain that is asked for before this node has followed the view that names it.
    pub(crate) fn start_pending(&mut self, at: usize, chain: ChainId) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        if run.stages.contains_key(&chain) {
            return Ok(());
        }
        let view = run.view(now);
        self.follow(at, &view)?;
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        match run.published_placements.of(&chain) {
            Some(placement) => self.join_chain(at, &view, &placement),
            None => Ok(()),
        }
    }

    fn join_chain(&mut self, at: usize, view: &View, placement: &Placement) -> Result<(), Broken> {
        let chain = ChainId { model: placement.model, epoch: placement.epoch };
        let local = self.nodes[at].peer;
        let Some(index) = placement.stages.iter().position(|stage| stage.peer == local) else { return Ok(()) };
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        if run.stages.contains_key(&chain) || run.chains.contains(&chain) {
            return Ok(());
        }
        let layers = &placement.stages[index].layers;
        let key = (placement.model, layers.start, layers.end);
        if !run.layers.loaded.contains_key(&key) {
            return Ok(());
        }
        // The first stage admits what the stage with the least room holds, and must be able to send.
        let room = room_positions(view, placement);
        let linked = placement.stages.iter().all(|stage| self.reaches(at, self.index_of(&stage.peer)));
        if index == 0 && (room.is_none() || !linked) {
            return Ok(());
        }
        let own = u64::from(layers.end - layers.start) * position_bytes();
        let session_bytes = (room.unwrap_or(0) * own).min(run.layers.session_bytes(&key));
        let stage_at =
            |stage: &pangea_control::placement::PlacedStage| StageAt { peer: stage.peer, layers: stage.layers.clone() };
        let stages = placement.stages.iter().map(stage_at).collect();
        self.start_stage(at, chain, stages, index, key, session_bytes);
        if let Some(run) = &mut self.nodes[at].run {
            run.chains.insert(chain);
        }
        Ok(())
    }

    /// Layers are gone: what computed with them ends.
    pub(crate) fn end_chains_of(&mut self, at: usize, key: StageKey) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let ended: Vec<ChainId> =
            run.stages.iter().filter(|(_, stage)| stage.key == key).map(|(chain, _)| *chain).collect();
        for chain in ended {
            self.end_stage(at, chain)?;
            if let Some(run) = &mut self.nodes[at].run {
                run.chains.remove(&chain);
            }
        }
        Ok(())
    }

    /// Tells the placer how many sessions this node's layers have, where that changed; ends the look at the pool.
    pub(crate) fn tell_sessions(&mut self, at: usize) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let mut changed = Vec::new();
        for (key, loaded) in &mut run.layers.loaded {
            let of = run.stages.values().filter(|stage| stage.key == *key);
            let open = of.map(|stage| stage.protocol.sessions()).sum();
            if std::mem::replace(&mut loaded.told, open) != open {
                changed.push((*key, open));
            }
        }
        changed.into_iter().try_for_each(|((model, start, end), open)| {
            self.place(at, Event::Sessions { model, layers: start..end, open })
        })
    }

    /// A chain broke here: the placer hears of it.
    pub(crate) fn chain_broke(&mut self, at: usize, key: StageKey, epoch: u64) -> Result<(), Broken> {
        let (model, start, end) = key;
        if epoch == 0 {
            // A chain of this node alone begins again with the layers that are here.
            let chain = ChainId { model, epoch };
            if let Some(run) = &mut self.nodes[at].run {
                run.stages.remove(&chain);
            }
            self.start_alone(at, key);
            return Ok(());
        }
        self.place(at, Event::Broke { model, layers: start..end, epoch })
    }

    /// Starts the chain of this node alone.
    pub(crate) fn start_alone(&mut self, at: usize, key: StageKey) {
        let chain = ChainId { model: key.0, epoch: 0 };
        let local = self.nodes[at].peer;
        let Some(run) = &self.nodes[at].run else { return };
        if run.stages.contains_key(&chain) || !run.layers.loaded.contains_key(&key) {
            return;
        }
        let session_bytes = run.layers.session_bytes(&key);
        self.start_stage(at, chain, vec![StageAt { peer: local, layers: key.1..key.2 }], 0, key, session_bytes);
    }

    /// The key of all layers of a model.
    pub(crate) fn whole(model: pangea_units::Digest) -> StageKey {
        (model, 0, size().layers)
    }

    /// The pool as a node sees it now.
    pub(crate) fn view_of(&self, at: usize) -> Option<Arc<View>> {
        self.nodes[at].run.as_ref().map(|run| Arc::new(run.view(self.now)))
    }
}
