//! The pool as a node sees it, a graph of nodes and connections, and its wire form. Plain values.

use pangea_schema::node_capnp::topology;
use serde::Serialize;

use crate::text::{string, strings};

/// Nodes and the connections between them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Topology {
    /// The live nodes; the answering node comes first.
    pub nodes: Vec<TopologyNode>,
    /// Two for every connection, one in each direction.
    pub links: Vec<TopologyLink>,
}

/// A node of the pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TopologyNode {
    /// Peer id of the node.
    pub peer: String,
    /// Name that the node gives itself.
    pub name: String,
    /// Whether the node is the master.
    pub master: bool,
    /// Names of the models that the node serves.
    pub models: Vec<String>,
    /// What the node computes with.
    pub device: String,
    /// Memory that the node offers, in bytes.
    pub memory_bytes: u64,
    /// Measured f32 speed in GFLOP/s.
    pub gflops: f64,
}

/// A connection in one direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TopologyLink {
    /// Peer id of the sending end.
    pub from: String,
    /// Peer id of the receiving end.
    pub to: String,
    /// Round trip time in milliseconds; 0 while unknown.
    pub rtt_ms: f64,
    /// Bytes per second that the connection can carry in this direction; 0 while unknown.
    pub bytes_per_s: f64,
    /// Bytes per second that pass in this direction now, averaged over the last 3 s; 0: none, or unknown. Of a connection of the
    /// answering node it is up to date; of one between two others it comes from the advert of `from` and is up to 3 s older.
    pub sent_bytes_per_s: f64,
    /// `tcp` or `quic`.
    pub transport: String,
    /// How `from` found `to`: `mdns`, `manual`, `gossip`; `incoming` where `to` connected to `from`.
    pub found_by: String,
}

impl Topology {
    /// Reads the wire form.
    pub fn from_wire(wire: topology::Reader<'_>) -> capnp::Result<Topology> {
        let node = |wire: pangea_schema::node_capnp::topology_node::Reader<'_>| -> capnp::Result<TopologyNode> {
            Ok(TopologyNode {
                peer: string(wire.get_peer()?)?,
                name: string(wire.get_name()?)?,
                master: wire.get_master(),
                models: strings(wire.get_models()?)?,
                device: string(wire.get_device()?)?,
                memory_bytes: wire.get_memory_bytes(),
                gflops: wire.get_gflops(),
            })
        };
        let link = |wire: pangea_schema::node_capnp::topology_link::Reader<'_>| -> capnp::Result<TopologyLink> {
            Ok(TopologyLink {
                from: string(wire.get_from()?)?,
                to: string(wire.get_to()?)?,
                rtt_ms: wire.get_rtt_ms(),
                bytes_per_s: wire.get_bytes_per_s(),
                sent_bytes_per_s: wire.get_sent_bytes_per_s(),
                transport: string(wire.get_transport()?)?,
                found_by: string(wire.get_found_by()?)?,
            })
        };
        Ok(Topology {
            nodes: wire.get_nodes()?.iter().map(node).collect::<capnp::Result<_>>()?,
            links: wire.get_links()?.iter().map(link).collect::<capnp::Result<_>>()?,
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: topology::Builder<'_>) {
        let mut nodes = wire.reborrow().init_nodes(self.nodes.len() as u32);
        for (index, node) in self.nodes.iter().enumerate() {
            let mut wire = nodes.reborrow().get(index as u32);
            wire.set_peer(&node.peer);
            wire.set_name(&node.name);
            wire.set_master(node.master);
            let mut models = wire.reborrow().init_models(node.models.len() as u32);
            for (index, model) in node.models.iter().enumerate() {
                models.set(index as u32, model);
            }
            wire.set_device(&node.device);
            wire.set_memory_bytes(node.memory_bytes);
            wire.set_gflops(node.gflops);
        }
        let mut links = wire.init_links(self.links.len() as u32);
        for (index, link) in self.links.iter().enumerate() {
            let mut wire = links.reborrow().get(index as u32);
            wire.set_from(&link.from);
            wire.set_to(&link.to);
            wire.set_rtt_ms(link.rtt_ms);
            wire.set_bytes_per_s(link.bytes_per_s);
            wire.set_sent_bytes_per_s(link.sent_bytes_per_s);
            wire.set_transport(&link.transport);
            wire.set_found_by(&link.found_by);
        }
    }
}
