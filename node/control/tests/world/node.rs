//! One node of the world: what outlives a run of it, and the whole control plane of a run, composed of the very types that
//! the binary drives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use libp2p_identity::PeerId;
use multiaddr::multihash::Multihash;
use pangea_control::Time;
use pangea_control::jobs::Jobs;
use pangea_control::membership::Proofs;
use pangea_control::peers::Directory;
use pangea_control::placement::{ModelNeeds, Placer, PublishedPlacements, StageOrder};
use pangea_control::pool::advert_pace::{AdvertPace, has_new_values};
use pangea_control::pool::election::Election;
use pangea_control::pool::roster::Roster;
use pangea_control::pool::term_keeper::TermKeeper;
use pangea_control::pool::{Advert, LayerSpeed, LinkAdvert, ModelAdvert, ModelSize, Term, View};
use pangea_control::schedule::{Arithmetic, Scheduler, WorkerEstimate};
use pangea_control::session::ChainId;
use pangea_control::session::batch::{BatchLimits, CacheBytes};
use pangea_control::session::chains::Chains;
use pangea_control::trust::accusations::{Accusation, Accusations};
use pangea_units::Digest;

use crate::certificates::proofs;
use crate::chat::Chats;
use crate::deviations::Recorded;
use crate::memory::Memory;
use crate::model::Layers;
use crate::product::Products;
use crate::scenario::{Micros, NodeSpec, SECOND};
use crate::session_links::SessionLinks;
use crate::stages::Stage;
use crate::worker::{Executor, Served};

/// Model, first layer, end.
pub(crate) type StageKey = (Digest, u32, u32);

/// What a node has while the process does not run.
pub(crate) struct Disk {
    /// The last term that it stored.
    pub(crate) term: Option<Term>,
    /// The incarnation of its last run.
    pub(crate) incarnation: u64,
    /// Peers of whom it keeps evidence.
    pub(crate) evidence: BTreeMap<usize, Accusation>,
    /// Whether it takes no writes.
    pub(crate) full: bool,
    /// How long a write takes.
    pub(crate) write_takes: Micros,
}

/// A node.
pub(crate) struct Node {
    /// As it is made.
    pub(crate) spec: NodeSpec,
    /// Its peer id, the same in every run.
    pub(crate) peer: PeerId,
    /// Its proof that it belongs to the pool.
    pub(crate) certificate: Arc<[u8]>,
    /// What outlives a run.
    pub(crate) disk: Disk,
    /// How many times it was started.
    pub(crate) runs: u64,
    /// How many times slower than its specification it computes.
    pub(crate) slower: u64,
    /// How far its wall clock is behind.
    pub(crate) set_back: Micros,
    /// Adverts that it heard, where it is one that replays them.
    pub(crate) recorded: Recorded,
    /// The process; none while it does not run.
    pub(crate) run: Option<Run>,
}

/// The process of a node: its control plane, and what the drivers would keep beside it.
pub(crate) struct Run {
    /// Tells runs of a node apart: what an earlier run began is nothing to a later one.
    pub(crate) number: u64,
    /// When it started.
    pub(crate) started: Micros,
    /// How far its clock is ahead of the world's.
    pub(crate) ahead: Micros,
    /// What is known of every peer.
    pub(crate) directory: Directory,
    /// What is decided about accusations.
    pub(crate) accusations: Accusations,
    /// Peers that are not admitted.
    pub(crate) blocked: BTreeSet<usize>,
    /// Who has proven that it belongs to the pool.
    pub(crate) proofs: Proofs,
    /// Who is there.
    pub(crate) roster: Roster,
    /// Who is the master.
    pub(crate) election: Election,
    /// Which of the election's terms may be told: what the disk has.
    pub(crate) terms: TermKeeper,
    /// What it says of itself, but what is filled in when it is published.
    pub(crate) advert: Advert,
    /// When it publishes.
    pub(crate) pace: AdvertPace,
    /// What it published last.
    said: Option<Advert>,
    /// Whether the placer is to look at the pool soon.
    pub(crate) looking: bool,
    /// Who was under suspicion when the placer last heard of it.
    pub(crate) suspects: Vec<PeerId>,
    /// What is placed where.
    pub(crate) placer: Placer,
    /// All of its memory.
    pub(crate) memory: Memory,
    /// Layers that are loaded or being loaded.
    pub(crate) layers: Layers,
    /// What it does for peers.
    pub(crate) served: Served,
    /// What computes.
    pub(crate) executor: Executor,
    /// Products.
    pub(crate) products: Products,
    /// What was asked of it.
    pub(crate) jobs: Jobs,
    /// Its links to peers for sessions.
    pub(crate) session_links: SessionLinks,
    /// Its stages of chains.
    pub(crate) stages: BTreeMap<ChainId, Stage>,
    /// How long it keeps those of placements.
    pub(crate) chains: Chains,
    /// What masters placed last.
    pub(crate) published_placements: PublishedPlacements,
    /// Requests that it coordinates.
    pub(crate) chats: Chats,
    /// Whether it takes no more tasks of peers, for it is to end.
    pub(crate) draining: bool,
}

