//! A world in virtual time around the scheduler that the binary runs: workers with true speeds, links, crashes, hangs,
//! lies, evictions and overload. Reports what breaks an invariant; every run follows from its seed.
//! Never sleeps, never opens a socket, never computes a product.

use std::time::Duration;

use pangea_control::schedule::{
    Action, Arithmetic, AttemptId, CheckOutcome, Event, FailureKind, JobId, JobReport, JobSpec, LeaveReason, Measured,
    Operand, Place, ProductShape, Progress, Scheduler, Tile, TileGrid, Time, Transfer, WorkerEstimate, WorkerId,
};
use pangea_units::SplitMix64;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// What a worker really is.
#[derive(Debug, Clone)]
pub struct Nature {
    /// Additions and multiplications a second.
    pub flops_per_s: f64,
    /// Of the link, each way.
    pub bytes_per_s: f64,
    /// Of the link.
    pub rtt_s: f64,
    /// Fixed cost of a task.
    pub overhead_s: f64,
    /// Spread of every duration: 0.05 is up to 5 % more.
    pub jitter: f64,
    /// From this time on, 20 times slower.
    pub slow_from_s: f64,
    /// From this time on, nothing comes back and nothing is said.
    pub hangs_from_s: f64,
    /// When a hanging or crashed worker is noticed and leaves, after so long.
    pub detected_after_s: f64,
    /// Gone at this time.
    pub crashes_at_s: f64,
    /// Back so long after a crash, with empty hands.
    pub restarts_after_s: f64,
    /// Probability that an answer is wrong.
    pub lies: f64,
    /// Probability that a task's stream breaks.
    pub drops: f64,
    /// Probability that a task is never answered, though others are.
    pub forgets: f64,
    /// Probability that a task is refused for want of room.
    pub overloaded: f64,
    /// Probability that an operand is gone when a task needs it.
    pub evicts: f64,
}

impl Nature {
    /// Honest, steady, and as fast as said.
    pub fn honest(flops_per_s: f64, bytes_per_s: f64, rtt_s: f64) -> Self {
        Self {
            flops_per_s,
            bytes_per_s,
            rtt_s,
            overhead_s: 50e-6,
            jitter: 0.0,
            slow_from_s: f64::INFINITY,
            hangs_from_s: f64::INFINITY,
            detected_after_s: 5.0,
            crashes_at_s: f64::INFINITY,
            restarts_after_s: f64::INFINITY,
            lies: 0.0,
            drops: 0.0,
            forgets: 0.0,
            overloaded: 0.0,
            evicts: 0.0,
        }
    }
}

/// A worker of the world: what it is, and what the scheduler is told.
#[derive(Debug, Clone)]
pub struct SimulatedWorker {
    /// What it is.
    pub nature: Nature,
    /// What it says.
    pub claim: WorkerEstimate,
    /// When it joins.
    pub joins_at_s: f64,
}

/// A job of the world.
#[derive(Debug, Clone)]
pub struct SimulatedJob {
    /// When it is submitted.
    pub at_s: f64,
    /// What is submitted.
    pub spec: JobSpec,
    /// When it is cancelled.
    pub cancelled_at_s: f64,
}

