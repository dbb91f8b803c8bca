//! The jobs of a node, products and generations alike, and their wire form. Plain values.

use pangea_schema::job_capnp::{failover, job_stage, job_status};
use serde::Serialize;

use crate::model::AnswerStage;
use crate::text::string;

/// A job, as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JobStatus {
    /// Number of the job on its node.
    pub id: u64,
    /// What is done: `product`, another result of an operation on tensors such as `sum`, `generation` or `download`.
    pub kind: String,
    /// What the job is about: the shape and dtype of a product, or the name of a model.
    pub subject: String,
    /// Who submitted the job.
    pub owner: JobOwner,
    /// `waiting`, `running`, `done`, `failed` or `cancelled`.
    pub state: String,
    /// How far the job is.
    pub progress: JobStatusProgress,
    /// Of a generation: how much of what precedes the next token is computed, in tokens. It is the prompt, and after a failover
    /// the beginning of the answer with it.
    pub prompt: JobStatusProgress,
    /// Of a generation: the nodes that compute it, in order; empty while there are none.
    pub stages: Vec<AnswerStage>,
    /// Of a generation: how many chains of nodes it has lost.
    pub failovers: u32,
    /// The last of these losses.
    pub failover: Option<JobFailover>,
    /// When the job was submitted, in milliseconds since 1970.
    pub submitted_unix_ms: u64,
    /// When the first of it was computed.
    pub started_unix_ms: Option<u64>,
    /// When it ended.
    pub ended_unix_ms: Option<u64>,
    /// When it fails unless it has ended.
    pub deadline_unix_ms: Option<u64>,
    /// How far the result of a job that is done can be trusted.
    pub verdict: Option<String>,
    /// Why a job failed.
    pub error: Option<JobError>,
}

/// Who submitted a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JobOwner {
    /// `rpc`, `http`, `peer` or `node`.
    pub api: String,
    /// What the client calls itself.
    pub client: Option<String>,
}

/// What became of a generation that lost the nodes that computed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JobFailover {
    /// The nodes of the lost chain; at least one of them failed.
    pub from: Vec<AnswerStage>,
    /// The nodes that go on; empty until they are found.
    pub to: Vec<AnswerStage>,
    /// Why, a clause.
    pub why: String,
}

/// How far a job is: tasks of a product, tokens of answers, bytes of a download.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JobStatusProgress {
    /// How many are done.
    pub done: u64,
    /// How many there will be at most; 0 while that is not known.
    pub total: u64,
}

/// Why a job failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JobError {
    /// Kind of the error, such as `Overloaded`.
    pub kind: String,
    /// A sentence for people.
    pub message: String,
}

/// A text that is there.
fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// A time that has come.
fn past(unix_ms: u64) -> Option<u64> {
    (unix_ms > 0).then_some(unix_ms)
}

fn read_stages(wire: capnp::struct_list::Reader<'_, job_stage::Owned>) -> capnp::Result<Vec<AnswerStage>> {
    let stage = |wire: job_stage::Reader<'_>| {
        Ok(AnswerStage { peer: string(wire.get_peer()?)?, layers: [wire.get_first(), wire.get_end()] })
    };
    wire.iter().map(stage).collect()
}

fn write_stages(stages: &[AnswerStage], mut wire: capnp::struct_list::Builder<'_, job_stage::Owned>) {
    for (index, stage) in stages.iter().enumerate() {
        let mut wire = wire.reborrow().get(index as u32);
        wire.set_peer(&stage.peer);
        wire.set_first(stage.layers[0]);
        wire.set_end(stage.layers[1]);
    }
}

impl JobFailover {
    fn from_wire(wire: failover::Reader<'_>) -> capnp::Result<JobFailover> {
        let (from, to) = (read_stages(wire.get_from()?)?, read_stages(wire.get_to()?)?);
        Ok(JobFailover { from, to, why: string(wire.get_why()?)? })
    }

    fn to_wire(&self, mut wire: failover::Builder<'_>) {
        write_stages(&self.from, wire.reborrow().init_from(self.from.len() as u32));
        write_stages(&self.to, wire.reborrow().init_to(self.to.len() as u32));
        wire.set_why(&self.why);
    }
}

