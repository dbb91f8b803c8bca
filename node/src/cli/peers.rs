//! `pangea peers`: who a node knows, as a table or JSON. It asks and shows.

use pangea_client::PeerStatus;

use super::args::QueryArgs;
use super::failure::Failure;
use super::table::{Align, Table, seconds, short_peer, shortened, three_digits};
use super::{print, print_json};
use crate::config::ByteSize;

/// Characters of a name in the table: what leaves the rest of 80 columns.
const NAME_CHARS: usize = 14;

pub(super) async fn run(args: QueryArgs) -> Result<(), Failure> {
    let peers = args.rpc.node().await?.peers().await?;
    if args.json.json {
        return print_json(&peers);
    }
    print(&show(&peers))
}

fn show(peers: &[PeerStatus]) -> String {
    if peers.is_empty() {
        return "No peers yet. Start `pangea node` on another machine of this network, or connect with\n\
                `pangea node --peer MULTIADDR`.\n"
            .to_owned();
    }
    let mut table = Table::new([
        ("peer", Align::Left),
        ("name", Align::Left),
        ("state", Align::Left),
        ("trust", Align::Right),
        ("rtt", Align::Right),
        ("link", Align::Right),
        ("GFLOP/s", Align::Right),
    ]);
    for peer in peers {
        let known = |value: f64, text: String| if value > 0.0 { text } else { "-".to_owned() };
        table.row([
            short_peer(&peer.peer),
            shortened(&peer.name, NAME_CHARS),
            peer.state.clone(),
            format!("{:.2}", peer.trust),
            known(peer.rtt_ms, seconds(peer.rtt_ms / 1e3)),
            known(peer.bytes_per_s, format!("{}/s", ByteSize(peer.bytes_per_s as u64))),
            known(peer.gflops, three_digits(peer.gflops)),
        ]);
    }
    let mut text = table.render();
    for peer in peers.iter().filter(|peer| !peer.why.is_empty()) {
        let name = if peer.name.is_empty() { short_peer(&peer.peer) } else { peer.name.clone() };
        text.push_str(&format!("\n  {name} is {}: {}\n", peer.state, peer.why));
    }
    text
}
