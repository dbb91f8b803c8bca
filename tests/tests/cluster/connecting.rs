//! Which nodes are admitted, which are refused, and what both sides log.

use pangea_client::ErrorKind;
use pangea_tests::cluster::Cluster;
use pangea_tests::process::TIMEOUT;

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
