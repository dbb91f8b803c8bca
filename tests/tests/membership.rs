//! Who belongs to a pool: a node's own pool, invitations by token and PIN, six digits that people compare, revocation. Real nodes,
//! driven by the commands that people type.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libp2p::Multiaddr;
use pangea_client::{ErrorKind, MatmulOptions};
use pangea_control::membership::strangers;
use pangea_node::membership::Membership;
use pangea_node::net::identity;
use pangea_node::net::joining::Doorstep;
use pangea_tests::cluster::{Cluster, Node, Output, output};
use pangea_tests::matrix;
use pangea_tests::namespaces::{Namespace, Namespaces};
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
    let members = list["members"].as_array().unwrap();
    assert_eq!(
        (members.len(), &members[1]["state"]),
        (2, &"pending".into()),
        "the refused one may be admitted: {list}"
    );
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
    are_connected(&one, &two);
    eventually("the member lists it as connected", || state(&cluster, &one, &two).as_deref() == Some("connected"));
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
    are_connected(&two, &four);
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

/// The six digits behind `before` in a line.
fn digits_behind(line: &str, before: &str) -> String {
    line.split_once(before).unwrap().1.chars().filter(char::is_ascii_digit).take(6).collect()
}

#[test]
fn a_stranger_is_pending_on_every_member_and_is_admitted_once_both_sides_have_compared_digits() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let two = cluster.node("two").own_pool().with("--join", token(&cluster, &one, &[])).start();
    are_connected(&one, &two);
    let stranger = || cluster.node("mac3").own_pool().with("--peer", &one.address).with("--peer", &two.address);
    let three = stranger().start();
    for member in [&one, &two] {
        member.process.line(&format!("Peer {} (mac3) of another pool is on the network", three.peer));
        member.process.line("run: pangea members accept mac3");
        let pending = listed(&cluster, member, &three.peer).unwrap();
        assert_eq!((&pending["state"], &pending["digits"]), (&"pending".into(), &"".into()), "{pending}");
        three.process.line(&format!("Peer {} ({}) of another pool", member.peer, name_of(&cluster, member)));
    }
    assert_eq!((one.status().peers, three.status().peers), (1, 0), "nobody was admitted yet");
    // The member without the pool's key admits it; the stranger is told and says so.
    let shown = at(&cluster, &two, &["members", "accept", "mac3"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let digits = digits_behind(&shown.out, "must show ");
    three.process.line("(two) offers to admit this node to its pool");
    let line = three.process.line("run: pangea join --digits ").text;
    assert_eq!(digits_behind(&line, "--digits "), digits);
    assert_eq!(listed(&cluster, &three, &two.peer).unwrap()["state"], "comparing");
    // Other digits on either side join nothing.
    let other = if digits.starts_with('1') { "222222" } else { "111111" };
    let refused = at(&cluster, &two, &["members", "accept", "mac3", other]);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert_eq!(three.status().peers, 0);
    let again = at(&cluster, &two, &["members", "accept", "mac3", "--json"]).json();
    let digits = again["digits"].as_str().unwrap().replace(' ', "");
    let waiting = cluster.start(&["join", "--digits", &digits, "--rpc", &three.rpc]);
    waiting.line("Waiting until two accepts this node");
    assert_eq!((three.status().peers, waiting.has_ended()), (0, false));
    assert_eq!(at(&cluster, &two, &["members", "accept", "mac3", &digits]).code, Some(0));
    assert_eq!(waiting.wait().code(), Some(0));
    are_connected(&two, &three);
    are_connected(&one, &three);
    for member in [&one, &two] {
        assert_eq!(state(&cluster, member, &three).as_deref(), Some("connected"));
    }
}

fn name_of(cluster: &Cluster, node: &Node) -> String {
    at(cluster, node, &["status", "--json"]).json()["name"].as_str().unwrap().to_owned()
}

#[test]
fn a_flood_of_strangers_fills_neither_the_list_nor_the_log() {
    const STRANGERS: usize = 60;
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", one.port()).parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for number in 0..STRANGERS {
            let stranger = Membership::open(&identity::ephemeral());
            let doorstep = Doorstep::connect(&stranger, &address, None).await.unwrap();
            assert_eq!(doorstep.introduce(&format!("flood-{number}"), 1).await.unwrap(), "one");
        }
    });
    let list = at(&cluster, &one, &["members", "list", "--json"]).json();
    let pending = list["members"].as_array().unwrap().iter().filter(|member| member["state"] == "pending").count();
    assert_eq!(pending, strangers::MAX_PER_HOST);
    assert_eq!(one.process.count("of another pool is on the network"), strangers::MAX_LOGGED);
    assert_eq!(one.process.count("More nodes of other pools"), 1);
    // One that is not there takes no offer, and the command says what to do.
    let refused = at(&cluster, &one, &["members", "accept", &format!("flood-{}", STRANGERS - 1)]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("run `pangea join` on it"), "{refused:?}");
}

