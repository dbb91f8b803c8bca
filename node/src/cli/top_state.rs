//! What `pangea top` knows: the node's latest answers, rates between them, and what the person chose. Pure: events in, state out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pangea_client::{JobStatus, ModelPlan, NodeStatus, PeerStatus, Topology};

use super::node_names::NodeNames;

/// Characters of a node's name.
pub(super) const NAME_CHARS: usize = 24;

/// Weight of the newest rate in the shown one: figures that jump at every answer cannot be read.
const NEWEST: f64 = 0.5;

/// What a node says of itself and its pool at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) status: NodeStatus,
    pub(super) peers: Vec<PeerStatus>,
    pub(super) topology: Topology,
    pub(super) jobs: Vec<JobStatus>,
    /// Placements of the models that the pool serves.
    pub(super) plans: Vec<ModelPlan>,
    /// Milliseconds since 1970 at the answer.
    pub(super) unix_ms: u64,
}

/// What happens to the view.
#[derive(Debug)]
pub(super) enum Event {
    /// The node answered, this long after the view was opened.
    Answered(Box<Snapshot>, Duration),
    /// The node did not answer.
    Lost(String),
    /// A person sorts by this column; again reverses the order.
    Sort(SortKey),
    /// A person scrolls the nodes by one line: down, or up.
    Scroll { down: bool },
    /// The terminal has another size.
    Resized,
    /// A person leaves.
    Quit,
}

/// What follows from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Draw,
    Leave,
}

/// Columns that nodes can be sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SortKey {
    Name,
    Memory,
    Tokens,
    Trust,
    Rtt,
    Link,
}

/// A node of the view. `None` is what is not known.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeRow {
    pub(super) label: String,
    pub(super) is_master: bool,
    /// State of the peer as this node sees it; empty for the answering node.
    pub(super) state: String,
    pub(super) device: String,
    /// Its layers of each model that is split, and the models that it serves whole.
    pub(super) layers: String,
    pub(super) memory_bytes: Option<u64>,
    pub(super) gflops: Option<f64>,
    pub(super) tasks_in_flight: Option<u32>,
    /// Tokens per second of the answering node's generations that pass through this node.
    pub(super) tokens_per_s: Option<f64>,
    pub(super) trust: Option<f64>,
    /// Its results that passed their check, which is what earns trust.
    pub(super) tasks_checked: u64,
    pub(super) rtt_ms: Option<f64>,
    pub(super) bytes_per_s: Option<f64>,
}

/// A count that grows, and how fast.
#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    count: u64,
    at: Duration,
    per_s: Option<f64>,
}

impl Growth {
    fn next(self, count: u64, at: Duration) -> Growth {
        let elapsed = at.saturating_sub(self.at).as_secs_f64();
        if elapsed <= 0.0 || count < self.count {
            return Growth { count, at, per_s: None };
        }
        let newest = (count - self.count) as f64 / elapsed;
        let per_s = self.per_s.map_or(newest, |before| before + NEWEST * (newest - before));
        Growth { count, at, per_s: Some(per_s) }
    }
}

/// The state of the view.
pub(super) struct State {
    /// Address of the node, for people.
    pub(super) address: String,
    pub(super) snapshot: Snapshot,
    /// Why the node does not answer any more.
    pub(super) lost: Option<String>,
    pub(super) sort: SortKey,
    pub(super) is_reversed: bool,
    /// Nodes above the first visible one.
    pub(super) scrolled: usize,
    jobs: BTreeMap<u64, Growth>,
    sent: Growth,
    received: Growth,
}

impl State {
    pub(super) fn new(address: String) -> State {
        State {
            address,
            snapshot: Snapshot::default(),
            lost: None,
            sort: SortKey::Name,
            is_reversed: false,
            scrolled: 0,
            jobs: BTreeMap::new(),
            sent: Growth::default(),
            received: Growth::default(),
        }
    }

    pub(super) fn handle(&mut self, event: Event) -> Next {
        match event {
            Event::Answered(snapshot, at) => self.answered(*snapshot, at),
            Event::Lost(why) => self.lost = Some(why),
            Event::Sort(key) => {
                self.is_reversed = key == self.sort && !self.is_reversed;
                self.sort = key;
            }
            Event::Scroll { down: true } => {
                self.scrolled = (self.scrolled + 1).min(self.nodes().len().saturating_sub(1));
            }
            Event::Scroll { down: false } => self.scrolled = self.scrolled.saturating_sub(1),
            Event::Resized => {}
            Event::Quit => return Next::Leave,
        }
        Next::Draw
    }

