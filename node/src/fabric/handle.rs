//! The handle by which the rest of a node asks the fabric for things: cheap to clone, usable from
//! any thread. It only sends commands; the driver on the network thread does the work.

use std::time::Duration;

use pangea_client::Result;

use super::job::{Job, JobRequest};
use super::status::{LinkProbe, NodeStatus, PeerStatus};

/// The fabric of this node.
#[derive(Clone)]
pub struct Fabric {}

impl Fabric {
    /// Accepts a job, or refuses it at once where shapes or dtypes do not fit. Never waits.
    pub fn submit(&self, request: JobRequest) -> Result<Job> { unimplemented!() }
    /// Every peer this node knows.
    pub async fn peers(&self) -> Result<Vec<PeerStatus>> { unimplemented!() }
    /// This node.
    pub async fn status(&self) -> Result<NodeStatus> { unimplemented!() }
    /// Connects to `address` (a multiaddr); returns the peer id once both sides have admitted each other.
    pub async fn connect(&self, address: &str, timeout: Duration) -> Result<String> { unimplemented!() }
    /// Measures the link to `peer`: `rounds` messages of `message_bytes`, and as many small round trips.
    pub async fn probe_link(&self, peer: &str, message_bytes: u64, rounds: u32) -> Result<LinkProbe> { unimplemented!() }
    /// Budget for tensors held in memory: reserves `bytes` or refuses with `Overloaded`; freed when the reservation drops.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation> { unimplemented!() }
}

/// A share of the node's memory budget, given back when dropped.
pub struct Reservation {}