#[test]
fn a_node_on_a_terminal_asks_there_whom_to_admit_and_which_pool_to_join() {
    let cluster = Cluster::new();
    let (one, mut at_one) = cluster.node("one").own_pool().start_on_terminal();
    let (two, mut at_two) = cluster.node("two").own_pool().with("--peer", &one.address).start_on_terminal();
    one.process.line("two (…");
    one.process.line("Admit it to this pool? [y/n]");
    at_one.type_line("perhaps");
    one.process.line("type y or n");
    // The node works while it waits for an answer.
    assert_eq!(one.status().peers, 0);
    at_one.type_line("y");
    let asked = two.process.line("Does the screen of one show ").text;
    let digits = digits_behind(&asked, "show ");
    let asked = one.process.line("Does the screen of two show ").text;
    assert_eq!(digits_behind(&asked, "show "), digits);
    at_two.type_line("y");
    assert_eq!((one.status().peers, two.status().peers), (0, 0), "both have to agree");
    at_one.type_line("y");
    are_connected(&one, &two);
    assert_eq!(state(&cluster, &one, &two).as_deref(), Some("connected"));
    // Whoever is declined stays out.
    let (three, _) = cluster.node("three").own_pool().with("--peer", &one.address).start_on_terminal();
    one.process.line("three (…");
    at_one.type_line("n");
    eventually("the stranger is not listed any more", || listed(&cluster, &one, &three.peer).is_none());
    assert_eq!(three.status().peers, 0);
}

#[test]
fn a_proof_of_a_lie_that_any_member_found_revokes_the_liars_certificate() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let join = |name: &str| cluster.node(name).own_pool().with("--join", token(&cluster, &one, &[]));
    let two = join("two").start();
    are_connected(&one, &two);
    let liar = join("liar").fault("corrupt-all").start();
    are_connected(&one, &liar);
    are_connected(&two, &liar);
    // The member that finds the lie has no pool key: it tells the holder, which checks the evidence itself.
    let (a, b) = matrix::operands(pangea_compute::DType::I8, 600, 256, 580);
    let options = MatmulOptions { redundancy: 2, ..matrix::remote() };
    eventually("the liar is caught", || {
        let product = matrix::multiply(&two.client(), &a, &b, &options).unwrap();
        matrix::assert_product(&a, &b, &product.c);
        two.status_of(&liar).quarantined
    });
    for member in [&one, &two] {
        member.process.line(&format!("Peer {} belongs to the pool no longer (revoked)", liar.peer));
        assert_eq!(state(&cluster, member, &liar).as_deref(), Some("revoked"));
    }
    // The same identity never comes back; a new one needs an invitation.
    let again = token(&cluster, &one, &[]);
    assert_eq!(liar.terminate(), Some(0));
    let back = cluster.node("liar").own_pool().with("--peer", &one.address).launch();
    back.line(&format!("Refused by peer {} (this node's certificate is revoked there", one.peer));
    let fresh = cluster.node("fresh").own_pool().with("--peer", &one.address).start();
    fresh.process.line(&format!("Refused by peer {} (it belongs to another pool", one.peer));
    assert_eq!((one.status().peers, fresh.status().peers), (1, 0));
    let invited = at(&cluster, &fresh, &["join", &again, "--json"]).json();
    assert_eq!(invited["member"], "one");
    are_connected(&one, &fresh);
}

