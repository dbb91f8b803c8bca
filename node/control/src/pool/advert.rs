//! Adverts: what a node publishes about itself to its pool: identity, speed, memory, models, stages, connections and the
//! master that it follows. Plain values.

use std::ops::Range;
use std::time::Duration;

use libp2p_identity::PeerId;
use multiaddr::Multiaddr;
use pangea_units::Digest;

use super::drops::DropRecord;
use super::placed::{Placement, PlacementRefusal};

/// The version of a mastership. A higher term fences every lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// Grows with every election.
    pub counter: u64,
    /// The master.
    pub master: PeerId,
}

/// One node's advert.
#[derive(Clone, Debug, PartialEq)]
pub struct Advert {
    /// The node that publishes it.
    pub peer: PeerId,
    /// Milliseconds since 1970 at the node's start: adverts of a later incarnation replace those of an earlier one.
    pub incarnation: u64,
    /// Grows with every advert of one incarnation.
    pub sequence: u64,
    /// Name for people.
    pub name: String,
    /// The term that the node follows. A node that names itself claims mastership.
    pub term: Option<Term>,
    /// The highest counter of any term that the node knows, past ones included.
    pub counter: u64,
    /// Whether the node was started with `--force-master`.
    pub force_master: bool,
    /// How long the node has been up.
    pub uptime: Duration,
    /// Whether the node computes for others; a lite client does not.
    pub works: bool,
    /// Version of the numerics of its engine.
    pub numerics: u32,
    /// Version of its binary; empty if it says none.
    pub software: String,
    /// Profile by which the results of its engine are compared by value; empty: they have the bits of `numerics`.
    pub bits: String,
    /// Whether it takes part in votes on answers (`--federation`).
    pub votes: bool,
    /// The addresses on which it listens.
    pub addresses: Vec<Multiaddr>,
    /// The compute device, for people.
    pub device: String,
    /// Compute threads.
    pub threads: u16,
    /// Memory offered, in bytes.
    pub memory_bytes: u64,
    /// Measured speed of f32 products, in FLOP/s.
    pub f32_flops_per_s: f64,
    /// Measured speed of layers; `None` until it was measured.
    pub speed: Option<LayerSpeed>,
    /// Connections of the node.
    pub links: Vec<LinkAdvert>,
    /// Models that it serves or has pieces of.
    pub models: Vec<ModelAdvert>,
    /// Models that it answers with all layers of its own.
    pub serving: Vec<ServingAdvert>,
    /// Models that it serves and has unloaded, because nobody used them: it loads them for the next request.
    pub unloaded: Vec<Digest>,
    /// Models for which requests at the node wait, without a node that could answer them.
    pub wanted: Vec<Digest>,
    /// Stages of the node.
    pub stages: Vec<StageAdvert>,
    /// As the master: the current placements.
    pub placements: Vec<Placement>,
    /// As the master: the models that cannot be placed.
    pub refusals: Vec<PlacementRefusal>,
    /// What the node knows of dropped models.
    pub drops: Vec<DropRecord>,
}

impl Advert {
    /// An advert with nothing but the node's identity.
    pub fn new(peer: PeerId) -> Advert {
        Advert {
            peer,
            incarnation: 0,
            sequence: 0,
            name: String::new(),
            term: None,
            counter: 0,
            force_master: false,
            uptime: Duration::ZERO,
            works: true,
            numerics: 0,
            software: String::new(),
            bits: String::new(),
            votes: false,
            addresses: Vec::new(),
            device: String::new(),
            threads: 0,
            memory_bytes: 0,
            f32_flops_per_s: 0.0,
            speed: None,
            links: Vec::new(),
            models: Vec::new(),
            serving: Vec::new(),
            unloaded: Vec::new(),
            wanted: Vec::new(),
            stages: Vec::new(),
            placements: Vec::new(),
            refusals: Vec::new(),
            drops: Vec::new(),
        }
    }
}

/// How fast a node computes layers with all its threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSpeed {
    /// Decoding reads every weight once for a token: bytes of packed weights per second.
    pub weight_bytes_per_s: f64,
    /// Reading a prompt computes: multiply-accumulates per second.
    pub macs_per_s: f64,
}

