//! What a node says of itself to its pool: who it is, what it can do, what it holds, whom it is connected to and whom it
//! takes for the master. Plain values; how they travel and what follows from them is their neighbours'.

use std::ops::Range;
use std::time::Duration;

use libp2p_identity::PeerId;
use multiaddr::Multiaddr;
use pangea_units::Digest;

use crate::placement::{Placement, PlacementRefusal};

/// The version of a mastership: the higher one fences the lower.
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
    /// Who says this.
    pub peer: PeerId,
    /// Milliseconds since 1970 when the node started: of two runs of a node, the later counts.
    pub incarnation: u64,
    /// Grows with every advert of one run.
    pub sequence: u64,
    /// Name for people.
    pub name: String,
    /// The term that it lives under: its master is there. Whoever names itself claims to be the master.
    pub term: Option<Term>,
    /// The highest counter of any term that the node knows of, those of the past included.
    pub counter: u64,
    /// Whether it was started to be the master.
    pub force_master: bool,
    /// How long it has been up.
    pub uptime: Duration,
    /// Whether it computes for others; a lite client does not.
    pub works: bool,
    /// The version of the bits that its engine computes.
    pub numerics: u32,
    /// Where it listens.
    pub addresses: Vec<Multiaddr>,
    /// What it computes with, for people.
    pub device: String,
    /// Compute threads.
    pub threads: u16,
    /// Memory that it gives.
    pub memory_bytes: u64,
    /// Measured speed of f32 products, in FLOP/s.
    pub f32_flops_per_s: f64,
    /// Measured speed of layers, once it is known.
    pub speed: Option<LayerSpeed>,
    /// Its connections.
    pub links: Vec<LinkAdvert>,
    /// Models that it has a file of, whole or in part, or serves.
    pub models: Vec<ModelAdvert>,
    /// Ranges of layers that it is to compute.
    pub stages: Vec<StageAdvert>,
    /// What it has decided as the master.
    pub placements: Vec<Placement>,
    /// What it could not place as the master, and why.
    pub refusals: Vec<PlacementRefusal>,
}

impl Advert {
    /// The advert of a worker that has said nothing of itself yet.
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
            addresses: Vec::new(),
            device: String::new(),
            threads: 0,
            memory_bytes: 0,
            f32_flops_per_s: 0.0,
            speed: None,
            links: Vec::new(),
            models: Vec::new(),
            stages: Vec::new(),
            placements: Vec::new(),
            refusals: Vec::new(),
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

/// A connection as one end sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkAdvert {
    /// The other end.
    pub to: PeerId,
    /// Round trip; zero until it is known.
    pub rtt: Duration,
    /// Bytes per second; 0 until it is known.
    pub bytes_per_s: f64,
    /// `tcp` or `quic`.
    pub transport: String,
    /// `mdns`, `manual`, `gossip` or `incoming`.
    pub found_by: String,
}

/// A model as a node has it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelAdvert {
    /// The model's digest.
    pub digest: Digest,
    /// The name that requests give.
    pub name: String,
    /// Whether requests for it are expected here (`--model`).
    pub served: bool,
    /// Whether the whole file is here; else some of its pieces are.
    pub whole: bool,
    /// Whether it is to be split even where one node would be faster.
    pub split: bool,
    /// The layers that this node is to have (`--layers`).
    pub pinned: Option<Range<u32>>,
    /// What it takes to compute it.
    pub size: ModelSize,
}

/// What it takes to hold and to compute a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelSize {
    /// How many layers.
    pub layers: u32,
    /// Elements of one position's activations.
    pub hidden_size: u32,
    /// The most positions of a session.
    pub context: u32,
    /// Bytes of the weights of one layer.
    pub layer_bytes: u64,
    /// Bytes of the embedding, unless the head is the same tensor.
    pub embedding_bytes: u64,
    /// Bytes of the head.
    pub head_bytes: u64,
    /// Bytes of keys and values of one position in one layer.
    pub position_bytes: u32,
}

/// A range of layers on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct StageAdvert {
    /// The model's digest.
    pub model: Digest,
    /// The layers.
    pub layers: Range<u32>,
    /// The placement that they belong to.
    pub epoch: u64,
    /// How far it is.
    pub state: StageState,
    /// Memory for its sessions, in bytes.
    pub session_bytes: u64,
    /// The newest placement whose chain broke here, though the layers are fine: another stage was lost, or did not fit.
    pub broken: Option<u64>,
}

/// How far a stage is.
#[derive(Clone, Debug, PartialEq)]
pub enum StageState {
    /// Its weights are on their way.
    Fetching {
        /// Bytes that are here.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// Its weights are being packed.
    Loading,
    /// It computes.
    Ready,
    /// It cannot.
    Failed(String),
}
