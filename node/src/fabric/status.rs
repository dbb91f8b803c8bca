//! What a node says of itself and of its peers, as `pangea status` and `pangea peers` show it.
//! Plain values.

use serde::Serialize;

/// One peer as this node sees it.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// Its peer id.
    pub peer: String,
    /// The name it gives itself.
    pub name: String,
    /// `connecting`, `connected`, `quarantined` or `gone`.
    pub state: String,
    /// Addresses it is reached at.
    pub addresses: Vec<String>,
    /// 0 to 1, from checked work only.
    pub trust: f64,
    /// Whether it gets no more work because a result of its failed a check.
    pub quarantined: bool,
    /// Why it is quarantined or gone; empty otherwise.
    pub why: String,
    /// `tcp` or `quic`.
    pub transport: String,
    /// `mdns`, `manual` or `incoming`.
    pub found_by: String,
    /// Round trip time in milliseconds; 0 while unknown.
    pub rtt_ms: f64,
    /// Measured bytes per second towards the peer; 0 while unknown.
    pub bytes_per_s: f64,
    /// Its measured f32 speed in GFLOP/s.
    pub gflops: f64,
    /// Compute threads it gives.
    pub threads: u32,
    /// Tasks it does for this node now.
    pub tasks_in_flight: u32,
    /// Tasks of its that passed their check.
    pub tasks_checked: u64,
}

/// This node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Its peer id.
    pub peer: String,
    /// Its name.
    pub name: String,
    /// Version of the binary.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: f64,
    /// libp2p addresses with `/p2p/`.
    pub listening: Vec<String>,
    /// Address of the Cap'n Proto service.
    pub rpc: String,
    /// Whether a pool key guards admission.
    pub pool_key: bool,
    /// Compute threads.
    pub threads: u32,
    /// Measured f32 speed in GFLOP/s.
    pub gflops: f64,
    /// Instruction set the kernels use.
    pub isa: String,
    /// Bytes of tensors held now: uploads, results and operands kept for peers.
    pub memory_used_bytes: u64,
    /// The most it may hold.
    pub memory_limit_bytes: u64,
    /// Connected peers.
    pub peers: u32,
    /// Jobs running.
    pub jobs_running: u32,
    /// Jobs done since the start.
    pub jobs_done: u64,
    /// Jobs failed or cancelled since the start.
    pub jobs_failed: u64,
    /// Tasks done for peers since the start.
    pub tasks_served: u64,
    /// Tensor bytes sent to peers since the start.
    pub bytes_sent: u64,
    /// Tensor bytes received from peers since the start.
    pub bytes_received: u64,
}

/// What a measurement of the link to one peer gave.
#[derive(Clone, Debug, Serialize)]
pub struct LinkProbe {
    /// The peer.
    pub peer: String,
    /// `tcp` or `quic`.
    pub transport: String,
    /// Bytes in one bulk message.
    pub message_bytes: u64,
    /// Median bytes per second towards the peer.
    pub bytes_per_s: f64,
    /// Median round trip of a 16-byte message, in microseconds.
    pub round_trip_us: f64,
}
