//! Several nodes that put the samples of all of them to the vote: who takes part, who computes what, and what is left of a vote
//! when nodes fail, stall, lie or leave.

use std::collections::{BTreeMap, BTreeSet};

use pangea_tests::cluster::{Cluster, Node, NodeBuilder, output};
use pangea_tests::http::{get, post};
use pangea_tests::process::eventually;
use pangea_tests::test_model::SMOLLM2;
use serde_json::{Value, json};

use super::{CHAT, VOTE, ask, ballots, counted, question, serving, story, text_of, with};

const PEERS: &str = "/v1/federation/peers";

/// A vote that takes so many samples that even a node that is slow for a moment computes some of them.
pub(super) fn stories(max_tokens: usize) -> Value {
    with(story(), json!({"strategy": "best_of_n", "samples": 16, "max_tokens": max_tokens}))
}

/// Nodes that take part in votes with SmolLM2. All but the first are started with `--peer` and the address of each earlier one;
/// on return each is ready and lists all others as nodes that answer the model.
fn federation(
    cluster: &Cluster,
    names: &[&str],
    test: &str,
    change: impl Fn(&str, NodeBuilder) -> NodeBuilder,
) -> Option<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    for name in names {
        let with_peers = |node: NodeBuilder| {
            let node = change(name, node.flag("--federation"));
            nodes.iter().fold(node, |node, other: &Node| node.with("--peer", &other.address))
        };
        let node = serving(cluster, name, test, with_peers)?;
        nodes.push(node);
    }
    for node in &nodes {
        votes_with(node, names.len() - 1);
    }
    Some(nodes)
}

/// Waits until a node can ask exactly so many others for samples of SmolLM2.
pub(super) fn votes_with(node: &Node, others: usize) {
    eventually("the federation is there", || able(&get(&node.api, PEERS).json()).len() == others);
}

/// The names of the peers in a list that can be asked for samples of SmolLM2 and whose link is known.
pub(super) fn able(listed: &Value) -> BTreeSet<String> {
    let data = listed["data"].as_array().unwrap().iter();
    let can = |peer: &&Value| {
        let models = peer["models"].as_array().unwrap();
        peer["state"] == "connected" && !peer["link"].is_null() && models.iter().any(|model| model["id"] == SMOLLM2)
    };
    data.filter(can).map(|peer| peer["name"].as_str().unwrap().to_owned()).collect()
}

/// What a node lists of a peer.
fn listed(node: &Node, peer: &Node) -> Option<Value> {
    let all = get(&node.api, PEERS).json();
    all["data"].as_array().unwrap().iter().find(|listed| listed["peer"] == peer.peer.as_str()).cloned()
}

