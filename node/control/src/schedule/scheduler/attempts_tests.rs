//! What becomes of attempts: failures that count and that do not, peers that ask for patience, hang or are convicted.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::schedule::limits::{OVERLOADS_LOCAL_MAX, OVERLOADS_MAX, RETRY_AFTER_MAX, SILENCE_MAX};
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

/// A node and peers of the same speed; jobs of one tile, asked of `redundancy` workers.
struct OneTile {
    case: Case,
    next_job: u64,
}

impl OneTile {
    fn new(peers: u64) -> OneTile {
        let mut case = Case::new();
        for worker in (2..=peers).map(WorkerId) {
            let estimate = WorkerEstimate::remote([1e10; Arithmetic::COUNT], 1e9, 1e-4, 1 << 30);
            case.handle(Event::WorkerJoined { worker, estimate });
        }
        OneTile { case, next_job: 1 }
    }

    fn submit(&mut self, place: Place, redundancy: u32) -> Vec<Action> {
        let shape = ProductShape { m: 128, k: 128, n: 128, a_element_bytes: 4, b_element_bytes: 4, c_element_bytes: 4 };
        let spec = JobSpec { place, redundancy, ..JobSpec::new(shape, Arithmetic::F32) };
        let job = JobId(self.next_job);
        self.next_job += 1;
        self.case.handle(Event::JobSubmitted { job, spec })
    }

    fn finish(&mut self, attempt: AttemptId) -> Vec<Action> {
        let measured = Measured { compute_seconds: Some(0.001), sent: None, received: None };
        self.case.handle(Event::AttemptFinished { attempt, measured })
    }

    /// The attempt ends, is checked, and the check says this; returns the actions of both.
    fn check(&mut self, attempt: AttemptId, verdict: CheckOutcome) -> Vec<Action> {
        let mut actions = self.finish(attempt);
        assert!(actions.contains(&Action::Check { attempt }), "{actions:?}");
        actions.extend(self.case.handle(Event::AttemptChecked { attempt, verdict, seconds: 1e-5 }));
        actions
    }

    fn fail(&mut self, attempt: AttemptId, kind: FailureKind) -> Vec<Action> {
        self.case.handle(Event::AttemptFailed { attempt, kind, retry_after: None })
    }
}

