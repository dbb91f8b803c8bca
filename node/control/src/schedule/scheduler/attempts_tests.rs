//! What becomes of attempts: failures that count and that do not, peers that ask for patience, hang or are convicted.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::schedule::limits::{RETRY_AFTER_MAX, SILENCE_MAX};
use crate::schedule::{
    Action, Arithmetic, AttemptId, CheckOutcome, Event, FailureKind, JobId, JobReport, JobSpec, LeaveReason, Measured,
    Place, ProductShape, Progress, Scheduler, Tile, Time, WorkerEstimate, WorkerId,
};

const PEER: WorkerId = WorkerId(1);

struct Case(Scheduler);

impl Case {
    /// A node and one peer with the same speed.
    fn new() -> Case {
        let mut case = Case(Scheduler::new(WorkerEstimate::local([1e10; Arithmetic::COUNT], 1 << 30)));
        let estimate = WorkerEstimate::remote([1e10; Arithmetic::COUNT], 1e9, 1e-4, 1 << 30);
        case.handle(Event::WorkerJoined { worker: PEER, estimate });
        case
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.0.handle(event, Time::ZERO + Duration::from_secs(1), &mut actions);
        actions
    }

    /// Submits a job of one tile for peers; returns the worker that gets it.
    fn submit(&mut self, job: u64) -> Option<(AttemptId, WorkerId)> {
        let shape = ProductShape { m: 128, k: 128, n: 128, a_element_bytes: 4, b_element_bytes: 4, c_element_bytes: 4 };
        let spec = JobSpec { place: Place::Remote, ..JobSpec::new(shape, Arithmetic::F32) };
        started(&self.handle(Event::JobSubmitted { job: JobId(job), spec }))
    }
}

fn started(actions: &[Action]) -> Option<(AttemptId, WorkerId)> {
    actions.iter().find_map(|action| match action {
        Action::Start { attempt, worker, .. } => Some((*attempt, *worker)),
        _ => None,
    })
}

#[test]
fn a_worker_that_refuses_like_this_node_is_not_punished() {
    for kind in [FailureKind::InvalidInput, FailureKind::Internal] {
        let mut case = Case::new();
        let (refused, worker) = case.submit(1).unwrap();
        assert_eq!(worker, PEER);
        let (own, worker) =
            started(&case.handle(Event::AttemptFailed { attempt: refused, kind, retry_after: None })).unwrap();
        assert!(worker.is_local(), "{kind}");
        case.handle(Event::AttemptFailed { attempt: own, kind, retry_after: None });
        assert_eq!(case.submit(2).map(|(_, worker)| worker), Some(PEER), "{kind}");
    }
}

#[test]
fn a_worker_that_refuses_what_this_node_computes_is_paused() {
    let mut case = Case::new();
    let (refused, _) = case.submit(1).unwrap();
    let failed = Event::AttemptFailed { attempt: refused, kind: FailureKind::InvalidInput, retry_after: None };
    let (own, _) = started(&case.handle(failed)).unwrap();
    let measured = Measured { compute_seconds: Some(0.001), sent: None, received: None };
    case.handle(Event::AttemptFinished { attempt: own, measured });
    assert_ne!(case.submit(2).map(|(_, worker)| worker), Some(PEER));
}

const OTHER: WorkerId = WorkerId(2);

/// A node, two peers and their jobs: every attempt ends well, and what is merged is remembered.
struct Jobs {
    scheduler: Scheduler,
    now: Time,
    actions: VecDeque<Action>,
    workers: BTreeMap<AttemptId, WorkerId>,
    /// The worker whose answer is merged, by job and tile.
    merged: BTreeMap<(JobId, Tile), WorkerId>,
    revoked: usize,
    suspects: Vec<(JobId, WorkerId)>,
    reports: BTreeMap<JobId, JobReport>,
}

impl Jobs {
    fn new() -> Jobs {
        let local = WorkerEstimate::local([1e9; Arithmetic::COUNT], 1 << 30);
        let mut jobs = Jobs {
            scheduler: Scheduler::new(local),
            now: Time::ZERO,
            actions: VecDeque::new(),
            workers: BTreeMap::new(),
            merged: BTreeMap::new(),
            revoked: 0,
            suspects: Vec::new(),
            reports: BTreeMap::new(),
        };
        for worker in [PEER, OTHER] {
            let estimate = WorkerEstimate::remote([1e9; Arithmetic::COUNT], 1e9, 1e-4, 1 << 30);
            jobs.handle(Event::WorkerJoined { worker, estimate });
        }
        jobs
    }

    fn handle(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.now += Duration::from_micros(100);
        self.scheduler.handle(event, self.now, &mut actions);
        self.actions.extend(actions);
    }

    /// A job of many tiles, for peers only.
    fn submit(&mut self, job: u64) {
        let shape =
            ProductShape { m: 1024, k: 256, n: 1024, a_element_bytes: 4, b_element_bytes: 4, c_element_bytes: 4 };
        let spec = JobSpec { place: Place::Remote, ..JobSpec::new(shape, Arithmetic::F32) };
        self.handle(Event::JobSubmitted { job: JobId(job), spec });
    }

