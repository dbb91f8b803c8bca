//! `pangea topology`: the pool as a node sees it: a drawing of its nodes, links and chains, or JSON.

use pangea_client::{Client, ModelPlan, Topology, TopologyLink, TopologyNode};
use pangea_units::{ByteSize, LayerRange};

use super::args::QueryArgs;
use super::failure::Failure;
use super::node_names::NodeNames;
use super::table::{COLUMNS, padded, seconds, shortened, three_digits, width};
use super::{print, print_json};

/// Characters of a node's name.
const NAME_CHARS: usize = 12;

/// Characters of the description of a link beside a box: all that is known of it.
const BOX_LINK_CHARS: usize = 33;

/// Characters of the description of a link where each node has one line: without how it was found.
const LINE_LINK_CHARS: usize = 25;

/// Columns that a line of the tree is shifted by for each node between it and the answering one.
const STEP: usize = 3;

/// Nodes that are drawn as boxes; of more, each is a line, so that the pool fits a screen.
const BOXES: usize = 4;

/// Links between peers that are listed; the drawing itself has one link to each node.
const OTHER_LINKS: usize = 12;

/// Directions of links whose traffic is listed.
const BUSY_LINKS: usize = 12;

/// Bytes per second from which a link is busy: several times what pings and adverts take.
const BUSY_BYTES_PER_S: f64 = 50_000.0;

pub(super) async fn run(args: QueryArgs) -> Result<(), Failure> {
    let client = args.rpc.node().await?;
    let topology = client.topology().await?;
    if args.json.json {
        return print_json(&topology);
    }
    let models = served(&topology);
    let plans = plans(&client, &models).await;
    print(&show(&topology, &models, &plans))
}

/// Names of the models that the nodes serve.
pub(super) fn served(topology: &Topology) -> Vec<String> {
    let mut models: Vec<String> = topology.nodes.iter().flat_map(|node| node.models.iter().cloned()).collect();
    models.sort();
    models.dedup();
    models
}

/// Placements of `models`; those of which the node says nothing are left out.
pub(super) async fn plans(client: &Client, models: &[String]) -> Vec<ModelPlan> {
    let mut plans = Vec::new();
    for model in models {
        plans.extend(client.plan_model(model).await.ok());
    }
    plans
}

fn show(topology: &Topology, models: &[String], plans: &[ModelPlan]) -> String {
    let graph = Graph::new(topology);
    let mut text = if graph.fits_boxes() { graph.boxes() } else { graph.lines() };
    text.push_str(&graph.unlinked());
    text.push_str(&graph.other_links());
    text.push_str(&graph.traffic());
    for model in models {
        text.push_str(&graph.model(model, plans.iter().find(|plan| plan.model == *model)));
    }
    text
}

/// A node in the tree of the shortest ways from the answering node.
#[derive(Clone, Copy)]
struct Place {
    /// Index of the node that this one is drawn under; `None` for the answering node.
    parent: Option<usize>,
    /// Links to the answering node.
    depth: usize,
}

/// The nodes of a pool, and a tree that reaches each of them.
struct Graph<'a> {
    topology: &'a Topology,
    names: NodeNames,
    /// By index of the node; `None` where no known link leads to it.
    places: Vec<Option<Place>>,
}

impl<'a> Graph<'a> {
    fn new(topology: &'a Topology) -> Graph<'a> {
        let named = topology.nodes.iter().map(|node| (node.peer.as_str(), node.name.as_str()));
        let mut graph = Graph { topology, names: NodeNames::new(named, NAME_CHARS), places: Vec::new() };
        graph.places = graph.tree();
        graph
    }

    /// Breadth first from the first node, which is the one that answered.
    fn tree(&self) -> Vec<Option<Place>> {
        let mut places = vec![None; self.topology.nodes.len()];
        if let Some(first) = places.first_mut() {
            *first = Some(Place { parent: None, depth: 0 });
        }
        let mut reached: Vec<usize> = (0..places.len().min(1)).collect();
        let mut next = 0;
        while let Some(&parent) = reached.get(next) {
            next += 1;
            let depth = places[parent].map_or(0, |place| place.depth) + 1;
            for (child, place) in places.iter_mut().enumerate() {
                if place.is_none() && self.link(parent, child).is_some() {
                    *place = Some(Place { parent: Some(parent), depth });
                    reached.push(child);
                }
            }
        }
        places
    }

    fn node(&self, index: usize) -> &'a TopologyNode {
        &self.topology.nodes[index]
    }

