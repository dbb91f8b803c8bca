//! Connections that last: what the reference's seven tests of a topology over persistent connections check, each by its
//! number.

use std::collections::BTreeSet;

use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::process::eventually;
use pangea_tests::sockets::Connection;

/// Two connected nodes that see each other in their topology.
fn two_nodes(cluster: &Cluster) -> [Node; 2] {
    let mut nodes = cluster.pool(&["mac2", "test_mac1"]).into_iter();
    let nodes = [nodes.next().unwrap(), nodes.next().unwrap()];
    for node in &nodes {
        eventually("both nodes and both directions are seen", || {
            let topology = node.client().topology().unwrap();
            topology.nodes.len() == 2 && topology.links.len() == 2
        });
    }
    nodes
}

/// The only connection between the two nodes, as each end sees it.
fn connection(nodes: &[Node; 2]) -> [BTreeSet<Connection>; 2] {
    let [one, two] = nodes.each_ref().map(Node::connections);
    assert_eq!(one.len(), 1, "one connection, not {one:?}");
    let mirrored = one.iter().map(|connection| Connection { local: connection.remote, remote: connection.local });
    assert_eq!(mirrored.collect::<BTreeSet<_>>(), two, "both ends have the same connection");
    [one, two]
}

fn pairs(node: &Node) -> BTreeSet<(String, String)> {
    node.client().topology().unwrap().links.into_iter().map(|link| (link.from, link.to)).collect()
}

#[test]
fn exo_1_a_connection_is_established_and_the_first_health_check_passes() {
    let cluster = Cluster::new();
    let nodes = two_nodes(&cluster);
    connection(&nodes);
    let round_trip = nodes[0].client().check_peer(&nodes[1].peer, None).unwrap();
    assert!(!round_trip.is_zero());
    nodes[1].client().check_peer(&nodes[0].peer, None).unwrap();
}

#[test]
fn exo_2_the_topology_has_both_nodes_and_both_directions() {
    let cluster = Cluster::new();
    let nodes = two_nodes(&cluster);
    let [one, two] = nodes.each_ref().map(|node| node.peer.clone());
    let both = BTreeSet::from([(one.clone(), two.clone()), (two, one)]);
    for node in &nodes {
        assert_eq!(pairs(node), both);
    }
}

#[test]
fn exo_3_and_5_the_connection_is_the_very_same_across_a_hundred_calls() {
    let cluster = Cluster::new();
    let nodes = two_nodes(&cluster);
    let before = connection(&nodes);
    let clients = nodes.each_ref().map(Node::client);
    for call in 0..100 {
        let (client, peer) = (&clients[call % 2], &nodes[1 - call % 2].peer);
        match call % 4 {
            0 => drop(client.topology().unwrap()),
            1 => drop(client.check_peer(peer, None).unwrap()),
            2 => drop(client.probe_link(peer, 1 << 16, 1).unwrap()),
            _ => drop(client.peers().unwrap()),
        }
    }
    let address = &nodes[1].address;
    assert_eq!(clients[0].connect_peer(address, None).unwrap(), nodes[1].peer, "connected already");
    assert_eq!(connection(&nodes), before, "the ports are the same");
    for node in &nodes {
        assert_eq!(node.process.count("Connected to peer"), 1);
        assert_eq!(node.process.count("is gone"), 0);
    }
}

#[test]
fn exo_4_rapid_health_checks_all_pass_over_the_same_connection() {
    let cluster = Cluster::new();
    let nodes = two_nodes(&cluster);
    let before = connection(&nodes);
    let client = nodes[0].client();
    let mut times: Vec<_> = (0..50).map(|_| client.check_peer(&nodes[1].peer, None).unwrap()).collect();
    times.sort();
    eprintln!("health checks: median {:?}, worst {:?}", times[times.len() / 2], times.last().unwrap());
    assert_eq!(connection(&nodes), before);
}

#[test]
fn exo_6_topologies_collected_one_after_another_are_the_same() {
    let cluster = Cluster::new();
    let nodes = two_nodes(&cluster);
    let peers = |node: &Node| {
        node.client().topology().unwrap().nodes.into_iter().map(|node| node.peer).collect::<BTreeSet<_>>()
    };
    let first = (peers(&nodes[0]), pairs(&nodes[0]));
    for _ in 0..3 {
        for node in &nodes {
            let begin = std::time::Instant::now();
            assert_eq!((peers(node), pairs(node)), first);
            eprintln!("two collections of a topology took {:?}", begin.elapsed());
        }
    }
}

#[test]
fn exo_7_a_stopping_node_says_goodbye_at_once() {
    let cluster = Cluster::new();
    let nodes = two_nodes(&cluster);
    let [one, two] = &nodes;
    assert_eq!(two.terminate(), Some(0));
    let gone = one.process.line(&format!("Peer {} is gone (", two.peer));
    let stopping = two.process.line("Stopping");
    eprintln!("gone {:?} after it began to stop", gone.at.saturating_duration_since(stopping.at));
    assert!(!gone.text.contains("silent"), "it took leave: {}", gone.text);
    assert!(one.connections().is_empty());
    eventually("it has left the topology", || one.client().topology().unwrap().nodes.len() == 1);
}
