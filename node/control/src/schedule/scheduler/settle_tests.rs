//! Who gets a tile next: after failures, losses and convictions, beside suspects, and while peers are connecting. What a peer
//! is believed to hold.

use std::time::Duration;

use crate::schedule::limits::{CONNECT_WAIT, DELIVERED_KEPT, FAILURE_PAUSE_MAX};
use crate::schedule::{
    Action, Arithmetic, AttemptId, CheckOutcome, Event, FailureKind, JobId, JobSpec, LeaveReason, Measured, Operand,
    Place, ProductShape, Progress, Scheduler, StartReason, Time, WorkerEstimate, WorkerId,
};

const UNCLEAR: CheckOutcome = CheckOutcome::Inconclusive;

/// A node, peers, and jobs for peers.
struct Pool {
    scheduler: Scheduler,
    now: Time,
    next_job: u64,
}

impl Pool {
    /// A node and peers numbered from 1, with these operations per second.
    fn new(peers: &[f64]) -> Pool {
        let scheduler = Scheduler::new(WorkerEstimate::local([1e9; Arithmetic::COUNT], 1 << 30));
        let mut pool = Pool { scheduler, now: Time::from_secs(1), next_job: 1 };
        for (peer, flops_per_s) in (1..).zip(peers) {
            pool.join(peer, *flops_per_s);
        }
        pool
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.scheduler.handle(event, self.now, &mut actions);
        actions
    }

    fn join(&mut self, peer: u64, flops_per_s: f64) -> Vec<Action> {
        let estimate = WorkerEstimate::remote([flops_per_s; Arithmetic::COUNT], 1e9, 1e-4, 1 << 30);
        self.handle(Event::WorkerJoined { worker: WorkerId(peer), estimate })
    }

    fn leave(&mut self, worker: WorkerId, why: LeaveReason) -> Vec<Action> {
        self.handle(Event::WorkerLeft { worker, why })
    }

    fn after(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.handle(Event::Tick)
    }

    /// A job with a product of this many rows and columns.
    fn submit(&mut self, side: u64, redundancy: u32) -> Vec<Action> {
        let shape =
            ProductShape { m: side, k: 128, n: side, a_element_bytes: 4, b_element_bytes: 4, c_element_bytes: 4 };
        let spec = JobSpec { place: Place::Remote, redundancy, ..JobSpec::new(shape, Arithmetic::F32) };
        let job = JobId(self.next_job);
        self.next_job += 1;
        self.handle(Event::JobSubmitted { job, spec })
    }

    /// A job of one tile.
    fn submit_one(&mut self) -> (AttemptId, WorkerId) {
        the_start(&self.submit(128, 1))
    }

    fn finish(&mut self, attempt: AttemptId) -> Vec<Action> {
        self.finish_saying(attempt, Some(0.001))
    }

    /// The worker says that it computed for so many seconds.
    fn finish_saying(&mut self, attempt: AttemptId, compute_seconds: Option<f64>) -> Vec<Action> {
        let measured = Measured { compute_seconds, sent: None, received: None };
        self.handle(Event::AttemptFinished { attempt, measured })
    }

    fn check(&mut self, attempt: AttemptId, verdict: CheckOutcome) -> Vec<Action> {
        self.finish(attempt);
        self.handle(Event::AttemptChecked { attempt, verdict, seconds: 1e-5 })
    }

    fn fail(&mut self, attempt: AttemptId, kind: FailureKind) -> Vec<Action> {
        self.handle(Event::AttemptFailed { attempt, kind, retry_after: None })
    }
}