    fn name(&self, index: usize) -> String {
        self.names.label(&self.node(index).peer)
    }

    /// What is known of the link between two nodes: as measured from the first where it says something, else from the other.
    fn link(&self, from: usize, to: usize) -> Option<TopologyLink> {
        let (from, to) = (&self.node(from).peer, &self.node(to).peer);
        let way =
            |from: &str, to: &str| self.topology.links.iter().find(move |link| link.from == from && link.to == to);
        match (way(from, to), way(to, from)) {
            (Some(there), Some(back)) => {
                let or = |there: f64, back: f64| if there > 0.0 { there } else { back };
                let rtt_ms = or(there.rtt_ms, back.rtt_ms);
                Some(TopologyLink { rtt_ms, bytes_per_s: or(there.bytes_per_s, back.bytes_per_s), ..there.clone() })
            }
            (there, back) => there.or(back).cloned(),
        }
    }

    /// As much of a link's description as fits into `chars`, the most important first.
    fn described(&self, from: usize, to: usize, chars: usize) -> String {
        let Some(link) = self.link(from, to) else { return String::new() };
        let mut parts = Vec::new();
        parts.extend((link.rtt_ms > 0.0).then(|| seconds(link.rtt_ms / 1e3)));
        parts.extend((link.bytes_per_s > 0.0).then(|| format!("{}/s", ByteSize(link.bytes_per_s as u64))));
        parts.extend([link.transport, link.found_by]);
        fitted(&parts, chars)
    }

    /// Whether every node can be a box: few nodes, all linked to the answering one.
    fn fits_boxes(&self) -> bool {
        self.places.len() <= BOXES && self.places.iter().flatten().all(|place| place.depth <= 1)
    }

    /// Children of a node in the tree.
    fn children(&self, parent: usize) -> Vec<usize> {
        let is_child = |index: &usize| self.places[*index].is_some_and(|place| place.parent == Some(parent));
        (0..self.places.len()).filter(is_child).collect()
    }

    /// The answering node as a box, and below it a box beside the link to each of its peers.
    fn boxes(&self) -> String {
        let mut text = String::new();
        let children = if self.places.is_empty() { Vec::new() } else { self.children(0) };
        let links: Vec<String> = children.iter().map(|child| self.described(0, *child, BOX_LINK_CHARS)).collect();
        let link_chars = links.iter().map(|link| width(link)).max().unwrap_or(0);
        if !self.places.is_empty() {
            text.push_str(&drawn_box(&self.facts(0), "  ", "  ", !children.is_empty(), None));
        }
        for (position, (child, link)) in children.iter().zip(&links).enumerate() {
            let is_last = position + 1 == children.len();
            let edge =
                format!("    {}─ {link} {}", if is_last { '└' } else { '├' }, "─".repeat(link_chars + 1 - width(link)));
            let indent = width(&edge);
            let above = padded("    │", indent);
            let below = padded(if is_last { "" } else { "    │" }, indent);
            text.push_str(&drawn_box(&self.facts(*child), &above, &below, false, Some(&edge)));
        }
        text
    }