fn all_started(actions: &[Action]) -> Vec<(AttemptId, WorkerId)> {
    let start = |action: &Action| match action {
        Action::Start { attempt, worker, .. } => Some((*attempt, *worker)),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

/// The worker whose answer was accepted, and how many agreed.
fn accepted(actions: &[Action]) -> Option<(WorkerId, u32)> {
    actions.iter().find_map(|action| match action {
        Action::Accept { worker, agreeing, .. } => Some((*worker, *agreeing)),
        _ => None,
    })
}

fn report(actions: &[Action]) -> Option<JobReport> {
    actions.iter().find_map(|action| match action {
        Action::JobFinished { report, .. } => Some(report.clone()),
        _ => None,
    })
}

fn quarantined(actions: &[Action]) -> Option<(WorkerId, AttemptId)> {
    actions.iter().find_map(|action| match action {
        Action::Quarantine { worker, attempt } => Some((*worker, *attempt)),
        _ => None,
    })
}

#[test]
fn a_wrong_answer_convicts_its_peer_and_the_tile_is_computed_again() {
    let mut one = OneTile::new(1);
    let (attempt, worker) = started(&one.submit(Place::Remote, 1)).unwrap();
    assert_eq!(worker, PEER);
    let bad = one.check(attempt, CheckOutcome::Bad);
    assert_eq!((quarantined(&bad), accepted(&bad)), (Some((PEER, attempt)), None));
    let (own, worker) = started(&bad).unwrap();
    assert!(worker.is_local());
    let done = one.finish(own);
    assert_eq!(accepted(&done), Some((WorkerId::LOCAL, 1)));
    assert_eq!(report(&done).map(|report| (report.tasks.wrong, report.tasks.local)), Some((1, 1)));
    // It does not come back.
    let estimate = WorkerEstimate::remote([1e10; Arithmetic::COUNT], 1e9, 1e-4, 1 << 30);
    one.case.handle(Event::WorkerJoined { worker: PEER, estimate });
    assert!(started(&one.submit(Place::Remote, 1)).is_some_and(|(_, worker)| worker.is_local()));
}

#[test]
fn a_check_without_an_outcome_convicts_nobody() {
    let mut one = OneTile::new(1);
    let (attempt, _) = started(&one.submit(Place::Remote, 1)).unwrap();
    let unclear = one.check(attempt, CheckOutcome::Inconclusive);
    assert_eq!((quarantined(&unclear), accepted(&unclear)), (None, None));
    assert!(unclear.contains(&Action::Discard { attempt }));
    let (own, worker) = started(&unclear).unwrap();
    assert!(worker.is_local(), "the peer does not get the same tile again");
    let done = one.finish(own);
    assert_eq!(report(&done).map(|report| report.tasks.wrong), Some(0));
    assert_eq!(started(&one.submit(Place::Remote, 1)).map(|(_, worker)| worker), Some(PEER), "the next job's it does");
}

#[test]
fn an_outcome_for_an_attempt_that_is_not_checked_means_nothing() {
    let mut one = OneTile::new(1);
    let (attempt, _) = started(&one.submit(Place::Remote, 1)).unwrap();
    for verdict in [CheckOutcome::Bad, CheckOutcome::Good { answer: 0 }] {
        assert_eq!(one.case.handle(Event::AttemptChecked { attempt, verdict, seconds: 1e-5 }), []);
    }
    assert_eq!(accepted(&one.check(attempt, CheckOutcome::Good { answer: 0 })), Some((PEER, 1)));
}

#[test]
fn this_node_is_never_convicted_and_a_job_ends_when_its_own_answers_fail() {
    let mut one = OneTile::new(1);
    let mut actions = one.submit(Place::Local, 2);
    let mut tries = 0;
    let why = loop {
        if let Some(kind) = actions.iter().find_map(|action| match action {
            Action::JobFailed { kind, .. } => Some(*kind),
            _ => None,
        }) {
            break kind;
        }
        let (attempt, worker) = started(&actions).unwrap();
        assert!(worker.is_local());
        tries += 1;
        actions = one.check(attempt, CheckOutcome::Bad);
        assert_eq!(quarantined(&actions), None);
    };
    assert_eq!((why, tries), (FailureKind::VerificationFailed, 4), "three retries");
}

#[test]
fn as_many_workers_as_asked_for_must_agree() {
    let mut one = OneTile::new(3);
    let mut actions = one.submit(Place::Remote, 2);
    let mut asked = all_started(&actions);
    for (at, answer) in [7, 8, 8].into_iter().enumerate() {
        assert_eq!(accepted(&actions), None, "after {at} answers");
        assert!(asked.len() <= at.max(1) + 1, "no more than are needed: {asked:?}");
        actions = one.check(asked[at].0, CheckOutcome::Good { answer });
        asked.extend(all_started(&actions));
    }
    let [(first, one_worker), (second, other), (third, last)] = asked[..] else { panic!("{asked:?}") };
    assert!(one_worker != other && other != last && last != one_worker, "{asked:?}");
    assert_eq!(accepted(&actions), Some((other, 2)));
    let discarded = [first, second, third].map(|attempt| actions.contains(&Action::Discard { attempt }));
    assert_eq!(discarded, [true, false, true], "all but the answer that is merged");
}

#[test]
fn where_nobody_is_left_to_ask_the_answer_of_most_counts_and_says_how_many_agree() {
    let mut one = OneTile::new(1);
    let first = all_started(&one.submit(Place::Remote, 3));
    assert_eq!(first.iter().map(|(_, worker)| *worker).collect::<Vec<_>>(), [PEER], "this node is asked last");
    let next = one.check(first[0].0, CheckOutcome::Good { answer: 1 });
    let (own, worker) = started(&next).unwrap_or_else(|| panic!("{next:?}"));
    assert!(worker.is_local());
    let done = one.check(own, CheckOutcome::Good { answer: 1 });
    assert_eq!(accepted(&done).map(|(_, agreeing)| agreeing), Some(2));
}

#[test]
fn a_job_for_this_node_alone_goes_to_no_peer() {
    let mut one = OneTile::new(2);
    let actions = one.submit(Place::Local, 1);
    let began = all_started(&actions);
    assert!(began.len() == 1 && began[0].1.is_local());
    assert_eq!(accepted(&one.finish(began[0].0)), Some((WorkerId::LOCAL, 1)), "its answer needs no check");
}

#[test]
fn what_a_failure_means_for_the_tile_depends_on_its_kind() {
    for (kind, again) in
        [(FailureKind::NotFound, true), (FailureKind::Overloaded, true), (FailureKind::Unavailable, false)]
    {
        let mut one = OneTile::new(1);
        let (attempt, _) = started(&one.submit(Place::Remote, 1)).unwrap();
        let mut next = started(&one.fail(attempt, kind));
        for tenth in 0..100 {
            if next.is_some() {
                break;
            }
            let mut actions = Vec::new();
            let now = Time::from_secs(1) + Duration::from_millis(tenth * 100);
            one.case.0.handle(Event::Tick, now, &mut actions);
            next = started(&actions);
        }
        assert_eq!(next.map(|(_, worker)| worker == PEER), Some(again), "{kind}");
    }
}

#[test]
fn an_answer_of_a_convicted_peer_that_waits_for_others_does_not_count() {
    let mut one = OneTile::new(3);
    let good = CheckOutcome::Good { answer: 7 };
    let mut actions = one.submit(Place::Remote, 3);
    let mut asked = all_started(&actions);
    for at in 0..2 {
        actions = one.check(asked[at].0, good);
        asked.extend(all_started(&actions));
    }
    let [liar, honest] = [asked[0], asked[1]];
    actions = one.case.handle(Event::WorkerLeft { worker: liar.1, why: LeaveReason::Quarantined });
    let discarded = [liar, honest].map(|(attempt, _)| actions.contains(&Action::Discard { attempt }));
    assert_eq!((discarded, accepted(&actions)), ([true, false], None));
    asked.extend(all_started(&actions));
    for at in 2..4 {
        assert_eq!(accepted(&actions), None);
        actions = one.check(asked[at].0, good);
        asked.extend(all_started(&actions));
    }
    assert!(accepted(&actions).is_some_and(|(worker, agreeing)| worker != liar.1 && agreeing == 3), "{actions:?}");
}

#[test]
fn what_a_convicted_peer_has_under_check_is_discarded_and_nobody_elses() {
    let mut one = OneTile::new(2);
    let finished: Vec<_> = (0..4).filter_map(|_| started(&one.submit(Place::Remote, 1))).collect();
    for (attempt, _) in &finished {
        one.finish(*attempt);
    }
    let of = |worker| finished.iter().filter(move |(_, by)| *by == worker).map(|(attempt, _)| *attempt);
    let (theirs, others): (Vec<_>, Vec<_>) = (of(PEER).collect(), of(OTHER).collect());
    assert!(theirs.len() >= 2 && !others.is_empty(), "{finished:?}");
    let checked = |attempt, verdict| Event::AttemptChecked { attempt, verdict, seconds: 1e-5 };
    let bad = one.case.handle(checked(theirs[0], CheckOutcome::Bad));
    assert!(theirs[1..].iter().all(|attempt| bad.contains(&Action::Discard { attempt: *attempt })), "{bad:?}");
    assert!(others.iter().all(|attempt| !bad.contains(&Action::Discard { attempt: *attempt })), "{bad:?}");
    assert_eq!(one.case.handle(checked(theirs[1], CheckOutcome::Good { answer: 0 })), []);
    let good = one.case.handle(checked(others[0], CheckOutcome::Good { answer: 0 }));
    assert_eq!(accepted(&good), Some((OTHER, 1)));
}

#[test]
fn a_worker_that_gives_no_answer_is_asked_so_often_and_then_another_one_or_nobody() {
    for (place, kind, times) in [
        (Place::Remote, FailureKind::Overloaded, OVERLOADS_MAX + 1),
        (Place::Local, FailureKind::Overloaded, OVERLOADS_LOCAL_MAX + 1),
        // It says that it lacks an operand, whenever it is sent: a first try and three more.
        (Place::Remote, FailureKind::NotFound, 4),
    ] {
        let mut one = OneTile::new(1);
        let (mut now, mut asked) = (Time::from_secs(1), 0);
        let mut actions = one.submit(place, 1);
        let (_, first) = started(&actions).unwrap();
        while !actions.iter().any(|action| matches!(action, Action::JobFailed { .. })) {
            let event = match started(&actions) {
                Some((attempt, worker)) if worker == first => {
                    asked += 1;
                    Event::AttemptFailed { attempt, kind, retry_after: None }
                }
                Some(_) => break,
                None => Event::Tick,
            };
            now += Duration::from_millis(100);
            assert!(now < Time::from_secs(600), "the job of {place:?} with {kind} does not end");
            actions = Vec::new();
            one.case.0.handle(event, now, &mut actions);
        }
        assert_eq!(asked, times, "{place:?} {kind}");
    }
}
