//! Downloads of models: jobs of the node, each model once, whoever watches them. A watcher that goes away leaves its download
//! running; one that asks again for the same model watches the one that runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;
use pangea_control::jobs::{Api, Ending, JobKind, JobSpec, Owner};
use tokio::sync::watch;

use crate::jobs::{Jobs, Ticket};
use crate::models::{self, Found};

/// Downloads at once: each has a thread, and the host's bandwidth is shared by all of them.
const DOWNLOADS_MAX: usize = 8;

/// How far a download is. The newest step replaces earlier ones that a watcher has not read.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// It goes on.
    Running {
        /// What it does now, in a word for people.
        phase: &'static str,
        done_bytes: u64,
        /// 0 while unknown.
        total_bytes: u64,
    },
    /// It has ended; no step follows.
    Ended(Result<()>),
}

/// The downloads that run.
#[derive(Clone, Debug, Default)]
pub(super) struct Downloads(Arc<Mutex<BTreeMap<String, Download>>>);

#[derive(Debug)]
struct Download {
    steps: watch::Receiver<Step>,
    cancel: Cancel,
}

impl Downloads {
    /// The steps of the download of `model` into `folder`, which is started unless it runs.
    ///
    /// # Errors
    /// `Overloaded` with too many other downloads, `Unavailable` while the node shuts down.
    pub(super) fn watch(&self, folder: &Path, model: &str, jobs: &Jobs) -> Result<watch::Receiver<Step>> {
        let mut running = self.lock();
        if let Some(download) = running.get(model) {
            return Ok(download.steps.clone());
        }
        if running.len() >= DOWNLOADS_MAX {
            let why = format!("{DOWNLOADS_MAX} models are being downloaded; wait for one of them, or cancel it");
            return Err(Error::new(ErrorKind::Overloaded, why));
        }
        let cancel = Cancel::new();
        let cancelled = cancel.clone();
        let spec =
            JobSpec { kind: JobKind::Download, subject: model.to_owned(), owner: Owner::of(Api::Http), deadline: None };
        let job = jobs.submit(spec, move |_| cancelled.cancel())?;
        let (told, steps) = watch::channel(Step::Running { phase: "asking", done_bytes: 0, total_bytes: 0 });
        running.insert(model.to_owned(), Download { steps: steps.clone(), cancel: cancel.clone() });
        let (downloads, folder, model) = (self.clone(), folder.to_owned(), model.to_owned());
        tokio::task::spawn_blocking(move || {
            let mut end = End { downloads, model, told, job, ended: None };
            let fetched = fetch(&folder, &end.model, &cancel, &end.told, &end.job);
            end.ended = Some(fetched);
        });
        Ok(steps)
    }

    /// The steps of the download of `model`, if it runs.
    pub(super) fn running(&self, model: &str) -> Option<watch::Receiver<Step>> {
        self.lock().get(model).map(|download| download.steps.clone())
    }