    /// Does what the scheduler says until `enough`, or until nothing is left to do. Answers of `liar` fail their check.
    fn run(&mut self, liar: Option<WorkerId>, enough: impl Fn(&Jobs) -> bool) {
        while !enough(self) {
            let Some(action) = self.actions.pop_front() else { return };
            match action {
                Action::Start { attempt, worker, .. } => {
                    self.workers.insert(attempt, worker);
                    let measured = Measured { compute_seconds: Some(0.001), sent: None, received: None };
                    self.handle(Event::AttemptFinished { attempt, measured });
                }
                Action::Check { attempt } => {
                    let lies = liar == Some(self.workers[&attempt]);
                    let verdict = if lies { CheckOutcome::Bad } else { CheckOutcome::Good { answer: 0 } };
                    self.handle(Event::AttemptChecked { attempt, verdict, seconds: 1e-5 });
                }
                Action::Accept { job, tile, worker, .. } => {
                    assert_eq!(self.merged.insert((job, tile), worker), None, "merged twice");
                }
                Action::Revoke { job, tile, worker } => {
                    assert_eq!(self.merged.remove(&(job, tile)), Some(worker), "only what is merged is revoked");
                    self.revoked += 1;
                }
                Action::Suspect { job, worker } => self.suspects.push((job, worker)),
                Action::JobFinished { job, report } => drop(self.reports.insert(job, report)),
                Action::JobFailed { why, .. } => panic!("{why}"),
                _ => {}
            }
        }
    }

    fn merged_of(&self, job: u64, worker: WorkerId) -> usize {
        self.merged.iter().filter(|((of, _), by)| of.0 == job && **by == worker).count()
    }

    /// Every tile of the job is there, none of them by the liar, and the report says so.
    fn is_clean(&self, job: u64, liar: WorkerId) {
        let report = &self.reports[&JobId(job)];
        assert_eq!(self.merged_of(job, liar), 0);
        let tiles = self.merged.keys().filter(|(of, _)| of.0 == job).count();
        assert_eq!((tiles as u32, report.tasks.total), (report.tasks.total, report.tasks.remote + report.tasks.local));
        assert!(report.workers.iter().all(|share| share.worker != liar), "{report:?}");
        assert_eq!(report.workers.iter().map(|share| share.tasks).sum::<u32>(), report.tasks.total);
    }
}

#[test]
fn every_merged_tile_of_a_convicted_peer_is_computed_again_in_every_running_job() {
    let mut jobs = Jobs::new();
    jobs.submit(1);
    jobs.submit(2);
    jobs.run(None, |jobs| jobs.merged_of(1, PEER) >= 3 && jobs.merged_of(2, PEER) >= 1);
    let merged = jobs.merged_of(1, PEER) + jobs.merged_of(2, PEER);
    assert!(jobs.reports.is_empty() && merged >= 4);
    jobs.run(Some(PEER), |_| false);
    assert!(jobs.revoked >= merged, "{} of {merged}", jobs.revoked);
    for job in [1, 2] {
        jobs.is_clean(job, PEER);
    }
    assert!(jobs.reports.values().map(|report| report.tasks.retried).sum::<u32>() >= merged as u32);
}

#[test]
fn a_peer_convicted_of_something_else_or_after_it_left_loses_its_merged_tiles_as_well() {
    for left_before in [false, true] {
        let mut jobs = Jobs::new();
        jobs.submit(1);
        jobs.run(None, |jobs| jobs.merged_of(1, PEER) >= 3);
        if left_before {
            jobs.handle(Event::WorkerLeft { worker: PEER, why: LeaveReason::Lost });
        }
        jobs.handle(Event::WorkerLeft { worker: PEER, why: LeaveReason::Quarantined });
        jobs.run(None, |_| false);
        assert!(jobs.revoked >= 3);
        jobs.is_clean(1, PEER);
    }
}

#[test]
fn jobs_that_ended_with_answers_of_a_peer_are_suspect_once_it_is_convicted() {
    let mut jobs = Jobs::new();
    jobs.submit(1);
    jobs.run(None, |_| false);
    assert!(jobs.merged_of(1, PEER) > 0 && jobs.suspects.is_empty());
    for _ in 0..2 {
        jobs.handle(Event::WorkerLeft { worker: PEER, why: LeaveReason::Quarantined });
        jobs.run(None, |_| false);
    }
    assert_eq!(jobs.suspects, [(JobId(1), PEER)]);
}

