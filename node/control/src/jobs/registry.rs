//! All jobs of a node: those that run and those that ended last. The registry numbers them, publishes their events, and
//! knows when a draining node has none left.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use pangea_units::{Error, ErrorKind, Result};

use super::job::{Ending, Failover, Job, JobCounts, JobId, JobKind, JobProgress, JobSpec, JobState};
use crate::Time;
use crate::session::StageAt;
use crate::trust::Verdict;

/// Ended jobs that are kept: some minutes of a busy node, in less than 300 kB.
pub const HISTORY: usize = 256;

/// Minimum interval between two progress events of one job: people and consoles need no more.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Input of the registry.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A job's computation starts.
    Started(JobId),
    /// A job has made progress.
    Progress(JobId, JobProgress),
    /// Stages have computed a part of what precedes the next token of a generation.
    Prompt(JobId, JobProgress),
    /// These stages compute a generation from now on.
    Routed(JobId, Vec<StageAt>),
    /// A generation has lost these stages, for a reason.
    Lost(JobId, Vec<StageAt>, String),
    /// A job has ended.
    Ended(JobId, Ending),
    /// A part of a job that is done came from a peer that was convicted of a lie afterwards.
    Suspect(JobId),
    /// A job is to be cancelled.
    Cancel(JobId),
    /// The node ends once no job is left; downloads are cancelled, because the next request goes on with them. The APIs accept no more requests; a request accepted before may still submit
    /// another job, such as the second of two chained products.
    Drain,
    /// The grace period is over: remaining jobs are cancelled, and no job is accepted any more.
    CutOff,
}

/// What the driver does next.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all actions publish an event")]
pub enum Action {
    /// Publish to the followers of the jobs.
    Publish(JobEvent),
    /// Cancel the job's computation.
    Cancel(JobId),
    /// The node drains and no job is left.
    Drained,
}

/// An event for followers of the jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// A job was submitted.
    Submitted(Job),
    /// A job has started.
    Started(Job),
    /// A job has made progress.
    Progress(Job),
    /// Stages were found for a generation.
    Routed(Job),
    /// A generation has lost its stages.
    Lost(Job),
    /// Other stages go on with a generation that had lost its own.
    FailedOver(Job),
    /// A job has ended.
    Ended(Job),
    /// A job that is done counts as unchecked from now on: a peer that it used was convicted later.
    Suspect(Job),
}

impl JobEvent {
    /// Stable name of the event.
    pub fn name(&self) -> &'static str {
        match self {
            JobEvent::Submitted(_) => "job.submitted",
            JobEvent::Started(_) => "job.started",
            JobEvent::Progress(_) => "job.progress",
            JobEvent::Routed(_) => "job.routed",
            JobEvent::Lost(_) => "job.lost",
            JobEvent::FailedOver(_) => "job.failover",
            JobEvent::Ended(_) => "job.ended",
            JobEvent::Suspect(_) => "job.suspect",
        }
    }

    /// The job after the event.
    pub fn job(&self) -> &Job {
        match self {
            JobEvent::Submitted(job)
            | JobEvent::Started(job)
            | JobEvent::Progress(job)
            | JobEvent::Routed(job)
            | JobEvent::Lost(job)
            | JobEvent::FailedOver(job)
            | JobEvent::Ended(job)
            | JobEvent::Suspect(job) => job,
        }
    }
}

/// A job that has not ended.
#[derive(Debug)]
struct Live {
    job: Job,
    /// Time of the last published progress.
    published: Time,
}

/// The jobs of a node.
#[derive(Debug, Default)]
pub struct Jobs {
    next: u64,
    live: BTreeMap<JobId, Live>,
    /// The jobs that ended last, the latest at the end.
    ended: VecDeque<Job>,
    /// All jobs that ended, longer than the history has them.
    done: u64,
    failed: u64,
    draining: bool,
    closed: bool,
}