    /// What a box says of its node: parts of one line each.
    fn facts(&self, index: usize) -> Vec<Vec<String>> {
        let node = self.node(index);
        let mut title = vec![self.name(index)];
        title.extend((index == 0).then(|| "this node".to_owned()));
        title.extend(node.master.then(|| "MASTER".to_owned()));
        let speed = format!("{} GFLOP/s", three_digits(node.gflops));
        let mut lines = vec![title, vec![shortened(&node.device, 16), ByteSize(node.memory_bytes).to_string(), speed]];
        if !node.models.is_empty() {
            lines.push(vec![node.models.join(", ")]);
        }
        lines
    }

    /// One line for each node, in columns, the links as a tree on the left.
    fn lines(&self) -> String {
        let mut text =
            format!("{}  name          device       memory  GFLOP/s\n", " ".repeat(2 + STEP + LINE_LINK_CHARS + 3));
        self.line(0, "  ", "  ", &mut text);
        if self.topology.nodes.iter().any(|node| node.master) {
            text.push_str("\n  * is the master.\n");
        }
        text
    }

    /// The line of a node and those of the nodes below it. `edge` is drawn before its own, `trunk` before the others.
    fn line(&self, index: usize, edge: &str, trunk: &str, text: &mut String) {
        // All nodes begin at one column, whatever their depth.
        let room = (2 + STEP + LINE_LINK_CHARS).saturating_sub(width(edge));
        let parent = self.places[index].and_then(|place| place.parent);
        let link = match parent {
            Some(parent) => self.described(parent, index, room),
            None => "this node".to_owned(),
        };
        let node = self.node(index);
        text.push_str(&format!(
            "{edge}{link} {} {}{}  {}  {:>8}  {:>7}\n",
            "─".repeat(room.saturating_sub(width(&link)) + 1),
            if node.master { '*' } else { ' ' },
            padded(&self.name(index), NAME_CHARS),
            padded(&shortened(&node.device, 10), 10),
            ByteSize(node.memory_bytes).to_string(),
            three_digits(node.gflops),
        ));
        let children = self.children(index);
        for (position, child) in children.iter().enumerate() {
            let (corner, line) = if position + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            // Deeper nodes are drawn at the depth that leaves room for a round trip.
            let deep = self.places[*child].is_some_and(|place| place.depth > 5);
            let (edge, trunk) = match deep {
                true => (edge.to_owned(), trunk.to_owned()),
                false => (format!("{trunk}{corner}"), format!("{trunk}{line}")),
            };
            self.line(*child, &edge, &trunk, text);
        }
    }

    /// Nodes that no known link leads to.
    fn unlinked(&self) -> String {
        let without: Vec<String> = (0..self.places.len())
            .filter(|index| self.places[*index].is_none())
            .map(|index| self.name(index))
            .collect();
        match (without.is_empty(), self.topology.links.is_empty()) {
            (true, false) => String::new(),
            (true, true) => "\n  No links to other nodes.\n".to_owned(),
            (false, _) => broken("\n  No link is known to ", without.iter().map(String::as_str), ", ", 4),
        }
    }

    /// Links that the tree does not show.
    fn other_links(&self) -> String {
        let count = self.places.len();
        let parent = |index: usize| self.places[index].and_then(|place| place.parent);
        let pairs = (0..count).flat_map(|one| (one + 1..count).map(move |other| (one, other)));
        let others: Vec<(usize, usize)> = pairs
            .filter(|(one, other)| parent(*one) != Some(*other) && parent(*other) != Some(*one))
            .filter(|(one, other)| self.link(*one, *other).is_some())
            .collect();
        if others.is_empty() {
            return String::new();
        }
        let mut text = "\n  Other links:\n".to_owned();
        for (one, other) in others.iter().take(OTHER_LINKS) {
            let link = self.described(*one, *other, BOX_LINK_CHARS);
            let line = "─".repeat(BOX_LINK_CHARS + 1 - width(&link));
            text.push_str(&format!(
                "    {} ─ {link} {line} {}\n",
                padded(&self.name(*one), NAME_CHARS),
                self.name(*other)
            ));
        }
        if others.len() > OTHER_LINKS {
            let more = others.len() - OTHER_LINKS;
            text.push_str(&format!("    and {more} more: pangea topology --json\n"));
        }
        text
    }

