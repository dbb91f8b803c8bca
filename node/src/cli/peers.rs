//! `pangea peers`: the peers of a node, as a table or JSON.

use std::time::Duration;

use clap::Args;
use pangea_client::{Client, PeerStatus};
use serde::Serialize;

use super::args::{OutputArgs, QueryArgs};
use super::failure::Failure;
use super::node_names::NodeNames;
use super::progress::Progress;
use super::table::{Align, Table, seconds, short_peer, three_digits, trust};
use super::{print, print_json};
use pangea_units::ByteSize;

/// List the peers of a node
#[derive(Args, Clone, Debug)]
pub(super) struct PeersArgs {
    /// Which node, and the form of the result.
    #[command(flatten)]
    query: QueryArgs,

    /// Measure the round trip to every connected peer
    #[arg(long)]
    check: bool,

    /// Time limit for each peer to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, requires = "check")]
    timeout: f64,
}

/// Characters of a name, so that the table fits into 80 columns.
const NAME_CHARS: usize = 14;

/// Result of `--check` for one peer.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Check {
    /// Round trip time in microseconds.
    RoundTripUs(f64),
    /// Why the peer did not answer.
    Error(String),
}

/// A peer in JSON output.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    status: PeerStatus,
    /// Result of `--check`, for a connected peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<Check>,
}

pub(super) async fn run(args: PeersArgs, output: OutputArgs) -> Result<(), Failure> {
    let timeout = Duration::try_from_secs_f64(args.timeout)
        .ok()
        .filter(|timeout| !timeout.is_zero())
        .ok_or_else(|| Failure::usage(format!("--timeout must be positive, not {}", args.timeout)))?;
    let client = args.query.rpc.node().await?;
    let mut peers = Vec::new();
    let known = client.peers().await?;
    let progress = Progress::new(&output, args.query.json);
    progress.phase("asking peers", known.len() as u64);
    for status in known {
        let wanted = args.check && status.state == "connected";
        let check = if wanted { Some(check(&client, &status.peer, timeout).await) } else { None };
        peers.push(Shown { status, check });
        progress.done(peers.len() as u64);
    }
    drop(progress);
    if args.query.json.json {
        return print_json(&peers);
    }
    print(&show(&peers))
}

async fn check(client: &Client, peer: &str, timeout: Duration) -> Check {
    match client.check_peer(peer, Some(timeout)).await {
        Ok(round_trip) => Check::RoundTripUs(round_trip.as_secs_f64() * 1e6),
        Err(error) => Check::Error(error.to_string()),
    }
}

fn show(peers: &[Shown]) -> String {
    if peers.is_empty() {
        return "No peers yet. Start `pangea node` on another machine of this network, or\n\
                connect with `pangea node --peer ADDR`.\n"
            .to_owned();
    }
    let named = peers.iter().map(|peer| (peer.status.peer.as_str(), peer.status.name.as_str()));
    let names = NodeNames::new(named, NAME_CHARS);
    let mut table = Table::new([
        ("peer", Align::Left),
        ("name", Align::Left),
        ("state", Align::Left),
        ("trust", Align::Right),
        ("rtt", Align::Right),
        ("link", Align::Right),
        ("GFLOP/s", Align::Right),
    ]);
    for Shown { status: peer, .. } in peers {
        let known = |value: f64, text: String| if value > 0.0 { text } else { "-".to_owned() };
        table.row([
            if peer.peer.is_empty() { "-".to_owned() } else { short_peer(&peer.peer) },
            names.label(&peer.peer),
            peer.state.clone(),
            trust(peer.trust, peer.tasks_checked),
            known(peer.rtt_ms, seconds(peer.rtt_ms / 1e3)),
            known(peer.bytes_per_s, format!("{}/s", ByteSize(peer.bytes_per_s as u64))),
            known(peer.gflops, three_digits(peer.gflops)),
        ]);
    }
    let mut text = table.render();
    for Shown { status: peer, .. } in peers.iter().filter(|peer| !peer.status.why.is_empty()) {
        // Whoever does not answer has no name, but an address that a person may recognise.
        let name = match peer.addresses.first().filter(|_| peer.name.is_empty()) {
            Some(address) => address.clone(),
            None => names.label(&peer.peer),
        };
        text.push_str(&format!("\n  {name} is {}: {}\n", peer.state, peer.why));
    }
    let voting = peers.iter().filter(|peer| peer.status.federation);
    let voting: Vec<String> = voting.map(|peer| names.label(&peer.status.peer)).collect();
    if !voting.is_empty() {
        text.push_str(&format!("\n  in votes: {}\n", voting.join(", ")));
    }
    if peers.iter().any(|peer| peer.check.is_some()) {
        text.push('\n');
    }
    for Shown { status: peer, check } in peers {
        let name = names.label(&peer.peer);
        match check {
            Some(Check::RoundTripUs(us)) => text.push_str(&format!("  {name} answered in {}\n", seconds(us / 1e6))),
            Some(Check::Error(why)) => text.push_str(&format!("  {name} did not answer: {why}\n")),
            None => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_with_one_name_get_different_labels_everywhere() {
        let peer = |last: char| Shown {
            status: PeerStatus {
                peer: format!("12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2X{last}"),
                name: "vm".to_owned(),
                state: "connected".to_owned(),
                why: String::new(),
                federation: last == 'a',
                ..PeerStatus::default()
            },
            check: Some(Check::RoundTripUs(247.0)),
        };
        let text = show(&[peer('a'), peer('b')]);
        for label in ["vm …e2Xa", "vm …e2Xb"] {
            let lines = if label.ends_with('a') { 3 } else { 2 };
            assert_eq!(text.matches(label).count(), lines, "{text}");
        }
        assert!(text.contains("in votes: vm …e2Xa\n"), "{text}");
        assert!(text.contains("vm …e2Xa answered in 247 µs"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(show(&[peer('a')]).contains("vm answered in"));
        assert!(show(&[]).lines().all(|line| line.chars().count() <= 80));
    }
}
