//! Which nodes are admitted, which are refused, and what both sides log.

use pangea_client::ErrorKind;
use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::process::{TIMEOUT, eventually};

#[test]
fn two_nodes_connect_and_each_says_so() {
    let cluster = Cluster::new();
    let (one, other) = (cluster.node("one").start(), cluster.node("other").start());
    assert!(one.process.lines()[..].iter().any(|line| line.text.contains(&format!("Starting node {}", one.peer))));
    one.process.line(&format!("Listening on {}", one.address));
    one.connect(&other);
    for (node, peer) in [(&one, &other), (&other, &one)] {
        let status = node.status_of(peer);
        assert_eq!((status.state.as_str(), status.transport.as_str()), ("connected", "tcp"));
        assert!(!status.quarantined);
    }
    assert_eq!(one.status_of(&other).name, "other");
    assert_eq!(one.status_of(&other).found_by, "manual");
    assert_eq!(other.status_of(&one).found_by, "incoming");
}

#[test]
fn two_nodes_connect_over_quic() {
    let cluster = Cluster::new();
    let one = cluster.node("one").listen("/ip4/127.0.0.1/udp/0/quic-v1").start();
    let other = cluster.node("other").listen("/ip4/127.0.0.1/udp/0/quic-v1").start();
    one.connect(&other);
    assert_eq!(one.status_of(&other).transport, "quic");
}

#[test]
fn nodes_of_one_pool_connect() {
    let cluster = Cluster::new();
    let key = cluster.pool_key("pool.key", 7);
    let one = cluster.node("one").pool_key(&key).start();
    let other = cluster.node("other").pool_key(&key).start();
    one.connect(&other);
    assert!(one.status().pool_key);
}

#[test]
fn a_node_with_another_pool_key_or_none_is_refused_on_both_sides() {
    let cluster = Cluster::new();
    let one = cluster.node("one").pool_key(&cluster.pool_key("one.key", 1)).start();
    let wrong = cluster.node("wrong").pool_key(&cluster.pool_key("wrong.key", 2)).start();
    let keyless = cluster.node("keyless").start();
    keyless.process.line("anyone on the network can join");
    for (dialer, acceptor) in [(&wrong, &one), (&keyless, &one), (&one, &keyless)] {
        let error = dialer.client().connect_peer(&acceptor.address, Some(TIMEOUT)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
        acceptor.process.line(&format!("Refused peer {}", dialer.peer));
        for node in [dialer, acceptor] {
            assert_eq!(node.process.count("Connected to peer"), 0);
            assert_eq!(node.status().peers, 0);
        }
    }
}

#[test]
fn a_peer_written_into_peers_json_while_the_node_runs_is_connected() {
    let cluster = Cluster::new();
    let (one, other) = (cluster.node("one").start(), cluster.node("other").start());
    let file = one.data_dir.join("peers.json");
    std::fs::write(&file, "{\"peers\": [{\"name\": \"other\",\n \"address\": 7}]}").unwrap();
    one.process.line("line 2");
    std::fs::write(&file, format!("{{\"peers\": [{{\"name\": \"other\", \"address\": \"{}\"}}]}}", other.address))
        .unwrap();
    one.process.line(&format!("Connected to peer {}", other.peer));
    other.process.line(&format!("Connected to peer {}", one.peer));
}

#[test]
fn an_address_that_fails_takes_one_line_and_the_list_of_peers_says_why() {
    let cluster = Cluster::new();
    let other = cluster.node("other").pool_key(&cluster.pool_key("other.key", 2)).start();
    let open = cluster.node("open").start();
    // Nobody listens at the first, the second has no address, another node answers at the third.
    let nobody = "/ip4/127.0.0.1/tcp/1";
    let unknown = "/dns/nowhere.invalid/tcp/7777";
    let wrong = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", open.port(), other.peer);
    let one = cluster.node("one").pool_key(&cluster.pool_key("one.key", 1));
    let one =
        [nobody, unknown, &wrong, &other.address].iter().fold(one, |node, peer| node.with("--peer", peer)).start();
    for address in [nobody, unknown, &wrong] {
        one.process.line(&format!("Cannot connect to {address} ("));
    }
    one.process.line(&format!("({0} is {1}, not {2})", "the node there", open.peer, other.peer));
    let state = |address: &str| {
        let peers = one.client().peers().unwrap();
        peers.into_iter().find(|peer| peer.addresses.iter().any(|known| known == address))
    };
    for address in [nobody, unknown, &wrong] {
        let peer = state(address).unwrap();
        assert_eq!((peer.state.as_str(), peer.found_by.as_str()), ("unreachable", "manual"), "{peer:?}");
        assert!(!peer.why.is_empty(), "{peer:?}");
    }
    eventually("the stranger is listed as refused", || {
        state(&other.address).is_some_and(|peer| peer.state == "refused" && peer.why.contains("another pool"))
    });
    // Whatever goes on is counted, not logged.
    let refusals = |node: &Node, peer: &Node| {
        node.process.count(&format!("Refused by peer {}", peer.peer))
            + node.process.count(&format!("Refused peer {}", peer.peer))
    };
    for _ in 0..5 {
        assert!(one.client().connect_peer(&other.address, Some(TIMEOUT)).is_err());
    }
    eventually("an address was tried again", || state(nobody).unwrap().why.contains(" times)"));
    assert_eq!((refusals(&one, &other), refusals(&other, &one)), (1, 1));
    assert_eq!(one.process.count(&format!("Cannot connect to {nobody}")), 1);
    let shown = cluster.run(&["peers", "--rpc", &one.rpc]).out;
    assert!(shown.contains(&format!("{nobody} is unreachable: ")), "{shown}");
}

#[test]
fn an_identity_survives_a_restart_and_the_worker_is_used_again() {
    let cluster = Cluster::new();
    let first = cluster.node("worker").start();
    let address = format!("/ip4/127.0.0.1/tcp/{}", first.port());
    let one = cluster.node("one").with("--peer", &first.address).start();
    one.process.line(&format!("Connected to peer {}", first.peer));
    first.kill9();
    one.process.line(&format!("Peer {} is gone (", first.peer));
    let second = cluster.node("worker").listen(&address).start();
    assert_eq!(second.peer, first.peer);
    one.process.nth_line(&format!("Connected to peer {}", first.peer), 2);
    let (a, b) = pangea_tests::matrix::operands(pangea_compute::DType::I8, 200, 200, 200);
    let product = pangea_tests::matrix::multiply(&one.client(), &a, &b, &pangea_tests::matrix::remote()).unwrap();
    assert_eq!(product.report.mode, "remote");
    assert_eq!(product.report.workers[0].peer, first.peer);
}