/// How many samples of a vote each peer computed.
pub(super) fn shares(answer: &Value) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for ballot in ballots(answer).iter().filter(|ballot| !ballot["text"].is_null()) {
        *shares.entry(ballot["peer"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    shares
}

/// Asserts that each ballot that arrived is the text that `node` gives alone for its seed.
pub(super) fn is_replayed_at(node: &Node, asked: &Value, answer: &Value) {
    for ballot in ballots(answer).iter().filter(|ballot| !ballot["text"].is_null()) {
        let mut alone = with(asked.clone(), json!({"seed": ballot["seed"], "strategy": "none"}));
        for field in ["samples", "deadline_s"] {
            alone.as_object_mut().unwrap().remove(field);
        }
        assert_eq!(ballot["text"].as_str(), Some(text_of(&ask(node, CHAT, &alone))), "{ballot}");
    }
}

#[test]
fn nodes_say_who_takes_part_and_notice_who_joins_and_leaves() {
    let cluster = Cluster::new();
    let name = "nodes_say_who_takes_part_and_notice_who_joins_and_leaves";
    let Some(one) = serving(&cluster, "one", name, |node| node.flag("--federation")) else { return };
    one.process.line("Federation: answers are put to the vote (weighted_vote) with no peers yet");
    // A list of peers that somebody wrote does what `--peer` does.
    let listed_by_hand = |node: NodeBuilder| {
        std::fs::create_dir_all(node.data_dir()).unwrap();
        let text = json!({"peers": [{"name": "one", "address": one.address}]}).to_string();
        std::fs::write(node.data_dir().join("peers.json"), text).unwrap();
        node.flag("--federation").with("--strategy", "best_of_n")
    };
    let two = serving(&cluster, "two", name, listed_by_hand).unwrap();
    let silent = cluster.node("silent").with("--peer", &one.address).start();
    silent.process.line(&format!("Connected to peer {}", one.peer));
    for (node, other, name) in [(&one, &two, "two"), (&two, &one, "one")] {
        node.process.line(&format!("Federation peer {name} ({}) joined: 1 peer", other.peer));
        votes_with(node, 1);
    }
    two.process.line("Federation: answers are put to the vote (best_of_n) with 1 peer: one");
    let said = get(&one.api, PEERS).json();
    assert_eq!((&said["federation"], &said["peers"]), (&json!(true), &json!(1)));
    let peer = listed(&one, &two).unwrap();
    assert_eq!((&peer["name"], &peer["state"]), (&json!("two"), &json!("connected")));
    assert_eq!(peer["version"], get(&one.api, "/v1/federation/health").json()["version"]);
    assert_eq!((&peer["models"][0]["id"], &peer["instances"]), (&json!(SMOLLM2), &peer["models"][0]["instances"]));
    assert!(peer["instances"].as_u64().unwrap() > 0 && peer["last_seen_s"].as_f64().unwrap() < 30.0, "{peer}");
    assert_eq!((&peer["hardware"]["threads"], &peer["link"]["transport"]), (&json!(1), &json!("tcp")));
    assert!(peer["hardware"]["memory_bytes"].as_u64().unwrap() > 0, "{peer}");
    assert_eq!(listed(&one, &silent), None, "it takes no part");
    let outside = get(&silent.api, PEERS).json();
    assert_eq!((&outside["federation"], outside["data"].as_array().unwrap().len()), (&json!(false), 0));
    let command = |words: &[&str]| output(&cluster.start(&[words, &["--rpc", &one.rpc]].concat()));
    let peers = command(&["peers", "--json"]).json();
    let voting = |of: &Node| {
        let peer = peers.as_array().unwrap().iter().find(|peer| peer["peer"] == of.peer.as_str()).unwrap();
        (peer["federation"].as_bool().unwrap(), peer["version"] == said["data"][0]["version"])
    };
    assert_eq!((voting(&two), voting(&silent)), ((true, true), (false, true)));
    assert!(command(&["peers"]).out.contains("in votes: two"));
    assert!(command(&["status"]).out.contains("with 1 other node"));
    assert_eq!(get(&one.api, "/api/pangea/status").json()["federation_peers"], 1);
    two.kill9();
    one.process.line(&format!("Federation peer two ({}) left: 0 peers", two.peer));
    let gone = listed(&one, &two).unwrap();
    assert_eq!((&gone["state"], &gone["link"]), (&json!("gone"), &Value::Null));
    assert_eq!(get(&one.api, PEERS).json()["peers"], 0);
}

#[test]
fn samples_come_from_every_node_and_each_is_the_same_text_at_any_other() {
    let cluster = Cluster::new();
    let name = "samples_come_from_every_node_and_each_is_the_same_text_at_any_other";
    let Some(nodes) = federation(&cluster, &["one", "two", "three"], name, |_, node| node) else { return };
    let asked = stories(12);
    let votes: Vec<Value> = nodes.iter().map(|node| ask(node, VOTE, &asked)).collect();
    for (vote, node) in votes.iter().zip(&nodes) {
        assert_eq!(
            (&vote["federation"]["peers"], &vote["federation"]["degraded"]),
            (&json!(2), &Value::Null),
            "{vote}"
        );
        let shares = shares(vote);
        assert!(nodes.iter().all(|node| shares.contains_key(&node.peer)), "{shares:?}");
        assert_eq!(vote["pangea"]["verdict"], "unchecked", "others had a part in it");
        let remote: usize = shares.iter().filter(|(peer, _)| **peer != node.peer).map(|(_, count)| count).sum();
        assert_eq!(vote["pangea"]["receipts"].as_array().unwrap().len(), remote, "one for each sample of another node");
        assert_eq!(text_of(vote), text_of(&votes[0]));
        let texts =
            |vote: &Value| -> Vec<Value> { ballots(vote).iter().map(|ballot| ballot["text"].clone()).collect() };
        assert_eq!(texts(vote), texts(&votes[0]), "whoever asks");
        node.process.line("Vote decided (all_samples) by 16 samples of this node and 2 peers");
    }
    is_replayed_at(&nodes[2], &asked, &votes[0]);
    // A free text is answered once, by the member that is expected to be the fastest: with the text of any of them.
    let alone = ask(&nodes[2], CHAT, &with(story(), json!({"strategy": "none"})));
    for node in &nodes {
        let answer = ask(node, VOTE, &story());
        assert_eq!((ballots(&answer).len(), &answer["federation"]["decided"]), (1, &json!("free_text")), "{answer}");
        assert!(nodes.iter().any(|node| shares(&answer).contains_key(&node.peer)), "{answer}");
        assert_eq!(text_of(&answer), text_of(&alone));
    }
    // A node without the model asks those that have it, and computes nothing itself.
    let entrance = nodes
        .iter()
        .fold(cluster.node("entrance").flag("--federation"), |node, other| node.with("--peer", &other.address));
    let entrance = entrance.start();
    votes_with(&entrance, 3);
    let vote = ask(&entrance, VOTE, &asked);
    assert_eq!((shares(&vote).len(), &vote["federation"]["peers"]), (3, &json!(3)), "{vote}");
    assert!(!shares(&vote).contains_key(&entrance.peer));
    assert_eq!((text_of(&vote), &vote["federation"]["degraded"]), (text_of(&votes[0]), &Value::Null));
    // Without any of them it says so.
    for node in &nodes {
        node.kill9();
        entrance.process.line(&format!("({}) left", node.peer));
    }
    let refused = post(&entrance.api, VOTE, &asked);
    assert_eq!(refused.status, 503);
}

#[test]
fn a_vote_goes_on_without_the_nodes_that_die_and_says_so() {
    let cluster = Cluster::new();
    let name = "a_vote_goes_on_without_the_nodes_that_die_and_says_so";
    let Some(nodes) = federation(&cluster, &["one", "two", "three"], name, |_, node| node) else { return };
    let [one, two, three] = &nodes[..] else { unreachable!() };
    // Samples that take longer than it takes to hear that they are computed.
    let asked = stories(256);
    let vote = std::thread::scope(|scope| {
        let (api, asked) = (one.api.as_str(), &asked);
        let voting = scope.spawn(move || post(api, VOTE, asked).json());
        // It computes the samples of this vote, and has not given them: it says so itself, the others hear of it later.
        eventually("the node computes samples", || {
            let metrics = get(&three.api, "/metrics").text();
            let sessions = metrics.lines().filter_map(|line| line.strip_prefix("pangea_stage_sessions "));
            sessions.flat_map(str::parse::<f64>).any(|sessions| sessions > 0.0)
        });
        three.kill9();
        voting.join().unwrap()
    });
    assert_eq!((counted(&vote).len(), &vote["federation"]["decided"]), (16, &json!("all_samples")), "{vote}");
    let failed: Vec<&Value> = ballots(&vote).iter().filter(|ballot| ballot["peer"] == three.peer.as_str()).collect();
    assert!(!failed.is_empty() && failed.iter().all(|ballot| ballot["text"].is_null() && ballot["counted"] == false));
    assert!(failed.iter().all(|ballot| ballot["why"].as_str().unwrap().starts_with("failed: ")), "{failed:?}");
    let degraded = vote["federation"]["degraded"].as_str().unwrap();
    assert!(degraded.contains(&three.peer) && !degraded.contains(&two.peer), "{degraded}");
    one.process.line("Vote decided (all_samples) by 16 samples without some of its nodes");
    is_replayed_at(one, &asked, &vote);
    // The next vote does not even ask it.
    votes_with(one, 1);
    let vote = ask(one, VOTE, &question("What is the capital of France?"));
    assert_eq!((&vote["federation"]["peers"], &vote["federation"]["degraded"]), (&json!(1), &Value::Null));
    two.kill9();
    one.process.line(&format!("({}) left: 0 peers", two.peer));
    let vote = ask(one, VOTE, &question("What is the capital of France?"));
    assert_eq!((text_of(&vote), &vote["federation"]["peers"]), ("Paris", &json!(0)));
    assert_eq!(vote["federation"]["degraded"], "no other node of the federation serves this model now");
    assert_eq!((shares(&vote).len(), vote["pangea"]["verdict"].as_str()), (1, Some("local")));
    // Who returns votes again.
    let again = |node: NodeBuilder| node.flag("--federation").with("--peer", &one.address);
    let two = serving(&cluster, "two", name, again).unwrap();
    votes_with(one, 1);
    let vote = ask(one, VOTE, &stories(8));
    assert!(shares(&vote).contains_key(&two.peer), "{vote}");
}

#[test]
fn the_samples_of_a_node_that_stalls_are_cut_off_at_the_deadline() {
    let cluster = Cluster::new();
    let name = "the_samples_of_a_node_that_stalls_are_cut_off_at_the_deadline";
    let Some(nodes) = federation(&cluster, &["one", "two"], name, |_, node| node) else { return };
    let [one, two] = &nodes[..] else { unreachable!() };
    let asked = with(stories(8), json!({"deadline_s": 1}));
    let warm = ask(one, VOTE, &with(asked.clone(), json!({"deadline_s": 60})));
    assert!(shares(&warm).contains_key(&two.peer), "{warm}");
    two.stop();
    let vote = ask(one, VOTE, &with(asked.clone(), json!({"seed": 99})));
    two.cont();
    assert_eq!(vote["federation"]["decided"], "cut_off", "{vote}");
    assert_eq!(shares(&vote).keys().collect::<Vec<_>>(), [&one.peer]);
    let late: Vec<&Value> = ballots(&vote).iter().filter(|ballot| ballot["peer"] == two.peer.as_str()).collect();
    assert!(!late.is_empty() && late.iter().all(|ballot| ballot["why"] == "late"), "{vote}");
    assert!(vote["federation"]["degraded"].as_str().unwrap().contains(&format!("{} was late", two.peer)), "{vote}");
    is_replayed_at(one, &asked, &vote);
}

#[test]
fn a_node_that_lies_is_convicted_and_its_ballots_do_not_count() {
    let cluster = Cluster::new();
    let name = "a_node_that_lies_is_convicted_and_its_ballots_do_not_count";
    let change = |name: &str, node: NodeBuilder| match name {
        "liar" => node.fault("corrupt-token"),
        _ => node.with("--audit", "1"),
    };
    let Some(nodes) = federation(&cluster, &["one", "two", "liar"], name, change) else { return };
    let [one, two, liar] = &nodes[..] else { unreachable!() };
    let asked = stories(40);
    let vote = ask(one, VOTE, &asked);
    let honest: BTreeSet<&str> = ballots(&vote)
        .iter()
        .filter(|ballot| ballot["counted"] == true)
        .map(|ballot| ballot["peer"].as_str().unwrap())
        .collect();
    assert!(!honest.contains(liar.peer.as_str()) && honest.len() == 2, "{vote}");
    assert_eq!((counted(&vote).len(), vote["pangea"]["verdict"].as_str()), (16, Some("audited")), "{vote}");
    let why: Vec<&str> = ballots(&vote)
        .iter()
        .filter(|ballot| ballot["peer"] == liar.peer.as_str())
        .map(|ballot| ballot["why"].as_str().unwrap())
        .collect();
    assert!(!why.is_empty() && why.iter().all(|why| why.starts_with("failed: ")), "{vote}");
    assert!(vote["federation"]["degraded"].as_str().unwrap().contains(&liar.peer), "{vote}");
    is_replayed_at(two, &asked, &vote);
    // A wrong token at which the answer happens to end breaks the protocol and proves nothing: the next vote draws other samples.
    let left = format!("({}) left", liar.peer);
    let mut seeds = 100..;
    eventually("a lie is proven", || {
        let other = with(stories(40), json!({"seed": seeds.next()}));
        one.process.count(&left) > 0 || ask(one, VOTE, &other)["federation"]["peers"] == 1
    });
    // Convicted here at once, and at the other node by the evidence.
    for node in [one, two] {
        node.process.line(&left);
        let vote = ask(node, VOTE, &asked);
        assert_eq!(
            (shares(&vote).contains_key(&liar.peer), &vote["federation"]["peers"]),
            (false, &json!(1)),
            "{vote}"
        );
    }
}
