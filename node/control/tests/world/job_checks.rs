//! What must hold of jobs: each ends exactly once, in the registry, in the scheduler and for whoever asked; no tile is taken
//! twice or wrong; what is to stay at a node stays there.

use std::collections::{BTreeMap, BTreeSet};

use pangea_control::jobs::{Job, JobEvent, JobId, JobState};
use pangea_control::schedule::{FailureKind, JobReport, Place, Tile, TileGrid};
use pangea_units::ErrorKind;

use crate::checks::{Broken, Check, Checks};
use crate::scenario::Micros;

/// How a job of the scenario stands.
enum Asked {
    /// The node that was asked runs, and the job is its.
    Open { node: usize, grid: Option<TileGrid>, accepted: BTreeSet<Tile> },
    /// It ended, or its node did.
    Ended,
}

/// How a job ended for whoever asked.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The kind of error; none where the product is whole.
    pub(crate) failure: Option<FailureKind>,
    /// When it was asked and when it ended.
    pub(crate) between: (Micros, Micros),
    /// What the scheduler says.
    pub(crate) report: JobReport,
}

/// What is known of jobs.
#[derive(Default)]
pub(crate) struct JobChecks {
    asked: BTreeMap<usize, Asked>,
    asked_at: BTreeMap<usize, Micros>,
    /// How each job ended that ended by itself.
    pub(crate) outcomes: BTreeMap<usize, Outcome>,
    /// How each job was cut.
    pub(crate) grids: BTreeMap<usize, TileGrid>,
    /// Operand bytes that were sent to peers.
    pub(crate) bytes_sent: u64,
    /// Jobs of each node's registry that were told of, and whether they ended.
    told: BTreeMap<(usize, JobId), bool>,
}

impl Checks {
    /// A job is asked of a node, or would be if the node ran.
    pub(crate) fn submitted(&mut self, now: Micros, job: usize, node: usize, runs: bool) {
        self.log(now, format_args!("job {job} is asked of node {node}, which runs: {runs}"));
        self.counts.add("jobs");
        let open = Asked::Open { node, grid: None, accepted: BTreeSet::new() };
        self.jobs.asked.insert(job, if runs { open } else { Asked::Ended });
        self.jobs.asked_at.insert(job, now);
    }

    /// A node takes a job in no more, or not now.
    pub(crate) fn refused_job(&mut self, now: Micros, job: usize, kind: ErrorKind) -> Result<(), Broken> {
        self.log(now, format_args!("job {job} is refused: {kind:?}"));
        self.counts.add("refused jobs");
        match self.jobs.asked.insert(job, Asked::Ended) {
            Some(Asked::Open { .. }) if matches!(kind, ErrorKind::Overloaded | ErrorKind::Unavailable) => Ok(()),
            _ => Err(Broken::new(now, format!("job {job} is refused without a reason, or twice: {kind:?}"))),
        }
    }

    /// Whether a job has not ended.
    pub(crate) fn is_open(&self, job: usize) -> bool {
        matches!(self.jobs.asked.get(&job), Some(Asked::Open { .. }))
    }

    /// A job was cut: once.
    pub(crate) fn planned(&mut self, now: Micros, job: usize, of: TileGrid) -> Result<(), Broken> {
        self.jobs.grids.insert(job, of);
        match self.jobs.asked.get_mut(&job) {
            Some(Asked::Open { grid, .. }) if grid.is_none() => {
                *grid = Some(of);
                Ok(())
            }
            _ => Err(Broken::new(now, format!("job {job} is cut twice, or after its end"))),
        }
    }

    /// A worker is given a tile.
    pub(crate) fn tile_started(
        &mut self,
        now: Micros,
        at: usize,
        job: usize,
        tile: Tile,
        peer: Option<usize>,
        place: Place,
    ) -> Result<(), Broken> {
        self.evaluated(Check::TilesGoWhereTheyMay);
        let Some(Asked::Open { grid: Some(grid), accepted, .. }) = self.jobs.asked.get(&job) else {
            return Err(Broken::new(now, "a tile of a job that is not under way is begun"));
        };
        let wrong = match peer {
            _ if !grid.is_tile(tile) => "a tile is begun that there is not",
            _ if accepted.contains(&tile) => "a tile is begun that was accepted",
            Some(_) if place == Place::Local => "a job that is to stay at its node leaves it",
            Some(peer) if self.is_quarantined(at, peer) => "a quarantined peer is given a task",
            _ => return Ok(()),
        };
        Err(Broken::new(now, format!("node {at}, job {job}: {wrong}")))
    }

    /// An operand was sent.
    pub(crate) fn sent_operand(&mut self, bytes: u64) {
        self.jobs.bytes_sent += bytes;
    }

