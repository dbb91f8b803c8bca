//! `pangea jobs`: the jobs of a node, latest first, as a table or JSON.

use pangea_client::JobStatus;

use super::args::QueryArgs;
use super::failure::Failure;
use super::table::{Align, Table, seconds, shortened};
use super::{print, print_json};

/// Characters of a job's subject, so that the table fits into 80 columns.
const SUBJECT_CHARS: usize = 24;

pub(super) async fn run(args: QueryArgs) -> Result<(), Failure> {
    let jobs = args.rpc.node().await?.jobs().await?;
    if args.json.json {
        return print_json(&jobs);
    }
    print(&show(&jobs))
}

fn show(jobs: &[JobStatus]) -> String {
    if jobs.is_empty() {
        return "no jobs yet\n".to_owned();
    }
    let mut table = Table::new([
        ("job", Align::Right),
        ("kind", Align::Left),
        ("about", Align::Left),
        ("from", Align::Left),
        ("state", Align::Left),
        ("done", Align::Right),
        ("took", Align::Right),
        ("verdict", Align::Left),
    ]);
    for job in jobs {
        let took = match (job.started_unix_ms, job.ended_unix_ms) {
            // The node counts milliseconds.
            (Some(started), Some(ended)) if ended <= started => "< 1 ms".to_owned(),
            (Some(started), Some(ended)) => seconds(ended.saturating_sub(started) as f64 / 1e3),
            _ => "-".to_owned(),
        };
        let done = match (job.progress.done, job.progress.total) {
            (0, 0) => "-".to_owned(),
            (done, 0) => done.to_string(),
            (done, total) => format!("{done}/{total}"),
        };
        table.row([
            job.id.to_string(),
            job.kind.clone(),
            shortened(&job.subject, SUBJECT_CHARS),
            job.owner.client.clone().unwrap_or_else(|| job.owner.api.clone()),
            job.state.clone(),
            done,
            took,
            job.verdict.clone().or_else(|| job.error.as_ref().map(|error| error.kind.clone())).unwrap_or_default(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use pangea_client::jobs::{JobError, JobOwner, JobStatusProgress};

    use super::*;

    #[test]
    fn products_and_answers_are_shown_with_their_outcomes() {
        let product = JobStatus {
            id: 2,
            kind: "product".to_owned(),
            subject: "1024x512x256 f32".to_owned(),
            owner: JobOwner { api: "rpc".to_owned(), client: None },
            state: "done".to_owned(),
            progress: JobStatusProgress { done: 4, total: 4 },
            submitted_unix_ms: 1000,
            started_unix_ms: Some(1000),
            ended_unix_ms: Some(3000),
            verdict: Some("verified".to_owned()),
            ..JobStatus::default()
        };
        let generation = JobStatus {
            id: 1,
            kind: "generation".to_owned(),
            subject: "tiny".to_owned(),
            owner: JobOwner { api: "http".to_owned(), client: Some("editor".to_owned()) },
            state: "failed".to_owned(),
            error: Some(JobError { kind: "Overloaded".to_owned(), message: "full".to_owned() }),
            ..JobStatus::default()
        };
        let shown = show(&[product, generation]);
        for word in ["product", "1024x512x256 f32", "4/4", "verified", "generation", "editor", "Overloaded"] {
            assert!(shown.contains(word), "{word} is missing from\n{shown}");
        }
        assert_eq!(show(&[]), "no jobs yet\n");
    }
}