    fn answered(&mut self, snapshot: Snapshot, at: Duration) {
        let before = &self.snapshot.status;
        // Another node, or the same one started again: its counts begin anew.
        if before.peer != snapshot.status.peer || before.uptime_s > snapshot.status.uptime_s {
            self.jobs.clear();
            self.sent = Growth { count: snapshot.status.bytes_sent, at, per_s: None };
            self.received = Growth { count: snapshot.status.bytes_received, at, per_s: None };
        } else {
            self.sent = self.sent.next(snapshot.status.bytes_sent, at);
            self.received = self.received.next(snapshot.status.bytes_received, at);
        }
        let running = snapshot.jobs.iter().filter(|job| job.state == "running");
        self.jobs = running
            .map(|job| {
                let done = job.progress.done;
                let growth = match self.jobs.get(&job.id) {
                    Some(before) => before.next(done, at),
                    None => Growth { count: done, at, per_s: mean(job, snapshot.unix_ms) },
                };
                (job.id, growth)
            })
            .collect();
        self.snapshot = snapshot;
        self.lost = None;
    }

    /// Tensor bytes per second sent to peers, and received.
    pub(super) fn traffic(&self) -> (Option<f64>, Option<f64>) {
        (self.sent.per_s, self.received.per_s)
    }

    /// Tokens, or tasks, per second of a running job.
    pub(super) fn rate(&self, job: &JobStatus) -> Option<f64> {
        self.jobs.get(&job.id).and_then(|growth| growth.per_s)
    }

    /// Tokens per second of all generations that run.
    pub(super) fn tokens_per_s(&self) -> f64 {
        let rates = self.snapshot.jobs.iter().filter(|job| is_generation(job)).filter_map(|job| self.rate(job));
        // The sum of nothing would be a negative zero.
        rates.fold(0.0, |sum, rate| sum + rate)
    }

    /// Jobs that run, those that wait, and those that ended, each the latest first.
    pub(super) fn jobs(&self) -> Vec<&JobStatus> {
        let mut jobs: Vec<&JobStatus> = self.snapshot.jobs.iter().collect();
        let rank = |job: &JobStatus| match job.state.as_str() {
            "running" => 0,
            "waiting" => 1,
            _ => 2,
        };
        jobs.sort_by_key(|job| rank(job));
        jobs
    }

    /// Labels of all nodes.
    fn names(&self) -> NodeNames {
        let Snapshot { topology, peers, .. } = &self.snapshot;
        let nodes = topology.nodes.iter().map(|node| (node.peer.as_str(), node.name.as_str()));
        // Whoever was never reached has no name, but maybe an address.
        let peers = peers.iter().map(|peer| (peer.peer.as_str(), peer.name.as_str()));
        NodeNames::new(peers.chain(nodes), NAME_CHARS)
    }

    /// Peer ids of the nodes that compute a job: the chain of a generation's model, or the nodes that serve it; the peers that
    /// compute tasks for this node now.
    fn workers(&self, job: &JobStatus) -> Vec<&str> {
        let Snapshot { topology, peers, plans, .. } = &self.snapshot;
        if !is_generation(job) {
            let busy = peers.iter().filter(|peer| peer.tasks_in_flight > 0);
            return busy.map(|peer| peer.peer.as_str()).collect();
        }
        if let Some(chain) = plans.iter().find(|plan| plan.model == job.subject).and_then(|plan| plan.current.as_ref())
        {
            return chain.stages.iter().map(|stage| stage.peer.as_str()).collect();
        }
        // The answering node comes first, and answers itself if it can.
        let serving = topology.nodes.iter().find(|node| node.models.contains(&job.subject));
        serving.map(|node| node.peer.as_str()).into_iter().collect()
    }

    /// Labels of the nodes that compute a running job.
    pub(super) fn worker_names(&self, job: &JobStatus) -> Vec<String> {
        let names = self.names();
        self.workers(job).into_iter().map(|peer| names.label(peer)).collect()
    }

