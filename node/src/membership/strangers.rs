//! Nodes of other pools that this one meets on the network: who they are, and what the log says of them. Which are kept is decided by
//! `pangea_control::membership::strangers`; nobody is asked or admitted here.

use std::net::IpAddr;

use libp2p::{Multiaddr, PeerId};
use pangea_control::membership::strangers::LogLine;

use super::door::shell_word;
use super::handle::{Membership, unix_s};

impl Membership {
    /// A connection with `peer`, at `host`, failed because the two belong to different pools. Returns whether this node is to
    /// introduce itself to it now.
    pub fn saw_stranger(&self, peer: PeerId, host: Option<IpAddr>) -> bool {
        let mut belonging = self.belonging();
        if !belonging.may_be_stranger(&peer) {
            return false;
        }
        belonging.strangers.seen(peer, host, unix_s())
    }

    /// The node `peer` of another pool, at `host`, has introduced itself as `name`; it can be asked at `address`. The log says how
    /// to admit it.
    pub fn met_stranger(&self, peer: PeerId, name: &str, host: Option<IpAddr>, address: Option<Multiaddr>) {
        let mut belonging = self.belonging();
        if !belonging.may_be_stranger(&peer) {
            return;
        }
        let line = belonging.strangers.met(peer, name, host, address, unix_s());
        let may_admit = belonging.may_admit();
        drop(belonging);
        let Some(line) = line.filter(|_| may_admit) else { return };
        match line {
            LogLine::Stranger => tracing::info!(
                event = "stranger", %peer, name,
                "Peer {peer} ({name}) of another pool is on the network. To admit it to this pool, run: pangea members accept {}. To join \
                 its pool instead, run there: pangea members accept {}",
                shell_word(name, &peer), shell_word(self.name(), &self.local())
            ),
            LogLine::More => tracing::info!(
                event = "strangers",
                "More nodes of other pools are on the network; `pangea members list` shows them"
            ),
        }
        self.needs_attention();
    }

    /// Where the node `peer` of another pool can be asked, as far as it said so.
    pub fn address_of_stranger(&self, peer: &PeerId) -> Option<Multiaddr> {
        let strangers = self.belonging().strangers.list(unix_s());
        strangers.into_iter().find(|stranger| stranger.peer == *peer)?.address
    }
}