#[test]
fn a_hung_worker_that_keeps_saying_that_it_started_does_not_hold_a_job() {
    for claimed_flops_per_s in [1e10, 1.0] {
        let mut scheduler = Scheduler::new(WorkerEstimate::local([1e10; Arithmetic::COUNT], 1 << 30));
        let estimate = WorkerEstimate::remote([claimed_flops_per_s; Arithmetic::COUNT], 1e9, 1e-4, 1 << 30);
        let mut actions = Vec::new();
        scheduler.handle(Event::WorkerJoined { worker: PEER, estimate }, Time::ZERO, &mut actions);
        let shape = ProductShape { m: 128, k: 128, n: 128, a_element_bytes: 4, b_element_bytes: 4, c_element_bytes: 4 };
        let spec = JobSpec { place: Place::Remote, ..JobSpec::new(shape, Arithmetic::F32) };
        scheduler.handle(Event::JobSubmitted { job: JobId(1), spec }, Time::ZERO, &mut actions);
        let (attempt, worker) = started(&actions).unwrap();
        assert_eq!(worker, PEER);
        let last = 2 * SILENCE_MAX.as_secs();
        let given_up = (1..=last).find(|second| {
            let now = Time::from_secs(*second);
            let mut actions = Vec::new();
            let progress = Progress::Computing;
            scheduler.handle(Event::AttemptProgress { attempt, progress }, now, &mut actions);
            scheduler.handle(Event::Tick, now, &mut actions);
            started(&actions).is_some_and(|(_, worker)| worker.is_local())
        });
        let within = if claimed_flops_per_s > 1.0 { 10 } else { SILENCE_MAX.as_secs() + 2 };
        assert!(given_up.is_some_and(|second| second <= within), "{given_up:?}");
    }
}

#[test]
fn an_overloaded_worker_is_left_alone_as_long_as_it_asks_within_a_limit() {
    for (asked, pause) in [(3, 3), (24 * 3600, RETRY_AFTER_MAX.as_secs())] {
        let mut scheduler = Scheduler::new(WorkerEstimate::local([1e10; Arithmetic::COUNT], 1 << 30));
        let estimate = WorkerEstimate::remote([1e10; Arithmetic::COUNT], 1e9, 1e-4, 1 << 30);
        let mut actions = Vec::new();
        scheduler.handle(Event::WorkerJoined { worker: PEER, estimate }, Time::ZERO, &mut actions);
        let shape = ProductShape { m: 128, k: 128, n: 128, a_element_bytes: 4, b_element_bytes: 4, c_element_bytes: 4 };
        let spec = JobSpec { place: Place::Remote, ..JobSpec::new(shape, Arithmetic::F32) };
        scheduler.handle(Event::JobSubmitted { job: JobId(1), spec }, Time::ZERO, &mut actions);
        let (attempt, _) = started(&actions).unwrap();
        let (kind, retry_after) = (FailureKind::Overloaded, Some(Duration::from_secs(asked)));
        scheduler.handle(Event::AttemptFailed { attempt, kind, retry_after }, Time::ZERO, &mut actions);
        let again = (1..=2 * pause * 10).find(|tenth| {
            let mut actions = Vec::new();
            scheduler.handle(Event::Tick, Time::from_millis(tenth * 100), &mut actions);
            started(&actions).is_some_and(|(_, worker)| worker == PEER)
        });
        assert_eq!(again, Some(pause * 10), "tenths of a second");
    }
}

#[test]
fn a_suspect_gets_only_what_no_other_peer_can_compute() {
    let mut case = Case::new();
    let estimate = WorkerEstimate::remote([1e9; Arithmetic::COUNT], 1e9, 1e-4, 1 << 30);
    case.handle(Event::WorkerJoined { worker: OTHER, estimate });
    assert_eq!(case.submit(1).map(|(_, worker)| worker), Some(PEER), "it is ten times as fast");
    case.handle(Event::SuspectsChanged { workers: [PEER].into() });
    for job in 2..5 {
        assert_eq!(case.submit(job).map(|(_, worker)| worker), Some(OTHER));
    }
    // What the other one cannot compute goes to the suspect before it is given up.
    let (refused, _) = case.submit(5).unwrap();
    let failed = Event::AttemptFailed { attempt: refused, kind: FailureKind::Internal, retry_after: None };
    assert_eq!(started(&case.handle(failed)).map(|(_, worker)| worker), Some(PEER));
    case.handle(Event::WorkerLeft { worker: OTHER, why: LeaveReason::Lost });
    assert_eq!(case.submit(6).map(|(_, worker)| worker), Some(PEER), "no other peer is left");
}

#[test]
fn every_tile_of_a_large_job_goes_past_a_suspect() {
    let mut jobs = Jobs::new();
    jobs.handle(Event::SuspectsChanged { workers: [PEER].into() });
    jobs.submit(1);
    jobs.run(None, |_| false);
    assert!(!jobs.merged.is_empty() && jobs.merged.values().all(|worker| *worker == OTHER), "{:?}", jobs.merged);
    jobs.handle(Event::WorkerLeft { worker: OTHER, why: LeaveReason::Lost });
    jobs.submit(2);
    jobs.run(None, |_| false);
    assert!(jobs.merged_of(2, PEER) > 0 && jobs.reports.len() == 2, "it is used where nobody else is left");
}