#[test]
fn a_node_that_does_not_run_joins_for_its_next_start() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let token = token(&cluster, &one, &[]);
    let folder = |name: &str| cluster.node(name).data_dir().to_str().unwrap().to_owned();
    let join =
        |name: &str, arguments: &[&str]| cluster.run(&[&["join"], arguments, &["--data-dir", &folder(name)]].concat());
    // People compare digits with a node that runs.
    let refused = join("two", &[]);
    assert!(refused.code == Some(3) && refused.err.contains("start `pangea node`"), "{refused:?}");
    let refused = join("two", &["pangea1abc"]);
    assert!(refused.code == Some(2) && refused.err.contains("the token is damaged"), "{refused:?}");
    assert!(!cluster.node("two").data_dir().join("certificate").exists());
    let joined = join("two", &[&token]);
    assert_eq!(joined.code, Some(0), "{joined:?}");
    assert!(
        joined.out.contains("Joined the pool of one (") && joined.out.contains("from its next start"),
        "{joined:?}"
    );
    let again = join("two", &[&token, "--json"]).json();
    assert_eq!((&again["member"], &again["role"]), (&"one".into(), &"member".into()), "it has joined already");
    let two = cluster.node("two").own_pool().start();
    are_connected(&one, &two);
    let refused = join("three", &[&token]);
    assert!(refused.code == Some(1) && refused.err.contains("the invitation has been used"), "{refused:?}");
    let pin = at(&cluster, &one, &["invite", "--json"]).json()["pin"].as_str().unwrap().to_owned();
    assert_eq!(join("three", &[&pin, "--address", &one.address, "--json"]).json()["member"], "one");
    let three = cluster.node("three").own_pool().start();
    are_connected(&one, &three);
    // The data directory of a running node is left alone.
    let refused = cluster.run(&["join", &token, "--data-dir", &folder("three"), "--rpc", "127.0.0.1:1"]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
}

#[test]
fn who_names_a_data_directory_has_its_node_join_and_no_other() {
    const TEST: &str = "who_names_a_data_directory_has_its_node_join_and_no_other";
    let Some(network) = Namespaces::for_test(TEST, 1) else { return };
    let (host, cluster) = (&network.hosts()[0], Cluster::new());
    // The inviting node itself is at the address where commands look for one.
    let one = cluster.node("one").own_pool().in_namespace(host).rpc_addr("127.0.0.1:8080").start();
    let invitation = json_in(&cluster, host, &one, &["invite", "--token"]);
    let token = invitation["token"].as_str().unwrap();
    let folder = cluster.node("two").data_dir();
    let run = |arguments: &[&str]| output(&cluster.start_in(Some(host), arguments));
    let joined = run(&["join", token, "--data-dir", folder.to_str().unwrap()]);
    assert!(joined.code == Some(0) && joined.out.contains("from its next start"), "{joined:?}");
    assert!(folder.join("certificate").exists());
    let itself = run(&["join", token, "--rpc", &one.rpc]);
    assert!(
        itself.code == Some(0) && itself.out.contains("This node is in the pool ") && itself.out.contains(" already"),
        "{itself:?}"
    );
}

