//! The handle on this node's jobs, for every API and both executors. It holds the registry behind a lock, publishes
//! events to followers, and cancels the computation of jobs; [`pangea_control::jobs`] decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pangea_client::jobs::{JobError, JobFailover, JobOwner, JobStatus, JobStatusProgress};
use pangea_client::{AnswerStage, Error, ErrorKind, Result};
use pangea_compute::Operation;
use pangea_control::Time;
use pangea_control::jobs::{
    Action, Ending, Event, Job, JobCounts, JobEvent, JobId, JobKind, JobProgress, JobSpec, JobState,
};
use pangea_control::session::StageAt;
use pangea_control::trust::Verdict;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{broadcast, watch};

use crate::clock;
use crate::observe::Observer;

/// Queued events of the slowest follower: some seconds of a busy node. A slower follower learns how many it missed.
const EVENTS_KEPT: usize = 1024;

/// Cancels the computation of a job.
type Canceller = Box<dyn FnOnce() + Send>;

/// The jobs of this node; clones share them.
#[derive(Clone)]
pub struct Jobs(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    events: broadcast::Sender<JobEvent>,
    drained: watch::Sender<bool>,
    ended: Family<EndedLabels, Counter>,
    verdicts: Family<VerdictLabels, Counter>,
}

/// Labels of the counter of ended jobs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabels {
    kind: &'static str,
    outcome: &'static str,
}

impl EndedLabels {
    fn of(job: &Job) -> EndedLabels {
        EndedLabels { kind: job.spec.kind.name(), outcome: job.state.name() }
    }

    /// Every kind of job with every outcome.
    fn all() -> Vec<EndedLabels> {
        let of_kind = |kind: JobKind| Ending::NAMES.map(|outcome| EndedLabels { kind: kind.name(), outcome });
        kinds().flat_map(of_kind).collect()
    }
}

/// Labels of the counter of verdicts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    kind: &'static str,
    verdict: &'static str,
}

impl VerdictLabels {
    fn of(kind: JobKind, verdict: Verdict) -> VerdictLabels {
        VerdictLabels { kind: kind.name(), verdict: verdict.name() }
    }

    /// Every kind of job whose results are checked, with every verdict.
    fn all() -> Vec<VerdictLabels> {
        let checked = kinds().filter(|kind| *kind != JobKind::Download);
        checked.flat_map(|kind| Verdict::ALL.map(|verdict| VerdictLabels::of(kind, verdict))).collect()
    }
}

/// Every kind of job.
fn kinds() -> impl Iterator<Item = JobKind> {
    let operations = Operation::ALL.map(|operation| JobKind::Operation(operation.result_name()));
    operations.into_iter().chain([JobKind::Generation, JobKind::Download])
}

#[derive(Default)]
struct Registry {
    jobs: pangea_control::jobs::Jobs,
    /// Cancels each job that has not ended.
    cancellers: HashMap<JobId, Canceller>,
}

impl Inner {
    /// Counts a job that ended.
    fn count(&self, job: &Job) {
        self.ended.get_or_create(&EndedLabels::of(job)).inc();
        if let JobState::Ended(Ending::Done { verdict: Some(verdict) }) = job.state {
            self.verdicts.get_or_create(&VerdictLabels::of(job.spec.kind, verdict)).inc();
        }
    }
}

impl Default for Jobs {
    /// An empty registry without metrics.
    fn default() -> Jobs {
        Jobs::new(&Observer::default())
    }
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs", self.lock().jobs.live())
    }
}

impl Jobs {
    /// An empty registry; `observer` counts the jobs that end.
    pub fn new(observer: &Observer) -> Jobs {
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let ended = observer.counters("jobs_ended", "Jobs that ended, by kind and outcome", EndedLabels::all());
        let verdicts =
            observer.counters("verdicts", "Verdicts of the jobs that are done, by kind", VerdictLabels::all());
        let inner = Inner { registry: Mutex::default(), events, drained: watch::Sender::new(false), ended, verdicts };
        let jobs = Jobs(Arc::new(inner));
        let live = jobs.clone();
        observer.gauge("jobs_live", "Jobs that wait or run", move || live.lock().jobs.live() as f64);
        jobs
    }