impl JobStatus {
    /// Reads the wire form.
    pub fn from_wire(wire: job_status::Reader<'_>) -> capnp::Result<JobStatus> {
        let kind = some(string(wire.get_error_kind()?)?);
        let message = string(wire.get_error()?)?;
        Ok(JobStatus {
            id: wire.get_id(),
            kind: string(wire.get_kind()?)?,
            subject: string(wire.get_subject()?)?,
            owner: JobOwner { api: string(wire.get_api()?)?, client: some(string(wire.get_client()?)?) },
            state: string(wire.get_state()?)?,
            progress: JobStatusProgress { done: wire.get_done(), total: wire.get_total() },
            prompt: JobStatusProgress { done: wire.get_prompt_done(), total: wire.get_prompt_total() },
            stages: read_stages(wire.get_stages()?)?,
            failovers: wire.get_failovers(),
            failover: match wire.has_failover() {
                true => Some(JobFailover::from_wire(wire.get_failover()?)?),
                false => None,
            },
            submitted_unix_ms: wire.get_submitted_unix_ms(),
            started_unix_ms: past(wire.get_started_unix_ms()),
            ended_unix_ms: past(wire.get_ended_unix_ms()),
            deadline_unix_ms: past(wire.get_deadline_unix_ms()),
            verdict: some(string(wire.get_verdict()?)?),
            error: kind.map(|kind| JobError { kind, message }),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: job_status::Builder<'_>) {
        wire.set_id(self.id);
        wire.set_kind(&self.kind);
        wire.set_subject(&self.subject);
        wire.set_api(&self.owner.api);
        wire.set_client(self.owner.client.as_deref().unwrap_or_default());
        wire.set_state(&self.state);
        wire.set_done(self.progress.done);
        wire.set_total(self.progress.total);
        wire.set_prompt_done(self.prompt.done);
        wire.set_prompt_total(self.prompt.total);
        write_stages(&self.stages, wire.reborrow().init_stages(self.stages.len() as u32));
        wire.set_failovers(self.failovers);
        if let Some(failover) = &self.failover {
            failover.to_wire(wire.reborrow().init_failover());
        }
        wire.set_submitted_unix_ms(self.submitted_unix_ms);
        wire.set_started_unix_ms(self.started_unix_ms.unwrap_or_default());
        wire.set_ended_unix_ms(self.ended_unix_ms.unwrap_or_default());
        wire.set_deadline_unix_ms(self.deadline_unix_ms.unwrap_or_default());
        wire.set_verdict(self.verdict.as_deref().unwrap_or_default());
        if let Some(error) = &self.error {
            wire.set_error_kind(&error.kind);
            wire.set_error(&error.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_travels_whole() {
        let running = JobStatus {
            id: 7,
            kind: "generation".to_owned(),
            subject: "tiny".to_owned(),
            owner: JobOwner { api: "http".to_owned(), client: Some("editor".to_owned()) },
            state: "running".to_owned(),
            progress: JobStatusProgress { done: 3, total: 40 },
            prompt: JobStatusProgress { done: 12, total: 15 },
            stages: vec![AnswerStage { peer: "b".to_owned(), layers: [0, 30] }],
            failovers: 1,
            failover: Some(JobFailover {
                from: vec![AnswerStage { peer: "a".to_owned(), layers: [0, 30] }],
                to: vec![AnswerStage { peer: "b".to_owned(), layers: [0, 30] }],
                why: "a is gone".to_owned(),
            }),
            submitted_unix_ms: 1_790_000_000_000,
            started_unix_ms: Some(1_790_000_000_500),
            ..JobStatus::default()
        };
        let failed = JobStatus {
            state: "failed".to_owned(),
            ended_unix_ms: Some(1_790_000_000_900),
            deadline_unix_ms: Some(1_790_000_000_800),
            error: Some(JobError { kind: "DeadlineExceeded".to_owned(), message: "too late".to_owned() }),
            ..running.clone()
        };
        let done = JobStatus { verdict: Some("audited".to_owned()), error: None, ..failed.clone() };
        for job in [running, failed, done] {
            let mut message = capnp::message::Builder::new_default();
            job.to_wire(message.init_root());
            let read = message.get_root_as_reader::<job_status::Reader<'_>>().and_then(JobStatus::from_wire);
            assert_eq!(read.unwrap(), job);
        }
    }
}
