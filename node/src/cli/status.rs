//! `pangea status`: one node, as facts or JSON. It asks and shows.

use pangea_client::NodeStatus;

use super::args::QueryArgs;
use super::failure::Failure;
use super::table::{facts, seconds, three_digits};
use super::{print, print_json};
use pangea_units::ByteSize;

pub(super) async fn run(args: QueryArgs) -> Result<(), Failure> {
    let status = args.rpc.node().await?.status().await?;
    if args.json.json {
        return print_json(&status);
    }
    print(&show(&status))
}

fn show(status: &NodeStatus) -> String {
    let pool = match status.pool_key {
        true => "guarded by a pool key",
        false => "open: anyone on the network can join (see pangea node --pool-key)",
    };
    let lines = [
        ("name", status.name.clone()),
        ("peer", status.peer.clone()),
        ("version", format!("{}, up {}", status.version, seconds(status.uptime_s))),
        ("programs", status.rpc.clone()),
        ("pool", pool.to_owned()),
        ("peers", status.peers.to_string()),
        (
            "compute",
            format!(
                "{} thread{}, {}, {} GFLOP/s (f32)",
                status.threads,
                if status.threads == 1 { "" } else { "s" },
                status.isa,
                three_digits(status.gflops)
            ),
        ),
        (
            "memory",
            format!(
                "{} of {} for tensors in use",
                ByteSize(status.memory_used_bytes),
                ByteSize(status.memory_limit_bytes)
            ),
        ),
        (
            "jobs",
            format!(
                "{} running, {} done, {} failed or cancelled",
                status.jobs_running, status.jobs_done, status.jobs_failed
            ),
        ),
        ("served", format!("{} tasks for peers", status.tasks_served)),
        ("traffic", format!("{} sent, {} received", ByteSize(status.bytes_sent), ByteSize(status.bytes_received))),
    ];
    // Long addresses get lines of their own: they are what people copy.
    let mut text = facts(&lines);
    text.push_str("  listening\n");
    for address in &status.listening {
        text.push_str(&format!("    {address}\n"));
    }
    text
}
