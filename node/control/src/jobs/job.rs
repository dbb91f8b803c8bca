//! What is known of one job: its kind, its owner, its progress and its end. Values only.

use std::fmt;

use pangea_units::ErrorKind;

use crate::Time;
use crate::trust::Verdict;

/// A job on the node that accepted it; never used twice while the node runs.
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
    /// A product of two matrices.
    Product,
    /// Answers of a model to one prompt.
    Generation,
}

impl JobKind {
    /// The name as every surface shows it.
    pub fn name(self) -> &'static str {
        match self {
            JobKind::Product => "product",
            JobKind::Generation => "generation",
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
    /// The node itself, such as the first request to a model that has just been loaded.
    Node,
}

impl Api {
    /// The name as every surface shows it.
    pub fn name(self) -> &'static str {
        match self {
            Api::Rpc => "rpc",
            Api::Http => "http",
            Api::Node => "node",
        }
    }
}

/// Who submitted a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Through which API.
    pub api: Api,
    /// What the client calls itself or is known by; `None` where it does not say.
    pub client: Option<String>,
}

impl Owner {
    /// An owner of whom only the API is known.
    pub fn of(api: Api) -> Owner {
        Owner { api, client: None }
    }
}

/// A job as it is submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    /// What the job computes.
    pub kind: JobKind,
    /// What it is about, for people: `1024x512x256 f32`, or the name of a model.
    pub subject: String,
    /// Who submitted it.
    pub owner: Owner,
    /// When it fails unless it has ended; `None` for no deadline.
    pub deadline: Option<Time>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobProgress {
    /// Tasks of a product, or tokens of answers, that are done.
    pub done: u64,
    /// How many there will be at most; 0 while that is not known.
    pub total: u64,
}

/// What a job came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Its result is complete.
    Done {
        /// How far the result can be trusted.
        verdict: Verdict,
    },
    /// It failed.
    Failed {
        /// Why, for programs.
        kind: ErrorKind,
        /// Why, for people.
        message: String,
    },
    /// Its owner does not want it any more.
    Cancelled,
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Nothing of it has been computed.
    Waiting,
    /// It is being computed.
    Running,
    /// Nothing follows.
    Ended(Ending),
}

impl JobState {
    /// The name as every surface shows it.
    pub fn name(&self) -> &'static str {
        match self {
            JobState::Waiting => "waiting",
            JobState::Running => "running",
            JobState::Ended(Ending::Done { .. }) => "done",
            JobState::Ended(Ending::Failed { .. }) => "failed",
            JobState::Ended(Ending::Cancelled) => "cancelled",
        }
    }
}

/// One job, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// What was submitted.
    pub spec: JobSpec,
    /// Where it stands.
    pub state: JobState,
    /// How far it is.
    pub progress: JobProgress,
    /// When it was submitted.
    pub submitted: Time,
    /// When the first of it was computed.
    pub started: Option<Time>,
    /// When it ended.
    pub ended: Option<Time>,
}
