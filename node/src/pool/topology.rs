//! Builds the graph of a pool from a view of it: nodes, and each connection once in each direction. A pure function.

use std::collections::BTreeSet;

use libp2p::PeerId;
use pangea_client::{Topology, TopologyLink, TopologyNode};
use pangea_control::net::TrafficRate;

use super::Advert;
use super::View;

/// The graph of `view`. A connection that only one end has reported yet appears in both directions. `own_rate`: what this node
/// exchanges with a peer now, which is newer than what adverts say, and known of both directions.
pub fn of(view: &View, own_rate: impl Fn(&PeerId) -> TrafficRate) -> Topology {
    // A lite client is no part of the pool.
    let nodes = view.everyone().filter(|advert| advert.works).map(|advert| node(advert, view)).collect();
    let mut pairs = BTreeSet::new();
    for from in view.everyone() {
        for link in from.links.iter().filter(|link| view.advert(&link.to).is_some()) {
            pairs.insert((from.peer, link.to));
            pairs.insert((link.to, from.peer));
        }
    }
    let link = |(from, to)| {
        let told = view.advert(&from)?.links.iter().find(|link| link.to == to);
        let link = view.link(&from, &to)?;
        Some(TopologyLink {
            from: from.to_string(),
            to: to.to_string(),
            rtt_ms: link.rtt.as_secs_f64() * 1e3,
            bytes_per_s: told.map_or(0.0, |told| told.bytes_per_s),
            sent_bytes_per_s: match (from == view.local, to == view.local) {
                (true, _) => own_rate(&to).sent_bytes_per_s,
                (_, true) => own_rate(&from).received_bytes_per_s,
                _ => told.map_or(0.0, |told| told.sent_bytes_per_s),
            },
            transport: link.transport.clone(),
            found_by: told.map_or("incoming", |told| &told.found_by).to_owned(),
        })
    };
    Topology { nodes, links: pairs.into_iter().filter_map(link).collect() }
}

fn node(advert: &Advert, view: &View) -> TopologyNode {
    let served = advert.models.iter().filter(|model| model.served && !view.is_dropped(&model.digest));
    TopologyNode {
        peer: advert.peer.to_string(),
        name: advert.name.clone(),
        master: view.master() == Some(advert.peer),
        models: served.map(|model| model.name.clone()).collect(),
        device: advert.device.clone(),
        memory_bytes: advert.memory_bytes,
        gflops: advert.f32_flops_per_s / 1e9,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::pool::goldens::advert_of;
    use crate::pool::{LinkAdvert, Term};

    fn link(to: PeerId, found_by: &str) -> LinkAdvert {
        LinkAdvert {
            to,
            rtt: Duration::from_micros(250),
            bytes_per_s: 1e9,
            sent_bytes_per_s: 0.0,
            transport: "tcp".to_owned(),
            found_by: found_by.to_owned(),
        }
    }

    #[test]
    fn every_connection_appears_in_both_directions_between_known_nodes() {
        let [one, two, gone] = [(); 3].map(|()| PeerId::random());
        let own = Advert { links: vec![link(two, "manual"), link(gone, "mdns")], ..advert_of(one) };
        let view = View {
            local: one,
            own: Arc::new(own),
            term: Some(Term { counter: 1, master: two }),
            nodes: BTreeMap::from([(two, Arc::new(Advert { links: vec![link(one, "incoming")], ..advert_of(two) }))]),
            connected: BTreeSet::from([two]),
        };
        let topology = of(&view, |_| TrafficRate::default());
        assert_eq!(topology.nodes.iter().map(|node| node.master).collect::<Vec<_>>(), [false, true]);
        let found: BTreeSet<_> = topology
            .links
            .iter()
            .map(|link| (link.from.clone(), link.to.clone(), link.rtt_ms, link.found_by.clone()))
            .map(|(from, to, rtt, found)| (from, to, (rtt * 1e3) as u64, found))
            .collect();
        let expected = BTreeSet::from([
            (one.to_string(), two.to_string(), 250, "manual".to_owned()),
            (two.to_string(), one.to_string(), 250, "incoming".to_owned()),
        ]);
        assert_eq!(found, expected);
    }

    #[test]
    fn own_links_show_what_this_node_counts_and_others_what_their_sender_says() {
        let [one, two, three] = [(); 3].map(|()| PeerId::random());
        let sends = |to, sent_bytes_per_s| LinkAdvert { sent_bytes_per_s, ..link(to, "mdns") };
        let advert = |peer, links| (peer, Arc::new(Advert { links, ..advert_of(peer) }));
        let (_, own) = advert(one, vec![sends(two, 1.0), sends(three, 2.0)]);
        let view = View {
            local: one,
            own,
            term: None,
            nodes: BTreeMap::from([
                advert(two, vec![sends(one, 3.0), sends(three, 4.0)]),
                advert(three, vec![sends(one, 5.0), sends(two, 0.0)]),
            ]),
            connected: BTreeSet::from([two, three]),
        };
        let counted = |peer: &PeerId| {
            let of_two = TrafficRate { sent_bytes_per_s: 10.0, received_bytes_per_s: 30.0 };
            if *peer == two { of_two } else { TrafficRate::default() }
        };
        let links = of(&view, counted).links;
        let sent = |from: PeerId, to: PeerId| {
            let link = links.iter().find(|link| link.from == from.to_string() && link.to == to.to_string());
            link.unwrap().sent_bytes_per_s
        };
        assert_eq!((sent(one, two), sent(two, one)), (10.0, 30.0), "counted here");
        assert_eq!((sent(one, three), sent(three, one)), (0.0, 0.0), "counted here, whatever the adverts say");
        assert_eq!((sent(two, three), sent(three, two)), (4.0, 0.0), "as each of them advertises");
    }
}
