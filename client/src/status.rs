//! The status of a node, of its peers, links and service, and their wire forms. Plain values.

use pangea_schema::node_capnp::{
    counters, device_status, link_probe, memory_use, model_state, node_status, peer_status, way_back,
};
use serde::Serialize;

use crate::text::{string, strings};

/// One peer as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PeerStatus {
    /// Peer id of the peer; empty if it is not known, of an address that was named and that nobody answers at.
    pub peer: String,
    /// Name that the peer gives itself.
    pub name: String,
    /// `connecting`, `connected`, `quarantined`, `gone`, or, of a node that was never connected, `refused` or `unreachable`.
    pub state: String,
    /// Addresses of the peer.
    pub addresses: Vec<String>,
    /// Trust from 0 to 1, from checked work only.
    pub trust: f64,
    /// Whether the peer gets no more work because one of its results failed a check.
    pub quarantined: bool,
    /// Why the peer is quarantined, gone, refused or unreachable; otherwise empty.
    pub why: String,
    /// `tcp` or `quic`.
    pub transport: String,
    /// `mdns`, `manual`, `gossip` or `incoming`.
    pub found_by: String,
    /// Round trip time in milliseconds; 0 while unknown.
    pub rtt_ms: f64,
    /// Measured bytes per second towards the peer; 0 while unknown.
    pub bytes_per_s: f64,
    /// Measured f32 speed of the peer in GFLOP/s.
    pub gflops: f64,
    /// Compute threads that the peer offers.
    pub threads: u32,
    /// Tasks that the peer computes for this node now.
    pub tasks_in_flight: u32,
    /// The peer's tasks whose result passed its check.
    pub tasks_checked: u64,
    /// Version of the peer's binary; empty while unknown.
    pub version: String,
    /// Whether the peer takes part in votes on answers.
    pub federation: bool,
}

/// The status of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeStatus {
    /// Peer id of the node.
    pub peer: String,
    /// Name that the node gives itself.
    pub name: String,
    /// Version of the binary.
    pub version: String,
    /// Seconds since the node started.
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
    /// Instruction set of the kernels.
    pub isa: String,
    /// Bytes of memory leased now, for all purposes.
    pub memory_used_bytes: u64,
    /// Limit of those bytes.
    pub memory_limit_bytes: u64,
    /// Connected peers.
    pub peers: u32,
    /// Jobs that wait or run: tensors, answers of models and downloads alike.
    pub jobs_running: u32,
    /// Jobs of all kinds done since the start.
    pub jobs_done: u64,
    /// Jobs of all kinds failed or cancelled since the start.
    pub jobs_failed: u64,
    /// Tasks done for peers since the start.
    pub tasks_served: u64,
    /// Tensor bytes sent to peers since the start.
    pub bytes_sent: u64,
    /// Tensor bytes received from peers since the start.
    pub bytes_received: u64,
    /// What the leased memory is for.
    pub memory: Vec<MemoryUse>,
    /// Address of the HTTP API; empty where there is none.
    pub api: String,
    /// Models that can be asked for at the node.
    pub models: Vec<ModelState>,
    /// Peer id of the pool's master; empty while there is none.
    pub master: String,
    /// Whether the node takes part in votes on answers.
    pub federation: bool,
    /// Other nodes that do.
    pub federation_peers: u32,
    /// GPUs of the machine; none where the node was not to look for them.
    pub devices: Vec<DeviceStatus>,
}

/// A GPU of a node's machine, and what the node does with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// The name that its driver gives.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `unknown`.
    pub kind: String,
    /// `Vulkan`, `Metal` or `DX12`.
    pub backend: String,
    /// The driver with its version.
    pub driver: String,
    /// Whether it computes layers.
    pub used: bool,
    /// Why it does not; empty where it does.
    pub why: String,
    /// Bytes leased now of the memory that its layers lie in.
    pub memory_used_bytes: u64,
    /// Limit of those bytes; 0 where it is not used.
    pub memory_limit_bytes: u64,
}

/// Memory of a node that is leased for one purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// `tensors`, `operands`, `results`, `packs`, `weights`, `sessions`, `audits` or `downloads`.
    pub purpose: String,
    /// Bytes leased now.
    pub bytes: u64,
}

/// A model that can be asked for at a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ModelState {
    /// Name that requests give.
    pub name: String,
    /// `absent`, `loading`, `ready`, `unloaded`, `unproven`, `unplaced`, `failed`, or `away` with the nodes that served it.
    pub state: String,
    /// Why the model cannot be asked; empty where no reason is known.
    pub why: String,
}

/// The measured link to one peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LinkProbe {
    /// Peer id of the peer.
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

/// Whether a peer reaches one of a node's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WayBack {
    /// Peer id of the peer that tried.
    pub peer: String,
    /// What it calls itself.
    pub name: String,
    /// Address of the node, a multiaddr.
    pub address: String,
    /// Whether something answered there.
    pub reached: bool,
}

