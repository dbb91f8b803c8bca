//! Who belongs to a pool: a node's own pool, invitations by token and PIN, six digits that people compare, revocation. Real nodes,
//! driven by the commands that people type.
#![allow(clippy::unwrap_used)]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use pangea_client::ErrorKind;
use pangea_tests::cluster::{Cluster, Node, Output};
use pangea_tests::matrix;
use pangea_tests::process::{TIMEOUT, eventually};
use serde_json::Value;

/// Runs a command against `node`.
fn at(cluster: &Cluster, node: &Node, arguments: &[&str]) -> Output {
    cluster.run(&[arguments, &["--rpc", &node.rpc]].concat())
}

fn token(cluster: &Cluster, node: &Node, arguments: &[&str]) -> String {
    let invitation = at(cluster, node, &[&["invite", "--token", "--json"], arguments].concat()).json();
    assert!(invitation["expires"].as_u64().unwrap() > 0 && invitation.as_object().unwrap().len() == 2);
    invitation["token"].as_str().unwrap().to_owned()
}

/// What `node` lists of the peer `peer`.
fn listed(cluster: &Cluster, node: &Node, peer: &str) -> Option<Value> {
    let list = at(cluster, node, &["members", "list", "--json"]).json();
    list["members"].as_array().unwrap().iter().find(|member| member["peer"] == peer).cloned()
}

fn state(cluster: &Cluster, node: &Node, peer: &Node) -> Option<String> {
    listed(cluster, node, &peer.peer).map(|member| member["state"].as_str().unwrap().to_owned())
}

fn are_connected(one: &Node, other: &Node) {
    one.process.line(&format!("Connected to peer {}", other.peer));
    other.process.line(&format!("Connected to peer {}", one.peer));
}

