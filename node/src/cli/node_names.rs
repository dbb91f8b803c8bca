//! Labels of nodes in tables: nodes with the same name get the end of their peer ids appended. Text only.

use std::collections::BTreeMap;

use super::table::{short_peer, shortened};

/// Characters of the peer id in a label of a node whose name is not unique.
const PEER_CHARS: usize = 4;

/// The nodes of one table and their labels.
pub(super) struct NodeNames {
    labels: BTreeMap<String, String>,
}

impl NodeNames {
    /// Labels of at most `limit` characters for `nodes`, pairs of peer id and name: the name; with the end of the peer id
    /// if another node's label would look the same; only that end if a node has no name.
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

    /// Label of a node; for a node outside of this table the end of its peer id.
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
    fn only_nodes_with_one_name_get_their_peer_ids_appended() {
        let names = NodeNames::new([(ONE, "vm"), (OTHER, "vm"), ("12D3KooWthird", "mac2"), ("12D3KooWnobody", "")], 12);
        assert_eq!(names.label(ONE), "vm …e2Xa");
        assert_eq!(names.label(OTHER), "vm …e2Yb");
        assert_eq!(names.label("12D3KooWthird"), "mac2");
        assert_eq!(names.label("12D3KooWnobody"), short_peer("12D3KooWnobody"));
        assert_eq!(names.label("12D3KooWunknown"), short_peer("12D3KooWunknown"));
    }

    #[test]
    fn names_equal_after_shortening_get_different_labels_within_the_limit() {
        let names = NodeNames::new([(ONE, "a-rather-long-name-1"), (OTHER, "a-rather-long-name-2")], 12);
        assert_eq!((names.label(ONE), names.label(OTHER)), ("a-rat… …e2Xa".to_owned(), "a-rat… …e2Yb".to_owned()));
        assert_eq!(names.label(ONE).chars().count(), 12);
    }

    #[test]
    fn a_node_listed_twice_has_one_label() {
        assert_eq!(NodeNames::new([(ONE, "vm"), (ONE, "vm")], 12).label(ONE), "vm");
    }
}
