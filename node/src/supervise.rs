//! Supervises every part of a node that runs by itself: threads, and tasks that live as long as the node. The end of a part
//! is logged with its name; `pangea_control::supervise` decides whether it is started again. What a part does is not
//! known here.

use std::any::Any;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::FutureExt;
pub use pangea_control::supervise::Unwell;
use pangea_control::supervise::{Action, End, Event, PartId, Rule, Supervision};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::watch;

use crate::clock;
use crate::fault::Fault;
use crate::observe::Observer;

/// Interval of the heartbeats of a thread that runs tasks.
const BEAT: Duration = Duration::from_secs(1);

/// The supervisor of a node. Clones share it.
#[derive(Clone)]
pub struct Supervisor(Arc<Shared>);

struct Shared {
    supervision: Mutex<Supervision>,
    /// Why the node must end; `None` while it need not.
    fatal: watch::Sender<Option<String>>,
    /// Name of the task that panics, in tests.
    panics: Option<&'static str>,
    ends: Family<Ended, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    part: String,
}

impl Ended {
    /// Only the first word of the name, so that the number of label values does not grow with the models.
    fn of(name: &str) -> Ended {
        Ended { part: name.split(' ').next().unwrap_or(name).to_owned() }
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Supervisor::with_fault(None, &Observer::default())
    }
}

/// Registration of a part. Dropping it removes the part, also from the list of unwell parts.
#[derive(Debug)]
pub struct Part {
    supervisor: Supervisor,
    id: PartId,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Supervisor")
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.supervisor.handle(Event::Forgotten(self.id));
    }
}

impl Supervisor {
    /// Creates a supervisor with its metrics in `observer`. It makes the part that `fault` names panic shortly after
    /// its start.
    pub fn with_fault(fault: Option<Fault>, observer: &Observer) -> Supervisor {
        let panics = (fault == Some(Fault::PanicPool)).then_some("pool");
        let ends = observer.counters("part_ends", "Threads and lasting tasks that ended unexpectedly", []);
        let fatal = watch::Sender::new(None);
        Supervisor(Arc::new(Shared { supervision: Mutex::default(), fatal, panics, ends }))
    }

    /// Runs `body`, which processes a queue, on a new thread. After a panic `body` is called again.
    ///
    /// # Errors
    /// The system's error if the thread cannot be created.
    pub fn restarted_thread(&self, name: &str, mut body: impl FnMut() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let id = self.start(name, Rule::Restarted, false);
        let (supervisor, part) = (self.clone(), name.to_owned());
        let spawned = std::thread::Builder::new().name(thread_name(name)).spawn(move || {
            loop {
                let end = ended(catch_unwind(AssertUnwindSafe(&mut body)));
                match supervisor.ended(id, &part, end) {
                    Some(after) => std::thread::sleep(after),
                    None => return,
                }
            }
        });
        self.remove_unless_started(id, &spawned);
        spawned
    }

    /// Runs `body`, without which the node cannot continue, on a new thread.
    ///
    /// # Errors
    /// The system's error if the thread cannot be created.
    pub fn essential_thread(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let id = self.start(name, Rule::Essential, false);
        let (supervisor, part) = (self.clone(), name.to_owned());
        let spawned = std::thread::Builder::new().name(thread_name(name)).spawn(move || {
            let end = ended(catch_unwind(AssertUnwindSafe(body)));
            supervisor.ended(id, &part, end);
        });
        self.remove_unless_started(id, &spawned);
        spawned
    }

    /// Runs `body` once on a new thread. If it panics, `on_panic` is called on that thread with the message, and the part is
    /// unwell until the returned [`Part`] is dropped.
    ///
    /// # Errors
    /// The system's error if the thread cannot be created.
    pub fn owned_thread(
        &self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
        on_panic: impl FnOnce(&str) + Send + 'static,
    ) -> io::Result<Part> {
        let id = self.start(name, Rule::Owned, false);
        let (supervisor, part) = (self.clone(), name.to_owned());
        let spawned = std::thread::Builder::new().name(thread_name(name)).spawn(move || {
            let end = ended(catch_unwind(AssertUnwindSafe(body)));
            let message = match &end {
                End::Panicked(message) => Some(message.clone()),
                End::Returned => None,
            };
            supervisor.ended(id, &part, end);
            if let Some(message) = message {
                on_panic(&message);
            }
        });
        self.remove_unless_started(id, &spawned);
        spawned.map(|_| Part { supervisor: self.clone(), id })
    }

    /// Runs a task, without which the node cannot continue, on the `LocalSet` of this thread.
    pub fn task(&self, name: &str, task: impl Future<Output = ()> + 'static) {
        // Boxed, so that what follows is compiled once and not for every task.
        self.run(name, Box::pin(task));
    }

    fn run(&self, name: &str, task: Pin<Box<dyn Future<Output = ()>>>) {
        let id = self.start(name, Rule::Essential, false);
        let (supervisor, part) = (self.clone(), name.to_owned());
        let panics = self.0.panics == Some(name);
        let task = async move {
            tokio::select! {
                () = task => {}
                () = tokio::time::sleep(BEAT), if panics => panic!("as the fault of this node says"),
            }
        };
        tokio::task::spawn_local(async move {
            let end = ended(AssertUnwindSafe(task).catch_unwind().await);
            supervisor.ended(id, &part, end);
        });
    }