/// What a wall clock shows as the world begins.
const EPOCH: Micros = EPOCH_UNIX_S * SECOND;

/// The same, in seconds since 1970.
pub(crate) const EPOCH_UNIX_S: u64 = 1_000_000;

/// Bytes of one layer of the world's models.
pub(crate) const LAYER_BYTES: u64 = 10 << 20;

/// What nodes must have for models together, so that a model of the world fits on them for certain.
pub(crate) const MODEL_BYTES: u64 = 32 * LAYER_BYTES;

/// The digest of a model of the world.
pub(crate) fn digest(model: u8) -> Digest {
    Digest([model; 32])
}

/// Layers, positions and bytes of every model of the world.
pub(crate) fn size() -> ModelSize {
    ModelSize {
        layers: 24,
        hidden_size: 512,
        context: 1024,
        layer_bytes: LAYER_BYTES,
        active_layer_bytes: 0,
        embedding_bytes: 0,
        head_bytes: 2 * LAYER_BYTES,
        position_bytes: 256,
    }
}

/// Bytes of keys and values of one position in one layer.
pub(crate) fn position_bytes() -> u64 {
    u64::from(size().position_bytes)
}

/// Positions of one page of keys and values.
pub(crate) const PAGE_TOKENS: usize = 16;

/// Caches that a first stage keeps of sequences that have ended.
pub(crate) const KEPT: usize = 6;

/// What the first stage of a chain of so many takes in, with this much memory for sessions of its layers.
pub(crate) fn batch_limits(stages: usize, session_bytes: u64, layers: u32) -> BatchLimits {
    let page = PAGE_TOKENS as u64 * position_bytes() * u64::from(layers);
    let (window, kept_behind) = (usize::MAX, 0);
    let cache = CacheBytes { page_tokens: PAGE_TOKENS, page, windowed_page: 0, window, kept_behind, states: 0 };
    BatchLimits {
        running: 3 * stages,
        waiting: 6,
        wait: Duration::from_secs(30),
        prompt_rows: 24,
        prompt_rows_beside: 16,
        draft: 4,
        cache,
        bytes: session_bytes,
        is_recurrent: false,
        kept: KEPT,
        groups: stages,
    }
}

/// What the model of an order takes.
pub(crate) fn needs(order: &StageOrder) -> ModelNeeds {
    let (name, served_by, files) = (order.name.clone(), BTreeSet::new(), BTreeSet::new());
    let (split, fetched, pins) = (false, true, Vec::new());
    ModelNeeds { digest: order.model, name, size: size(), split, fetched, pins, served_by, files }
}

/// The peer id made of these bits.
pub(crate) fn peer_of(bits: [u64; 4]) -> PeerId {
    let mut key = vec![8, 1, 0x12, 32];
    key.extend(bits.iter().flat_map(|bits| bits.to_le_bytes()));
    PeerId::from_multihash(Multihash::wrap(0, &key).unwrap()).unwrap()
}

impl Node {
    /// A node that does not run yet.
    pub(crate) fn new(spec: NodeSpec, peer: PeerId, certificate: Arc<[u8]>) -> Node {
        let disk = Disk { term: None, incarnation: 0, evidence: BTreeMap::new(), full: false, write_takes: 2_000 };
        Node { spec, peer, certificate, disk, runs: 0, slower: 1, set_back: 0, recorded: Recorded::new(), run: None }
    }

    fn wall_clock(&self, now: Micros) -> Micros {
        (EPOCH + now).saturating_sub(self.set_back)
    }

    /// Seconds since 1970, as its wall clock shows them.
    pub(crate) fn unix_s(&self, now: Micros) -> u64 {
        self.wall_clock(now) / SECOND
    }