    /// All nodes that this node knows, sorted.
    pub(super) fn nodes(&self) -> Vec<NodeRow> {
        let Snapshot { status, peers, topology, plans, .. } = &self.snapshot;
        let names = self.names();
        let mut tokens: BTreeMap<&str, f64> = BTreeMap::new();
        for job in self.snapshot.jobs.iter().filter(|job| is_generation(job)) {
            let Some(rate) = self.rate(job) else { continue };
            let workers: BTreeSet<&str> = self.workers(job).into_iter().collect();
            workers.into_iter().for_each(|peer| *tokens.entry(peer).or_default() += rate);
        }
        let known = |value: f64| (value > 0.0).then_some(value);
        let mut rows: BTreeMap<&str, NodeRow> = BTreeMap::new();
        for peer in peers {
            let address = peer.addresses.first().filter(|_| peer.name.is_empty()).cloned();
            let row = NodeRow {
                label: address.unwrap_or_else(|| names.label(&peer.peer)),
                is_master: status.master == peer.peer && !peer.peer.is_empty(),
                state: peer.state.clone(),
                gflops: known(peer.gflops),
                tasks_in_flight: Some(peer.tasks_in_flight),
                tokens_per_s: tokens.get(peer.peer.as_str()).copied(),
                trust: Some(peer.trust),
                tasks_checked: peer.tasks_checked,
                rtt_ms: known(peer.rtt_ms),
                bytes_per_s: known(peer.bytes_per_s),
                ..NodeRow::default()
            };
            let key = if peer.peer.is_empty() { peer.addresses.first().map_or("", String::as_str) } else { &peer.peer };
            rows.insert(key, row);
        }
        for node in &topology.nodes {
            let row = rows.entry(&node.peer).or_default();
            row.label = names.label(&node.peer);
            row.is_master = node.master;
            row.device = node.device.clone();
            row.memory_bytes = Some(node.memory_bytes);
            row.gflops = known(node.gflops);
            row.layers = layers(&node.peer, &node.models, plans);
            row.tokens_per_s = tokens.get(node.peer.as_str()).copied();
        }
        let mut rows: Vec<NodeRow> = rows.into_values().collect();
        self.sort_nodes(&mut rows);
        rows
    }

    /// The largest first, and unknown figures last; names and round trips the smallest first.
    fn sort_nodes(&self, rows: &mut [NodeRow]) {
        let figure = |row: &NodeRow| match self.sort {
            SortKey::Name => Some(0.0),
            SortKey::Memory => row.memory_bytes.map(|bytes| -(bytes as f64)),
            SortKey::Tokens => row.tokens_per_s.map(|tokens| -tokens),
            SortKey::Trust => row.trust.map(|trust| -trust),
            SortKey::Rtt => row.rtt_ms,
            SortKey::Link => row.bytes_per_s.map(|bytes| -bytes),
        };
        rows.sort_by(|one, other| {
            let (first, second) = (figure(one), figure(other));
            let unknown_last = first.is_none().cmp(&second.is_none());
            let by_figure = first.unwrap_or(0.0).total_cmp(&second.unwrap_or(0.0));
            let order = by_figure.then_with(|| one.label.cmp(&other.label));
            unknown_last.then(if self.is_reversed { order.reverse() } else { order })
        });
    }
}

pub(super) fn is_generation(job: &JobStatus) -> bool {
    job.kind == "generation"
}

/// Units per second of a job since its start; `None` where the two clocks do not agree that it has begun.
fn mean(job: &JobStatus, unix_ms: u64) -> Option<f64> {
    let elapsed_ms = unix_ms.checked_sub(job.started_unix_ms?).filter(|ms| *ms > 0)?;
    (job.progress.done > 0).then(|| job.progress.done as f64 * 1e3 / elapsed_ms as f64)
}

