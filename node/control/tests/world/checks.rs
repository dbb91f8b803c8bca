//! What must hold in every world, kept apart from the nodes: they are watched, not asked. It also keeps the log of a run,
//! whose digest shows that two runs were the same to the byte.

use std::collections::{BTreeMap, BTreeSet};

use libp2p_identity::PeerId;
use pangea_control::placement::{Placement, PlacementRefusal, StageOrder, pool_facts};
use pangea_control::pool::{Term, View};
use pangea_control::schedule::{FailureKind, Tile};

use pangea_units::Digest;

use crate::node::{Node, Run};
use crate::scenario::{Disturbance, Micros, SaidPlacements};
use crate::world::World;

/// Something that must hold and did not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Broken {
    at: Micros,
    what: String,
}

impl Broken {
    /// `what` did not hold at this time.
    pub(crate) fn new(at: Micros, what: impl Into<String>) -> Broken {
        Broken { at, what: what.into() }
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {:.3} s: {}", self.at as f64 / 1e6, self.what)
    }
}

/// How a job of the scenario stands.
enum Job {
    /// The node that was asked runs, and the job is its.
    Open { node: usize, accepted: BTreeSet<Tile> },
    /// It ended, or its node did.
    Ended,
}

/// How often branches of the world were taken: a world in which something never happens shows nothing about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(pub BTreeMap<&'static str, u64>);

impl Counts {
    fn add(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// Adds those of another world.
    pub(crate) fn merge(&mut self, other: &Counts) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }
}

/// The checks of one world.
pub(crate) struct Checks {
    jobs: BTreeMap<usize, Job>,
    said: SaidPlacements,
    /// Every master that some node lived under.
    pub(crate) masters: BTreeSet<PeerId>,
    /// Branches taken.
    pub(crate) counts: Counts,
    /// FNV-1a over every line of the log.
    digest: u64,
    lines: Option<Vec<String>>,
}

impl Checks {
    /// Nothing happened yet; with `log`, lines are kept.
    pub(crate) fn new(log: bool) -> Checks {
        Checks {
            jobs: BTreeMap::new(),
            said: BTreeMap::new(),
            masters: BTreeSet::new(),
            counts: Counts::default(),
            digest: 0xcbf2_9ce4_8422_2325,
            lines: log.then(Vec::new),
        }
    }