#[test]
fn an_invitation_of_a_client_makes_a_lite_client_and_never_a_member() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let token = token(&cluster, &one, &["--role", "client", "--uses", "2"]);
    // A node that computes for others cannot become one while it runs, and the invitation stays unused.
    let member = cluster.node("member").own_pool().start();
    let refused = at(&cluster, &member, &["join", &token]);
    assert!(refused.code == Some(2) && refused.err.contains("the invitation is for a client"), "{refused:?}");
    let serving = cluster.node("serving").own_pool().with("--join", &token).with("--model", "smollm2").launch();
    assert_eq!(serving.wait().code(), Some(2));
    assert!(serving.count("a client serves nothing") > 0, "{:?}", serving.lines());
    let client = || cluster.node("client").own_pool();
    let first = client().with("--join", &token).start();
    first.process.line("This node is a lite client");
    are_connected(&one, &first);
    let product = matrix::multiply(
        &first.client(),
        &matrix::operands(pangea_compute::DType::I8, 64, 64, 64).0,
        &matrix::operands(pangea_compute::DType::I8, 64, 64, 64).1,
        &matrix::remote(),
    );
    assert_eq!(product.unwrap().report.workers[0].peer, one.peer);
    assert_eq!(one.status().peers, 0, "it is nobody's peer");
    assert_eq!(first.terminate(), Some(0));
    // It stays one without the token, which its certificate replaces.
    let again = client().start();
    assert_eq!(again.peer, first.peer);
    again.process.line("This node is a lite client");
    one.process.nth_line(&format!("Connected to peer {}", again.peer), 2);
    assert_eq!(listed(&cluster, &one, &again.peer).unwrap()["role"], "client");
    // One that keeps no identity needs the invitation at each start.
    let guest = cluster.node("guest").own_pool().flag("--client").with("--join", &token).start();
    are_connected(&one, &guest);
    assert!(!guest.data_dir.join("certificate").exists() && one.status().peers == 0);
}

fn json_in(cluster: &Cluster, host: &Namespace, node: &Node, arguments: &[&str]) -> Value {
    output(&cluster.start_in(Some(host), &[arguments, &["--json", "--rpc", &node.rpc]].concat())).json()
}

#[test]
fn on_one_network_a_pin_and_six_digits_admit_nodes_that_know_no_address() {
    const TEST: &str = "on_one_network_a_pin_and_six_digits_admit_nodes_that_know_no_address";
    let Some(network) = Namespaces::for_test(TEST, 3) else { return };
    let cluster = Cluster::alone();
    let host = |index: usize| &network.hosts()[index];
    let start = |name: &str, index: usize| cluster.node(name).own_pool().in_namespace(host(index)).start();
    let (one, two, three) = (start("one", 0), start("two", 1), start("three", 2));
    // Nobody has typed anything, and each lists the others as pending.
    for (node, others) in [(&one, ["two", "three"]), (&two, ["one", "three"]), (&three, ["one", "two"])] {
        for other in others {
            node.process.line(&format!("({other}) of another pool is on the network"));
        }
    }
    let invitation = json_in(&cluster, host(0), &one, &["invite"]);
    let typed = Instant::now();
    let joined = json_in(&cluster, host(1), &two, &["join", invitation["pin"].as_str().unwrap()]);
    assert_eq!(joined["member"], "one");
    let product = json_in(&cluster, host(1), &two, &["matmul", "--size", "64", "--dtype", "i8", "--place", "remote"]);
    let took = typed.elapsed();
    println!("from the PIN, typed on another machine of the network, to a product of the member: {took:.2?}");
    assert_eq!(product["mode"], "remote");
    // Ten seconds are promised; a machine that is busy with other work may be late itself.
    assert!(took < Duration::from_secs(30), "{took:?}");
    // The new member, which has no key, admits the third after both sides have shown the same digits.
    let pending = json_in(&cluster, host(1), &two, &["members", "accept", "three"]);
    let digits = pending["digits"].as_str().unwrap().replace(' ', "");
    let shown = three.process.line("(two) offers to admit this node to its pool").text;
    assert_eq!(digits_behind(&shown, "--digits "), digits);
    let waiting = cluster.start_in(Some(host(2)), &["join", "--digits", &digits, "--rpc", &three.rpc]);
    waiting.line("Waiting until two accepts this node");
    json_in(&cluster, host(1), &two, &["members", "accept", "three", &digits]);
    assert_eq!(waiting.wait().code(), Some(0));
    are_connected(&two, &three);
    are_connected(&one, &three);
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