    /// Stops a download; the next one of the same model goes on from there. Returns whether there was one.
    pub(super) fn cancel(&self, model: &str) -> bool {
        let running = self.lock();
        let download = running.get(model);
        download.inspect(|download| download.cancel.cancel()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Download>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a download when dropped, after a panic too: its watchers and its job hear of it.
struct End {
    downloads: Downloads,
    model: String,
    told: watch::Sender<Step>,
    job: Ticket,
    ended: Option<Result<()>>,
}

impl Drop for End {
    fn drop(&mut self) {
        let unexpected = || Err(Error::new(ErrorKind::Internal, "the download ended unexpectedly; start it again"));
        let ended = self.ended.take().unwrap_or_else(unexpected);
        // First, so that whoever hears of the end can start it again.
        self.downloads.lock().remove(&self.model);
        match &ended {
            Ok(()) => self.job.end(Ending::Done { verdict: None }),
            Err(error) => self.job.fail(error),
        }
        self.told.send_replace(Step::Ended(ended));
    }
}

fn fetch(folder: &Path, model: &str, cancel: &Cancel, told: &watch::Sender<Step>, job: &Ticket) -> Result<()> {
    let reference = match models::locate(folder, model)? {
        Found::Local(_) => return Ok(()),
        Found::Fetchable(reference) => reference,
    };
    job.started();
    let mut listen = |transfer: models::Transfer| {
        let models::Transfer { phase, done_bytes, total_bytes } = transfer;
        job.progress(done_bytes, total_bytes);
        told.send_replace(Step::Running { phase, done_bytes, total_bytes });
    };
    models::fetch(folder, &reference, cancel, &mut listen).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// A limit for a hang, not part of any assertion.
    const TIMEOUT: Duration = Duration::from_secs(30);

    async fn ended(mut steps: watch::Receiver<Step>) -> Result<()> {
        let is_over = |step: &Step| matches!(step, Step::Ended(_));
        let last = tokio::time::timeout(TIMEOUT, steps.wait_for(is_over)).await.unwrap().unwrap().clone();
        let Step::Ended(result) = last else { panic!("{last:?}") };
        result
    }

    /// A host that takes connections and answers nothing: a download of it runs until it is cancelled. Sends each connection.
    fn silent_host() -> (String, mpsc::Receiver<std::net::TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("https://{}/model.gguf", listener.local_addr().unwrap());
        let (sender, connections) = mpsc::sync_channel(8);
        std::thread::spawn(move || listener.incoming().flatten().try_for_each(|stream| sender.send(stream)));
        (address, connections)
    }

    #[tokio::test]
    async fn a_download_runs_once_is_a_job_and_ends_only_when_it_is_cancelled() {
        let (folder, jobs, downloads) = (tempfile::tempdir().unwrap(), Jobs::default(), Downloads::default());
        let (address, connections) = silent_host();
        let first = downloads.watch(folder.path(), &address, &jobs).unwrap();
        let again = downloads.watch(folder.path(), &address, &jobs).unwrap();
        let mut connection = connections.recv_timeout(TIMEOUT).unwrap();
        assert!(connection.read(&mut [0; 1]).is_ok(), "it asks the host");
        // The watchers are gone.
        drop((first, again));
        let listed = jobs.list();
        assert_eq!((listed.len(), listed[0].kind.as_str(), listed[0].state.as_str()), (1, "download", "running"));
        assert_eq!(listed[0].subject, address);
        let steps = downloads.watch(folder.path(), &address, &jobs).unwrap();
        assert_eq!(jobs.list().len(), 1, "the same one is watched again");
        assert!(downloads.cancel(&address));
        // What waits for the host looks at the cancellation when the host says something.
        let _ = connection.write_all(b"no TLS at all, which ends the wait");
        drop(connection);
        assert!(ended(steps).await.is_err());
        assert!(!downloads.cancel(&address), "it has ended");
        assert!(["cancelled", "failed"].contains(&jobs.list()[0].state.as_str()), "{:?}", jobs.list());
    }

    #[tokio::test]
    async fn a_model_that_is_there_is_no_download_and_an_unknown_one_says_so() {
        let (folder, jobs, downloads) = (tempfile::tempdir().unwrap(), Jobs::default(), Downloads::default());
        std::fs::write(folder.path().join("here.gguf"), "GGUF").unwrap();
        ended(downloads.watch(folder.path(), "here", &jobs).unwrap()).await.unwrap();
        let unknown = ended(downloads.watch(folder.path(), "no-such-model", &jobs).unwrap()).await.unwrap_err();
        assert!(unknown.message().contains("no-such-model"), "{unknown}");
        let states: Vec<String> = jobs.list().into_iter().map(|job| job.state).collect();
        assert_eq!(states, ["failed", "done"]);
        assert!(jobs.list()[1].verdict.is_none());
    }
}