/// A connection as one end measures it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkAdvert {
    /// The other end.
    pub to: PeerId,
    /// Round-trip time; zero until it was measured.
    pub rtt: Duration,
    /// Bytes per second that it can carry; 0 until that was measured.
    pub bytes_per_s: f64,
    /// Bytes per second that the author sends to the other end now, averaged over [`AVERAGED`]; 0: none, or unknown. It is no
    /// news of its own, so at a node that reads it, it is up to [`LONGEST`] older.
    ///
    /// [`AVERAGED`]: crate::net::traffic_rates::AVERAGED
    /// [`LONGEST`]: super::advert_pace::LONGEST
    pub sent_bytes_per_s: f64,
    /// `tcp` or `quic`.
    pub transport: String,
    /// `mdns`, `manual`, `gossip` or `incoming`.
    pub found_by: String,
}

/// A model that a node serves or has pieces of.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelAdvert {
    /// The model's digest.
    pub digest: Digest,
    /// Name of the model in requests.
    pub name: String,
    /// Whether the node serves it (`--model`).
    pub served: bool,
    /// Whether the node has the whole file; otherwise it has pieces.
    pub whole: bool,
    /// Whether the model is split even where one node would be faster (`--split`).
    pub split: bool,
    /// The layers that the node must have (`--layers`).
    pub pinned: Option<Range<u32>>,
    /// The sizes that placement reckons with.
    pub size: ModelSize,
}

/// A model that a node answers with all layers of its own: how loaded it is, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServingAdvert {
    /// The model's digest.
    pub model: Digest,
    /// Answers that the node generates at once.
    pub places: u8,
    /// Answers that it generates now.
    pub running: u16,
    /// Answers that wait for a place.
    pub waiting: u16,
    /// Tokens per second of a single answer; 0 until measured.
    pub tokens_per_s: u16,
}

/// The sizes of a model that placement reckons with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelSize {
    /// Number of layers.
    pub layers: u32,
    /// Elements of the activations of one position.
    pub hidden_size: u32,
    /// Positions of a session at most.
    pub context: u32,
    /// Bytes of the weights of one layer: the memory that it takes.
    pub layer_bytes: u64,
    /// Bytes of those weights that one position is computed with: of a mixture of experts, the chosen ones and what all
    /// positions share. 0: all of them.
    pub active_layer_bytes: u64,
    /// Bytes of the embedding, unless the head is the same tensor.
    pub embedding_bytes: u64,
    /// Bytes of the head.
    pub head_bytes: u64,
    /// Bytes of keys and values of one position in one layer.
    pub position_bytes: u32,
}

/// A stage of a node: a range of layers.
#[derive(Clone, Debug, PartialEq)]
pub struct StageAdvert {
    /// The model's digest.
    pub model: Digest,
    /// The layers.
    pub layers: Range<u32>,
    /// Epoch of the placement that the stage belongs to.
    pub epoch: u64,
    /// The state of the stage.
    pub state: StageState,
    /// Memory for its sessions, in bytes.
    pub session_bytes: u64,
    /// Epoch of the newest placement whose chain broke although this stage is intact: another stage was lost or refused.
    pub broken: Option<u64>,
    /// How fast the stage and the rest of its chain were, once measured.
    pub pace: Option<StagePace>,
}

/// How fast a stage of one chain was, as its node measured it: means of its last frames. Each is zero until measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagePace {
    /// Epoch of the placement whose chain was measured; 0: the chain of this node alone.
    pub epoch: u64,
    /// Time of this stage for one token of a single answer.
    pub step: Duration,
    /// Time from the end of that until the answer's next frame: that of all other stages and links.
    pub away: Duration,
    /// Time of this stage per token of a prompt.
    pub prompt_row: Duration,
}

/// Relative change of a time from which on it is worth an advert.
const PACE_CHANGE: f64 = 0.05;

impl StagePace {
    /// Whether this says something else than an earlier measurement.
    pub fn differs(&self, before: &StagePace) -> bool {
        let differ = |now: Duration, before: Duration| now.abs_diff(before) > before.mul_f64(PACE_CHANGE);
        self.epoch != before.epoch
            || differ(self.step, before.step)
            || differ(self.away, before.away)
            || differ(self.prompt_row, before.prompt_row)
    }
}

/// The state of a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum StageState {
    /// Fetching the weights.
    Fetching {
        /// Bytes fetched.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Packing the weights.
    Loading,
    /// Computing.
    Ready,
    /// Failed, with the reason.
    Failed(String),
}