    /// Starts a run with what the disk has.
    pub(crate) fn start(&mut self, now: Micros, split: bool) {
        self.runs += 1;
        // The wall clock, and in any case later than the run before.
        self.disk.incarnation = self.wall_clock(now).max(self.disk.incarnation + 1);
        let models = self.spec.models.iter().map(|model| ModelAdvert {
            digest: digest(*model),
            name: format!("model{model}"),
            served: true,
            whole: true,
            split,
            pinned: None,
            size: size(),
        });
        let speed = self.spec.flops_per_s / 100.0;
        let advert = Advert {
            incarnation: self.disk.incarnation,
            name: format!("node-{}", &self.peer.to_string()[46..]),
            force_master: self.spec.force_master,
            works: self.spec.works,
            numerics: 1,
            threads: 1,
            memory_bytes: self.spec.memory_bytes,
            f32_flops_per_s: self.spec.flops_per_s * self.spec.claims,
            speed: Some(LayerSpeed { weight_bytes_per_s: speed, macs_per_s: speed }),
            models: models.collect(),
            ..Advert::new(self.peer)
        };
        let roster = Roster::new(self.peer, true);
        let election = Election::new(self.peer, self.spec.works, self.spec.force_master, self.disk.term);
        let view = View {
            local: self.peer,
            own: Arc::new(advert.clone()),
            term: None,
            nodes: BTreeMap::new(),
            connected: BTreeSet::new(),
        };
        let estimate = WorkerEstimate::local([self.spec.flops_per_s; Arithmetic::COUNT], self.spec.memory_bytes);
        self.run = Some(Run {
            number: self.runs,
            started: now,
            ahead: 0,
            directory: Directory::default(),
            accusations: Accusations::new(self.peer),
            blocked: BTreeSet::new(),
            proofs: proofs(),
            roster,
            election,
            terms: TermKeeper::new(self.peer),
            advert,
            pace: AdvertPace::default(),
            said: None,
            looking: false,
            suspects: Vec::new(),
            placer: Placer::new(Arc::new(view)),
            memory: Memory::new(self.spec.memory_bytes),
            layers: Layers::default(),
            served: Served::new(self.spec.memory_bytes),
            executor: Executor::default(),
            products: Products::new(Scheduler::new(estimate)),
            jobs: Jobs::default(),
            session_links: SessionLinks::default(),
            stages: BTreeMap::new(),
            chains: Chains::default(),
            published_placements: PublishedPlacements::default(),
            chats: Chats::default(),
            draining: false,
        });
    }
}

impl Run {
    /// Tells the pool that layers of a model that others serve are here.
    pub(crate) fn advertise(&mut self, (model, start, end): StageKey) {
        let whole = (start, end) == (0, size().layers);
        let known = self.advert.models.iter_mut().find(|known| known.digest == model);
        match known {
            Some(known) => known.whole |= whole,
            None => self.advert.models.push(ModelAdvert {
                digest: model,
                name: format!("model{}", model.0[0]),
                served: false,
                whole,
                split: false,
                pinned: None,
                size: size(),
            }),
        }
        self.pace.changed();
    }

    /// Whether the whole file of a model is here, the user's or a copy.
    pub(crate) fn has_file(&self, model: &Digest) -> bool {
        self.advert.models.iter().any(|known| known.digest == *model && known.whole)
    }

    /// The moment `now` as this run counts.
    pub(crate) fn time(&self, now: Micros) -> Time {
        Time::since_epoch(Duration::from_micros(now.saturating_sub(self.started) + self.ahead))
    }

    /// The advert as it is published now.
    pub(crate) fn say(&mut self, now: Micros) -> Advert {
        self.advert.sequence += 1;
        let current = self.current(now);
        self.said = Some(current.clone());
        current
    }

    /// What was published is not what [`Run::say`] gave: the truth is news.
    pub(crate) fn said_something_else(&mut self) {
        self.said = None;
    }

    /// The advert, if it is to be published now.
    pub(crate) fn due_advert(&mut self, now: Micros) -> Option<Advert> {
        let time = self.time(now);
        if time < self.pace.due() {
            return None;
        }
        let current = self.current(now);
        let (roster, said) = (&self.roster, &self.said);
        let is_new = || said.as_ref().is_none_or(|said| has_new_values(said, &current));
        let has_news = || roster.is_unsettled(current.term) || is_new();
        self.pace.speaks(time, has_news).then(|| self.say(now))
    }

    fn current(&self, now: Micros) -> Advert {
        let link = |to: &PeerId| {
            let measured = self.directory.get(to);
            LinkAdvert {
                to: *to,
                rtt: measured.and_then(|peer| peer.rtt).unwrap_or_default(),
                bytes_per_s: measured.and_then(|peer| peer.bytes_per_s).unwrap_or_default(),
                sent_bytes_per_s: 0.0,
                transport: "tcp".to_owned(),
                found_by: "mdns".to_owned(),
            }
        };
        let links = self.roster.connections().iter().filter(|peer| self.directory.may_compute(peer)).map(link);
        Advert {
            term: self.terms.announced(),
            counter: self.terms.counter(self.election.counter()),
            uptime: self.time(now).elapsed(),
            links: links.collect(),
            ..self.advert.clone()
        }
    }

    /// The pool as the rest of the node sees it.
    pub(crate) fn view(&self, now: Micros) -> View {
        View {
            local: self.advert.peer,
            own: Arc::new(self.current(now)),
            term: self.terms.announced(),
            nodes: self.roster.adverts().map(|advert| (advert.peer, Arc::clone(advert))).collect(),
            connected: self.roster.connections().clone(),
        }
    }
}