    /// What passes over busy links now, in each direction, the busiest first.
    fn traffic(&self) -> String {
        let is_busy = |link: &&TopologyLink| link.sent_bytes_per_s >= BUSY_BYTES_PER_S;
        let mut busy: Vec<&TopologyLink> = self.topology.links.iter().filter(is_busy).collect();
        if busy.is_empty() {
            return String::new();
        }
        busy.sort_by(|one, other| other.sent_bytes_per_s.total_cmp(&one.sent_bytes_per_s));
        let mut text = "\n  Traffic now:\n".to_owned();
        for link in busy.iter().take(BUSY_LINKS) {
            text.push_str(&format!(
                "    {} ──▶ {}  {:>10}/s\n",
                padded(&self.names.label(&link.from), NAME_CHARS),
                padded(&self.names.label(&link.to), NAME_CHARS),
                ByteSize(link.sent_bytes_per_s as u64).to_string()
            ));
        }
        if busy.len() > BUSY_LINKS {
            let more = busy.len() - BUSY_LINKS;
            text.push_str(&format!("    and {more} more: pangea topology --json\n"));
        }
        text
    }

    /// A model: the path through the nodes that compute its layers, or the nodes that serve it.
    fn model(&self, model: &str, plan: Option<&ModelPlan>) -> String {
        let chain = plan.and_then(|plan| plan.current.as_ref().map(|chain| (plan, chain)));
        match chain {
            Some((plan, chain)) => {
                let state = if plan.ready { "ready" } else { "not ready yet" };
                let stages: Vec<String> = chain
                    .stages
                    .iter()
                    .map(|stage| format!("{} [{}]", self.names.label(&stage.peer), LayerRange::from(stage.layers)))
                    .collect();
                let title = format!("\n  {}: {} layers, {state}\n    ", shortened(model, 48), plan.layers);
                broken(&title, stages.iter().map(String::as_str), " ──▶ ", 4)
            }
            None => {
                let serving =
                    self.topology.nodes.iter().filter(|node| node.models.iter().any(|served| served == model));
                let names: Vec<String> = serving.map(|node| self.names.label(&node.peer)).collect();
                let title = format!("\n  {}: served by ", shortened(model, 48));
                broken(&title, names.iter().map(String::as_str), ", ", 4)
            }
        }
    }
}

/// Parts separated by commas, as many from the first on as fit into `chars`; the first is cut where it does not fit.
fn fitted(parts: &[String], chars: usize) -> String {
    let mut text = String::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        let longer = if text.is_empty() { shortened(part, chars) } else { format!("{text}, {part}") };
        if width(&longer) > chars {
            break;
        }
        text = longer;
    }
    text
}

/// `title` and `parts` with `separator` between them, with a new line, indented, before a part that does not fit.
fn broken<'a>(title: &str, parts: impl Iterator<Item = &'a str>, separator: &str, indent: usize) -> String {
    let mut text = title.to_owned();
    let mut column = width(title.rsplit('\n').next().unwrap_or_default());
    for (index, part) in parts.enumerate() {
        if index > 0 {
            // Another separator may follow the part on its line.
            let fits = column + width(separator) + width(part) + width(separator.trim_end()) <= COLUMNS;
            match fits {
                true => text.push_str(separator),
                false => text.push_str(&format!("{}\n{}", separator.trim_end(), " ".repeat(indent))),
            }
            column = if fits { column + width(separator) } else { indent };
        }
        text.push_str(part);
        column += width(part);
    }
    text.push('\n');
    text
}

