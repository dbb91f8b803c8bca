//! Two nodes for any length of time: connections, ports and memory stay constant. `scripts/setup.sh soak` runs it.

use std::time::{Duration, Instant};

use pangea_tests::cluster::{Cluster, Node};

/// Duration in minutes.
const MINUTES: &str = "PANGEA_SOAK_MINUTES";

/// Interval between two checks; passing time is what this test is about.
const LOOK: Duration = Duration::from_secs(1);

/// Share of the time in which memory may still grow: caches fill, allocators settle.
const SETTLING: f64 = 0.2;

/// Allowed growth after that: a twentieth, which an allocator may keep.
const GROWTH: f64 = 1.05;
const SLACK_BYTES: u64 = 4 << 20;

/// Lines of the table.
const LINES: u32 = 15;

#[test]
#[ignore = "it takes half an hour: scripts/setup.sh soak"]
fn connections_ports_and_memory_stay_flat() {
    let minutes: f64 = std::env::var(MINUTES).ok().and_then(|text| text.parse().ok()).unwrap_or(30.0);
    let total = Duration::from_secs_f64(minutes * 60.0);
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["one", "two"]);
    let [one, two] = [&nodes[0], &nodes[1]];
    one.process.line("elected master");
    let connections = [one, two].map(Node::connections);
    println!("{:>8}  {:>6}  {:>11}  {:>10}  {:>10}  {:>10}", "time", "calls", "connections", "one", "two", "check");
    let (begin, mut settled, mut calls, mut shown) = (Instant::now(), None, 0_u64, 0);
    let mut checks = Vec::new();
    loop {
        let elapsed = begin.elapsed();
        assert_eq!(one.client().topology().unwrap().links.len(), 2);
        checks.push(one.client().check_peer(&two.peer, None).unwrap());
        drop(two.client().peers().unwrap());
        calls += 3;
        let now = [one, two].map(Node::connections);
        assert_eq!(now, connections, "the connections changed after {elapsed:?}");
        let memory = [one, two].map(|node| node.process.memory_bytes().unwrap());
        if settled.is_none() && elapsed >= total.mul_f64(SETTLING) {
            settled = Some(memory);
        }
        if elapsed >= total * shown / LINES {
            shown += 1;
            checks.sort();
            let [one, two] = memory.map(|bytes| format!("{:.1} MiB", bytes as f64 / 1_048_576.0));
            let time = format!("{:.0} s", elapsed.as_secs_f64());
            let check = format!("{:.0?}", checks[checks.len() / 2]);
            checks.clear();
            println!("{time:>8}  {calls:>6}  {:>11}  {one:>10}  {two:>10}  {check:>10}", now[0].len());
        }
        if elapsed >= total {
            let settled = settled.unwrap_or(memory);
            for (after, before) in memory.into_iter().zip(settled) {
                let most = (before as f64 * GROWTH) as u64 + SLACK_BYTES;
                assert!(after <= most, "memory grew from {before} to {after} bytes");
            }
            break;
        }
        std::thread::sleep(LOOK);
    }
    for node in [one, two] {
        assert_eq!((node.process.count("Connected to peer"), node.process.count("is gone")), (1, 0));
        assert_eq!(node.process.count("elected master"), 1);
    }
}