    /// Accepts a job. `cancel` stops its computation; it is called at most once, on any thread, with no lock held.
    ///
    /// # Errors
    /// `Unavailable` once the grace period of a draining node is over.
    pub fn submit(&self, spec: JobSpec, cancel: impl FnOnce(JobId) + Send + 'static) -> Result<Ticket> {
        let mut registry = self.lock();
        let (id, event) = registry.jobs.submit(spec, clock::now())?;
        registry.cancellers.insert(id, Box::new(move || cancel(id)));
        // Sent under the lock, so that followers see the start of a job before its end.
        let _ = self.0.events.send(event);
        Ok(Ticket { jobs: self.clone(), id })
    }

    /// All known jobs, the latest submitted first.
    pub fn list(&self) -> Vec<JobStatus> {
        let clock = WallClock::of_this_process();
        self.lock().jobs.list().iter().map(|job| clock.status(job)).collect()
    }

    /// How many jobs there are and were, of all kinds.
    pub fn counts(&self) -> JobCounts {
        self.lock().jobs.counts()
    }

    /// Events of all jobs from now on.
    pub fn follow(&self) -> broadcast::Receiver<JobEvent> {
        self.0.events.subscribe()
    }

    /// Becomes true once no job is left or the grace period is over.
    pub fn drained(&self) -> watch::Receiver<bool> {
        self.0.drained.subscribe()
    }

    /// A part of a job that is done came from a peer that was convicted afterwards.
    pub fn suspect(&self, id: JobId) {
        self.handle(Event::Suspect(id));
    }

    /// Returns once no job is left; jobs that remain after `grace` are cancelled, and no more are accepted.
    pub async fn drain(&self, grace: Duration) {
        let mut drained = self.drained();
        self.handle(Event::Drain);
        if tokio::time::timeout(grace, drained.wait_for(|drained| *drained)).await.is_err() {
            tracing::warn!(event = "jobs_cut_off", jobs = self.lock().jobs.live(), "jobs cut off");
            self.handle(Event::CutOff);
            self.0.drained.send_replace(true);
        }
    }

