//! Two nodes that know nothing of each other find one another by mDNS and end with one connection. Needs an interface of its own, so
//! that nothing is announced on a real network: skipped, visibly, unless there is one called `pangea-test`.
//!
//! ```sh
//! unshare -rn sh -c 'ip link set lo up; ip link add pangea-test type veth peer name pangea-far; ip link set pangea-far up; ip addr add 10.99.0.1/24 dev pangea-test;
//!   ip link set pangea-test up multicast on; ip route add 224.0.0.0/4 dev pangea-test; cargo test -p pangea-node --test net_mdns'
//! ```

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::time::Duration;

use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_control::membership::Role;
use pangea_node::membership::{Membership, PoolKey, Stored};
use pangea_node::net::{FoundBy, NetConfig, NetEvent, Network, addresses, start};
use tokio::sync::mpsc::Receiver;

const BOUND: Duration = Duration::from_secs(30);

fn node() -> (Network, Receiver<NetEvent>) {
    let mut config = NetConfig::new(Keypair::generate_ed25519());
    config.listen = vec!["/ip4/0.0.0.0/tcp/0".parse().unwrap(), "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap()];
    let key = PoolKey::from_bytes(&[1; 32]);
    config.membership = Membership::holder(&config.identity, &key, Role::Member, "node", Stored::default()).unwrap();
    config.mdns = true;
    start(config).unwrap()
}

/// Waits until `peer` was discovered and is connected.
async fn finds(events: &mut Receiver<NetEvent>, peer: PeerId) {
    let mut discovered = 0;
    loop {
        match tokio::time::timeout(BOUND, events.recv()).await.unwrap().unwrap() {
            NetEvent::Discovered(found) if found == peer => discovered += 1,
            NetEvent::PeerUp { peer: up, transport, found_by, .. } => {
                assert_eq!((up, found_by), (peer, FoundBy::Mdns));
                assert_eq!(transport.to_string(), "tcp", "preferred where both are announced");
                assert_eq!(discovered, 1);
                return;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn two_nodes_find_each_other_on_the_local_network() {
    if !addresses::interfaces().iter().any(|(name, _)| name == "pangea-test") {
        eprintln!("SKIPPED: no interface `pangea-test` (see this file's head)");
        return;
    }
    let ((a, mut at_a), (b, mut at_b)) = (node(), node());
    tokio::join!(finds(&mut at_a, b.local_peer_id()), finds(&mut at_b, a.local_peer_id()));
}