/// Everything that a run depends on.
#[derive(Debug, Clone)]
pub struct World {
    /// Seed of all chances in the run.
    pub seed: u64,
    /// This node; its link is not used.
    pub local: SimulatedWorker,
    /// Peers, worker 1 first.
    pub peers: Vec<SimulatedWorker>,
    /// Jobs, job 0 first.
    pub jobs: Vec<SimulatedJob>,
    /// Whether the driver tells about sending and computing.
    pub tells_progress: bool,
    /// Seconds until the driver hears that nobody is connecting.
    pub connecting_s: f64,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The kind of error; `None` if the product is whole.
    pub failure: Option<FailureKind>,
    /// From being submitted to the end, in virtual seconds.
    pub seconds: f64,
    /// What the scheduler says.
    pub report: JobReport,
    /// How it was cut.
    pub grid: Option<TileGrid>,
}

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// Of every job, in order.
    pub outcomes: Vec<Outcome>,
    /// Operand bytes that were sent.
    pub bytes_sent: u64,
    /// Events that the scheduler handled.
    pub events: u64,
    /// Workers that were quarantined.
    pub quarantined: BTreeSet<WorkerId>,
    /// What the scheduler believes of each peer that is still there at the end.
    pub scheduler: Scheduler,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Submit(usize),
    CancelJob(usize),
    Join(usize),
    Crash(usize),
    Detect(usize, u64),
    NobodyConnects,
    Sent(AttemptId),
    /// The operands and the task are at the worker.
    Arrive(AttemptId),
    Computed(AttemptId),
    /// The whole answer is here, or word of a failure.
    Back(AttemptId, Option<Failed>),
    Checked(AttemptId),
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Failed {
    Broken,
    Full,
    Missing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// The answer is here.
    Finished,
    /// Its check said that it is good.
    Good,
}

#[derive(Debug)]
struct Flying {
    job: JobId,
    tile: Tile,
    worker: WorkerId,
    stage: Stage,
    life: u64,
    sent: Transfer,
    compute_s: f64,
    lie: bool,
}

/// One worker in the run.
#[derive(Debug)]
struct Site {
    is: SimulatedWorker,
    /// The driver has it as admitted.
    here: bool,
    /// Counts crashes: what was begun in another life is lost.
    life: u64,
    alive: bool,
    has: BTreeSet<(JobId, Operand)>,
    send_free_s: f64,
    receive_free_s: f64,
    queue: Vec<AttemptId>,
    computing: Option<AttemptId>,
    in_flight: usize,
    /// Seconds that checks took from the pool of this node.
    debt_s: f64,
}

#[derive(Debug)]
struct Progressing {
    spec: JobSpec,
    at_s: f64,
    grid: Option<TileGrid>,
    accepted: BTreeSet<Tile>,
    outcome: Option<Outcome>,
}

/// Checks are memory-bound and run on this node's pool.
const CHECK_BYTES_PER_S: f64 = 10e9;
/// No run may handle more: something goes round in circles.
const EVENTS_MAX: u64 = 20_000_000;

struct Simulation {
    scheduler: Scheduler,
    chance: SplitMix64,
    now_s: f64,
    order: u64,
    happenings: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    sites: Vec<Site>,
    jobs: Vec<Progressing>,
    attempts: BTreeMap<AttemptId, Flying>,
    started: u64,
    quarantined: BTreeSet<WorkerId>,
    wake_at: Option<Time>,
    tells_progress: bool,
    bytes_sent: u64,
    events: u64,
    actions: Vec<Action>,
}

impl World {
    /// Runs until every job has ended.
    ///
    /// # Errors
    /// What broke: an invariant, or a job that does not end.
    pub fn run(&self) -> Result<Run, String> {
        let mut simulation = Simulation::new(self);
        simulation.run().map_err(|broken| format!("seed {}, at {:.6} s: {broken}", self.seed, simulation.now_s))?;
        let outcomes = simulation.jobs.into_iter().filter_map(|job| job.outcome).collect();
        Ok(Run {
            outcomes,
            bytes_sent: simulation.bytes_sent,
            events: simulation.events,
            quarantined: simulation.quarantined,
            scheduler: simulation.scheduler,
        })
    }

