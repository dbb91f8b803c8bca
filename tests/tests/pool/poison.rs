//! A stranger among nodes that poisons their gossip: it forges authors, claims absurd terms, replays the adverts of the dead.
//! The pool stays one pool of its own nodes, under a master of its own.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libp2p::identity::Keypair;
use pangea_compute::Digest;
use pangea_node::membership::PoolKey;
use pangea_node::pool::{Advert, ModelAdvert, ModelSize, Term};
use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::gossip::{Gossiper, RawMessage};
use pangea_tests::http;
use pangea_tests::process::eventually;

use crate::election::{ELECTED, elected, master};

/// Seconds since 1970 in milliseconds, later than any start of an honest node.
const LATER: u64 = 1 << 42;

/// What one message did to a pool once.
const POISON: u64 = 1 << 32;

fn peers(node: &Node) -> BTreeSet<String> {
    node.client().topology().unwrap().nodes.into_iter().map(|node| node.peer).collect()
}

fn peer_ids(nodes: &[&Node]) -> BTreeSet<String> {
    nodes.iter().map(|node| node.peer.clone()).collect()
}

/// The advert of a node that promises everything, listens at `address` and serves eight models.
fn phantom(author: &Keypair, number: u64, sequence: u64, address: &str) -> Advert {
    let peer = author.public().to_peer_id();
    let size = ModelSize { layers: 4, hidden_size: 64, context: 64, layer_bytes: 1 << 20, ..ModelSize::default() };
    let model = |n: u64| {
        let mut digest = [0; 32];
        digest[..16].copy_from_slice(&[number.to_le_bytes(), n.to_le_bytes()].concat());
        let name = format!("forged-{number}-{n}");
        let digest = Digest::from_bytes(digest);
        ModelAdvert { digest, name, served: true, whole: true, split: false, pinned: None, size }
    };
    Advert {
        incarnation: LATER,
        sequence,
        name: format!("phantom-{number}"),
        force_master: true,
        uptime: Duration::from_secs(1 << 20),
        memory_bytes: 1 << 40,
        f32_flops_per_s: 1e12,
        addresses: vec![address.parse().unwrap()],
        models: (0..8).map(model).collect(),
        // Each one claims to be the master.
        term: Some(Term { counter: 50 + number, master: peer }),
        counter: 50 + number,
        ..Advert::new(peer)
    }
}

/// Accepts connections, says nothing on them, and notes which local addresses they were made to.
fn black_hole() -> (u16, Arc<Mutex<BTreeSet<String>>>) {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let (port, reached) = (listener.local_addr().unwrap().port(), Arc::<Mutex<BTreeSet<String>>>::default());
    let notes = Arc::clone(&reached);
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming().flatten() {
            notes.lock().unwrap().insert(stream.local_addr().unwrap().ip().to_string());
            open.push(stream);
        }
    });
    (port, reached)
}

#[test]
fn nodes_that_one_connection_forges_do_not_exist() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["one", "two"]);
    let (one, two) = (&nodes[0], &nodes[1]);
    let before = master(&[one, two]).peer.clone();
    let (port, reached) = black_hole();
    let mut forger = Gossiper::connect(&one.address, None);
    let phantoms: Vec<Keypair> = (0..1100).map(|_| Keypair::generate_ed25519()).collect();
    for sequence in 1..=3 {
        for (author, number) in phantoms.iter().zip(0..) {
            // Eighty of them at hosts of the forger's choice.
            let host = if number < 80 { format!("127.7.0.{}", 1 + number) } else { "127.8.0.1".to_owned() };
            forger.publish(author, &phantom(author, number, sequence, &format!("/ip4/{host}/tcp/{port}")));
        }
    }
    let three = cluster.node("three").with("--peer", &one.address).start();
    three.process.line(&format!("Connected to peer {}", one.peer));
    // Honest addresses are dialled although the forged ones hang.
    two.process.line(&format!("Connected to peer {}", three.peer));
    let four = cluster.node("four").start();
    assert_eq!(one.client().connect_peer(&four.address, None).unwrap(), four.peer);
    let all = [one, two, &three, &four];
    for node in all {
        eventually("everyone sees the whole pool and nobody else", || peers(node) == peer_ids(&all));
        let models = http::get(&node.api, "/v1/models").json();
        assert_eq!(models["data"].as_array().unwrap().len(), 0, "{models}");
    }
    assert_eq!(master(&all).peer, before, "no phantom leads, and the master of before does");
    for node in all {
        assert_eq!(node.process.count("elected master"), 1, "nobody ever followed a phantom");
    }
    let dialled = reached.lock().unwrap().len();
    assert!(dialled < 60, "{dialled} of 80 hosts of the forger's choice were dialled");
}

#[test]
fn authors_without_a_certificate_do_not_exist_in_a_pool_with_a_key() {
    let cluster = Cluster::new();
    let file = cluster.pool_key("pool.key", 7);
    let node = |name: &str| cluster.node(name).pool_key(&file);
    let one = node("one").start();
    let two = node("two").with("--peer", &one.address).start();
    let before = master(&[&one, &two]).peer.clone();
    let three = node("three").with("--peer", &one.address).start();
    let all = [&one, &two, &three];
    for node in all {
        eventually("everyone sees the whole pool", || peers(node) == peer_ids(&all));
    }
    let mut member = Gossiper::connect(&one.address, Some(&PoolKey::load(&file).unwrap()));
    let phantoms: Vec<Keypair> = (0..40).map(|_| Keypair::generate_ed25519()).collect();
    for sequence in 1..=6 {
        // Signed by their authors and without a certificate.
        for (author, number) in phantoms.iter().zip(0..) {
            member.publish(author, &phantom(author, number, sequence, "/ip4/127.8.0.1/tcp/9"));
        }
        let adverts = member.heard().len();
        eventually("the node publishes", || member.heard().len() > adverts);
        for node in all {
            assert_eq!(peers(node), peer_ids(&all));
        }
    }
    assert_eq!(master(&all).peer, before);
}

