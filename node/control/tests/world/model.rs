//! Models in the world: loaders that take their time and fail, sessions that come and go, chains that break.

use std::ops::Range;
use std::sync::Arc;

use pangea_control::placement::{Action, Event, StageOrder, StageReport};
use pangea_control::pool::StageState;
use pangea_units::Digest;

use crate::checks::Broken;
use crate::node::{Run, needs};
use crate::world::{Happening, World};

impl World {
    /// The placer looks at the pool as it is now.
    pub(crate) fn look(&mut self, node: usize) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        run.looking = false;
        let view = Arc::new(run.view(now));
        self.place(node, Event::View(view))?;
        self.place(node, Event::Tick)
    }

    fn place(&mut self, node: usize, event: Event) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let time = run.time(now);
        let actions = run.placer.handle(event, time);
        for action in actions {
            self.act(node, action)?;
        }
        Ok(())
    }

    fn act(&mut self, at: usize, action: Action) -> Result<(), Broken> {
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(run) = &mut node.run else { return Ok(()) };
        match action {
            Action::PublishPlacements(placements) => {
                self.checks.placed(now, at, run, &placements)?;
                (run.advert.placements, run.fresh) = (placements, true);
            }
            Action::PublishRefusals(refusals) => {
                self.checks.refused(now, run, &refusals)?;
                (run.advert.refusals, run.fresh) = (refusals, true);
            }
            Action::PublishStages(stages) => (run.advert.stages, run.fresh) = (stages, true),
            Action::Load(order) => return self.load(at, order),
            Action::Cancel { model, layers } | Action::Unload { model, layers } => self.unload(at, model, &layers),
            Action::Note(_) => {}
        }
        self.soon_look(at);
        Ok(())
    }

    fn load(&mut self, at: usize, order: StageOrder) -> Result<(), Broken> {
        let fails = self.load_failures_one_in > 0 && self.chance.one_in(self.load_failures_one_in);
        let took = self.chance.within(100_000..3_000_000);
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(run) = &mut node.run else { return Ok(()) };
        let view = run.view(now);
        self.checks.ordered(now, at, &view, &order)?;
        let bytes = needs(&order).weight_bytes(&order.layers) + order.session_bytes;
        let key = (order.model, order.layers.start, order.layers.end);
        if run.held.insert(key, (bytes, 0)).is_some() {
            return Err(Broken::new(now, format!("node {at} loads a stage twice")));
        }
        self.checks.holds(now, at, run.held_bytes(), node.spec.memory_bytes)?;
        let report =
            |state| StageReport { model: order.model, layers: order.layers.clone(), epoch: order.epoch, state };
        run.loads.insert((order.model, order.layers.start, order.layers.end, order.epoch));
        let number = run.number;
        let end = if fails { StageState::Failed("no".to_owned()) } else { StageState::Ready };
        let steps = [(3, StageState::Fetching { done: 5, total: 9 }), (2, StageState::Loading), (1, end)];
        for (part, state) in steps {
            self.after(took / part, Happening::Load { node: at, run: number, report: report(state) });
        }
        Ok(())
    }

    /// A load gets on, unless it was cancelled.
    pub(crate) fn loaded(&mut self, at: usize, report: StageReport) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        if !run.loads.contains(&Run::load_key(&report)) {
            return Ok(());
        }
        if let StageState::Failed(_) = report.state {
            run.held.remove(&(report.model, report.layers.start, report.layers.end));
        }
        if matches!(report.state, StageState::Failed(_) | StageState::Ready) {
            run.loads.remove(&Run::load_key(&report));
        }
        self.place(at, Event::Stage(report))
    }

    fn unload(&mut self, at: usize, model: Digest, layers: &Range<u32>) {
        let Some(run) = &mut self.nodes[at].run else { return };
        run.held.remove(&(model, layers.start, layers.end));
        run.loads.retain(|(of, start, end, _)| (*of, *start, *end) != (model, layers.start, layers.end));
    }

    /// Sessions come and go at the stages that are ready.
    pub(crate) fn converse(&mut self, at: usize) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let ready = run.advert.stages.iter().filter(|stage| stage.state == StageState::Ready);
        let ready: Vec<(Digest, Range<u32>)> = ready.map(|stage| (stage.model, stage.layers.clone())).collect();
        for (model, layers) in ready {
            if !self.chance.one_in(10) {
                continue;
            }
            let open = self.chance.index(3);
            let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
            if let Some(held) = run.held.get_mut(&(model, layers.start, layers.end)) {
                held.1 = open;
                self.place(at, Event::Sessions { model, layers, open })?;
            }
        }
        Ok(())
    }

    /// Every chain that a node is part of breaks there, though its layers are fine.
    pub(crate) fn break_chains(&mut self, at: usize) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let ready = run.advert.stages.iter().filter(|stage| stage.state == StageState::Ready);
        let broke: Vec<Event> = ready
            .map(|stage| Event::Broke { model: stage.model, layers: stage.layers.clone(), epoch: stage.epoch })
            .collect();
        broke.into_iter().try_for_each(|event| self.place(at, event))
    }
}