    /// A world with faults of every sort, each with some chance.
    pub fn random(seed: u64) -> Self {
        let chance = &mut SplitMix64::new(seed);
        let calm = chance.happens(0.2);
        let worker = |chance: &mut SplitMix64, local: bool| {
            let speed = chance.scale(2e9, 2e11);
            let mut nature = Nature::honest(speed, chance.scale(5e6, 5e9), chance.scale(5e-5, 0.1));
            nature.jitter = chance.unit() * 0.3;
            let mut likely = |probability: f64| !local && !calm && chance.happens(probability);
            if likely(0.15) {
                nature.lies = 0.3;
            }
            if likely(0.15) {
                nature.drops = 0.2;
            }
            if likely(0.1) {
                nature.forgets = 0.1;
            }
            if likely(0.15) {
                nature.overloaded = 0.3;
            }
            if likely(0.15) {
                nature.evicts = 0.2;
            }
            let (slow, hangs, crashes, restarts) = (likely(0.15), likely(0.15), likely(0.25), likely(0.5));
            if slow {
                nature.slow_from_s = chance.scale(0.001, 10.0);
            }
            if hangs {
                nature.hangs_from_s = chance.scale(0.001, 10.0);
            }
            if crashes {
                nature.crashes_at_s = chance.scale(0.001, 10.0);
                nature.detected_after_s = if chance.happens(0.5) { 0.0 } else { 5.0 };
                if restarts {
                    nature.restarts_after_s = chance.scale(0.01, 10.0);
                }
            }
            let wrong = |chance: &mut SplitMix64| {
                if chance.happens(0.5) { 1.0 } else { chance.scale(0.2, 5.0) }
            };
            let memory_bytes = chance.scale(64e6, 64e9) as u64;
            let claim = if local {
                WorkerEstimate::local([speed * wrong(chance); Arithmetic::COUNT], memory_bytes)
            } else {
                let bytes_per_s = nature.bytes_per_s * wrong(chance);
                let mut claim = WorkerEstimate::remote(
                    [speed * wrong(chance); Arithmetic::COUNT],
                    bytes_per_s,
                    nature.rtt_s,
                    memory_bytes,
                );
                claim.max_in_flight = 1 + chance.below(16) as usize;
                claim
            };
            let joins_at_s = if local || chance.happens(0.7) { 0.0 } else { chance.scale(0.001, 5.0) };
            SimulatedWorker { nature, claim, joins_at_s }
        };
        let local = worker(chance, true);
        let peers = (0..chance.below(6)).map(|_| worker(chance, false)).collect();
        let jobs = (0..1 + chance.below(4)).map(|_| {
            let least = if chance.happens(0.2) { 0.6 } else { 500.0 };
            let side = |chance: &mut SplitMix64| chance.scale(least, 6000.0) as u64;
            let (m, k, n) = (side(chance), side(chance), side(chance));
            let shape = ProductShape { m, k, n, a_element_bytes: 4, b_element_bytes: 4, c_element_bytes: 4 };
            let mut spec = JobSpec::new(shape, Arithmetic::F32);
            spec.place = [Place::Auto, Place::Auto, Place::Remote, Place::Local][chance.below(4) as usize];
            spec.redundancy = 1 + if chance.happens(0.2) { chance.below(3) as u32 } else { 0 };
            spec.priority = chance.below(3) as i32;
            spec.max_retries = chance.below(5) as u32;
            let at_s = if chance.happens(0.5) { 0.0 } else { chance.scale(0.001, 5.0) };
            if chance.happens(0.1) {
                spec.deadline = Some(EPOCH + Duration::from_secs_f64(at_s + chance.scale(0.001, 10.0)));
            }
            let cancelled = chance.happens(0.1);
            let cancelled_at_s = if cancelled { at_s + chance.scale(0.0005, 5.0) } else { f64::INFINITY };
            SimulatedJob { at_s, spec, cancelled_at_s }
        });
        let jobs = jobs.collect();
        let tells_progress = chance.happens(0.5);
        let connecting_s = if chance.happens(0.5) { 0.0 } else { chance.scale(0.01, 5.0) };
        Self { seed, local, peers, jobs, tells_progress, connecting_s }
    }
}

/// Where virtual time begins: not at 0, as no driver's does.
const EPOCH: Time = Time::from_secs(1_000_000);