/// A box of `lines`, each of parts. `above` is drawn left of the lines before the first, `edge` left of that one, `below` left of
/// the rest; `has_trunk` where a line goes down from the box.
fn drawn_box(lines: &[Vec<String>], above: &str, below: &str, has_trunk: bool, edge: Option<&str>) -> String {
    let room = COLUMNS.saturating_sub(width(above) + 4);
    let lines: Vec<String> = lines.iter().map(|parts| fitted(parts, room)).collect();
    let inner = lines.iter().map(|line| width(line)).max().unwrap_or(0);
    let rule = "─".repeat(inner + 2);
    let mut text = format!("{above}┌{rule}┐\n");
    for (index, line) in lines.iter().enumerate() {
        let (left, wall) = match (index, edge) {
            (0, Some(edge)) => (edge, '┤'),
            (0, None) => (above, '│'),
            _ => (below, '│'),
        };
        text.push_str(&format!("{left}{wall} {} │\n", padded(line, inner)));
    }
    let bottom = if has_trunk { rule.replacen("──", "─┬", 1) } else { rule };
    text + &format!("{below}└{bottom}┘\n")
}

#[cfg(test)]
mod tests {
    use pangea_client::{PlannedChain, PlannedStage};

    use super::*;

    fn peer_id(index: usize) -> String {
        format!("12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCV{index:04}")
    }

    fn node(index: usize) -> TopologyNode {
        TopologyNode {
            peer: peer_id(index),
            name: ["mac1", "mac2", "workstation-in-the-attic", "pi"]
                .get(index)
                .map_or(format!("node{index}"), |name| (*name).to_owned()),
            master: index == 1,
            models: if index < 2 { vec!["SmolLM2-135M-Instruct.Q4_1".to_owned()] } else { Vec::new() },
            device: ["cpu/avx512", "NVIDIA GeForce RTX 4090", "cpu/neon"][index % 3].to_owned(),
            memory_bytes: 137_438_953_472 >> (index % 7),
            gflops: 1234.5 / (index + 1) as f64,
        }
    }

    /// Both directions of a link, with figures of all lengths.
    fn links(one: usize, other: usize) -> [TopologyLink; 2] {
        let link = |from: usize, to: usize| TopologyLink {
            from: peer_id(from),
            to: peer_id(to),
            rtt_ms: [0.152, 3.1, 45.67, 1250.0, 0.0][(one + other) % 5],
            bytes_per_s: [2.3e9, 123.4e6, 999.0, 0.0][(one + other) % 4],
            sent_bytes_per_s: 0.0,
            transport: if one == 0 { "quic" } else { "tcp" }.to_owned(),
            found_by: if from < to { "manual" } else { "incoming" }.to_owned(),
        };
        [link(one, other), link(other, one)]
    }

    /// A pool of `count` nodes with links where `has_link`.
    fn pool(count: usize, has_link: impl Fn(usize, usize) -> bool) -> Topology {
        let pairs = (0..count).flat_map(|one| (one + 1..count).map(move |other| (one, other)));
        let links = pairs.filter(|(one, other)| has_link(*one, *other)).flat_map(|(one, other)| links(one, other));
        Topology { nodes: (0..count).map(node).collect(), links: links.collect() }
    }

    /// A model over the first `count` nodes.
    fn plan(count: usize) -> ModelPlan {
        let stage = |index: usize| PlannedStage {
            peer: peer_id(index),
            name: node(index).name,
            layers: [index as u32 * 10, index as u32 * 10 + 10],
        };
        ModelPlan {
            model: "SmolLM2-135M-Instruct.Q4_1".to_owned(),
            layers: count as u32 * 10,
            current: Some(PlannedChain { stages: (0..count).map(stage).collect(), ..PlannedChain::default() }),
            ready: count != 3,
            ..ModelPlan::default()
        }
    }

