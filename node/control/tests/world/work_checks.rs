//! What must hold of what nodes do for one another and what that takes: memory is never given away twice and comes back,
//! every task that a worker takes is answered once, and the tasks of a quarantined peer are refused.

use std::collections::{BTreeMap, BTreeSet};

use pangea_control::devices::{Event, Kind, LeaseId, Ledger};
use pangea_control::tasks::{Refusal, TaskId};
use pangea_units::{Error, ErrorKind};

use crate::checks::{Broken, Check, Checks};
use crate::deviations::FLOODED;
use crate::scenario::Micros;
use crate::world::World;

/// How a task of a worker stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Task {
    Taken,
    Started,
}

/// What is known of memory and tasks.
#[derive(Default)]
pub(crate) struct WorkChecks {
    /// What was asked of each node's ledger, and whether it was granted.
    leases: BTreeMap<(usize, LeaseId), (u64, bool)>,
    /// What each node has given away.
    held: BTreeMap<usize, u64>,
    tasks: BTreeMap<(usize, u64, TaskId), Task>,
    /// Who each node has proven to lie, in this run of it or by evidence on its disk.
    quarantined: BTreeSet<(usize, usize)>,
    /// When a peer was last found to lie.
    pub(crate) last_quarantine: Micros,
}

impl Checks {
    /// A ledger was told of a lease.
    pub(crate) fn ledger_heard(&mut self, node: usize, event: &Event) {
        let leases = &mut self.work.leases;
        let freed = match *event {
            Event::Ask { lease, bytes, .. } => {
                leases.insert((node, lease), (bytes, false));
                0
            }
            Event::Shrink { lease, bytes } => match leases.get_mut(&(node, lease)) {
                Some((held, true)) if *held > bytes => std::mem::replace(held, bytes) - bytes,
                _ => 0,
            },
            Event::GiveBack(lease) => match leases.remove(&(node, lease)) {
                Some((bytes, true)) => bytes,
                _ => 0,
            },
            Event::Tick => 0,
        };
        *self.work.held.entry(node).or_default() -= freed;
    }

    /// A lease was granted.
    pub(crate) fn granted(&mut self, node: usize, lease: LeaseId) {
        if let Some((bytes, granted)) = self.work.leases.get_mut(&(node, lease)) {
            *granted = true;
            *self.work.held.entry(node).or_default() += *bytes;
        }
    }

    /// What a node has given away never passes its memory, whatever its ledger says.
    pub(crate) fn held(&mut self, now: Micros, node: usize, ledger: &Ledger) -> Result<(), Broken> {
        self.evaluated(Check::MemoryIsBudgeted);
        let held = self.work.held.get(&node).copied().unwrap_or(0);
        if held != ledger.held() || held > ledger.limit() {
            let what = format!("node {node} has given away {held} of {}, says {}", ledger.limit(), ledger.held());
            return Err(Broken::new(now, what));
        }
        Ok(())
    }

    /// A peer was found to lie: only one that does.
    pub(crate) fn quarantined(&mut self, now: Micros, at: usize, peer: usize) -> Result<(), Broken> {
        self.evaluated(Check::ConvictsAreGuilty);
        self.counts.add("quarantines");
        self.log(now, format_args!("node {at} quarantines {peer}"));
        self.work.quarantined.insert((at, peer));
        self.work.last_quarantine = now;
        if self.is_guilty(peer) {
            Ok(())
        } else {
            Err(Broken::new(now, format!("node {at} quarantines {peer}, which is honest")))
        }
    }

    /// A node starts with evidence against a peer.
    pub(crate) fn remembers(&mut self, at: usize, peer: usize) {
        self.work.quarantined.insert((at, peer));
    }

    /// Whether a node has proven that a peer lies.
    pub(crate) fn is_quarantined(&self, at: usize, peer: usize) -> bool {
        self.work.quarantined.contains(&(at, peer))
    }