/// The layers of a node in each model's chain, then the models that it serves without one.
fn layers(peer: &str, models: &[String], plans: &[ModelPlan]) -> String {
    let mut parts = Vec::new();
    for plan in plans {
        let stages = plan.current.iter().flat_map(|chain| &chain.stages).filter(|stage| stage.peer == peer);
        parts.extend(stages.map(|stage| {
            let layers = pangea_units::LayerRange::from(stage.layers);
            format!("{layers} of {}", plan.model)
        }));
    }
    let whole = |model: &&String| !plans.iter().any(|plan| plan.model == **model && plan.current.is_some());
    parts.extend(models.iter().filter(whole).cloned());
    parts.join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use pangea_client::jobs::{JobOwner, JobStatusProgress};
    use pangea_client::{PlannedChain, PlannedStage, TopologyNode};

    use super::*;

    const NAMES: [&str; 3] = ["mac1", "mac2", "server"];

    fn peer_id(name: &str) -> String {
        format!("12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kS{name:0>6}")
    }

    /// A job of the view's examples.
    pub(in crate::cli) fn job(id: u64, kind: &str, state: &str, done: u64, total: u64) -> JobStatus {
        let subject = if kind == "generation" { "smollm2" } else { "4096x4096x4096 f32" };
        JobStatus {
            id,
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            owner: JobOwner { api: "rpc".to_owned(), client: None },
            state: state.to_owned(),
            progress: JobStatusProgress { done, total },
            submitted_unix_ms: 1_000_000,
            started_unix_ms: Some(1_000_000),
            ..JobStatus::default()
        }
    }

    /// A pool of three nodes whose first two compute a model, and a peer that is gone.
    pub(in crate::cli) fn pool() -> Snapshot {
        let node = |(index, name): (usize, &&str)| TopologyNode {
            peer: peer_id(name),
            name: (*name).to_owned(),
            master: index == 1,
            models: if index == 0 { vec!["smollm2".to_owned()] } else { Vec::new() },
            device: "cpu/avx512".to_owned(),
            memory_bytes: (8 << 30) << index,
            gflops: 193.0 * (index + 1) as f64,
        };
        let peer = |name: &str, state: &str, rtt_ms: f64| PeerStatus {
            peer: peer_id(name),
            name: name.to_owned(),
            state: state.to_owned(),
            trust: if state == "gone" { 0.5 } else { 1.0 },
            rtt_ms,
            bytes_per_s: rtt_ms * 1e9,
            tasks_in_flight: u32::from(name == "server") * 3,
            ..PeerStatus::default()
        };
        let stage = |name: &str, layers| PlannedStage { peer: peer_id(name), name: name.to_owned(), layers };
        let chain =
            PlannedChain { stages: vec![stage("mac1", [0, 15]), stage("mac2", [15, 30])], ..PlannedChain::default() };
        Snapshot {
            status: NodeStatus {
                peer: peer_id("mac1"),
                name: "mac1".to_owned(),
                uptime_s: 192.0,
                master: peer_id("mac2"),
                pool_key: true,
                memory_used_bytes: 1288 << 20,
                memory_limit_bytes: 8 << 30,
                tasks_served: 17,
                bytes_sent: 100 << 20,
                bytes_received: 10 << 20,
                ..NodeStatus::default()
            },
            peers: vec![peer("mac2", "connected", 0.152), peer("server", "connected", 3.1), peer("old", "gone", 0.0)],
            topology: Topology { nodes: NAMES.iter().enumerate().map(node).collect(), links: Vec::new() },
            jobs: vec![
                job(3, "generation", "running", 20, 64),
                job(2, "product", "running", 4, 16),
                JobStatus {
                    ended_unix_ms: Some(1_002_000),
                    verdict: Some("audited".to_owned()),
                    ..job(1, "generation", "done", 64, 64)
                },
            ],
            plans: vec![ModelPlan {
                model: "smollm2".to_owned(),
                layers: 30,
                current: Some(chain),
                ready: true,
                ..ModelPlan::default()
            }],
            unix_ms: 1_002_000,
        }
    }

    /// The view of [`pool`] after two answers, one second apart.
    pub(in crate::cli) fn watched() -> State {
        let mut state = State::new("127.0.0.1:8080".to_owned());
        state.handle(Event::Answered(Box::new(pool()), Duration::from_secs(1)));
        let mut later = pool();
        later.status.bytes_sent += 3 << 20;
        later.jobs[0].progress.done += 40;
        later.jobs[1].progress.done += 2;
        state.handle(Event::Answered(Box::new(later), Duration::from_secs(2)));
        state
    }

    fn labels(state: &State) -> Vec<String> {
        state.nodes().into_iter().map(|node| node.label).collect()
    }

    #[test]
    fn rates_are_what_was_done_between_two_answers() {
        let state = watched();
        // 10 tokens/s since the start, then 40 in a second: the mean of both.
        assert_eq!(state.rate(&state.snapshot.jobs[0]), Some(25.0));
        assert_eq!(state.rate(&state.snapshot.jobs[1]), Some(2.0));
        assert_eq!(state.rate(&state.snapshot.jobs[2]), None, "an ended job has no rate");
        assert_eq!(state.tokens_per_s(), 25.0);
        assert_eq!(state.traffic(), (Some((3 << 20) as f64), Some(0.0)));
        // The nodes of the chain carry the tokens, the others do not.
        let nodes = state.nodes();
        let tokens = |name: &str| nodes.iter().find(|node| node.label == name).unwrap().tokens_per_s;
        assert_eq!((tokens("mac1"), tokens("mac2"), tokens("server")), (Some(25.0), Some(25.0), None));
        assert_eq!(state.worker_names(&state.snapshot.jobs[0]), ["mac1", "mac2"]);
        assert_eq!(state.worker_names(&state.snapshot.jobs[1]), ["server"], "the peer with tasks in flight");
    }

    #[test]
    fn a_node_that_was_started_again_has_no_rates_from_before() {
        let mut state = watched();
        let mut again = pool();
        again.status.uptime_s = 1.0;
        again.status.bytes_sent = 0;
        again.jobs[0].progress.done = 1;
        again.jobs[0].started_unix_ms = None;
        state.handle(Event::Answered(Box::new(again), Duration::from_secs(3)));
        assert_eq!(state.traffic(), (None, None));
        assert_eq!(state.rate(&state.snapshot.jobs[0]), None);
    }

    #[test]
    fn nodes_are_sorted_by_each_column_and_unknown_figures_come_last() {
        let mut state = watched();
        assert_eq!(labels(&state), ["mac1", "mac2", "old", "server"]);
        for (key, order) in [
            (SortKey::Memory, ["server", "mac2", "mac1", "old"]),
            (SortKey::Tokens, ["mac1", "mac2", "old", "server"]),
            (SortKey::Trust, ["mac2", "server", "old", "mac1"]),
            (SortKey::Rtt, ["mac2", "server", "mac1", "old"]),
            (SortKey::Link, ["server", "mac2", "mac1", "old"]),
        ] {
            state.handle(Event::Sort(key));
            assert_eq!(labels(&state), order, "{key:?}");
        }
        state.handle(Event::Sort(SortKey::Link));
        assert_eq!(labels(&state), ["mac2", "server", "old", "mac1"], "again reverses");
        state.handle(Event::Sort(SortKey::Name));
        assert_eq!(labels(&state)[0], "mac1", "another column is not reversed");
    }

    #[test]
    fn a_lost_node_keeps_its_figures_until_it_answers_again() {
        let mut state = watched();
        state.handle(Event::Lost("no answer within 5 s".to_owned()));
        assert_eq!(state.lost.as_deref(), Some("no answer within 5 s"));
        assert_eq!(labels(&state).len(), 4);
        state.handle(Event::Answered(Box::new(pool()), Duration::from_secs(9)));
        assert_eq!(state.lost, None);
    }

    #[test]
    fn scrolling_ends_at_the_last_node_and_only_quit_leaves() {
        let mut state = watched();
        for _ in 0..9 {
            assert_eq!(state.handle(Event::Scroll { down: true }), Next::Draw);
        }
        assert_eq!(state.scrolled, 3);
        for _ in 0..9 {
            state.handle(Event::Scroll { down: false });
        }
        assert_eq!(state.scrolled, 0);
        assert_eq!(state.handle(Event::Quit), Next::Leave);
    }

    #[test]
    fn running_jobs_come_first() {
        let mut state = watched();
        state.snapshot.jobs.insert(0, job(9, "product", "done", 1, 1));
        state.snapshot.jobs.insert(0, job(8, "product", "waiting", 0, 0));
        let ids: Vec<u64> = state.jobs().iter().map(|job| job.id).collect();
        assert_eq!(ids, [3, 2, 8, 9, 1]);
    }
}