    /// Sends heartbeats from the `LocalSet` of this thread from now on: they stop if its tasks are blocked.
    pub fn beat(&self, name: &str) {
        let id = self.start(name, Rule::Essential, true);
        // Dropped together with the tasks of the thread, so that a thread that has ended is not missed.
        let part = Part { supervisor: self.clone(), id };
        tokio::task::spawn_local(async move {
            let mut beat = clock::ticks(BEAT);
            loop {
                beat.tick().await;
                part.supervisor.handle(Event::Beat(part.id));
            }
        });
    }

    /// Marks the node as shutting down: from now on the end of a part is expected.
    pub fn close(&self) {
        self.handle(Event::Closing);
    }

    /// Waits until the node must end, and returns the reason.
    pub async fn fatal(&self) -> String {
        let mut fatal = self.0.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // Cannot happen: this supervisor holds the sender.
            Err(_) => std::future::pending().await,
        }
    }

    /// The parts that do not work at the moment.
    pub fn unwell(&self) -> Vec<Unwell> {
        self.lock().unwell(clock::now())
    }

    fn start(&self, name: &str, rule: Rule, beats: bool) -> PartId {
        // The counter of the part's ends is there before its first end.
        drop(self.0.ends.get_or_create(&Ended::of(name)));
        let mut supervision = self.lock();
        let part = supervision.number();
        supervision.handle(Event::Started { part, name: name.to_owned(), rule, beats }, clock::now());
        part
    }

    fn remove_unless_started<T>(&self, id: PartId, spawned: &io::Result<T>) {
        if spawned.is_err() {
            self.handle(Event::Forgotten(id));
        }
    }

    /// Logs the end of a part and carries out the decision. Returns the delay after which to start it again, if at all.
    fn ended(&self, id: PartId, name: &str, end: End) -> Option<Duration> {
        let why = match &end {
            End::Returned => "ended unexpectedly".to_owned(),
            End::Panicked(message) => format!("panicked: {message}"),
        };
        let action = self.handle(Event::Ended(id, end))?;
        self.0.ends.get_or_create(&Ended::of(name)).inc();
        match action {
            Action::Restart(after) => {
                let millis = after.as_millis() as u64;
                tracing::error!(
                    event = "part_restarted",
                    part = name,
                    why,
                    millis,
                    "The part \"{name}\" {why}; restarting it"
                );
                Some(after)
            }
            Action::Report => {
                tracing::error!(event = "part_ended", part = name, why, "The part \"{name}\" {why}");
                None
            }
            Action::EndNode(reason) => {
                tracing::error!(event = "part_ended", part = name, why, "The part \"{name}\" {why}; the node ends");
                self.0.fatal.send_if_modified(|fatal| {
                    let first = fatal.is_none();
                    fatal.get_or_insert(reason);
                    first
                });
                None
            }
        }
    }

    fn handle(&self, event: Event) -> Option<Action> {
        self.lock().handle(event, clock::now())
    }

    fn lock(&self) -> MutexGuard<'_, Supervision> {
        self.0.supervision.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ended(result: Result<(), Box<dyn Any + Send>>) -> End {
    match result {
        Ok(()) => End::Returned,
        Err(payload) => End::Panicked(message(&*payload)),
    }
}

/// The message of a panic.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// The name of a thread. Linux limits it to 15 bytes.
fn thread_name(part: &str) -> String {
    format!("pangea-{}", part.split(' ').next().unwrap_or(part))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use tokio::task::LocalSet;

    use super::*;

    #[test]
    fn a_restarted_thread_continues_with_its_queue_after_a_panic() {
        let supervisor = Supervisor::default();
        let (work, queue) = std::sync::mpsc::sync_channel(4);
        let (done, results) = sync_channel(4);
        let thread = supervisor
            .restarted_thread("worker", move || {
                for number in queue.iter() {
                    assert_ne!(number, 2, "a bad number");
                    done.send(number).unwrap();
                }
            })
            .unwrap();
        for number in 1..=3 {
            work.send(number).unwrap();
        }
        drop(work);
        thread.join().unwrap();
        assert_eq!(results.try_iter().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(supervisor.unwell(), []);
    }

    #[tokio::test]
    async fn a_panic_of_a_task_ends_the_node_and_names_the_task() {
        let supervisor = Supervisor::default();
        LocalSet::new()
            .run_until(async {
                supervisor.task("pool", async { panic!("no luck") });
                assert_eq!(supervisor.fatal().await, "the part \"pool\" panicked: no luck");
            })
            .await;
        assert_eq!(supervisor.unwell(), [Unwell { name: "pool".to_owned(), why: "panicked: no luck".to_owned() }]);
    }

    #[test]
    fn an_owner_is_called_when_its_part_panics_and_the_part_is_unwell_until_dropped() {
        let supervisor = Supervisor::default();
        let (tell, told) = sync_channel(4);
        let part = supervisor
            .owned_thread("stage of m", || panic!("layer {} broke", 7), move |why| tell.send(why.to_owned()).unwrap())
            .unwrap();
        assert_eq!(told.recv().unwrap(), "layer 7 broke");
        assert_eq!(supervisor.unwell()[0].name, "stage of m");
        drop(part);
        assert_eq!(supervisor.unwell(), []);
    }
}