    fn drawn(topology: &Topology, plans: &[ModelPlan]) -> String {
        let text = show(topology, &served(topology), plans);
        assert!(text.lines().all(|line| width(line) <= COLUMNS), "{text}");
        for node in &topology.nodes {
            let label = shortened(&node.name, NAME_CHARS);
            assert!(text.contains(&label), "{label} is missing:\n{text}");
        }
        text
    }

    #[test]
    fn a_pool_is_drawn_in_80_columns_whatever_its_size() {
        insta::assert_snapshot!("topology_1", drawn(&pool(1, |_, _| true), &[]));
        insta::assert_snapshot!("topology_2", drawn(&pool(2, |_, _| true), &[plan(2)]));
        insta::assert_snapshot!("topology_3", drawn(&pool(3, |_, _| true), &[plan(3)]));
        insta::assert_snapshot!("topology_8", drawn(&pool(8, |_, _| true), &[plan(8)]));
        insta::assert_snapshot!("topology_20", drawn(&pool(20, |one, _| one == 0), &[]));
    }

    #[test]
    fn nodes_that_are_reached_through_others_are_drawn_below_them() {
        insta::assert_snapshot!("topology_line", drawn(&pool(9, |one, other| other == one + 1 && other != 8), &[]));
        insta::assert_snapshot!(
            "topology_tree",
            drawn(&pool(7, |one, other| other == 2 * one + 1 || other == 2 * one + 2), &[])
        );
    }

    #[test]
    fn what_passes_now_is_listed_for_each_direction_of_busy_links_the_busiest_first() {
        let mut topology = pool(3, |_, _| true);
        assert!(!drawn(&topology, &[]).contains("Traffic"), "nothing passes");
        for link in &mut topology.links {
            let between = |from: usize, to: usize| link.from == peer_id(from) && link.to == peer_id(to);
            link.sent_bytes_per_s = match (between(2, 1), between(1, 2), between(0, 1)) {
                (true, ..) => 9.5e9,
                (_, true, _) => BUSY_BYTES_PER_S,
                (.., true) => BUSY_BYTES_PER_S - 1.0,
                _ => 800.0,
            };
        }
        let text = drawn(&topology, &[]);
        let listed = text.split_once("  Traffic now:\n").unwrap().1;
        let listed: Vec<&str> = listed.lines().take_while(|line| !line.is_empty()).collect();
        assert_eq!(
            listed,
            ["    workstation… ──▶ mac2            8.85 GiB/s", "    mac2         ──▶ workstation…    48.8 KiB/s",]
        );
    }

    #[test]
    fn of_many_busy_links_as_many_are_listed_as_fit_a_screen() {
        let mut topology = pool(4, |_, _| true);
        topology.links.iter_mut().for_each(|link| link.sent_bytes_per_s = 1e6);
        assert!(!drawn(&topology, &[]).contains("more: pangea topology --json"));
        let mut topology = pool(5, |_, _| true);
        topology.links.iter_mut().for_each(|link| link.sent_bytes_per_s = 1e6);
        let text = drawn(&topology, &[]);
        assert!(text.contains("    and 8 more: pangea topology --json\n"), "{text}");
    }

    #[test]
    fn names_and_figures_are_never_cut_in_a_number() {
        let parts = ["152 µs".to_owned(), "2.30 GiB/s".to_owned(), "quic".to_owned()];
        assert_eq!(fitted(&parts, 24), "152 µs, 2.30 GiB/s, quic");
        assert_eq!(fitted(&parts, 23), "152 µs, 2.30 GiB/s");
        assert_eq!(fitted(&parts, 17), "152 µs");
        assert_eq!(fitted(&["a-long-name".to_owned()], 8), "a-long-…");
    }

    #[test]
    fn two_nodes_with_one_name_get_different_labels() {
        let mut topology = pool(2, |_, _| true);
        topology.nodes.iter_mut().for_each(|node| node.name = "vm".to_owned());
        let text = show(&topology, &[], &[]);
        assert!(text.contains("vm …0000") && text.contains("vm …0001"), "{text}");
    }
}