    /// A tile that was taken no longer counts, because whoever computed it is convicted.
    pub(crate) fn revoked(&mut self, now: Micros, job: Option<usize>, tile: Tile) -> Result<(), Broken> {
        self.log(now, format_args!("job {job:?} takes {tile:?} back"));
        self.counts.add("revoked tiles");
        let taken = match job.and_then(|job| self.jobs.asked.get_mut(&job)) {
            Some(Asked::Open { accepted, .. }) => accepted.remove(&tile),
            Some(Asked::Ended) | None => false,
        };
        if taken { Ok(()) } else { Err(Broken::new(now, "a tile is taken back that is not in a product under way")) }
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
        self.evaluated(Check::TilesAreRight);
        match wrong {
            None => return Err(Broken::new(now, "a tile is taken whose attempt is unknown or not finished")),
            Some(true) => return Err(Broken::new(now, "a wrong tile is taken")),
            Some(false) => {}
        }
        match job.and_then(|job| self.jobs.asked.get_mut(&job)) {
            Some(Asked::Open { accepted, .. }) => {
                if accepted.insert(tile) {
                    Ok(())
                } else {
                    Err(Broken::new(now, "a tile is taken twice"))
                }
            }
            Some(Asked::Ended) | None => Err(Broken::new(now, "a tile of a job that is not under way is taken")),
        }
    }

    /// A product ended: with all its tiles, or for a reason.
    pub(crate) fn finished(
        &mut self,
        now: Micros,
        job: Option<usize>,
        outcome: Result<u32, FailureKind>,
        report: JobReport,
    ) -> Result<(), Broken> {
        self.log(now, format_args!("job {job:?} ends: {outcome:?}"));
        self.evaluated(Check::JobsEnd);
        let Some(number) = job else { return Err(Broken::new(now, "a job ends twice")) };
        let counted = report.tasks.local + report.tasks.remote;
        let asked_at = self.jobs.asked_at.get(&number).copied().unwrap_or(now);
        self.jobs.outcomes.insert(number, Outcome { failure: outcome.err(), between: (asked_at, now), report });
        match (self.jobs.asked.insert(number, Asked::Ended), outcome) {
            (Some(Asked::Open { accepted, .. }), Ok(tiles)) if accepted.len() == tiles as usize && counted == tiles => {
                self.counts.add("finished jobs");
                Ok(())
            }
            (Some(Asked::Open { .. }), Ok(_)) => {
                Err(Broken::new(now, format!("job {number} ends without all its tiles, or its report is wrong")))
            }
            (Some(Asked::Open { .. }), Err(_)) => {
                self.counts.add("failed jobs");
                Ok(())
            }
            _ => Err(Broken::new(now, format!("job {number} ends twice"))),
        }
    }

    /// The registry tells of a job: it begins once and ends once, and nothing follows.
    pub(crate) fn job_event(&mut self, now: Micros, node: usize, event: &JobEvent) -> Result<(), Broken> {
        let Job { id, state, progress, .. } = event.job();
        self.log(now, format_args!("node {node} tells {} of {id} at {}", event.name(), progress.done));
        let told = self.jobs.told.get(&(node, *id)).copied();
        let ended = matches!(state, JobState::Ended(_));
        let sound = match event {
            JobEvent::Submitted(_) => told.is_none() && !ended,
            JobEvent::Started(_)
            | JobEvent::Progress(_)
            | JobEvent::Routed(_)
            | JobEvent::Lost(_)
            | JobEvent::FailedOver(_) => told == Some(false) && !ended,
            JobEvent::Ended(_) => told == Some(false) && ended,
            JobEvent::Suspect(_) => told == Some(true) && ended,
        };
        self.jobs.told.insert((node, *id), ended);
        if sound {
            Ok(())
        } else {
            Err(Broken::new(now, format!("node {node} tells {} of {id} wrongly", event.name())))
        }
    }

    /// A node that drains says that it has no job left.
    pub(crate) fn drained(&mut self, now: Micros, node: usize, live: usize) -> Result<(), Broken> {
        self.log(now, format_args!("node {node} is drained"));
        self.counts.add("drained nodes");
        let open = self.jobs.told.iter().any(|((of, _), ended)| *of == node && !ended);
        if live == 0 && !open {
            Ok(())
        } else {
            Err(Broken::new(now, format!("node {node} is drained with jobs left")))
        }
    }

    /// A node's process ends: its interactive jobs end with it.
    pub(super) fn forget_jobs_of(&mut self, node: usize) {
        for job in self.jobs.asked.values_mut() {
            if matches!(job, Asked::Open { node: of, .. } if *of == node) {
                *job = Asked::Ended;
            }
        }
        self.jobs.told.retain(|(of, _), _| *of != node);
    }

    /// No job is left that nobody works on.
    pub(crate) fn all_ended(&self, now: Micros) -> Result<(), Broken> {
        let open = self.jobs.asked.iter().find(|(_, job)| matches!(job, Asked::Open { .. }));
        // A node that deceives itself has only itself to blame.
        let told = self.jobs.told.iter().find(|((node, _), ended)| !**ended && !self.is_deviant(*node));
        match (open, told) {
            (None, None) => Ok(()),
            (Some((job, _)), _) => Err(Broken::new(now, format!("job {job} never ended"))),
            (None, Some(((node, id), _))) => Err(Broken::new(now, format!("{id} of node {node} never ended"))),
        }
    }
}