impl Simulation {
    fn new(world: &World) -> Self {
        let sites = std::iter::once(&world.local).chain(&world.peers).map(|is| Site {
            is: is.clone(),
            here: false,
            life: 0,
            alive: false,
            has: BTreeSet::new(),
            send_free_s: 0.0,
            receive_free_s: 0.0,
            queue: Vec::new(),
            computing: None,
            in_flight: 0,
            debt_s: 0.0,
        });
        let jobs = world.jobs.iter().map(|job| Progressing {
            spec: job.spec.clone(),
            at_s: job.at_s,
            grid: None,
            accepted: BTreeSet::new(),
            outcome: None,
        });
        let mut simulation = Self {
            scheduler: Scheduler::new(world.local.claim),
            chance: SplitMix64::new(!world.seed),
            now_s: 0.0,
            order: 0,
            happenings: BinaryHeap::new(),
            sites: sites.collect(),
            jobs: jobs.collect(),
            attempts: BTreeMap::new(),
            started: 0,
            quarantined: BTreeSet::new(),
            wake_at: None,
            tells_progress: world.tells_progress,
            bytes_sent: 0,
            events: 0,
            actions: Vec::new(),
        };
        simulation.sites[0].here = true;
        simulation.sites[0].alive = true;
        for at in 1..simulation.sites.len() {
            let is = simulation.sites[at].is.clone();
            let nature = is.nature;
            simulation.later(is.joins_at_s, Happening::Join(at));
            simulation.later(nature.crashes_at_s.max(is.joins_at_s), Happening::Crash(at));
            simulation.later(nature.hangs_from_s + nature.detected_after_s, Happening::Detect(at, 0));
        }
        for (at, job) in world.jobs.iter().enumerate() {
            simulation.later(job.at_s, Happening::Submit(at));
            simulation.later(job.cancelled_at_s, Happening::CancelJob(at));
        }
        if world.connecting_s > 0.0 {
            simulation.tell(Event::PeersConnecting { count: 1 });
            simulation.later(world.connecting_s, Happening::NobodyConnects);
        }
        simulation
    }

    fn run(&mut self) -> Result<(), String> {
        self.act()?;
        while self.jobs.iter().any(|job| job.outcome.is_none()) {
            let Some(Reverse((time, _, happening))) = self.happenings.pop() else {
                return Err("a job waits and nothing will happen".into());
            };
            self.now_s = time.since(EPOCH).as_secs_f64();
            self.happen(happening);
            self.act()?;
            let bound_s: f64 = self.jobs.iter().map(|job| self.bound_s(job)).sum();
            let last_s = self.jobs.iter().map(|job| job.at_s).fold(0.0, f64::max);
            if self.now_s > last_s + 120.0 + 4.0 * bound_s || self.events > EVENTS_MAX {
                return Err(format!("not done after {} events", self.events));
            }
        }
        if let Some((attempt, flying)) = self.attempts.iter().next() {
            return Err(format!("{attempt} ({flying:?}) is left over"));
        }
        Ok(())
    }

    /// What the job takes on this node, or, if it asks for others, on the slowest of them.
    fn bound_s(&self, job: &Progressing) -> f64 {
        let speed =
            |site: &Site| site.is.nature.flops_per_s / if site.is.nature.slow_from_s.is_finite() { 20.0 } else { 1.0 };
        let others = job.spec.place == Place::Remote || job.spec.redundancy > 1;
        let asked = if others { &self.sites[..] } else { &self.sites[..1] };
        job.spec.shape.flops() / asked.iter().map(speed).fold(f64::INFINITY, f64::min)
    }

    fn later(&mut self, at_s: f64, happening: Happening) {
        if at_s.is_finite() {
            self.order += 1;
            self.happenings.push(Reverse((EPOCH + Duration::from_secs_f64(at_s), self.order, happening)));
        }
    }

    fn tell(&mut self, event: Event) {
        self.events += 1;
        self.scheduler.handle(event, EPOCH + Duration::from_secs_f64(self.now_s), &mut self.actions);
    }

    fn hangs(&self, at: usize) -> bool {
        self.now_s >= self.sites[at].is.nature.hangs_from_s
    }

    /// The site of an attempt that still runs, if the site is in the life in which it was started.
    fn site_of(&self, attempt: AttemptId) -> Option<usize> {
        let flying = self.attempts.get(&attempt).filter(|flying| flying.stage == Stage::Running)?;
        let at = flying.worker.0 as usize;
        (self.sites[at].life == flying.life && self.sites[at].alive).then_some(at)
    }