    /// The digest of everything that was logged.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// The lines of the log.
    pub(crate) fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }

    fn log(&mut self, now: Micros, line: std::fmt::Arguments<'_>) {
        let line = format!("{:>12.6} {line}", now as f64 / 1e6);
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(line);
        }
    }

    /// A node starts.
    pub(crate) fn started(&mut self, now: Micros, node: usize) {
        self.counts.add("starts");
        self.log(now, format_args!("node {node} starts"));
    }

    /// A node's process ends: its interactive jobs end with it.
    pub(crate) fn crashed(&mut self, now: Micros, node: usize) {
        self.counts.add("crashes");
        self.log(now, format_args!("node {node} crashes"));
        for job in self.jobs.values_mut() {
            if matches!(job, Job::Open { node: of, .. } if *of == node) {
                *job = Job::Ended;
            }
        }
    }

    /// Something goes wrong, or right again.
    pub(crate) fn disturbed(&mut self, now: Micros, disturbance: &Disturbance) {
        self.counts.add(match disturbance {
            Disturbance::Crash { .. } | Disturbance::Start { .. } => "process disturbances",
            Disturbance::Split { .. } => "splits",
            Disturbance::Cut { .. } => "cuts",
            Disturbance::Heal => "heals",
            Disturbance::Loss { .. } => "losses",
            Disturbance::LoadFailures { .. } => "load failures",
            Disturbance::BreakChains { .. } => "broken chains",
            Disturbance::SlowDisk { .. } => "slow disks",
            Disturbance::FullDisk { .. } => "full disks",
            Disturbance::Slow { .. } => "slow nodes",
        });
        self.log(now, format_args!("{disturbance:?}"));
    }

    /// An election decided. Terms never go back, over restarts either; a lite client is never the master.
    pub(crate) fn decided(&mut self, now: Micros, at: usize, node: &Node, term: Option<Term>) -> Result<(), Broken> {
        self.log(now, format_args!("node {at} decides {term:?}"));
        let Some(term) = term else { return Ok(()) };
        self.counts.add("terms");
        if node.disk.term.is_some_and(|stored| term < stored) {
            return Err(Broken::new(now, format!("node {at} goes back from {:?} to {term:?}", node.disk.term)));
        }
        if !node.spec.works && term.master == node.peer {
            return Err(Broken::new(now, format!("node {at} computes for nobody and becomes the master")));
        }
        Ok(())
    }

    /// A node lives under another term from now on.
    pub(crate) fn lives_under(&mut self, now: Micros, at: usize, term: Option<Term>) {
        self.log(now, format_args!("node {at} lives under {term:?}"));
        self.masters.extend(term.map(|term| term.master));
    }

    /// A master said where models are: under its own term, one thing under one epoch.
    pub(crate) fn placed(&mut self, now: Micros, at: usize, run: &Run, placements: &[Placement]) -> Result<(), Broken> {
        self.counts.add("placements");
        for placement in placements {
            self.log(
                now,
                format_args!("node {at} places {} {} {:?}", placement.name, placement.epoch, placement.stages),
            );
            if Some(placement.term) != run.terms.announced() || placement.term.master != run.advert.peer {
                return Err(Broken::new(now, format!("node {at} places under a term that is not its own")));
            }
            let key = (placement.term, placement.model, placement.epoch);
            let known = self.said.entry(key).or_insert_with(|| placement.stages.clone());
            if *known != placement.stages {
                return Err(Broken::new(now, format!("node {at} says two placements under one epoch")));
            }
            let of_model = placements.iter().filter(|other| other.model == placement.model).count();
            if of_model > 2 {
                return Err(Broken::new(now, "more placements than one that answers and one that forms"));
            }
        }
        Ok(())
    }

    /// A master said what it cannot place.
    pub(crate) fn refused(&mut self, now: Micros, run: &Run, refusals: &[PlacementRefusal]) -> Result<(), Broken> {
        self.counts.add("refusals");
        let placed =
            |refusal: &PlacementRefusal| run.advert.placements.iter().any(|placement| placement.model == refusal.model);
        if refusals.iter().any(placed) {
            return Err(Broken::new(now, "a model is refused and placed"));
        }
        Ok(())
    }

    /// A stage is loaded: only what a placement of the highest term asks for.
    pub(crate) fn ordered(&mut self, now: Micros, at: usize, view: &View, order: &StageOrder) -> Result<(), Broken> {
        self.counts.add("loads");
        self.log(now, format_args!("node {at} loads {} {:?} {}", order.name, order.layers, order.epoch));
        let asked = pool_facts::placements(view).unwrap_or_default().into_iter().any(|placement| {
            let mine = placement.stages.iter().any(|stage| stage.peer == view.local && stage.layers == order.layers);
            placement.epoch == order.epoch
                && placement.model == order.model
                && Some(placement.term) == view.term
                && mine
        });
        if asked { Ok(()) } else { Err(Broken::new(now, format!("node {at} loads what nobody it obeys asked for"))) }
    }

    /// What a node has given away never passes its memory.
    pub(crate) fn holds(&mut self, now: Micros, at: usize, bytes: u64, limit: u64) -> Result<(), Broken> {
        if bytes > limit {
            return Err(Broken::new(now, format!("node {at} holds {bytes} bytes of {limit}")));
        }
        Ok(())
    }

    /// A job is asked of a node, or would be if the node ran.
    pub(crate) fn submitted(&mut self, now: Micros, job: usize, node: usize, runs: bool) {
        self.log(now, format_args!("job {job} is asked of node {node}, which runs: {runs}"));
        self.counts.add("jobs");
        let open = Job::Open { node, accepted: BTreeSet::new() };
        self.jobs.insert(job, if runs { open } else { Job::Ended });
    }

    /// A tile was taken into the product: once, and not a wrong one. `wrong`: none where its attempt was not sound.
    pub(crate) fn accepted(
        &mut self,
        now: Micros,
        job: Option<usize>,
        tile: Tile,
        wrong: Option<bool>,
    ) -> Result<(), Broken> {
        self.log(now, format_args!("job {job:?} takes {tile:?}"));
        match wrong {
            None => return Err(Broken::new(now, "a tile is taken whose attempt is unknown or not finished")),
            Some(true) => return Err(Broken::new(now, "a wrong tile is taken")),
            Some(false) => {}
        }
        match job.and_then(|job| self.jobs.get_mut(&job)) {
            Some(Job::Open { accepted, .. }) => {
                if accepted.insert(tile) {
                    Ok(())
                } else {
                    Err(Broken::new(now, "a tile is taken twice"))
                }
            }
            Some(Job::Ended) | None => Err(Broken::new(now, "a tile of a job that is not under way is taken")),
        }
    }

    /// A job ended: with all its tiles, or for a reason.
    pub(crate) fn finished(
        &mut self,
        now: Micros,
        job: Option<usize>,
        outcome: Result<u32, FailureKind>,
    ) -> Result<(), Broken> {
        self.log(now, format_args!("job {job:?} ends: {outcome:?}"));
        let Some(number) = job else { return Err(Broken::new(now, "a job ends twice")) };
        let ended = self.jobs.insert(number, Job::Ended);
        match (ended, outcome) {
            (Some(Job::Open { accepted, .. }), Ok(tiles)) if accepted.len() == tiles as usize => {
                self.counts.add("finished jobs");
                Ok(())
            }
            (Some(Job::Open { .. }), Ok(_)) => {
                Err(Broken::new(now, format!("job {number} ends without all its tiles")))
            }
            (Some(Job::Open { .. }), Err(_)) => {
                self.counts.add("failed jobs");
                Ok(())
            }
            _ => Err(Broken::new(now, format!("job {number} ends twice"))),
        }
    }

    /// A peer was found to lie: only one that does.
    pub(crate) fn quarantined(&mut self, now: Micros, at: usize, peer: usize, lies: bool) -> Result<(), Broken> {
        self.counts.add("quarantines");
        self.log(now, format_args!("node {at} quarantines {peer}"));
        if lies { Ok(()) } else { Err(Broken::new(now, format!("node {at} quarantines {peer}, which is honest"))) }
    }

    /// How many placements of a model there have been.
    pub(crate) fn placements_of(&self, model: Digest) -> usize {
        let epochs = self.said.keys().filter(|(_, of, _)| *of == model).map(|(.., epoch)| *epoch);
        epochs.collect::<BTreeSet<u64>>().len()
    }

    /// No job is left that nobody works on.
    pub(crate) fn all_ended(&self, now: Micros) -> Result<(), Broken> {
        let open = self.jobs.iter().find(|(_, job)| matches!(job, Job::Open { .. }));
        open.map_or(Ok(()), |(job, _)| Err(Broken::new(now, format!("job {job} never ended"))))
    }
}

/// The one term that every node that runs lives under, whose master runs.
pub(crate) fn one_master(world: &World) -> Result<Term, Broken> {
    let runs = || world.nodes.iter().filter_map(|node| Some((node, node.run.as_ref()?)));
    let terms: Vec<Option<Term>> = runs().map(|(_, run)| run.terms.announced()).collect();
    let first = terms.first().copied().flatten().filter(|first| terms.iter().all(|term| *term == Some(*first)));
    let leads = |term: &Term| runs().any(|(node, _)| node.peer == term.master && node.spec.works);
    first.filter(leads).ok_or_else(|| Broken::new(world.now, format!("there is no one master: {terms:?}")))
}

/// Whether every model that somebody serves has one placement in force whose stages are ready, as every node sees it.
pub(crate) fn all_placed(world: &World) -> bool {
    world.nodes.iter().filter_map(|node| node.run.as_ref()).all(|run| {
        let view = run.view(world.now);
        let (models, placements) = (pool_facts::models(&view), pool_facts::placements(&view).unwrap_or_default());
        placements.len() == models.len()
            && placements.iter().all(|placement| pool_facts::is_ready(&view, placement))
            && models.keys().all(|model| placements.iter().any(|placement| placement.model == *model))
    })
}