#[test]
fn a_poisoned_counter_neither_moves_a_pool_nor_splits_it() {
    let cluster = Cluster::new();
    let start = |name: &str, peer: Option<&Node>| {
        let builder = cluster.node(name).with("--log-format", "json");
        let node = match peer {
            Some(peer) => builder.with("--peer", &peer.address).start(),
            None => builder.start(),
        };
        if let Some(peer) = peer {
            node.process.line(&format!("Connected to peer {}", peer.peer));
        }
        node
    };
    let one = start("one", None);
    one.process.line(ELECTED);
    let two = start("two", Some(&one));
    assert_eq!(master(&[&one, &two]).peer, one.peer);
    let mut poisoner = Gossiper::connect(&one.address, None);
    let (key, peer) = (poisoner.key.clone(), poisoner.peer());
    let poison = |sequence, counter, claims: bool| Advert {
        incarnation: LATER,
        sequence,
        force_master: true,
        uptime: Duration::from_secs(1 << 20),
        term: claims.then_some(Term { counter, master: peer }),
        counter,
        ..Advert::new(peer)
    };
    // A claim, a mere counter, and the highest that can be written.
    let lies = [(POISON + 1, true), (POISON + 2, false), ((1 << 62) - 1, true), ((1 << 62) - 1, false)];
    for (sequence, (counter, claims)) in (1..).zip(lies.into_iter().cycle().take(8)) {
        poisoner.publish(&key, &poison(sequence, counter, claims));
        // Until the next advert of the node is there, which this one may have changed.
        let adverts = poisoner.heard().len();
        eventually("the node publishes", || poisoner.heard().len() > adverts);
    }
    poisoner.publish(&key, &poison(99, POISON + 1, true));
    let three = start("three", Some(&one));
    assert_eq!(master(&[&one, &two, &three]).peer, one.peer);
    drop(poisoner);
    one.process.line(&format!("Peer {peer} is gone ("));
    one.kill9();
    let next = master(&[&two, &three]).peer.clone();
    assert_ne!(next, one.peer);
    // What is stored is what elections made of it.
    one.process.wait();
    let back = start("one", Some(&two));
    assert_eq!(master(&[&two, &three, &back]).peer, next);
    for node in [&one, &two, &three, &back] {
        let elections = node.process.lines().into_iter().filter(|line| line.text.contains("elected master"));
        for line in elections {
            let event: serde_json::Value = serde_json::from_str(&line.text).unwrap();
            assert!(event["term"].as_u64().unwrap() < 100, "{event}");
            assert_ne!(event["peer"], peer.to_string(), "{event}");
        }
    }
}

/// Waits while the node publishes a few times.
fn adverts_pass(gossiper: &Gossiper, node: &Node) {
    let count = || gossiper.heard().iter().filter(|said| said.author().unwrap().to_string() == node.peer).count();
    let before = count();
    eventually("adverts keep coming", || count() >= before + 4);
}

/// What `node` said, as its peer heard it, in order.
fn said_by(gossiper: &Gossiper, node: &Node) -> Vec<RawMessage> {
    let mut said = gossiper.heard();
    said.retain(|message| message.author().is_some_and(|author| author.to_string() == node.peer));
    said.sort_by_key(|message| message.advert().unwrap().sequence);
    said.dedup();
    said
}

#[test]
fn replayed_adverts_do_not_bring_a_dead_node_back() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["hub", "dead"]);
    let (hub, dead) = (&nodes[0], &nodes[1]);
    let hears = Gossiper::connect(&dead.address, None);
    eventually("it has said something more than once", || said_by(&hears, dead).len() >= 5);
    dead.kill9();
    hub.process.line(&format!("Peer {} is gone (", dead.peer));
    let recorded = said_by(&hears, dead);
    // One that knows it is dead, and one that never knew it.
    let fresh = cluster.node("fresh").start();
    for node in [hub, &fresh] {
        let mut replays = Gossiper::connect(&node.address, None);
        for message in &recorded {
            replays.forward(message);
            // Long enough for the node to say what it believes now.
            let adverts = replays.heard().len();
            eventually("the node publishes", || replays.heard().len() > adverts);
            assert!(!peers(node).contains(&dead.peer), "{} believes a replay", node.peer);
        }
        adverts_pass(&replays, node);
        assert_eq!(peers(node), peer_ids(&[node]));
    }
}

#[test]
fn a_replayed_advert_does_not_bring_a_dead_member_back() {
    let cluster = Cluster::new();
    let file = cluster.pool_key("pool.key", 7);
    let key = PoolKey::load(&file).unwrap();
    let dead = cluster.node("dead").pool_key(&file).start();
    let hears = Gossiper::connect(&dead.address, Some(&key));
    eventually("it has said something more than once", || said_by(&hears, &dead).len() >= 3);
    dead.kill9();
    let last = said_by(&hears, &dead).pop().unwrap();
    let fresh = cluster.node("fresh").pool_key(&file).start();
    let mut replays = Gossiper::connect(&fresh.address, Some(&key));
    replays.forward(&last);
    adverts_pass(&replays, &fresh);
    replays.forward(&last);
    adverts_pass(&replays, &fresh);
    assert_eq!(peers(&fresh), peer_ids(&[&fresh]));
    assert_eq!(master(&[&fresh]).process.count(&elected(&dead)), 0);
}
