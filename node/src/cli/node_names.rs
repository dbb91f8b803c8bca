//! Names of nodes as tables show them: nodes of the same name are told apart by the end of their peer ids. Text only.

use std::collections::BTreeMap;

use super::table::{short_peer, shortened};

/// Characters of a peer id's end beside a name that several nodes have.
const PEER_CHARS: usize = 4;

/// The nodes of one table, with what each is called there.
pub(super) struct NodeNames {
    labels: BTreeMap<String, String>,
}

impl NodeNames {
    /// Labels of at most `limit` characters for `nodes`, pairs of peer id and name: the name; with the end of the peer id
    /// where another node looks the same; that end alone where a node has no name.
    pub(super) fn new<'a>(nodes: impl IntoIterator<Item = (&'a str, &'a str)>, limit: usize) -> NodeNames {
        let names: BTreeMap<&str, &str> = nodes.into_iter().collect();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for name in names.values() {
            *seen.entry(shortened(name, limit)).or_default() += 1;
        }
        let label = |(peer, name): (&&str, &&str)| {
            let short = shortened(name, limit);
            let label = match seen.get(&short) {
                _ if name.is_empty() => short_peer(peer),
                Some(2..) => told_apart(peer, name, limit),
                _ => short,
            };
            ((*peer).to_owned(), label)
        };
        NodeNames { labels: names.iter().map(label).collect() }
    }

    /// What a node is called here; a node that is not of this table by the end of its peer id.
    pub(super) fn label(&self, peer: &str) -> String {
        self.labels.get(peer).cloned().unwrap_or_else(|| short_peer(peer))
    }
}

fn told_apart(peer: &str, name: &str, limit: usize) -> String {
    let skipped = peer.chars().count().saturating_sub(PEER_CHARS);
    let end: String = peer.chars().skip(skipped).collect();
    format!("{} …{end}", shortened(name, limit.saturating_sub(PEER_CHARS + 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xa";
    const OTHER: &str = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Yb";

    #[test]
    fn nodes_of_one_name_are_told_apart_and_others_are_left_alone() {
        let names = NodeNames::new([(ONE, "vm"), (OTHER, "vm"), ("12D3KooWthird", "mac2"), ("12D3KooWnobody", "")], 12);
        assert_eq!(names.label(ONE), "vm …e2Xa");
        assert_eq!(names.label(OTHER), "vm …e2Yb");
        assert_eq!(names.label("12D3KooWthird"), "mac2");
        assert_eq!(names.label("12D3KooWnobody"), short_peer("12D3KooWnobody"));
        assert_eq!(names.label("12D3KooWunknown"), short_peer("12D3KooWunknown"));
    }

    #[test]
    fn names_that_look_the_same_once_shortened_are_told_apart_within_the_limit() {
        let names = NodeNames::new([(ONE, "a-rather-long-name-1"), (OTHER, "a-rather-long-name-2")], 12);
        assert_eq!((names.label(ONE), names.label(OTHER)), ("a-rat… …e2Xa".to_owned(), "a-rat… …e2Yb".to_owned()));
        assert_eq!(names.label(ONE).chars().count(), 12);
    }

    #[test]
    fn a_node_that_is_listed_twice_is_one_node() {
        assert_eq!(NodeNames::new([(ONE, "vm"), (ONE, "vm")], 12).label(ONE), "vm");
    }
}