    fn happen(&mut self, happening: Happening) {
        let now_s = self.now_s;
        match happening {
            Happening::Submit(at) => {
                self.tell(Event::JobSubmitted { job: JobId(at as u64), spec: self.jobs[at].spec.clone() });
            }
            Happening::CancelJob(at) => self.tell(Event::JobCancelled { job: JobId(at as u64) }),
            Happening::NobodyConnects => self.tell(Event::PeersConnecting { count: 0 }),
            Happening::Tick => {
                if self.wake_at.is_some_and(|at| at <= EPOCH + Duration::from_secs_f64(now_s)) {
                    self.wake_at = None;
                    self.tell(Event::Tick);
                }
            }
            Happening::Join(at) => {
                let site = &mut self.sites[at];
                site.here = true;
                site.alive = true;
                site.in_flight = 0;
                site.has.clear();
                (site.send_free_s, site.receive_free_s) = (0.0, 0.0);
                let (worker, estimate) = (WorkerId(at as u64), site.is.claim);
                self.tell(Event::WorkerJoined { worker, estimate });
            }
            Happening::Crash(at) => {
                let site = &mut self.sites[at];
                site.life += 1;
                site.alive = false;
                site.queue.clear();
                site.computing = None;
                let (life, nature) = (site.life, site.is.nature.clone());
                self.later(now_s + nature.detected_after_s, Happening::Detect(at, life));
                self.later(now_s + nature.restarts_after_s, Happening::Join(at));
            }
            Happening::Detect(at, life) => {
                let hanging = self.hangs(at);
                let site = &mut self.sites[at];
                // It may be back already.
                if site.here && (hanging || (site.life == life && !site.alive)) {
                    site.here = false;
                    site.in_flight = 0;
                    let why = if hanging { LeaveReason::Silent } else { LeaveReason::Lost };
                    self.tell(Event::WorkerLeft { worker: WorkerId(at as u64), why });
                }
            }
            Happening::Sent(attempt) => {
                if self.tells_progress && self.site_of(attempt).is_some() {
                    self.tell(Event::AttemptProgress { attempt, progress: Progress::Sent });
                }
            }
            Happening::Arrive(attempt) => self.arrive(attempt),
            Happening::Computed(attempt) => self.computed(attempt),
            Happening::Back(attempt, failed) => self.back(attempt, failed),
            Happening::Checked(attempt) => self.checked(attempt),
        }
    }

    fn arrive(&mut self, attempt: AttemptId) {
        let Some(at) = self.site_of(attempt).filter(|&at| !self.hangs(at)) else {
            return;
        };
        let nature = self.sites[at].is.nature.clone();
        let half_s = nature.rtt_s / 2.0;
        if at > 0 {
            if self.chance.happens(nature.drops) {
                return self.later(self.now_s + half_s, Happening::Back(attempt, Some(Failed::Broken)));
            }
            if self.chance.happens(nature.overloaded) {
                return self.later(self.now_s + half_s, Happening::Back(attempt, Some(Failed::Full)));
            }
            if self.chance.happens(nature.evicts) {
                let flying = &self.attempts[&attempt];
                let (job, tile) = (flying.job, flying.tile);
                self.sites[at].has.remove(&(job, Operand::Band(tile.band)));
                return self.later(self.now_s + half_s, Happening::Back(attempt, Some(Failed::Missing)));
            }
        }
        if self.chance.happens(nature.forgets) {
            return;
        }
        self.sites[at].queue.push(attempt);
        self.compute_next(at);
    }

