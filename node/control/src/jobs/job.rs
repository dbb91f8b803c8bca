//! The state of one job: kind, owner, progress and outcome. Values only.

use std::fmt;

use pangea_units::ErrorKind;

use crate::Time;
use crate::session::StageAt;
use crate::trust::Verdict;

/// Id of a job on the node that accepted it; never reused while the node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

/// What a job computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// A tensor, by what it is of its operands: `product`.
    Operation(&'static str),
    /// Answers of a model to one prompt.
    Generation,
    /// The file of a model, fetched from outside of the pool.
    Download,
}

impl JobKind {
    /// Name in every API.
    pub fn name(self) -> &'static str {
        match self {
            JobKind::Operation(result) => result,
            JobKind::Generation => "generation",
            JobKind::Download => "download",
        }
    }
}

/// Where a job was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// The Cap'n Proto service.
    Rpc,
    /// The HTTP API.
    Http,
    /// A peer, for a client of its own.
    Peer,
    /// The node itself, such as the first request to a model that has just been loaded.
    Node,
}

impl Api {
    /// Name in every API.
    pub fn name(self) -> &'static str {
        match self {
            Api::Rpc => "rpc",
            Api::Http => "http",
            Api::Peer => "peer",
            Api::Node => "node",
        }
    }
}

/// Who submitted a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The API that received the job.
    pub api: Api,
    /// Name that the client gives itself or is known by, if any.
    pub client: Option<String>,
}

impl Owner {
    /// An owner of which only the API is known.
    pub fn of(api: Api) -> Owner {
        Owner { api, client: None }
    }
}

/// A job as it is submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    /// What the job computes.
    pub kind: JobKind,
    /// Subject for people: `1024x512x256 f32`, or the name of a model.
    pub subject: String,
    /// Who submitted it.
    pub owner: Owner,
    /// Time at which the job fails unless it has ended; `None` for no deadline.
    pub deadline: Option<Time>,
}

/// Progress of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobProgress {
    /// Completed tasks of an operation, tokens of answers, or bytes of a download.
    pub done: u64,
    /// Maximum of `done`; 0 while unknown.
    pub total: u64,
}

/// What became of a generation that lost its stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// The stages that were lost: one of them, at least.
    pub from: Vec<StageAt>,
    /// The stages that go on with it; empty until they are found.
    pub to: Vec<StageAt>,
    /// Why, a clause.
    pub why: String,
}

/// Outcome of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The result is complete.
    Done {
        /// How far the result can be trusted; `None` for a download: nothing is computed.
        verdict: Option<Verdict>,
    },
    /// The job failed.
    Failed {
        /// Reason for programs.
        kind: ErrorKind,
        /// Reason for people.
        message: String,
    },
    /// The owner no longer wants it.
    Cancelled,
}

impl Ending {
    /// The names of all outcomes.
    pub const NAMES: [&'static str; 3] = ["done", "failed", "cancelled"];

    /// Name in every API; one of [`Ending::NAMES`].
    pub fn name(&self) -> &'static str {
        let [done, failed, cancelled] = Ending::NAMES;
        match self {
            Ending::Done { .. } => done,
            Ending::Failed { .. } => failed,
            Ending::Cancelled => cancelled,
        }
    }
}

/// Number of jobs of all kinds since the start of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// Jobs that have not ended: they wait or run.
    pub live: usize,
    /// Jobs that are done.
    pub done: u64,
    /// Jobs that failed or were cancelled.
    pub failed: u64,
}

/// State of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Nothing has been computed yet.
    Waiting,
    /// The job is being computed.
    Running,
    /// The job has ended.
    Ended(Ending),
}

impl JobState {
    /// Name in every API.
    pub fn name(&self) -> &'static str {
        match self {
            JobState::Waiting => "waiting",
            JobState::Running => "running",
            JobState::Ended(ending) => ending.name(),
        }
    }
}

/// One job and its current state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Id of the job.
    pub id: JobId,
    /// The job as it was submitted.
    pub spec: JobSpec,
    /// Current state.
    pub state: JobState,
    /// Current progress.
    pub progress: JobProgress,
    /// Of a generation, how much of what precedes the next token is computed, in tokens: the prompt, and after a failover the
    /// beginning of the answer.
    pub prompt: JobProgress,
    /// Of a generation, the stages that compute it; empty while there are none.
    pub stages: Vec<StageAt>,
    /// Chains of stages that it has lost.
    pub failovers: u32,
    /// The last of these losses.
    pub failover: Option<Failover>,
    /// Time of submission.
    pub submitted: Time,
    /// Time at which its computation started.
    pub started: Option<Time>,
    /// Time at which it ended.
    pub ended: Option<Time>,
}