#[test]
fn each_node_has_a_pool_of_its_own_from_its_first_start() {
    let cluster = Cluster::new();
    let [one, other] = ["one", "other"].map(|name| cluster.node(name).own_pool().start());
    let key = std::fs::read_to_string(one.data_dir.join("pool.key")).unwrap();
    assert_eq!(key.trim().len(), 64);
    assert!(one.status().pool_key);
    let error = other.client().connect_peer(&one.address, Some(TIMEOUT)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    one.process.line(&format!("Refused peer {} (it belongs to another pool)", other.peer));
    let list = at(&cluster, &one, &["members", "list", "--json"]).json();
    assert_eq!((&list["holds_key"], &list["open"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(list["members"].as_array().unwrap().len(), 1);
    assert_eq!(one.terminate(), Some(0));
    let again = cluster.node("one").own_pool().start();
    assert_eq!(std::fs::read_to_string(again.data_dir.join("pool.key")).unwrap(), key);
    assert_eq!(at(&cluster, &again, &["members", "list", "--json"]).json()["pool"], list["pool"]);
}

#[test]
fn a_token_admits_one_node_which_then_works_for_the_pool_and_finds_it_again() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let token = token(&cluster, &one, &[]);
    let key = std::fs::read_to_string(one.data_dir.join("pool.key")).unwrap();
    assert!(!token.contains(key.trim()), "no pool key inside");
    let two = cluster.node("two").own_pool().with("--join", &token).start();
    two.process.line("Joined the pool of one as a member");
    one.process.line(&format!("Admitted peer {} (two) as a member", two.peer));
    are_connected(&one, &two);
    let (a, b) = matrix::operands(pangea_compute::DType::I8, 200, 200, 200);
    let product = matrix::multiply(&one.client(), &a, &b, &matrix::remote()).unwrap();
    assert_eq!(product.report.workers[0].peer, two.peer);
    // The token is used up for everyone else.
    let third = cluster.node("third").own_pool().with("--join", &token).launch();
    assert_eq!(third.wait().code(), Some(1));
    assert!(third.count("the invitation has been used") > 0, "{:?}", third.lines());
    // The pool is found again without the token, and with it, whoever starts first.
    let address = format!("/ip4/127.0.0.1/tcp/{}", one.port());
    assert_eq!(one.terminate(), Some(0));
    two.process.line(&format!("Peer {} is gone (", one.peer));
    let one = cluster.node("one").own_pool().listen(&address).start();
    two.process.nth_line(&format!("Connected to peer {}", one.peer), 2);
    assert_eq!(two.terminate(), Some(0));
    let two = cluster.node("two").own_pool().start();
    are_connected(&one, &two);
    assert_eq!(two.terminate(), Some(0));
    let two = cluster.node("two").own_pool().with("--join", &token).start();
    one.process.nth_line(&format!("Connected to peer {}", two.peer), 3);
    assert_eq!(state(&cluster, &one, &two).as_deref(), Some("connected"));
}

#[test]
fn a_damaged_expired_or_foreign_token_opens_nothing() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let two = cluster.node("two").own_pool().start();
    let good = token(&cluster, &one, &[]);
    let damaged = format!("{}{}", &good[..good.len() - 1], if good.ends_with('a') { 'b' } else { 'a' });
    let refused = at(&cluster, &two, &["join", &damaged]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("the token is damaged"), "{refused:?}");
    let short = at(&cluster, &one, &["invite", "--json", "--expires", "1s"]).json();
    let expires = short["expires"].as_u64().unwrap();
    eventually("the token has expired", || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() >= expires);
    let refused = at(&cluster, &two, &["join", short["token"].as_str().unwrap()]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("the invitation has expired"), "{refused:?}");
    assert!(!two.data_dir.join("certificate").exists());
    assert_eq!(two.status().peers, 0);
    // The member forgets no invitation when it restarts, and the good one is still good.
    let address = format!("/ip4/127.0.0.1/tcp/{}", one.port());
    assert_eq!(one.terminate(), Some(0));
    let one = cluster.node("one").own_pool().listen(&address).start();
    let joined = at(&cluster, &two, &["join", &good, "--json"]).json();
    assert_eq!(
        (&joined["member"], &joined["role"], &joined["connected"]),
        (&"one".into(), &"member".into(), &1.into())
    );
    are_connected(&one, &two);
}

#[test]
fn a_member_admits_others_and_whoever_is_revoked_takes_them_along() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let two = cluster.node("two").own_pool().with("--join", token(&cluster, &one, &[])).start();
    are_connected(&one, &two);
    // The member has no pool key: it admits with its own certificate.
    let three = cluster.node("three").own_pool().with("--join", token(&cluster, &two, &[])).start();
    are_connected(&two, &three);
    are_connected(&one, &three);
    let four = cluster.node("four").own_pool().with("--join", token(&cluster, &one, &[])).start();
    are_connected(&one, &four);
    are_connected(&three, &four);
    assert_eq!(listed(&cluster, &one, &three.peer).unwrap()["admitted_by"], "two");
    let refused = at(&cluster, &three, &["members", "revoke", "two"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("holds the pool's key"), "{refused:?}");
    let revoked = at(&cluster, &one, &["members", "revoke", "two", "--json"]).json();
    assert_eq!(revoked["peer"], two.peer.as_str());
    for gone in [&two, &three] {
        for left in [&one, &four] {
            left.process.line(&format!("Peer {} is gone (its certificate is revoked)", gone.peer));
        }
    }
    for gone in [&two, &three] {
        let error = gone.client().connect_peer(&one.address, Some(TIMEOUT)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    }
    assert_eq!(state(&cluster, &four, &two).as_deref(), Some("revoked"));
    assert_eq!(one.status().peers, 1);
    // It stays so after a restart of the holder.
    assert_eq!(one.terminate(), Some(0));
    let one = cluster.node("one").own_pool().start();
    let error = two.client().connect_peer(&one.address, Some(TIMEOUT)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert_eq!(state(&cluster, &one, &two).as_deref(), Some("revoked"));
}

#[test]
fn a_member_that_was_away_learns_of_a_revocation_when_it_returns() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let start = |name: &str| cluster.node(name).own_pool().with("--join", token(&cluster, &one, &[])).start();
    let (two, three) = (start("two"), start("three"));
    are_connected(&one, &two);
    are_connected(&one, &three);
    assert_eq!(three.terminate(), Some(0));
    at(&cluster, &one, &["members", "revoke", "two", "--json"]).json();
    let three = cluster.node("three").own_pool().start();
    three.process.line(&format!("Peer {} belongs to the pool no longer (revoked)", two.peer));
    let error = two.client().connect_peer(&three.address, Some(TIMEOUT)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
}

#[test]
fn six_digits_typed_by_a_script_join_within_ten_seconds() {
    let cluster = Cluster::alone();
    let one = cluster.node("one").own_pool().start();
    let two = cluster.node("two").own_pool().start();
    let invitation = at(&cluster, &one, &["invite", "--json"]).json();
    let pin = invitation["pin"].as_str().unwrap();
    assert!(pin.len() == 6 && invitation["token"].is_string());
    let typed = Instant::now();
    let joined = at(&cluster, &two, &["join", pin, "--address", &one.address, "--json"]).json();
    assert_eq!(joined["connected"], 1);
    let (a, b) = matrix::operands(pangea_compute::DType::I8, 64, 64, 64);
    let product = matrix::multiply(&two.client(), &a, &b, &matrix::remote()).unwrap();
    let took = typed.elapsed();
    eprintln!("from the PIN to a product of the other node: {took:?}");
    assert_eq!(product.report.workers[0].peer, one.peer);
    assert!(took.as_secs() < 10, "{took:?}");
}

#[test]
fn a_pin_is_for_one_node_and_dies_after_three_wrong_tries() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let [two, three] = ["two", "three"].map(|name| cluster.node(name).own_pool().start());
    let join = |node: &Node, pin: &str| at(&cluster, node, &["join", pin, "--address", &one.address]);
    let open = || at(&cluster, &one, &["invite", "--json"]).json()["pin"].as_str().unwrap().to_owned();
    let pin = open();
    let wrong = if pin.starts_with('1') { "222222" } else { "111111" };
    for left in (0..3).rev() {
        let refused = join(&two, wrong);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains("the PIN is wrong"), "{refused:?}");
        one.process.line(&format!("tried a wrong PIN; {left} tries are left"));
    }
    let refused = join(&two, &pin);
    assert!(refused.code == Some(2) && refused.err.contains("no PIN is open there"), "{refused:?}");
    assert_eq!(two.status().peers, 0);
    let pin = open();
    assert_eq!(join(&two, &pin).code, Some(0));
    are_connected(&one, &two);
    let refused = join(&three, &pin);
    assert!(refused.code == Some(2) && refused.err.contains("no PIN is open there"), "{refused:?}");
}

#[test]
fn a_node_without_anything_is_admitted_once_people_have_compared_the_digits() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let two = cluster.node("two").own_pool().start();
    let ask = || at(&cluster, &two, &["join", "--address", &one.address, "--json"]).json()["asked"][0].clone();
    let asked = ask();
    let digits = asked["digits"].as_str().unwrap().to_owned();
    assert_eq!((&asked["peer"], &asked["name"]), (&one.peer.as_str().into(), &"one".into()));
    one.process.line(&format!("asks to join: if its screen shows {digits} too, run: pangea members accept two"));
    assert_eq!(ask()["digits"], digits.as_str(), "asked again, it shows the same digits");
    let pending = listed(&cluster, &one, &two.peer).unwrap();
    assert_eq!((&pending["state"], &pending["digits"]), (&"pending".into(), &digits.as_str().into()));
    // Other digits on either side join nothing.
    let other = if digits.starts_with('1') { "222222" } else { "111111" };
    let refused = at(&cluster, &two, &["join", "--address", &one.address, "--digits", other]);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    let refused = at(&cluster, &one, &["members", "accept", "two", other]);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert_eq!(listed(&cluster, &one, &two.peer), None, "it was turned away");
    assert_eq!((one.status().peers, two.status().peers), (0, 0));
    // The right ones join, and only once both people have said so.
    let digits = ask()["digits"].as_str().unwrap().to_owned();
    let waiting = cluster.start(&["join", "--address", &one.address, "--digits", &digits, "--rpc", &two.rpc]);
    waiting.line("Waiting until one accepts this node");
    assert_eq!((one.status().peers, waiting.has_ended()), (0, false));
    let accepted = at(&cluster, &one, &["members", "accept", "two", &digits, "--json"]).json();
    assert_eq!(accepted["peer"], two.peer.as_str());
    assert_eq!(waiting.wait().code(), Some(0));
    are_connected(&one, &two);
    assert_eq!(listed(&cluster, &one, &two.peer).unwrap()["state"], "connected");
}

#[test]
fn an_open_node_says_so_and_has_nobody_to_invite() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    one.process.line("OPEN POOL: anyone on the network can join");
    assert_eq!(at(&cluster, &one, &["members", "list", "--json"]).json()["open"], true);
    let refused = at(&cluster, &one, &["invite"]);
    assert!(refused.code == Some(2) && refused.err.contains("--open"), "{refused:?}");
    let two = cluster.node("two").own_pool().start();
    let refused = at(&cluster, &two, &["join", "--address", &one.address]);
    assert!(refused.code == Some(2) && refused.err.contains("nothing to join"), "{refused:?}");
}