/// Bytes moved and objects held by the Cap'n Proto service, for one connection or for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Bytes read from the socket, framing included.
    pub bytes_in: u64,
    /// Bytes written to the socket, framing included.
    pub bytes_out: u64,
    /// Connections open now.
    pub connections: u32,
    /// Tensors held now, including running uploads and products that are not yet computed.
    pub tensors: u32,
    /// Bytes reserved for these tensors.
    pub tensor_bytes: u64,
    /// Jobs running now.
    pub jobs_running: u32,
}

impl PeerStatus {
    /// Reads the wire form.
    pub fn from_wire(wire: peer_status::Reader<'_>) -> capnp::Result<PeerStatus> {
        Ok(PeerStatus {
            peer: string(wire.get_peer()?)?,
            name: string(wire.get_name()?)?,
            state: string(wire.get_state()?)?,
            addresses: strings(wire.get_addresses()?)?,
            trust: wire.get_trust(),
            quarantined: wire.get_quarantined(),
            why: string(wire.get_why()?)?,
            transport: string(wire.get_transport()?)?,
            found_by: string(wire.get_found_by()?)?,
            rtt_ms: wire.get_rtt_ms(),
            bytes_per_s: wire.get_bytes_per_s(),
            gflops: wire.get_gflops(),
            threads: wire.get_threads(),
            tasks_in_flight: wire.get_tasks_in_flight(),
            tasks_checked: wire.get_tasks_checked(),
            version: string(wire.get_version()?)?,
            federation: wire.get_federation(),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: peer_status::Builder<'_>) {
        wire.set_peer(&self.peer);
        wire.set_name(&self.name);
        wire.set_state(&self.state);
        let mut list = wire.reborrow().init_addresses(self.addresses.len() as u32);
        for (index, text) in self.addresses.iter().enumerate() {
            list.set(index as u32, text);
        }
        wire.set_trust(self.trust);
        wire.set_quarantined(self.quarantined);
        wire.set_why(&self.why);
        wire.set_transport(&self.transport);
        wire.set_found_by(&self.found_by);
        wire.set_rtt_ms(self.rtt_ms);
        wire.set_bytes_per_s(self.bytes_per_s);
        wire.set_gflops(self.gflops);
        wire.set_threads(self.threads);
        wire.set_tasks_in_flight(self.tasks_in_flight);
        wire.set_tasks_checked(self.tasks_checked);
        wire.set_version(&self.version);
        wire.set_federation(self.federation);
    }
}

impl NodeStatus {
    /// Reads the wire form.
    pub fn from_wire(wire: node_status::Reader<'_>) -> capnp::Result<NodeStatus> {
        Ok(NodeStatus {
            peer: string(wire.get_peer()?)?,
            name: string(wire.get_name()?)?,
            version: string(wire.get_version()?)?,
            uptime_s: wire.get_uptime_s(),
            listening: strings(wire.get_listening()?)?,
            rpc: string(wire.get_rpc()?)?,
            pool_key: wire.get_pool_key(),
            threads: wire.get_threads(),
            gflops: wire.get_gflops(),
            isa: string(wire.get_isa()?)?,
            memory_used_bytes: wire.get_memory_used_bytes(),
            memory_limit_bytes: wire.get_memory_limit_bytes(),
            peers: wire.get_peers(),
            jobs_running: wire.get_jobs_running(),
            jobs_done: wire.get_jobs_done(),
            jobs_failed: wire.get_jobs_failed(),
            tasks_served: wire.get_tasks_served(),
            bytes_sent: wire.get_bytes_sent(),
            bytes_received: wire.get_bytes_received(),
            memory: wire.get_memory()?.iter().map(MemoryUse::from_wire).collect::<capnp::Result<_>>()?,
            api: string(wire.get_api()?)?,
            models: wire.get_models()?.iter().map(ModelState::from_wire).collect::<capnp::Result<_>>()?,
            master: string(wire.get_master()?)?,
            federation: wire.get_federation(),
            federation_peers: wire.get_federation_peers(),
            devices: wire.get_devices()?.iter().map(DeviceStatus::from_wire).collect::<capnp::Result<_>>()?,
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: node_status::Builder<'_>) {
        wire.set_peer(&self.peer);
        wire.set_name(&self.name);
        wire.set_version(&self.version);
        wire.set_uptime_s(self.uptime_s);
        let mut list = wire.reborrow().init_listening(self.listening.len() as u32);
        for (index, text) in self.listening.iter().enumerate() {
            list.set(index as u32, text);
        }
        wire.set_rpc(&self.rpc);
        wire.set_pool_key(self.pool_key);
        wire.set_threads(self.threads);
        wire.set_gflops(self.gflops);
        wire.set_isa(&self.isa);
        wire.set_memory_used_bytes(self.memory_used_bytes);
        wire.set_memory_limit_bytes(self.memory_limit_bytes);
        wire.set_peers(self.peers);
        wire.set_jobs_running(self.jobs_running);
        wire.set_jobs_done(self.jobs_done);
        wire.set_jobs_failed(self.jobs_failed);
        wire.set_tasks_served(self.tasks_served);
        wire.set_bytes_sent(self.bytes_sent);
        wire.set_bytes_received(self.bytes_received);
        let mut list = wire.reborrow().init_memory(self.memory.len() as u32);
        for (index, held) in self.memory.iter().enumerate() {
            held.to_wire(list.reborrow().get(index as u32));
        }
        wire.set_api(&self.api);
        let mut list = wire.reborrow().init_models(self.models.len() as u32);
        for (index, model) in self.models.iter().enumerate() {
            model.to_wire(list.reborrow().get(index as u32));
        }
        wire.set_master(&self.master);
        wire.set_federation(self.federation);
        wire.set_federation_peers(self.federation_peers);
        let mut list = wire.reborrow().init_devices(self.devices.len() as u32);
        for (index, device) in self.devices.iter().enumerate() {
            device.to_wire(list.reborrow().get(index as u32));
        }
    }
}

impl DeviceStatus {
    /// Reads the wire form.
    pub fn from_wire(wire: device_status::Reader<'_>) -> capnp::Result<DeviceStatus> {
        Ok(DeviceStatus {
            name: string(wire.get_name()?)?,
            kind: string(wire.get_kind()?)?,
            backend: string(wire.get_backend()?)?,
            driver: string(wire.get_driver()?)?,
            used: wire.get_used(),
            why: string(wire.get_why()?)?,
            memory_used_bytes: wire.get_memory_used_bytes(),
            memory_limit_bytes: wire.get_memory_limit_bytes(),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: device_status::Builder<'_>) {
        wire.set_name(&self.name);
        wire.set_kind(&self.kind);
        wire.set_backend(&self.backend);
        wire.set_driver(&self.driver);
        wire.set_used(self.used);
        wire.set_why(&self.why);
        wire.set_memory_used_bytes(self.memory_used_bytes);
        wire.set_memory_limit_bytes(self.memory_limit_bytes);
    }
}

impl MemoryUse {
    /// Reads the wire form.
    pub fn from_wire(wire: memory_use::Reader<'_>) -> capnp::Result<MemoryUse> {
        Ok(MemoryUse { purpose: string(wire.get_purpose()?)?, bytes: wire.get_bytes() })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: memory_use::Builder<'_>) {
        wire.set_purpose(&self.purpose);
        wire.set_bytes(self.bytes);
    }
}

impl ModelState {
    /// Reads the wire form.
    pub fn from_wire(wire: model_state::Reader<'_>) -> capnp::Result<ModelState> {
        Ok(ModelState {
            name: string(wire.get_name()?)?,
            state: string(wire.get_state()?)?,
            why: string(wire.get_why()?)?,
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: model_state::Builder<'_>) {
        wire.set_name(&self.name);
        wire.set_state(&self.state);
        wire.set_why(&self.why);
    }
}

impl LinkProbe {
    /// Reads the wire form.
    pub fn from_wire(wire: link_probe::Reader<'_>) -> capnp::Result<LinkProbe> {
        Ok(LinkProbe {
            peer: string(wire.get_peer()?)?,
            transport: string(wire.get_transport()?)?,
            message_bytes: wire.get_message_bytes(),
            bytes_per_s: wire.get_bytes_per_s(),
            round_trip_us: wire.get_round_trip_us(),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: link_probe::Builder<'_>) {
        wire.set_peer(&self.peer);
        wire.set_transport(&self.transport);
        wire.set_message_bytes(self.message_bytes);
        wire.set_bytes_per_s(self.bytes_per_s);
        wire.set_round_trip_us(self.round_trip_us);
    }
}

impl WayBack {
    /// Reads the wire form.
    pub fn from_wire(wire: way_back::Reader<'_>) -> capnp::Result<WayBack> {
        Ok(WayBack {
            peer: string(wire.get_peer()?)?,
            name: string(wire.get_name()?)?,
            address: string(wire.get_address()?)?,
            reached: wire.get_reached(),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: way_back::Builder<'_>) {
        wire.set_peer(&self.peer);
        wire.set_name(&self.name);
        wire.set_address(&self.address);
        wire.set_reached(self.reached);
    }
}

impl Counters {
    /// Reads the wire form.
    pub fn from_wire(wire: counters::Reader<'_>) -> capnp::Result<Counters> {
        Ok(Counters {
            bytes_in: wire.get_bytes_in(),
            bytes_out: wire.get_bytes_out(),
            connections: wire.get_connections(),
            tensors: wire.get_tensors(),
            tensor_bytes: wire.get_tensor_bytes(),
            jobs_running: wire.get_jobs_running(),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: counters::Builder<'_>) {
        wire.set_bytes_in(self.bytes_in);
        wire.set_bytes_out(self.bytes_out);
        wire.set_connections(self.connections);
        wire.set_tensors(self.tensors);
        wire.set_tensor_bytes(self.tensor_bytes);
        wire.set_jobs_running(self.jobs_running);
    }
}
