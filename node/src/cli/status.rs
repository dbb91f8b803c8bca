//! `pangea status`: one node, as facts or JSON.

use pangea_client::{DeviceStatus, MemoryUse, ModelState, NodeStatus};

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

/// Memory in use by purpose, the largest first.
fn purposes(memory: &[MemoryUse]) -> String {
    let mut held: Vec<&MemoryUse> = memory.iter().filter(|held| held.bytes > 0).collect();
    held.sort_by_key(|held| std::cmp::Reverse(held.bytes));
    let parts: Vec<String> = held.iter().map(|held| format!("{} {}", held.purpose, ByteSize(held.bytes))).collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

/// The GPUs of the machine, and why one is not used.
fn devices(devices: &[DeviceStatus]) -> String {
    let parts: Vec<String> = devices
        .iter()
        .map(|device| {
            let what = format!("{} ({}, {})", device.name, device.kind, device.backend);
            match device.used {
                true => {
                    let (used, limit) = (ByteSize(device.memory_used_bytes), ByteSize(device.memory_limit_bytes));
                    format!("{what}: computes layers, {used} of {limit} in use")
                }
                false => format!("{what}: not used: {}", device.why),
            }
        })
        .collect();
    match parts.is_empty() {
        true => "layers are computed by the processor".to_owned(),
        false => parts.join("; "),
    }
}

/// Names and states of the models.
fn models(models: &[ModelState]) -> String {
    let parts: Vec<String> = models
        .iter()
        .map(|model| match model.why.as_str() {
            "" if model.state == "absent" => format!("{} (absent: fetched when it is first asked for)", model.name),
            "" => format!("{} ({})", model.name, model.state),
            why => format!("{} ({}: {why})", model.name, model.state),
        })
        .collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

/// Whether the node takes part in votes, and with whom.
fn votes(status: &NodeStatus) -> String {
    match (status.federation, status.federation_peers) {
        (false, _) => "off".to_owned(),
        (true, 0) => "this node alone".to_owned(),
        (true, 1) => "with 1 other node".to_owned(),
        (true, others) => format!("with {others} other nodes"),
    }
}

fn show(status: &NodeStatus) -> String {
    let pool = match status.pool_key {
        true => "closed: see pangea members list",
        false => "OPEN: anyone on the network can join (the node runs with --open)",
    };
    let lines = [
        ("name", status.name.clone()),
        ("peer", status.peer.clone()),
        ("version", format!("{}, up {}", status.version, seconds(status.uptime_s))),
        ("programs", status.rpc.clone()),
        ("HTTP API", if status.api.is_empty() { "off".to_owned() } else { format!("http://{}/v1", status.api) }),
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
                "{} of {} in use{}",
                ByteSize(status.memory_used_bytes),
                ByteSize(status.memory_limit_bytes),
                purposes(&status.memory)
            ),
        ),
        ("devices", devices(&status.devices)),
        ("models", models(&status.models)),
        ("votes", votes(status)),
        ("master", if status.master.is_empty() { "none yet".to_owned() } else { status.master.clone() }),
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
    // Long addresses get lines of their own, so that people can copy them.
    let mut text = facts(&lines);
    text.push_str("  listening\n");
    for address in &status.listening {
        text.push_str(&format!("    {address}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shown_by_purpose_and_models_by_state() {
        let held = |purpose: &str, bytes| MemoryUse { purpose: purpose.to_owned(), bytes };
        let model = |name: &str, state: &str, why: &str| ModelState {
            name: name.to_owned(),
            state: state.to_owned(),
            why: why.to_owned(),
        };
        let status = NodeStatus {
            memory_used_bytes: 150 << 20,
            memory_limit_bytes: 1 << 30,
            memory: vec![held("tensors", 0), held("sessions", 50 << 20), held("weights", 100 << 20)],
            api: "127.0.0.1:52415".to_owned(),
            models: vec![model("a", "ready", ""), model("b", "unplaced", "needs 512 MiB; 300 MiB free")],
            master: "12D3KooW".to_owned(),
            federation: true,
            federation_peers: 2,
            ..NodeStatus::default()
        };
        let text = show(&status);
        for line in [
            "150 MiB of 1.00 GiB in use (weights 100 MiB, sessions 50.0 MiB)",
            "a (ready), b (unplaced: needs 512 MiB; 300 MiB free)",
            "http://127.0.0.1:52415/v1",
            "12D3KooW",
            "with 2 other nodes",
        ] {
            assert!(text.contains(line), "{line} is missing:\n{text}");
        }
    }
}