impl Jobs {
    /// Accepts a job.
    ///
    /// # Errors
    /// `Unavailable` once the grace period of a draining node is over.
    pub fn submit(&mut self, spec: JobSpec, now: Time) -> Result<(JobId, JobEvent)> {
        if self.closed {
            let why = "this node is shutting down and accepts no more jobs; use another node";
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        self.next += 1;
        let id = JobId(self.next);
        let job = Job {
            id,
            spec,
            state: JobState::Waiting,
            progress: JobProgress::default(),
            prompt: JobProgress::default(),
            stages: Vec::new(),
            failovers: 0,
            failover: None,
            submitted: now,
            started: None,
            ended: None,
        };
        self.live.insert(id, Live { job: job.clone(), published: now });
        Ok((id, JobEvent::Submitted(job)))
    }

    /// Processes an event. Of a job that has ended only the verdict changes, and only to `unchecked`.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        match event {
            Event::Started(id) => self.started(id, now),
            Event::Progress(id, progress) => self.progress(id, now, |job| job.progress = progress),
            Event::Prompt(id, prompt) => self.progress(id, now, |job| job.prompt = prompt),
            Event::Routed(id, stages) => self.routed(id, stages),
            Event::Lost(id, from, why) => self.lost(id, from, why),
            Event::Ended(id, ending) => self.end(id, ending, now),
            Event::Suspect(id) => self.suspect(id),
            Event::Cancel(id) => self.live.contains_key(&id).then_some(Action::Cancel(id)).into_iter().collect(),
            Event::Drain => {
                self.draining = true;
                let is_download = |live: &Live| live.job.spec.kind == JobKind::Download;
                let downloads =
                    self.live.iter().filter(|(_, live)| is_download(live)).map(|(id, _)| Action::Cancel(*id));
                downloads.chain(self.live.is_empty().then_some(Action::Drained)).collect()
            }
            Event::CutOff => {
                (self.draining, self.closed) = (true, true);
                self.live.keys().map(|id| Action::Cancel(*id)).collect()
            }
        }
    }

    fn started(&mut self, id: JobId, now: Time) -> Vec<Action> {
        let Some(live) = self.live.get_mut(&id).filter(|live| live.job.state == JobState::Waiting) else {
            return Vec::new();
        };
        live.job.state = JobState::Running;
        live.job.started = Some(now);
        vec![Action::Publish(JobEvent::Started(live.job.clone()))]
    }

    fn progress(&mut self, id: JobId, now: Time, note: impl FnOnce(&mut Job)) -> Vec<Action> {
        let Some(live) = self.live.get_mut(&id) else { return Vec::new() };
        note(&mut live.job);
        if now.since(live.published) < PROGRESS_INTERVAL {
            return Vec::new();
        }
        live.published = now;
        vec![Action::Publish(JobEvent::Progress(live.job.clone()))]
    }

    fn routed(&mut self, id: JobId, stages: Vec<StageAt>) -> Vec<Action> {
        let Some(Live { job, .. }) = self.live.get_mut(&id) else { return Vec::new() };
        job.stages.clone_from(&stages);
        let event = match job.failover.as_mut().filter(|failover| failover.to.is_empty()) {
            Some(failover) => {
                failover.to = stages;
                JobEvent::FailedOver(job.clone())
            }
            None => JobEvent::Routed(job.clone()),
        };
        vec![Action::Publish(event)]
    }

    fn lost(&mut self, id: JobId, from: Vec<StageAt>, why: String) -> Vec<Action> {
        let Some(Live { job, .. }) = self.live.get_mut(&id) else { return Vec::new() };
        job.stages.clear();
        job.failovers += 1;
        job.failover = Some(Failover { from, to: Vec::new(), why });
        vec![Action::Publish(JobEvent::Lost(job.clone()))]
    }

    fn end(&mut self, id: JobId, ending: Ending, now: Time) -> Vec<Action> {
        let Some(Live { mut job, .. }) = self.live.remove(&id) else { return Vec::new() };
        match &ending {
            Ending::Done { .. } => self.done += 1,
            Ending::Failed { .. } | Ending::Cancelled => self.failed += 1,
        }
        job.state = JobState::Ended(ending);
        job.ended = Some(now);
        if self.ended.len() == HISTORY {
            self.ended.pop_front();
        }
        self.ended.push_back(job.clone());
        let mut actions = vec![Action::Publish(JobEvent::Ended(job))];
        if self.draining && self.live.is_empty() {
            actions.push(Action::Drained);
        }
        actions
    }

    fn suspect(&mut self, id: JobId) -> Vec<Action> {
        let Some(job) = self.ended.iter_mut().find(|job| job.id == id) else { return Vec::new() };
        let JobState::Ended(Ending::Done { verdict: Some(verdict) }) = &mut job.state else { return Vec::new() };
        *verdict = Verdict::Unchecked;
        vec![Action::Publish(JobEvent::Suspect(job.clone()))]
    }

    /// All known jobs, the latest submitted first.
    pub fn list(&self) -> Vec<Job> {
        let live = self.live.values().map(|live| &live.job);
        let mut jobs: Vec<Job> = live.chain(&self.ended).cloned().collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.id));
        jobs
    }

    /// How many jobs there are and were, of all kinds.
    pub fn counts(&self) -> JobCounts {
        JobCounts { live: self.live(), done: self.done, failed: self.failed }
    }

    /// Number of jobs that have not ended.
    pub fn live(&self) -> usize {
        self.live.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::{Api, JobKind, Owner};
    use super::*;

    fn spec(kind: JobKind) -> JobSpec {
        JobSpec { kind, subject: "tiny".to_owned(), owner: Owner::of(Api::Http), deadline: None }
    }

    fn submit(jobs: &mut Jobs, now: Time) -> JobId {
        jobs.submit(spec(JobKind::Generation), now).unwrap().0
    }

    fn done() -> Ending {
        Ending::Done { verdict: Some(Verdict::Local) }
    }

    #[test]
    fn every_change_of_a_job_is_published() {
        let mut jobs = Jobs::default();
        let (id, submitted) = jobs.submit(spec(JobKind::Operation("product")), Time::from_secs(1)).unwrap();
        let started = jobs.handle(Event::Started(id), Time::from_secs(2));
        assert!(jobs.handle(Event::Started(id), Time::from_secs(3)).is_empty(), "it starts once");
        let progress = jobs.handle(Event::Progress(id, JobProgress { done: 1, total: 2 }), Time::from_secs(4));
        let ended = jobs.handle(Event::Ended(id, done()), Time::from_secs(5));
        let names: Vec<&str> = [started, progress, ended]
            .into_iter()
            .flatten()
            .map(|action| match action {
                Action::Publish(event) => event.name(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!((submitted.name(), names), ("job.submitted", vec!["job.started", "job.progress", "job.ended"]));
        let job = jobs.list().remove(0);
        assert_eq!(job.state, JobState::Ended(done()));
        assert_eq!(job.progress, JobProgress { done: 1, total: 2 });
        let times = (job.submitted, job.started, job.ended);
        assert_eq!(times, (Time::from_secs(1), Some(Time::from_secs(2)), Some(Time::from_secs(5))));
    }

    #[test]
    fn a_generation_is_followed_from_the_stages_that_it_loses_to_those_that_go_on_with_it() {
        let mut jobs = Jobs::default();
        let id = submit(&mut jobs, Time::ZERO);
        let [first, other] = [1, 2].map(|number| StageAt { peer: crate::test_peers::peer(number), layers: 0..4 });
        let mut publish = |event| match &jobs.handle(event, Time::ZERO)[..] {
            [Action::Publish(event)] => (event.name(), event.job().clone()),
            other => panic!("{other:?}"),
        };
        let (name, job) = publish(Event::Routed(id, vec![first.clone()]));
        assert_eq!((name, job.stages, job.failover), ("job.routed", vec![first.clone()], None));
        let (name, job) = publish(Event::Lost(id, vec![first.clone()], "it is gone".to_owned()));
        let lost = Failover { from: vec![first.clone()], to: Vec::new(), why: "it is gone".to_owned() };
        assert_eq!((name, job.stages, job.failovers), ("job.lost", Vec::new(), 1));
        assert_eq!(job.failover.as_ref(), Some(&lost));
        let (name, job) = publish(Event::Routed(id, vec![other.clone()]));
        assert_eq!((name, &job.stages), ("job.failover", &vec![other.clone()]));
        assert_eq!(job.failover, Some(Failover { to: vec![other.clone()], ..lost }));
        // The loss is over: another chain, such as that of a second answer, is none.
        assert_eq!(publish(Event::Routed(id, vec![first])).0, "job.routed");
    }

    #[test]
    fn a_draining_node_waits_for_answers_and_cancels_downloads() {
        let mut jobs = Jobs::default();
        let answer = submit(&mut jobs, Time::ZERO);
        let (download, _) = jobs.submit(spec(JobKind::Download), Time::ZERO).unwrap();
        assert_eq!(jobs.handle(Event::Drain, Time::ZERO), [Action::Cancel(download)]);
        let ended = jobs.handle(Event::Ended(download, Ending::Cancelled), Time::ZERO);
        assert!(matches!(ended[..], [Action::Publish(_)]), "{ended:?}");
        assert_eq!(jobs.handle(Event::Ended(answer, done()), Time::ZERO).last(), Some(&Action::Drained));
    }

    #[test]
    fn progress_is_stored_at_once_and_published_at_intervals() {
        let mut jobs = Jobs::default();
        let id = submit(&mut jobs, Time::ZERO);
        let at = |elapsed| Time::since_epoch(elapsed);
        let just_below = at(PROGRESS_INTERVAL - Duration::from_millis(1));
        assert!(jobs.handle(Event::Progress(id, JobProgress { done: 1, total: 9 }), just_below).is_empty());
        assert_eq!(jobs.list()[0].progress.done, 1);
        let published = jobs.handle(Event::Progress(id, JobProgress { done: 2, total: 9 }), at(PROGRESS_INTERVAL));
        assert_eq!(published.len(), 1);
    }

    #[test]
    fn a_job_ends_once() {
        let mut jobs = Jobs::default();
        let id = submit(&mut jobs, Time::ZERO);
        assert_eq!(jobs.handle(Event::Ended(id, done()), Time::ZERO).len(), 1);
        assert!(jobs.handle(Event::Ended(id, Ending::Cancelled), Time::ZERO).is_empty());
        assert!(jobs.handle(Event::Cancel(id), Time::ZERO).is_empty());
        assert_eq!(jobs.list()[0].state, JobState::Ended(done()));
    }

    #[test]
    fn a_done_job_that_is_suspect_counts_as_unchecked_and_a_failed_one_stays_as_it_is() {
        let mut jobs = Jobs::default();
        let [good, bad, live, without_verdict] = [(); 4].map(|()| submit(&mut jobs, Time::ZERO));
        jobs.handle(Event::Ended(without_verdict, Ending::Done { verdict: None }), Time::ZERO);
        jobs.handle(Event::Ended(good, Ending::Done { verdict: Some(Verdict::Verified) }), Time::ZERO);
        jobs.handle(Event::Ended(bad, Ending::Cancelled), Time::ZERO);
        let published = jobs.handle(Event::Suspect(good), Time::ZERO);
        let unchecked = JobState::Ended(Ending::Done { verdict: Some(Verdict::Unchecked) });
        assert!(matches!(&published[..], [Action::Publish(JobEvent::Suspect(job))] if job.state == unchecked));
        assert_eq!(jobs.list().into_iter().find(|job| job.id == good).unwrap().state, unchecked);
        assert!(jobs.handle(Event::Suspect(bad), Time::ZERO).is_empty());
        assert!(jobs.handle(Event::Suspect(live), Time::ZERO).is_empty());
        assert!(jobs.handle(Event::Suspect(without_verdict), Time::ZERO).is_empty(), "nothing was computed");
    }

    #[test]
    fn the_list_has_running_jobs_and_the_last_ended_ones() {
        let mut jobs = Jobs::default();
        let running = submit(&mut jobs, Time::ZERO);
        let ended: Vec<JobId> = (0..=HISTORY).map(|_| submit(&mut jobs, Time::ZERO)).collect();
        for id in &ended {
            jobs.handle(Event::Ended(*id, done()), Time::ZERO);
        }
        let ids: Vec<JobId> = jobs.list().iter().map(|job| job.id).collect();
        assert_eq!(ids.len(), HISTORY + 1);
        assert!(ids.contains(&running) && !ids.contains(&ended[0]) && ids[0] == ended[HISTORY]);
    }

    #[test]
    fn jobs_of_all_kinds_are_counted_longer_than_they_are_listed() {
        let mut jobs = Jobs::default();
        let mut run = |kind, ending: Option<Ending>| {
            let (id, _) = jobs.submit(spec(kind), Time::ZERO).unwrap();
            ending.into_iter().for_each(|ending| drop(jobs.handle(Event::Ended(id, ending), Time::ZERO)));
        };
        let kinds = [JobKind::Operation("product"), JobKind::Generation, JobKind::Download];
        for kind in kinds {
            run(kind, None);
            run(kind, Some(done()));
            run(kind, Some(Ending::Cancelled));
            run(kind, Some(Ending::Failed { kind: ErrorKind::Internal, message: "it broke".to_owned() }));
        }
        (0..HISTORY).for_each(|_| run(JobKind::Generation, Some(done())));
        assert_eq!(jobs.counts(), JobCounts { live: 3, done: 3 + HISTORY as u64, failed: 6 });
    }

    #[test]
    fn a_draining_node_is_drained_once_its_last_job_ends() {
        let mut jobs = Jobs::default();
        let (first, second) = (submit(&mut jobs, Time::ZERO), submit(&mut jobs, Time::ZERO));
        assert!(jobs.handle(Event::Drain, Time::ZERO).is_empty());
        assert!(!jobs.handle(Event::Ended(first, done()), Time::ZERO).contains(&Action::Drained));
        // A request accepted before draining submits a second job.
        let third = submit(&mut jobs, Time::ZERO);
        assert!(!jobs.handle(Event::Ended(third, done()), Time::ZERO).contains(&Action::Drained));
        assert!(jobs.handle(Event::Ended(second, done()), Time::ZERO).contains(&Action::Drained));
    }

    #[test]
    fn a_node_without_jobs_is_drained_at_once() {
        assert_eq!(Jobs::default().handle(Event::Drain, Time::ZERO), [Action::Drained]);
    }

    #[test]
    fn jobs_that_outlast_the_grace_period_are_cancelled() {
        let mut jobs = Jobs::default();
        let ids = [submit(&mut jobs, Time::ZERO), submit(&mut jobs, Time::ZERO)];
        jobs.handle(Event::Ended(ids[0], done()), Time::ZERO);
        jobs.handle(Event::Drain, Time::ZERO);
        assert_eq!(jobs.handle(Event::CutOff, Time::ZERO), [Action::Cancel(ids[1])]);
        let refused = jobs.submit(spec(JobKind::Operation("product")), Time::ZERO).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        assert!(jobs.handle(Event::Ended(ids[1], Ending::Cancelled), Time::ZERO).contains(&Action::Drained));
    }
}