    fn handle(&self, event: Event) {
        let mut cancelled = Vec::new();
        let mut registry = self.lock();
        if let Event::Ended(id, _) = &event {
            registry.cancellers.remove(id);
        }
        for action in registry.jobs.handle(event, clock::now()) {
            match action {
                Action::Publish(event) => {
                    if let JobEvent::Ended(job) = &event {
                        self.0.count(job);
                    }
                    // There may be no follower.
                    let _ = self.0.events.send(event);
                }
                Action::Cancel(id) => cancelled.extend(registry.cancellers.remove(&id)),
                Action::Drained => drop(self.0.drained.send_replace(true)),
            }
        }
        drop(registry);
        cancelled.into_iter().for_each(|cancel| cancel());
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job held by its computation. Dropping it without an outcome means that the job was cancelled.
#[derive(Debug)]
pub struct Ticket {
    jobs: Jobs,
    id: JobId,
}

impl Ticket {
    /// Id of the job.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// The computation has started.
    pub fn started(&self) {
        self.jobs.handle(Event::Started(self.id));
    }

    /// The computation has made progress.
    pub fn progress(&self, done: u64, total: u64) {
        self.jobs.handle(Event::Progress(self.id, JobProgress { done, total }));
    }

    /// Stages have computed these many tokens of those that precede the next one.
    pub fn prompt(&self, done: u64, total: u64) {
        self.jobs.handle(Event::Prompt(self.id, JobProgress { done, total }));
    }

    /// These stages compute the job from now on.
    pub fn routed(&self, stages: &[StageAt]) {
        self.jobs.handle(Event::Routed(self.id, stages.to_vec()));
    }

    /// The job has lost these stages, for a reason.
    pub fn lost(&self, stages: &[StageAt], why: &str) {
        self.jobs.handle(Event::Lost(self.id, stages.to_vec(), why.to_owned()));
    }

    /// Ends the job; only the first call counts.
    pub fn end(&self, ending: Ending) {
        self.jobs.handle(Event::Ended(self.id, ending));
    }

    /// Ends the job with an error or as cancelled.
    pub fn fail(&self, error: &Error) {
        self.end(match error.kind() {
            ErrorKind::Cancelled => Ending::Cancelled,
            kind => Ending::Failed { kind, message: error.message().to_owned() },
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end(Ending::Cancelled);
    }
}

/// The time of day beside the node's clock: read once, so that a time is always reported alike.
struct WallClock {
    unix_ms: u64,
    now: Time,
}

impl WallClock {
    fn of_this_process() -> &'static WallClock {
        static READ: OnceLock<WallClock> = OnceLock::new();
        READ.get_or_init(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            WallClock { unix_ms: since.as_millis() as u64, now: clock::now() }
        })
    }

    fn unix_ms(&self, time: Time) -> u64 {
        let (past, future) = (self.now.since(time), time.since(self.now));
        self.unix_ms.saturating_sub(past.as_millis() as u64).saturating_add(future.as_millis() as u64)
    }

    /// The status of a job for programs and people.
    fn status(&self, job: &Job) -> JobStatus {
        let (verdict, error) = match &job.state {
            JobState::Ended(Ending::Done { verdict }) => (verdict.map(|verdict| verdict.name().to_owned()), None),
            JobState::Ended(Ending::Failed { kind, message }) => {
                (None, Some(JobError { kind: kind.name().to_owned(), message: message.clone() }))
            }
            _ => (None, None),
        };
        JobStatus {
            id: job.id.0,
            kind: job.spec.kind.name().to_owned(),
            subject: job.spec.subject.clone(),
            owner: JobOwner { api: job.spec.owner.api.name().to_owned(), client: job.spec.owner.client.clone() },
            state: job.state.name().to_owned(),
            progress: progress(job.progress),
            prompt: progress(job.prompt),
            stages: stages(&job.stages),
            failovers: job.failovers,
            failover: job.failover.as_ref().map(|failover| JobFailover {
                from: stages(&failover.from),
                to: stages(&failover.to),
                why: failover.why.clone(),
            }),
            submitted_unix_ms: self.unix_ms(job.submitted),
            started_unix_ms: job.started.map(|time| self.unix_ms(time)),
            ended_unix_ms: job.ended.map(|time| self.unix_ms(time)),
            deadline_unix_ms: job.spec.deadline.map(|time| self.unix_ms(time)),
            verdict,
            error,
        }
    }
}

fn progress(progress: JobProgress) -> JobStatusProgress {
    JobStatusProgress { done: progress.done, total: progress.total }
}

/// Stages in the client's type.
pub fn stages(stages: &[StageAt]) -> Vec<AnswerStage> {
    let stage = |at: &StageAt| AnswerStage { peer: at.peer.to_string(), layers: [at.layers.start, at.layers.end] };
    stages.iter().map(stage).collect()
}

/// The current status of a job for programs and people.
pub fn status(job: &Job) -> JobStatus {
    WallClock::of_this_process().status(job)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use pangea_control::jobs::{Api, Owner};

    use super::*;
    use crate::observe::Format;

    const PRODUCT: JobKind = JobKind::Operation("product");

    fn spec(kind: JobKind) -> JobSpec {
        JobSpec { kind, subject: "tiny".to_owned(), owner: Owner::of(Api::Rpc), deadline: None }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn jobs_that_ended_are_counted_once_by_kind_and_outcome() {
        let observer = Observer::default();
        let jobs = Jobs::new(&observer);
        let submit = |kind| jobs.submit(spec(kind), |_| {}).unwrap();
        let [done, failed, cancelled] = [PRODUCT, JobKind::Generation, JobKind::Generation].map(submit);
        let live = submit(PRODUCT);
        submit(JobKind::Download).end(Ending::Done { verdict: None });
        done.end(Ending::Done { verdict: Some(Verdict::Local) });
        failed.fail(&Error::new(ErrorKind::Overloaded, "full"));
        failed.fail(&Error::new(ErrorKind::Internal, "again"));
        drop((done, failed, cancelled));
        let text = observer.text(Format::Prometheus).unwrap();
        let ended =
            |kind, outcome, count| format!("pangea_jobs_ended_total{{kind=\"{kind}\",outcome=\"{outcome}\"}} {count}");
        let verdict =
            |kind, verdict, count| format!("pangea_verdicts_total{{kind=\"{kind}\",verdict=\"{verdict}\"}} {count}");
        for sample in [
            ended("product", "done", 1),
            ended("generation", "failed", 1),
            ended("generation", "cancelled", 1),
            ended("sum", "failed", 0),
            ended("download", "done", 1),
            verdict("product", "local", 1),
            verdict("product", "unchecked", 0),
            verdict("generation", "local", 0),
            "pangea_jobs_live 1.0".to_owned(),
        ] {
            assert!(text.lines().any(|line| line == sample), "{sample} in {text}");
        }
        assert!(!text.contains(r#"pangea_verdicts_total{kind="download""#), "nothing is computed: {text}");
        drop(live);
    }

    #[test]
    fn only_what_was_computed_has_a_verdict() {
        let jobs = Jobs::default();
        let verdict = |kind, verdict| {
            jobs.submit(spec(kind), |_| {}).unwrap().end(Ending::Done { verdict });
            let JobStatus { state, verdict, .. } = jobs.list().remove(0);
            (state, verdict)
        };
        let done = "done".to_owned();
        assert_eq!(verdict(JobKind::Generation, Some(Verdict::Local)), (done.clone(), Some("local".to_owned())));
        assert_eq!(verdict(JobKind::Download, None), (done, None));
    }

    #[test]
    fn followers_see_both_kinds_of_jobs() {
        let jobs = Jobs::default();
        let mut events = jobs.follow();
        let product = jobs.submit(spec(PRODUCT), |_| {}).unwrap();
        let generation = jobs.submit(spec(JobKind::Generation), |_| {}).unwrap();
        product.started();
        product.end(Ending::Done { verdict: Some(Verdict::Verified) });
        drop(generation);
        let mut names = Vec::new();
        while let Ok(event) = events.try_recv() {
            names.push((event.name(), event.job().spec.kind));
        }
        let (product, generation) = (PRODUCT, JobKind::Generation);
        let expected = [
            ("job.submitted", product),
            ("job.submitted", generation),
            ("job.started", product),
            ("job.ended", product),
            ("job.ended", generation),
        ];
        assert_eq!(names, expected);
        let states: Vec<String> = jobs.list().into_iter().map(|job| job.state).collect();
        assert_eq!(states, ["cancelled", "done"]);
    }

    #[test]
    fn draining_waits_for_both_kinds_of_jobs() {
        let jobs = Jobs::default();
        let product = jobs.submit(spec(PRODUCT), |_| {}).unwrap();
        let generation = jobs.submit(spec(JobKind::Generation), |_| {}).unwrap();
        runtime().block_on(async {
            let draining = jobs.clone();
            let drained = tokio::spawn(async move { draining.drain(Duration::from_secs(10)).await });
            tokio::task::yield_now().await;
            drop(product);
            tokio::task::yield_now().await;
            assert!(!*jobs.drained().borrow());
            generation.end(Ending::Done { verdict: Some(Verdict::Local) });
            drained.await.unwrap();
        });
        assert_eq!(jobs.list().iter().filter(|job| job.state == "cancelled").count(), 1);
    }

    #[test]
    fn jobs_that_outlast_the_grace_period_are_cancelled() {
        let jobs = Jobs::default();
        let cancelled = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&cancelled);
        let ticket = jobs.submit(spec(JobKind::Generation), move |id| seen.store(id.0, Ordering::Relaxed)).unwrap();
        runtime().block_on(jobs.drain(Duration::from_millis(10)));
        assert_eq!(cancelled.load(Ordering::Relaxed), ticket.id().0);
        assert!(*jobs.drained().borrow());
        assert_eq!(jobs.submit(spec(PRODUCT), |_| {}).unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn times_are_reported_as_times_of_day() {
        let clock = WallClock { unix_ms: 1_000_000, now: Time::from_secs(100) };
        assert_eq!(clock.unix_ms(Time::from_secs(90)), 990_000);
        assert_eq!(clock.unix_ms(Time::from_secs(130)), 1_030_000);
    }
}
