//! Many nodes on this machine, most of which serve nothing: how soon everyone knows of a newcomer and of a loss, and what a node costs
//! that has nothing to do. `scripts/setup.sh crowd` runs it.

use std::time::{Duration, Instant};

use pangea_client::blocking::Client;
use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::process::{TIMEOUT, eventually};
use pangea_tests::tiny_model::TinyModel;

/// Number of nodes.
const NODES: &str = "PANGEA_CROWD_NODES";

/// Time over which the cost of idle nodes is measured; passing time is what this is about.
const IDLE: Duration = Duration::from_secs(20);

/// Seconds after its start at which a node has made all its measurements of its own speed.
const MEASURED_S: f64 = 40.0;

/// Time in which everyone must know of a newcomer or a loss.
const CONVERGED: Duration = Duration::from_secs(3);

/// Share of one core that an idle node may use, on average over the nodes.
const IDLE_CPU: f64 = 0.01;

/// Resident memory of an idle node.
const IDLE_BYTES: u64 = 80 << 20;

/// Processor time that a process has used: user and system, in seconds.
fn cpu_s(node: &Node) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.process.pid())).unwrap();
    // The name, in brackets, may have spaces. Behind it, user and system time are fields 12 and 13, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}

/// The time from `since` until each of `clients` knows of `count` nodes.
fn all_know(clients: &[Client], count: usize, since: Instant) -> Duration {
    for client in clients {
        eventually("everyone knows of everyone", || client.topology().unwrap().nodes.len() == count);
    }
    since.elapsed()
}

#[test]
#[ignore = "it needs the machine to itself: scripts/setup.sh crowd"]
fn everyone_soon_knows_of_a_newcomer_and_of_a_loss_and_idle_nodes_cost_little() {
    let count: usize = std::env::var(NODES).ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let cluster = Cluster::alone();
    let model = cluster.folder().join("tiny.gguf");
    std::fs::write(&model, TinyModel::default().gguf()).unwrap();
    let first = cluster.node("node-0").with("--model", model.to_str().unwrap()).start();
    let node = |number: usize| cluster.node(&format!("node-{number}")).with("--peer", &first.address);
    let mut nodes: Vec<Node> = (1..count - 1).map(|number| node(number).start()).collect();
    let connect = |node: &Node| Client::connect(&node.rpc, TIMEOUT).unwrap();
    let mut clients: Vec<Client> = std::iter::once(&first).chain(&nodes).map(connect).collect();
    all_know(&clients, count - 1, Instant::now());
    // Every connection, too: the last ones are made while the measurement would run.
    for node in &nodes {
        eventually("everyone is connected to everyone", || node.status().peers as usize == count - 2);
    }
    let last = node(count - 1).start();
    let joined = all_know(&clients, count, Instant::now());
    clients.push(connect(&last));
    all_know(&clients, count, Instant::now());
    nodes.push(last);
    for node in &nodes {
        eventually("everyone is connected to everyone", || node.status().peers as usize == count - 1);
    }
    drop(clients);
    let youngest = nodes.last().unwrap();
    eventually("nobody measures its own speed any more", || youngest.status().uptime_s >= MEASURED_S);

    let everyone = || std::iter::once(&first).chain(&nodes);
    let (before, began) = (everyone().map(cpu_s).collect::<Vec<_>>(), Instant::now());
    std::thread::sleep(IDLE);
    let wall_s = began.elapsed().as_secs_f64();
    let shares: Vec<f64> = everyone().zip(before).map(|(node, before)| (cpu_s(node) - before) / wall_s).collect();
    let memory: Vec<u64> = everyone().map(|node| node.process.memory_bytes().unwrap()).collect();

    let clients: Vec<Client> = everyone().take(count - 1).map(connect).collect();
    let killed = Instant::now();
    nodes.last().unwrap().kill9();
    let lost = all_know(&clients, count - 1, killed);

    let mean = shares.iter().sum::<f64>() / count as f64;
    let most = shares.iter().copied().fold(0.0, f64::max);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("{count} nodes on this machine, each connected to all others:");
    println!("  everyone knows of a newcomer after  {joined:.2?}");
    println!("  everyone knows of a killed one after {lost:.2?}");
    println!("  an idle node uses {:.2} % of a core on average, {:.2} % at most", mean * 100.0, most * 100.0);
    let (least, greatest) = (memory.iter().min().unwrap(), memory.iter().max().unwrap());
    println!("  an idle node has {:.1} to {:.1} MiB resident", mib(*least), mib(*greatest));
    assert!(joined <= CONVERGED && lost <= CONVERGED, "{joined:?}, {lost:?}");
    // Without optimisation the nodes' own code takes several times as long.
    let allowed = if cfg!(debug_assertions) { 5.0 * IDLE_CPU } else { IDLE_CPU };
    assert!(mean <= allowed, "{shares:?}");
    assert!(*greatest <= IDLE_BYTES, "{memory:?}");
}