fn starts(actions: &[Action]) -> Vec<(AttemptId, WorkerId)> {
    let start = |action: &Action| match action {
        Action::Start { attempt, worker, .. } => Some((*attempt, *worker)),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

fn the_start(actions: &[Action]) -> (AttemptId, WorkerId) {
    let [start] = starts(actions)[..] else { panic!("one start is expected: {actions:?}") };
    start
}

#[test]
fn a_suspect_leaves_a_tile_to_every_peer_that_may_still_have_it_and_to_none_that_may_not() {
    let mut pool = Pool::new(&[1.1e9, 1e9, 1e9]);
    let suspect = WorkerId(1);
    pool.handle(Event::SuspectsChanged { workers: [suspect].into() });
    let (attempt, first) = pool.submit_one();
    let (attempt, second) = the_start(&pool.check(attempt, UNCLEAR));
    assert!(![first, second].contains(&suspect) && first != second, "{first}, then {second}");
    assert!(!first.is_local() && !second.is_local());
    assert_eq!(the_start(&pool.check(attempt, UNCLEAR)).1, suspect, "both others had it");
}

#[test]
fn a_suspect_copies_a_late_tile_only_where_no_other_peer_can() {
    for others in [2, 1] {
        let mut pool = Pool::new(&[1.1e9, 1e9, 1e9][..=others]);
        let suspect = WorkerId(1);
        pool.handle(Event::SuspectsChanged { workers: [suspect].into() });
        let (_, slow) = pool.submit_one();
        assert_ne!(slow, suspect);
        let (_, copies) = the_start(&pool.after(Duration::from_secs(1)));
        assert_eq!(copies == suspect, others == 1, "{copies}");
        assert!(copies != slow && !copies.is_local());
    }
}

#[test]
fn this_node_leaves_a_lost_tile_to_peers_that_are_connecting_and_not_for_ever() {
    for comes in [true, false] {
        let mut pool = Pool::new(&[1e9]);
        pool.submit_one();
        pool.handle(Event::PeersConnecting { count: 1 });
        assert_eq!(starts(&pool.leave(WorkerId(1), LeaveReason::Lost)), []);
        if comes {
            assert_eq!(the_start(&pool.join(2, 1e9)).1, WorkerId(2));
        } else {
            assert_eq!(starts(&pool.after(CONNECT_WAIT - Duration::from_millis(1))), []);
            assert!(the_start(&pool.after(Duration::from_millis(1))).1.is_local());
        }
    }
}

#[test]
fn a_tile_that_so_many_peers_lost_or_lied_about_is_computed_here() {
    for why in [LeaveReason::Lost, LeaveReason::Quarantined] {
        let mut pool = Pool::new(&[1e9; 6]);
        let (mut attempt, mut worker) = pool.submit_one();
        let mut peers = 0;
        while !worker.is_local() {
            peers += 1;
            if why == LeaveReason::Quarantined {
                assert!(pool.finish(attempt).contains(&Action::Check { attempt }), "its answer is being checked");
            }
            (attempt, worker) = the_start(&pool.leave(worker, why));
        }
        assert_eq!(peers, 4, "a first try and three more, of six peers: {why:?}");
    }
}

#[test]
fn no_more_workers_are_asked_at_a_time_than_must_agree() {
    let mut pool = Pool::new(&[1e11, 1e10, 1e9]);
    let asked = starts(&pool.submit(128, 2));
    assert_eq!(asked.len(), 2);
    let first = pool.check(asked[0].0, CheckOutcome::Good { answer: 7 });
    assert_eq!(starts(&first), [], "the other one's answer may be enough");
    let second = pool.check(asked[1].0, CheckOutcome::Good { answer: 8 });
    assert_ne!(the_start(&second).1, asked[0].1, "a third one decides");
}

#[test]
fn every_start_says_why() {
    let reasons = |actions: &[Action]| -> Vec<StartReason> {
        let reason = |action: &Action| match action {
            Action::Start { reason, .. } => Some(*reason),
            _ => None,
        };
        actions.iter().filter_map(reason).collect()
    };
    let mut pool = Pool::new(&[1e11, 1e10, 1e9]);
    let asked = pool.submit(128, 2);
    assert_eq!(reasons(&asked), [StartReason::First, StartReason::Check]);
    let asked = starts(&asked);
    pool.check(asked[0].0, CheckOutcome::Good { answer: 7 });
    let decides = pool.check(asked[1].0, CheckOutcome::Good { answer: 8 });
    assert_eq!(reasons(&decides), [StartReason::Check]);
    let mut pool = Pool::new(&[1.1e9, 1e9, 1e9]);
    let (attempt, _) = pool.submit_one();
    assert_eq!(reasons(&pool.check(attempt, UNCLEAR)), [StartReason::Retry]);
    let mut pool = Pool::new(&[1e9, 1e9]);
    pool.submit_one();
    assert_eq!(reasons(&pool.after(Duration::from_secs(1))), [StartReason::Hedge]);
}

#[test]
fn what_a_peer_fails_beside_a_counted_failure_forgives_it_nothing() {
    let mut pool = Pool::new(&[1e9]);
    let at_peer: Vec<_> = starts(&pool.submit(1024, 1)).into_iter().filter(|(_, worker)| !worker.is_local()).collect();
    assert!(at_peer.len() > 1, "{at_peer:?}");
    for (attempt, _) in at_peer {
        let next = starts(&pool.fail(attempt, FailureKind::Internal));
        assert!(next.iter().all(|(_, worker)| worker.is_local()), "the peer is paused: {next:?}");
    }
    assert!(pool.scheduler.jobs().count() == 1 && !pool.scheduler.jobs[0].pending.is_empty());
}

#[test]
fn this_nodes_own_failure_forgives_peers_that_failed_in_the_same_way_and_only_those() {
    for both in [true, false] {
        let mut pool = Pool::new(&[1e9, 1e9]);
        let (attempt, first) = pool.submit_one();
        let (attempt, second) = the_start(&pool.fail(attempt, FailureKind::Internal));
        let (attempt, own) = the_start(&pool.fail(attempt, FailureKind::InvalidInput));
        assert!(first != second && own.is_local());
        let (attempt, own) = the_start(&pool.fail(attempt, FailureKind::Internal));
        assert!(own.is_local());
        assert_eq!(pool.submit_one().1, first, "this node failed in its way");
        if both {
            pool.fail(attempt, FailureKind::InvalidInput);
        }
        assert_eq!(the_start(&pool.leave(first, LeaveReason::Lost)).1 == second, both);
    }
}

#[test]
fn a_peer_that_refuses_this_node_is_left_alone_as_long_as_one_that_keeps_failing() {
    let mut pool = Pool::new(&[1e10]);
    let (attempt, peer) = pool.submit_one();
    let (own, _) = the_start(&pool.fail(attempt, FailureKind::Unauthorized));
    pool.finish(own);
    pool.after(FAILURE_PAUSE_MAX - Duration::from_millis(1));
    let (own, worker) = pool.submit_one();
    assert!(worker.is_local());
    pool.finish(own);
    pool.after(Duration::from_millis(1));
    assert_eq!(pool.submit_one().1, peer);
}

#[test]
fn every_job_that_ended_lately_with_answers_of_a_peer_is_suspect_once_it_is_convicted() {
    for (ended, suspect) in [(3, 3), (DELIVERED_KEPT + 2, DELIVERED_KEPT)] {
        let mut pool = Pool::new(&[1e10]);
        for _ in 0..ended {
            let (attempt, worker) = pool.submit_one();
            assert!(!worker.is_local());
            pool.check(attempt, CheckOutcome::Good { answer: 0 });
        }
        let told = pool.leave(WorkerId(1), LeaveReason::Quarantined);
        let jobs =
            (ended - suspect + 1..=ended).map(|job| Action::Suspect { job: JobId(job as u64), worker: WorkerId(1) });
        assert_eq!(told, jobs.collect::<Vec<_>>());
    }
}

#[test]
fn a_slow_peer_that_moves_keeps_its_tile() {
    let mut pool = Pool::new(&[1e9]);
    let (attempt, _) = pool.submit_one();
    for _ in 0..60 {
        pool.handle(Event::AttemptProgress { attempt, progress: Progress::Moving });
        let actions = pool.after(Duration::from_secs(1));
        assert!(starts(&actions).is_empty() && !actions.contains(&Action::Cancel { attempt, worker: WorkerId(1) }));
    }
    assert!(pool.finish(attempt).contains(&Action::Check { attempt }));
}

#[test]
fn what_a_peer_is_believed_to_hold_follows_what_it_got_says_and_lacks() {
    let mut pool = Pool::new(&[1e9]);
    let peer = WorkerId(1);
    let resident = |pool: &Pool| pool.scheduler.workers[&peer].resident_bytes;
    pool.submit(256, 1);
    let other = resident(&pool);
    let at_peer: Vec<_> = starts(&pool.submit(1024, 1)).into_iter().filter(|(_, worker)| *worker == peer).collect();
    let [(overloaded, _), (lacking, _), ..] = at_peer[..] else { panic!("{at_peer:?}") };
    // A peer that asks for patience gets nothing more for now.
    pool.fail(overloaded, FailureKind::Overloaded);
    let (job, grid) = (JobId(2), pool.scheduler.jobs.iter().find(|job| job.id == JobId(2)).unwrap().grid);
    let bands = (0..grid.bands()).map(Operand::Band);
    let operands: Vec<_> = bands.chain((0..grid.panels()).map(Operand::Panel)).collect();
    let all = other + operands.iter().map(|operand| grid.operand_bytes(*operand)).sum::<u64>();
    assert!(other > 0 && resident(&pool) > other);
    for _ in 0..2 {
        pool.handle(Event::OperandsResident { worker: peer, job, operands: operands.clone() });
        assert_eq!(resident(&pool), all);
    }
    let tile = pool.scheduler.attempts[&lacking].tile;
    pool.fail(lacking, FailureKind::NotFound);
    let of_tile = [Operand::Band(tile.band), Operand::Panel(tile.panel)];
    let lacks = of_tile.map(|operand| grid.operand_bytes(operand)).iter().sum::<u64>();
    assert_eq!(resident(&pool), all - lacks, "it said that it lacks something for this tile");
    pool.handle(Event::OperandsResident { worker: peer, job, operands: of_tile.to_vec() });
    for _ in 0..2 {
        pool.handle(Event::OperandsEvicted { worker: peer, job, operands: of_tile.to_vec() });
        assert_eq!(resident(&pool), all - lacks);
    }
    pool.handle(Event::JobCancelled { job });
    assert_eq!(resident(&pool), other, "a job that ended needs nothing");
}

/// Tiles and seconds of each worker, as the report of the job that ends says.
fn shares(actions: &[Action]) -> Option<Vec<(WorkerId, u32, f64)>> {
    actions.iter().find_map(|action| match action {
        Action::JobFinished { report, .. } => {
            Some(report.workers.iter().map(|share| (share.worker, share.tasks, share.seconds)).collect())
        }
        _ => None,
    })
}

#[test]
fn a_report_counts_the_seconds_of_every_tile() {
    let mut pool = Pool::new(&[1e9, 1e9]);
    let mut actions = pool.submit(1024, 1);
    let mut running = starts(&actions);
    while let Some((attempt, _)) = running.pop() {
        pool.now += Duration::from_millis(1);
        let mut more = pool.finish(attempt);
        more.extend(pool.handle(Event::AttemptChecked {
            attempt,
            verdict: CheckOutcome::Good { answer: 0 },
            seconds: 1e-5,
        }));
        running.extend(starts(&more));
        actions.extend(more);
    }
    let shares = shares(&actions).expect("the job is done");
    assert!(shares.iter().any(|(_, tiles, _)| *tiles > 2), "{shares:?}");
    for (worker, tiles, seconds) in shares {
        assert!((seconds - 0.001 * f64::from(tiles)).abs() < 1e-9, "{worker}: {tiles} tiles, {seconds} s");
    }
}

#[test]
fn seconds_that_no_computation_can_have_taken_are_measured_here_instead() {
    for said in [None, Some(-1.0), Some(f64::NAN), Some(f64::INFINITY), Some(f64::NEG_INFINITY)] {
        let mut pool = Pool::new(&[]);
        pool.after(Duration::from_secs(100));
        let slow_link = WorkerEstimate::remote([1e9; Arithmetic::COUNT], 1e6, 1e-4, 1 << 30);
        pool.handle(Event::WorkerJoined { worker: WorkerId(1), estimate: slow_link });
        let (attempt, _) = pool.submit_one();
        pool.now += Duration::from_secs(1);
        pool.finish_saying(attempt, said);
        let verdict = CheckOutcome::Good { answer: 0 };
        let ended = pool.handle(Event::AttemptChecked { attempt, verdict, seconds: 1e-5 });
        let [(_, 1, seconds)] = shares(&ended).expect("the job is done")[..] else { panic!("{ended:?}") };
        // A second, less what both operands and the answer of 64 KiB each took.
        assert!((0.75..0.85).contains(&seconds), "{said:?}: {seconds}");
    }
}