    fn compute_next(&mut self, at: usize) {
        while self.sites[at].computing.is_none() && !self.sites[at].queue.is_empty() {
            let attempt = self.sites[at].queue.remove(0);
            // Cancelled tasks are skipped.
            if self.site_of(attempt) != Some(at) {
                continue;
            }
            let flying = &self.attempts[&attempt];
            let job = &self.jobs[flying.job.0 as usize];
            let flops = job.grid.map_or(0.0, |grid| grid.tile_flops(flying.tile));
            let nature = &self.sites[at].is.nature;
            let slow = if self.now_s >= nature.slow_from_s { 20.0 } else { 1.0 };
            let jitter = 1.0 + nature.jitter * self.chance.unit();
            let compute_s = (nature.overhead_s + flops / nature.flops_per_s) * slow * jitter;
            let debt_s = std::mem::take(&mut self.sites[at].debt_s);
            self.sites[at].computing = Some(attempt);
            if let Some(flying) = self.attempts.get_mut(&attempt) {
                flying.compute_s = compute_s;
            }
            self.later(self.now_s + compute_s + debt_s, Happening::Computed(attempt));
            if self.tells_progress && at == 0 {
                self.tell(Event::AttemptProgress { attempt, progress: Progress::Computing });
            }
        }
    }

    fn computed(&mut self, attempt: AttemptId) {
        let Some(at) = self.sites.iter().position(|site| site.computing == Some(attempt)) else {
            return;
        };
        self.sites[at].computing = None;
        if self.site_of(attempt) == Some(at) && !self.hangs(at) {
            let flying = &self.attempts[&attempt];
            let grid = self.jobs[flying.job.0 as usize].grid;
            let bytes = grid.map_or(0, |grid| grid.tile_bytes(flying.tile));
            let site = &mut self.sites[at];
            let back_s = if at == 0 {
                self.now_s
            } else {
                let from_s = site.receive_free_s.max(self.now_s);
                site.receive_free_s = from_s + bytes as f64 / site.is.nature.bytes_per_s;
                site.receive_free_s + site.is.nature.rtt_s / 2.0
            };
            self.later(back_s, Happening::Back(attempt, None));
        }
        self.compute_next(at);
    }

    fn back(&mut self, attempt: AttemptId, failed: Option<Failed>) {
        let Some(at) = self.site_of(attempt) else {
            return;
        };
        self.sites[at].in_flight -= 1;
        if let Some(failed) = failed {
            let flying = self.attempts.remove(&attempt).map(|flying| (flying.job, flying.tile));
            let kind = match (failed, flying) {
                (Failed::Broken, _) => FailureKind::Unavailable,
                (Failed::Full, _) => FailureKind::Overloaded,
                (Failed::Missing, None) => FailureKind::NotFound,
                (Failed::Missing, Some((job, tile))) => {
                    self.sites[at].has.remove(&(job, Operand::Band(tile.band)));
                    self.sites[at].has.remove(&(job, Operand::Panel(tile.panel)));
                    FailureKind::NotFound
                }
            };
            return self.tell(Event::AttemptFailed { attempt, kind });
        }
        let nature = &self.sites[at].is.nature;
        let Some(flying) = self.attempts.get_mut(&attempt) else {
            return;
        };
        flying.stage = Stage::Finished;
        flying.lie = at > 0 && self.chance.happens(nature.lies);
        let bytes = self.jobs[flying.job.0 as usize].grid.map_or(0, |grid| grid.tile_bytes(flying.tile));
        let received = Transfer { bytes, seconds: bytes as f64 / nature.bytes_per_s };
        let remote = at > 0;
        let measured = Measured {
            compute_seconds: Some(flying.compute_s),
            sent: remote.then_some(flying.sent),
            received: remote.then_some(received),
        };
        self.tell(Event::AttemptFinished { attempt, measured });
    }

    fn checked(&mut self, attempt: AttemptId) {
        let Some(flying) = self.attempts.get_mut(&attempt).filter(|flying| flying.stage == Stage::Finished) else {
            return;
        };
        let verdict = if flying.lie {
            CheckOutcome::Bad
        } else if flying.worker.0 > 0 && self.chance.happens(0.001) {
            CheckOutcome::Inconclusive
        } else {
            flying.stage = Stage::Good;
            // Now and then an honest answer differs in its bits.
            CheckOutcome::Good { answer: u64::from(self.chance.happens(0.05)) }
        };
        self.tell(Event::AttemptChecked { attempt, verdict, seconds: 0.001 });
    }

