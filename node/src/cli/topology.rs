//! `pangea topology`: the pool as a node sees it, as two tables or JSON.

use pangea_client::Topology;

use super::args::QueryArgs;
use super::failure::Failure;
use super::node_names::NodeNames;
use super::table::{Align, Table, seconds, short_peer, shortened, three_digits};
use super::{print, print_json};
use pangea_units::ByteSize;

/// Characters of a name, so that the tables fit into 80 columns.
const NAME_CHARS: usize = 12;

/// Characters of a node's list of models.
const MODELS_CHARS: usize = 13;

pub(super) async fn run(args: QueryArgs) -> Result<(), Failure> {
    let topology = args.rpc.node().await?.topology().await?;
    if args.json.json {
        return print_json(&topology);
    }
    print(&show(&topology))
}

fn show(topology: &Topology) -> String {
    let named = topology.nodes.iter().map(|node| (node.peer.as_str(), node.name.as_str()));
    let names = NodeNames::new(named, NAME_CHARS);
    let mut nodes = Table::new([
        ("peer", Align::Left),
        ("name", Align::Left),
        ("", Align::Left),
        ("device", Align::Left),
        ("memory", Align::Right),
        ("GFLOP/s", Align::Right),
        ("models", Align::Left),
    ]);
    for node in &topology.nodes {
        nodes.row([
            short_peer(&node.peer),
            names.label(&node.peer),
            if node.master { "master" } else { "" }.to_owned(),
            shortened(&node.device, 10),
            ByteSize(node.memory_bytes).to_string(),
            three_digits(node.gflops),
            shortened(&node.models.join(", "), MODELS_CHARS),
        ]);
    }
    let mut links = Table::new([
        ("from", Align::Left),
        ("to", Align::Left),
        ("rtt", Align::Right),
        ("link", Align::Right),
        ("over", Align::Left),
        ("found by", Align::Left),
    ]);
    for link in &topology.links {
        let known = |value: f64, text: String| if value > 0.0 { text } else { "-".to_owned() };
        links.row([
            names.label(&link.from),
            names.label(&link.to),
            known(link.rtt_ms, seconds(link.rtt_ms / 1e3)),
            known(link.bytes_per_s, format!("{}/s", ByteSize(link.bytes_per_s as u64))),
            link.transport.clone(),
            link.found_by.clone(),
        ]);
    }
    let mut text = nodes.render();
    if topology.links.is_empty() {
        text.push_str("\n  No connections.\n");
    } else {
        text.push('\n');
        text.push_str(&links.render());
    }
    text
}

#[cfg(test)]
mod tests {
    use pangea_client::{TopologyLink, TopologyNode};

    use super::*;

    #[test]
    fn the_tables_fit_into_80_columns() {
        let node = |last: char, master| TopologyNode {
            peer: format!("12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2X{last}"),
            name: "a-rather-long-name-of-a-node".to_owned(),
            master,
            models: vec!["SmolLM2-135M-Instruct".to_owned(), "gemma".to_owned()],
            device: "cpu/avx512".to_owned(),
            memory_bytes: 137_438_953_472,
            gflops: 1234.5,
        };
        let nodes = vec![node('a', true), node('b', false)];
        let link = |from: &TopologyNode, to: &TopologyNode| TopologyLink {
            from: from.peer.clone(),
            to: to.peer.clone(),
            rtt_ms: 0.152,
            bytes_per_s: 2.3e9,
            transport: "quic".to_owned(),
            found_by: "incoming".to_owned(),
        };
        let links = vec![link(&nodes[0], &nodes[1]), link(&nodes[1], &nodes[0])];
        let text = show(&Topology { nodes, links });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("master") && text.contains("152 µs"), "{text}");
        // Both nodes have the same name, so each gets a different label everywhere.
        for (label, times) in [("a-rat… …Ve2Xa", 0), ("a-rat… …e2Xa", 3), ("a-rat… …e2Xb", 3)] {
            assert_eq!(text.matches(label).count(), times, "{label}: {text}");
        }
    }
}
