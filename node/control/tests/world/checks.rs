//! What must hold in every world, kept apart from the nodes: they are watched, not asked. It also keeps the log of a run,
//! whose digest shows that two runs were the same to the byte.

use std::collections::{BTreeMap, BTreeSet};

use libp2p_identity::PeerId;
use pangea_control::devices::models_bytes;
use pangea_control::placement::{Placement, PlacementRefusal, StageOrder, pool_facts};
use pangea_control::pool::{Term, View};
use pangea_units::Digest;

use crate::chat_checks::ChatChecks;
use crate::deviations::Deviation;
use crate::job_checks::JobChecks;
use crate::node::{MODEL_BYTES, Node, Run, digest};
use crate::scenario::{Disturbance, Micros, SaidPlacements};
use crate::work_checks::WorkChecks;
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

/// What must hold, each counted where it is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Check {
    /// Terms never go back, and a lite client never claims one.
    TermsGrow,
    /// No node follows a master that it has quarantined.
    MasterIsTrusted,
    /// One placement under one epoch, of one's own term, on peers that are not quarantined.
    PlacementsAreSound,
    /// Only what the master asked for is loaded.
    LoadsAreAsked,
    /// After quiet, all nodes that agree on who lies live under one master.
    OneMaster,
    /// After quiet, every model that fits is placed.
    AllPlaced,
    /// Only a peer that did something provable is quarantined.
    ConvictsAreGuilty,
    /// A node gives away no more memory than it has.
    MemoryIsBudgeted,
    /// Everything that was leased comes back.
    MemoryIsBack,
    /// A worker answers every task once, and none of a quarantined peer.
    TasksAreAnswered,
    /// A tile goes only where it may.
    TilesGoWhereTheyMay,
    /// No wrong tile is accepted, and none twice.
    TilesAreRight,
    /// Every product ends once, with all tiles or for a reason.
    JobsEnd,
    /// Every chat ends once, with all tokens or for a reason.
    ChatsEnd,
    /// Tokens are those of an undisturbed node.
    TokensAreRight,
    /// What is asked in quiet is answered.
    QuietIsAnswered,
    /// Nothing of a session is left.
    SessionsAreOver,
    /// A peer that is quarantined is not admitted.
    QuarantineHolds,
    /// What stages signed is compared with what came.
    ClaimsAreRead,
    /// An answer is replayed.
    AuditsAreReplayed,
    /// Evidence that others found is checked again.
    EvidenceIsChecked,
    /// All who can check it believe what one of them proved.
    AccusationsTravel,
    /// Nothing is believed of a node that the pool has not certified, and nothing in another node's name.
    OnlyMembersExist,
}

impl Check {
    /// Every check.
    pub(crate) const ALL: [Check; 23] = [
        Check::TermsGrow,
        Check::MasterIsTrusted,
        Check::PlacementsAreSound,
        Check::LoadsAreAsked,
        Check::OneMaster,
        Check::AllPlaced,
        Check::ConvictsAreGuilty,
        Check::MemoryIsBudgeted,
        Check::MemoryIsBack,
        Check::TasksAreAnswered,
        Check::TilesGoWhereTheyMay,
        Check::TilesAreRight,
        Check::JobsEnd,
        Check::ChatsEnd,
        Check::TokensAreRight,
        Check::QuietIsAnswered,
        Check::SessionsAreOver,
        Check::QuarantineHolds,
        Check::ClaimsAreRead,
        Check::AuditsAreReplayed,
        Check::EvidenceIsChecked,
        Check::AccusationsTravel,
        Check::OnlyMembersExist,
    ];
}

/// How often branches of the world were taken: a world in which something never happens shows nothing about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Branches by name.
    pub(crate) branches: BTreeMap<&'static str, u64>,
    /// How often nodes deviated in each way, and how often honest nodes acted on it.
    pub(crate) deviations: BTreeMap<Deviation, (u64, u64)>,
    /// How often each check was evaluated.
    pub(crate) checks: BTreeMap<Check, u64>,
}