    /// Does what the scheduler asks, and looks whether it may ask that.
    fn act(&mut self) -> Result<(), String> {
        let mut done = 0;
        while done < self.actions.len() {
            let action = self.actions[done].clone();
            done += 1;
            self.act_on(&action).map_err(|broken| format!("{action:?}: {broken}"))?;
        }
        self.actions.clear();
        Ok(())
    }

    fn act_on(&mut self, action: &Action) -> Result<(), String> {
        match *action {
            Action::Plan { job, grid } => {
                let job = &mut self.jobs[job.0 as usize];
                ensure(job.grid.is_none() && job.outcome.is_none(), "planned twice")?;
                job.grid = Some(grid);
            }
            Action::Start { attempt, job, tile, worker, .. } => self.start(attempt, job, tile, worker)?,
            Action::Cancel { attempt, worker } => {
                let flying = self.attempts.remove(&attempt).ok_or("no such attempt")?;
                ensure(flying.stage == Stage::Running && flying.worker == worker, "it does not run there")?;
                let site = &mut self.sites[worker.0 as usize];
                site.in_flight = site.in_flight.saturating_sub(1);
                site.queue.retain(|&queued| queued != attempt);
                if site.computing == Some(attempt) {
                    site.computing = None;
                    self.compute_next(worker.0 as usize);
                }
            }
            Action::Check { attempt } => {
                let flying = self.attempts.get(&attempt).ok_or("no such attempt")?;
                ensure(flying.stage == Stage::Finished, "it has not finished")?;
                let grid = self.jobs[flying.job.0 as usize].grid.ok_or("not planned")?;
                let tile = flying.tile;
                let operands = [Operand::Band(tile.band), Operand::Panel(tile.panel)];
                let bytes: u64 = operands.map(|operand| grid.operand_bytes(operand)).iter().sum();
                let check_s = (bytes + grid.tile_bytes(tile)) as f64 / CHECK_BYTES_PER_S;
                self.sites[0].debt_s += check_s;
                self.later(self.now_s + check_s, Happening::Checked(attempt));
            }
            Action::Accept { attempt, job, tile, worker, agreeing } => {
                let flying = self.attempts.remove(&attempt).ok_or("no such attempt")?;
                ensure((flying.job, flying.tile, flying.worker) == (job, tile, worker), "it is another's")?;
                let job = &mut self.jobs[job.0 as usize];
                let trusted = worker.is_local() && job.spec.redundancy == 1;
                ensure(flying.stage == Stage::Good || (trusted && flying.stage == Stage::Finished), "unchecked")?;
                ensure(!flying.lie, "a lie is accepted")?;
                ensure(agreeing >= 1, "nobody agrees")?;
                ensure(job.accepted.insert(tile), "accepted twice")?;
            }
            Action::Discard { attempt } => {
                let flying = self.attempts.remove(&attempt).ok_or("no such attempt")?;
                ensure(flying.stage != Stage::Running, "it still runs")?;
            }
            Action::Release { worker, job, operand } => {
                let site = &mut self.sites[worker.0 as usize];
                ensure(site.has.remove(&(job, operand)), "it is not there")?;
                let needs = |flying: &Flying| {
                    let Tile { band, panel } = flying.tile;
                    let it = operand == Operand::Band(band) || operand == Operand::Panel(panel);
                    it && flying.job == job && flying.worker == worker && flying.stage == Stage::Running
                };
                ensure(!self.attempts.values().any(needs), "it is needed")?;
            }
            Action::Quarantine { worker, attempt } => {
                let flying = self.attempts.get(&attempt).ok_or("no such attempt")?;
                ensure(flying.lie && flying.worker == worker, "without evidence")?;
                ensure(self.quarantined.insert(worker), "quarantined twice")?;
            }
            Action::JobFinished { job, ref report } => {
                let tiles = self.jobs[job.0 as usize].grid.map(|grid| grid.tiles());
                let accepted = self.jobs[job.0 as usize].accepted.len() as u32;
                ensure(tiles == Some(accepted), "tiles are missing")?;
                ensure(report.tasks.local + report.tasks.remote == accepted, "the report does not add up")?;
                self.end(job, None, report)?;
            }
            Action::JobFailed { job, kind, ref report, .. } => {
                let is = &self.jobs[job.0 as usize];
                let overdue =
                    is.spec.deadline.is_some_and(|deadline| deadline <= self.now() + Duration::from_micros(2));
                ensure(
                    kind == FailureKind::Cancelled || (kind == FailureKind::DeadlineExceeded && overdue),
                    "no reason",
                )?;
                self.end(job, Some(kind), report)?;
            }
            Action::WakeAt(time) => {
                ensure(time >= self.now(), "it is in the past")?;
                self.wake_at = Some(time);
                self.later(time.since(EPOCH).as_secs_f64(), Happening::Tick);
            }
        }
        Ok(())
    }