    /// A task came to a worker, which takes it or has a reason not to.
    pub(crate) fn task_arrived(
        &mut self,
        now: Micros,
        at: usize,
        peer: usize,
        stream: u64,
        task: TaskId,
        refusal: Option<Refusal>,
    ) -> Result<(), Broken> {
        self.counts.add("tasks");
        self.evaluated(Check::TasksAreAnswered);
        if self.is_quarantined(at, peer) != (refusal == Some(Refusal::Quarantined)) {
            return Err(Broken::new(now, format!("node {at} takes a task of {peer}: {refusal:?}")));
        }
        match self.work.tasks.insert((at, stream, task), Task::Taken) {
            None => Ok(()),
            Some(_) => Err(Broken::new(now, format!("node {at} is sent task {task} twice"))),
        }
    }

    /// A worker hands a task to its executor: with memory for its result, and once.
    pub(crate) fn task_started(
        &mut self,
        now: Micros,
        at: usize,
        stream: u64,
        task: TaskId,
        leased: Option<u64>,
        needs: u64,
    ) -> Result<(), Broken> {
        if leased != Some(needs) {
            return Err(Broken::new(now, format!("node {at} starts task {task} with {leased:?} of {needs} bytes")));
        }
        match self.work.tasks.insert((at, stream, task), Task::Started) {
            Some(Task::Taken) => Ok(()),
            other => Err(Broken::new(now, format!("node {at} starts task {task}, which is {other:?}"))),
        }
    }

    /// A worker answers a task: once.
    pub(crate) fn task_answered(&mut self, now: Micros, at: usize, stream: u64, task: TaskId) -> Result<(), Broken> {
        match self.work.tasks.remove(&(at, stream, task)) {
            Some(_) => Ok(()),
            None => Err(Broken::new(now, format!("node {at} answers task {task} twice"))),
        }
    }

    /// A worker forgets a task that nobody waits for.
    pub(crate) fn task_dropped(&mut self, at: usize, stream: u64, task: TaskId) {
        self.work.tasks.remove(&(at, stream, task));
    }

    /// A worker did not compute a task.
    pub(crate) fn attempt_refused(&mut self, now: Micros, at: usize, peer: usize, error: &Error) {
        self.log(now, format_args!("node {at}: a task at {peer} failed: {error}"));
        self.counts.add(match error.kind() {
            ErrorKind::Overloaded => "overloaded workers",
            ErrorKind::Unavailable => "unavailable workers",
            _ => "other failed tasks",
        });
    }

    /// A node's process ends.
    pub(super) fn forget_work_of(&mut self, node: usize) {
        self.work.leases.retain(|(of, _), _| *of != node);
        self.work.held.remove(&node);
        self.work.tasks.retain(|(of, ..), _| *of != node);
        self.work.quarantined.retain(|(at, _)| *at != node);
    }

    /// Every task was answered. Of a flood, tasks may wait for operands that nobody sends, until whoever asked is gone.
    pub(crate) fn all_answered(&self, now: Micros, parted: bool) -> Result<(), Broken> {
        let waits = |task: TaskId, how: Task| !parted && task >= FLOODED && how == Task::Taken;
        match self.work.tasks.iter().find(|((.., task), how)| !waits(*task, **how)) {
            None => Ok(()),
            Some(((at, _, task), how)) => {
                Err(Broken::new(now, format!("task {task} at node {at} never ended: {how:?}")))
            }
        }
    }
}

/// Every lease of what is over came back: only what is loaded, and what peers that are connected sent, still takes memory.
pub(crate) fn memory_is_back(world: &World, parted: bool) -> Result<(), Broken> {
    for (at, node) in world.nodes.iter().enumerate() {
        let Some(run) = &node.run else { continue };
        let ledger = run.memory.ledger();
        let loaded = run.layers.bytes();
        let over = Kind::ALL.into_iter().filter(|kind| match kind {
            Kind::Weights | Kind::Sessions => false,
            Kind::Operands => parted,
            _ => true,
        });
        let left: u64 = over.map(|kind| ledger.held_by(kind)).sum();
        let models = ledger.held_by(Kind::Weights) + ledger.held_by(Kind::Sessions);
        let waiting: usize = Kind::ALL.into_iter().map(|kind| ledger.waiting(kind)).sum();
        // A load may wait for what peers' operands held.
        if left > 0 || models != loaded || (parted && waiting > 0) {
            let what = format!(
                "node {at}: {left} bytes are not back, {models} bytes of models where {loaded} are loaded, {waiting} wait"
            );
            return Err(Broken::new(world.now, what));
        }
    }
    Ok(())
}