impl Counts {
    /// One more.
    pub(crate) fn add(&mut self, what: &'static str) {
        *self.branches.entry(what).or_default() += 1;
    }

    /// How often a branch was taken.
    pub(crate) fn of(&self, what: &str) -> u64 {
        self.branches.get(what).copied().unwrap_or(0)
    }

    /// Adds those of another world.
    pub(crate) fn merge(&mut self, other: &Counts) {
        for (what, count) in &other.branches {
            *self.branches.entry(what).or_default() += count;
        }
        for (what, (done, caught)) in &other.deviations {
            let count = self.deviations.entry(*what).or_default();
            *count = (count.0 + done, count.1 + caught);
        }
        for (what, count) in &other.checks {
            *self.checks.entry(*what).or_default() += count;
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.branches.iter().try_for_each(|(what, count)| writeln!(f, "{count:>10} {what}"))?;
        self.checks.iter().try_for_each(|(check, count)| writeln!(f, "{count:>10} checks of {check:?}"))?;
        let done = |(deviation, (done, caught)): (&Deviation, &(u64, u64))| {
            writeln!(f, "{done:>10} times {deviation:?}, acted on {caught} times")
        };
        self.deviations.iter().try_for_each(done)
    }
}

/// The checks of one world.
pub(crate) struct Checks {
    /// Jobs.
    pub(crate) jobs: JobChecks,
    /// Memory, tasks and quarantine.
    pub(crate) work: WorkChecks,
    /// Requests to models.
    pub(crate) chats: ChatChecks,
    said: SaidPlacements,
    /// Every master that some node lived under.
    pub(crate) masters: BTreeSet<PeerId>,
    /// How each node deviated so far.
    did: BTreeSet<(usize, Deviation)>,
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
            jobs: JobChecks::default(),
            work: WorkChecks::default(),
            chats: ChatChecks::default(),
            said: BTreeMap::new(),
            masters: BTreeSet::new(),
            did: BTreeSet::new(),
            counts: Counts::default(),
            digest: 0xcbf2_9ce4_8422_2325,
            lines: log.then(Vec::new),
        }
    }

    /// A node departs from the protocol.
    pub(crate) fn deviated(&mut self, now: Micros, at: usize, deviation: Deviation) {
        self.counts.deviations.entry(deviation).or_default().0 += 1;
        self.did.insert((at, deviation));
        self.log(now, format_args!("node {at} deviates: {deviation:?}"));
    }

    /// An honest node acted on a deviation.
    pub(crate) fn caught(&mut self, deviation: Deviation) {
        self.counts.deviations.entry(deviation).or_default().1 += 1;
    }

    /// How many nodes did something.
    pub(crate) fn did(&self, deviation: Deviation) -> usize {
        self.did.iter().filter(|(_, of)| *of == deviation).count()
    }

    /// Whether a node kept a signature or its turn back, so that the stages behind it wait until their lease of the session ends.
    pub(crate) fn kept_others_waiting(&self, node: usize) -> bool {
        let kept = [Deviation::WithholdsSignature, Deviation::LiesUnsigned, Deviation::StallsSession];
        kept.iter().any(|deviation| self.did.contains(&(node, *deviation)))
    }

    /// Whether some stage computed or told something wrong so far.
    pub(crate) fn lied_in_sessions(&self) -> bool {
        self.did.iter().any(|(_, deviation)| deviation.is_lie_in_sessions())
    }

    /// Whether a node did anything of the catalogue.
    pub(crate) fn is_deviant(&self, node: usize) -> bool {
        self.did.iter().any(|(at, _)| *at == node)
    }

    /// Whether a node did something that can be proven.
    pub(crate) fn is_guilty(&self, node: usize) -> bool {
        self.did.iter().any(|(at, deviation)| *at == node && deviation.is_provable())
    }

    /// A check is evaluated.
    pub(crate) fn evaluated(&mut self, check: Check) {
        *self.counts.checks.entry(check).or_default() += 1;
    }

    /// The digest of everything that was logged.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// The lines of the log.
    pub(crate) fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }

    /// Something happened.
    pub(crate) fn log(&mut self, now: Micros, line: std::fmt::Arguments<'_>) {
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
        self.forget_jobs_of(node);
        self.forget_work_of(node);
        self.forget_chats_of(node);
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
            Disturbance::MemoryShort { .. } => "short memories",
            Disturbance::BreakChains { .. } => "broken chains",
            Disturbance::SlowDisk { .. } => "slow disks",
            Disturbance::FullDisk { .. } => "full disks",
            Disturbance::Slow { .. } => "slow nodes",
            Disturbance::Hang { .. } => "hanging nodes",
            Disturbance::BreakStreams { .. } => "broken streams",
            Disturbance::Drain { .. } => "drains",
            Disturbance::CutOneWay { .. } => "one-way cuts",
            Disturbance::ClockJump { .. } => "clock jumps",
            Disturbance::ClockSetBack { .. } => "clocks set back",
        });
        self.log(now, format_args!("{disturbance:?}"));
    }

    /// An election decided. Terms never go back, over restarts either; a lite client is never the master.
    pub(crate) fn decided(&mut self, now: Micros, at: usize, node: &Node, term: Option<Term>) -> Result<(), Broken> {
        self.log(now, format_args!("node {at} decides {term:?}"));
        let Some(term) = term else { return Ok(()) };
        self.counts.add("terms");
        // A counter that was raised from outside comes down again.
        if !self.did.iter().any(|(_, deviation)| *deviation == Deviation::PoisonsCounter) {
            self.evaluated(Check::TermsGrow);
            if node.disk.term.is_some_and(|stored| term < stored) {
                return Err(Broken::new(now, format!("node {at} goes back from {:?} to {term:?}", node.disk.term)));
            }
        }
        if !node.spec.works && term.master == node.peer {
            return Err(Broken::new(now, format!("node {at} computes for nobody and becomes the master")));
        }
        Ok(())
    }

    /// A node lives under another term from now on: not under that of a peer that it has proven to lie.
    pub(crate) fn lives_under(
        &mut self,
        now: Micros,
        at: usize,
        term: Option<Term>,
        master: Option<usize>,
    ) -> Result<(), Broken> {
        self.log(now, format_args!("node {at} lives under {term:?}"));
        self.masters.extend(term.map(|term| term.master));
        self.evaluated(Check::MasterIsTrusted);
        match master.filter(|master| self.is_quarantined(at, *master)) {
            Some(master) => Err(Broken::new(now, format!("node {at} follows {master}, which it has quarantined"))),
            None => Ok(()),
        }
    }

    /// A master said where models are: under its own term, one thing under one epoch.
    pub(crate) fn placed(
        &mut self,
        now: Micros,
        at: usize,
        nodes: &[Node],
        placements: &[Placement],
    ) -> Result<(), Broken> {
        let Some(run) = &nodes[at].run else { return Ok(()) };
        self.counts.add("placements");
        self.evaluated(Check::PlacementsAreSound);
        for placement in placements {
            self.log(
                now,
                format_args!("node {at} places {} {} {:?}", placement.name, placement.epoch, placement.stages),
            );
            if Some(placement.term) != run.terms.announced() || placement.term.master != run.advert.peer {
                return Err(Broken::new(now, format!("node {at} places under a term that is not its own")));
            }
            let key = (placement.term, placement.model, placement.epoch);
            let is_new = !self.said.contains_key(&key);
            let stages =
                placement.stages.iter().filter_map(|stage| nodes.iter().position(|node| node.peer == stage.peer));
            if let Some(liar) = { stages }.find(|peer| is_new && self.is_quarantined(at, *peer)) {
                return Err(Broken::new(now, format!("node {at} places layers on {liar}, which it has quarantined")));
            }
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
        self.evaluated(Check::LoadsAreAsked);
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

    /// How many placements of a model there have been.
    pub(crate) fn placements_of(&self, model: Digest) -> usize {
        let epochs = self.said.keys().filter(|(_, of, _)| *of == model).map(|(.., epoch)| *epoch);
        epochs.collect::<BTreeSet<u64>>().len()
    }
}

/// The nodes that run and that no other running node has proven to lie; none where those that are left differ on who lies:
/// each of them is then a pool of its own with whom it trusts.
pub(crate) fn pool(world: &World) -> Option<Vec<&Node>> {
    let runs = || world.nodes.iter().filter_map(|node| Some((node, node.run.as_ref()?)));
    let lied = |node: &Node| runs().any(|(_, run)| !run.directory.may_compute(&node.peer));
    let pool: Vec<&Node> = runs().filter(|(node, _)| !lied(node)).map(|(node, _)| node).collect();
    let excluded = |node: &&Node| node.run.as_ref().map(|run| run.directory.excluded());
    let first = pool.first().map(excluded);
    pool.iter().all(|node| Some(excluded(node)) == first).then_some(pool)
}

/// The one term that every node of the pool lives under, whose master runs; `None` where the nodes differ on who lies:
/// until all hear of a lie that one of them proved, each follows whom it trusts, and those in between change their minds.
pub(crate) fn one_master(world: &World) -> Result<Option<Term>, Broken> {
    let told = |node: &Node| node.run.as_ref().and_then(|run| run.terms.announced());
    let leads =
        |term: &Term| world.nodes.iter().any(|node| node.peer == term.master && node.run.is_some() && node.spec.works);
    let Some(pool) = pool(world) else { return Ok(None) };
    let terms: Vec<Option<Term>> = pool.iter().map(|node| told(node)).collect();
    if !pool.iter().any(|node| node.spec.works) {
        return Ok(None);
    }
    let first = terms.first().copied().flatten().filter(|first| terms.iter().all(|term| *term == Some(*first)));
    let first = first.filter(leads);
    first.map(Some).ok_or_else(|| Broken::new(world.now, format!("there is no one master: {terms:?}")))
}

/// Whether the pool has a model, and memory for it, so that something is to be placed.
pub(crate) fn can_hold_models(world: &World) -> bool {
    let pool = pool(world).unwrap_or_default();
    let memory: u64 = pool.iter().filter(|node| node.spec.works).map(|node| models_bytes(node.spec.memory_bytes)).sum();
    memory >= MODEL_BYTES && pool.iter().any(|node| !node.spec.models.is_empty())
}

/// Whether every model that somebody of the pool serves, if its nodes can hold one at all, has one placement in force whose stages
/// are ready, as every node of the pool sees it. A model that nobody serves any more may go on where its layers are loaded.
pub(crate) fn all_placed(world: &World) -> bool {
    let pool = pool(world).unwrap_or_default();
    let memory: u64 = pool.iter().filter(|node| node.spec.works).map(|node| models_bytes(node.spec.memory_bytes)).sum();
    pool.iter().filter(|_| memory >= MODEL_BYTES).filter_map(|node| node.run.as_ref()).all(|run| {
        let view = run.view(world.now);
        let (models, placements) = (pool_facts::models(&view), pool_facts::placements(&view).unwrap_or_default());
        let of_served = placements.iter().filter(|placement| models.contains_key(&placement.model));
        of_served.count() == models.len()
            && placements.iter().all(|placement| pool_facts::is_ready(&view, placement))
            && models.keys().all(|model| placements.iter().any(|placement| placement.model == *model))
    })
}

/// Whether a chat with model 1 that is asked of a node now is answered if nothing happens: some chain of it is ready.
pub(crate) fn can_ask(world: &World, at: usize) -> bool {
    let Some(run) = &world.nodes[at].run else { return false };
    let view = run.view(world.now);
    let placements = pool_facts::placements(&view).unwrap_or_default();
    placements.iter().any(|placement| placement.model == digest(1) && pool_facts::is_ready(&view, placement))
}