    fn now(&self) -> Time {
        EPOCH + Duration::from_secs_f64(self.now_s)
    }

    fn end(&mut self, id: JobId, failure: Option<FailureKind>, report: &JobReport) -> Result<(), String> {
        ensure(!self.attempts.values().any(|flying| flying.job == id), "attempts are left over")?;
        self.sites.iter_mut().for_each(|site| site.has.retain(|&(job, _)| job != id));
        let job = &mut self.jobs[id.0 as usize];
        ensure(job.outcome.is_none(), "it has ended before")?;
        let (seconds, report, grid) = (self.now_s - job.at_s, report.clone(), job.grid);
        job.outcome = Some(Outcome { failure, seconds, report, grid });
        Ok(())
    }

    fn start(&mut self, attempt: AttemptId, id: JobId, tile: Tile, worker: WorkerId) -> Result<(), String> {
        self.started += 1;
        let job = &self.jobs[id.0 as usize];
        let grid = job.grid.ok_or("not planned")?;
        ensure(job.outcome.is_none(), "the job has ended")?;
        ensure(grid.is_tile(tile), "there is no such tile")?;
        ensure(!job.accepted.contains(&tile), "the tile has been accepted")?;
        ensure(job.spec.place != Place::Local || worker.is_local(), "the job is to stay here")?;
        ensure(!self.quarantined.contains(&worker), "it is quarantined")?;
        let twins: Vec<&Flying> =
            self.attempts.values().filter(|other| other.job == id && other.tile == tile).collect();
        ensure(!twins.iter().any(|twin| twin.worker == worker), "it has this tile already")?;
        let running = twins.iter().filter(|twin| twin.stage != Stage::Good).count() as u32;
        ensure(running <= job.spec.redundancy, "too many copies")?;
        let at = worker.0 as usize;
        let site = self.sites.get_mut(at).ok_or("no such worker")?;
        ensure(site.here, "the worker is not here")?;
        ensure(site.in_flight < site.is.claim.max_in_flight, "too many in flight")?;
        site.in_flight += 1;
        let mut bytes = 0;
        for operand in [Operand::Band(tile.band), Operand::Panel(tile.panel)] {
            let resident = job.spec.resident.contains(&(worker, operand));
            if at > 0 && !resident && site.has.insert((id, operand)) {
                bytes += grid.operand_bytes(operand);
            }
        }
        let seconds = bytes as f64 / site.is.nature.bytes_per_s;
        let (mut sent_s, mut arrives_s) = (self.now_s, self.now_s);
        if at > 0 {
            site.send_free_s = site.send_free_s.max(self.now_s) + seconds;
            sent_s = site.send_free_s;
            arrives_s = sent_s + site.is.nature.rtt_s / 2.0;
        }
        let life = site.life;
        let (sent, stage) = (Transfer { bytes, seconds }, Stage::Running);
        let flying = Flying { job: id, tile, worker, stage, life, sent, compute_s: 0.0, lie: false };
        ensure(self.attempts.insert(attempt, flying).is_none(), "the attempt is not new")?;
        self.bytes_sent += bytes;
        if at > 0 {
            self.later(sent_s, Happening::Sent(attempt));
        }
        self.later(arrives_s, Happening::Arrive(attempt));
        Ok(())
    }
}

fn ensure(holds: bool, broken: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken.into()) }
}
