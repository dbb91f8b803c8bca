//! What a running node says of itself and of its peers.

use pangea_client::{NodeStatus, PeerStatus, WayBack};

use super::Finding;

pub(super) fn pool(status: &NodeStatus) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !status.pool_key {
        findings.push(Finding::note(
            "pool",
            "the pool is open: anyone on the network can give this node work and read what it computes",
            "start the node without --open",
        ));
    }
    if status.master.is_empty() && status.uptime_s > 30.0 {
        let advice = "see `pangea peers`: nodes that cannot reach each other elect no master";
        findings.push(Finding::problem("pool", "no node places models: the pool has no master", advice));
    }
    findings
}

pub(super) fn models(status: &NodeStatus) -> Vec<Finding> {
    let failed = status.models.iter().filter(|model| matches!(&*model.state, "failed" | "unplaced" | "away"));
    let finding = |model: &pangea_client::ModelState| {
        let what = format!("{} is {}: {}", model.name, model.state, model.why);
        let advice = match &*model.state {
            "away" => "start a node that has the file; it is forgotten in ten minutes",
            "unplaced" => "add a node, or raise --max-memory of one",
            _ => "see the node's log; a damaged file is fetched again by pangea models pull",
        };
        Finding::problem("model", what, advice)
    };
    failed.map(finding).collect()
}

pub(super) fn devices(status: &NodeStatus) -> Vec<Finding> {
    let lost = status.devices.iter().filter(|device| !device.used && device.memory_limit_bytes > 0);
    let finding = |device: &pangea_client::DeviceStatus| {
        let what = format!("{} is not used any more: {}", device.name, device.why);
        let advice = "start the node again; if it happens again, its driver's log says why (dmesg, journalctl -k)";
        Finding::problem("GPU", what, advice)
    };
    lost.map(finding).collect()
}

pub(super) fn peers(peers: &[PeerStatus]) -> Vec<Finding> {
    let name = |peer: &PeerStatus| match (peer.name.is_empty(), peer.addresses.first()) {
        (false, _) => peer.name.clone(),
        (true, Some(address)) => address.clone(),
        (true, None) => peer.peer.clone(),
    };
    let connected = peers.iter().filter(|peer| peer.state == "connected").count();
    let mut findings = vec![Finding::good("peers", format!("{connected} connected"))];
    for peer in peers {
        let advice = match (&*peer.state, peer.quarantined) {
            (_, true) => {
                "one of its results was proven wrong: see `pangea peers`, and `pangea members revoke` if it is not to be trusted"
            }
            ("refused", _) => {
                "it is of another pool, or another node answers there: invite it (pangea invite), or correct the address"
            }
            ("unreachable", _) => {
                "is it on, and does its firewall let TCP and UDP port 7777 in? From there, try `pangea peers` too"
            }
            _ => continue,
        };
        let state = if peer.quarantined { "quarantined" } else { &*peer.state };
        let why = if peer.why.is_empty() { String::new() } else { format!(": {}", peer.why) };
        findings.push(Finding::problem("peers", format!("{} is {state}{why}", name(peer)), advice));
    }
    findings
}

/// Whether others can open connections to this node. Nothing is said where nobody could be asked.
pub(super) fn ways_back(ways: &[WayBack]) -> Vec<Finding> {
    let mut peers: Vec<&str> = ways.iter().map(|way| &*way.peer).collect();
    peers.dedup();
    let of_peer = |peer: &str| {
        let tried = || ways.iter().filter(|way| way.peer == peer);
        let Some(name) = tried().map(|way| way.name.clone()).next() else { return Vec::new() };
        if let Some(way) = tried().find(|way| way.reached) {
            return vec![Finding::good("way back", format!("{name} reaches this node at {}", way.address))];
        }
        let addresses: Vec<&str> = tried().map(|way| &*way.address).collect();
        let what =
            format!("{name} cannot open a connection to this node: nothing answers it at {}", addresses.join(", "));
        let advice = "let TCP and UDP port 7777, or that of --listen, in through this machine's firewall; behind a router, forward it, or \
                      let this node name the others (pangea node --peer): the connections that it opens serve both sides";
        vec![Finding::problem("way back", what, advice)]
    };
    peers.into_iter().flat_map(of_peer).collect()
}

pub(super) fn versions(own: &str, peers: &[PeerStatus]) -> Vec<Finding> {
    // A version is known of nodes that are there; one that speaks other protocols may never count as connected.
    let other = peers.iter().filter(|peer| !peer.version.is_empty() && !peer.version.ends_with(own));
    let finding = |peer: &PeerStatus| {
        let what = format!("{} runs {}, this node {own}", peer.name, peer.version);
        Finding::note("versions", what, "install the same version on all machines; others may refuse parts of the work")
    };
    other.map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Level, look_at_node};
    use super::*;
    use pangea_client::{DeviceStatus, ModelState};

    #[test]
    fn a_healthy_node_has_no_problems_and_a_sick_one_says_each_with_what_to_do() {
        let peer = |name: &str, state: &str, why: &str| PeerStatus {
            name: name.to_owned(),
            state: state.to_owned(),
            why: why.to_owned(),
            version: "pangea 0.1.0".to_owned(),
            ..PeerStatus::default()
        };
        let healthy = NodeStatus {
            version: "0.1.0".to_owned(),
            threads: 1,
            pool_key: true,
            master: "12D3KooW".to_owned(),
            uptime_s: 100.0,
            ..NodeStatus::default()
        };
        let way = |address: &str, reached| WayBack {
            peer: "12D3KooW".to_owned(),
            name: "kitchen".to_owned(),
            address: address.to_owned(),
            reached,
        };
        let ways = [way("/ip4/10.0.0.2/tcp/7777", false), way("/ip4/192.168.1.2/tcp/7777", true)];
        let found = look_at_node(&healthy, &[peer("kitchen", "connected", "")], &ways);
        assert!(found.iter().all(|finding| finding.level == Level::Good), "{found:?}");

        let sick = NodeStatus {
            pool_key: false,
            master: String::new(),
            models: [("big", "unplaced", "needs 9 GiB"), ("tiny", "away", "it was on desk")]
                .map(|(name, state, why)| ModelState {
                    name: name.to_owned(),
                    state: state.to_owned(),
                    why: why.to_owned(),
                })
                .to_vec(),
            devices: vec![DeviceStatus {
                name: "Card".to_owned(),
                why: "it was lost".to_owned(),
                memory_limit_bytes: 1,
                ..DeviceStatus::default()
            }],
            ..healthy
        };
        let old = PeerStatus { version: "pangea 0.0.9".to_owned(), ..peer("attic", "connected", "") };
        let liar = PeerStatus { quarantined: true, ..peer("liar", "gone", "it lied") };
        let others = [old, liar, peer("cellar", "refused", "another pool"), peer("shed", "unreachable", "timeout")];
        let found = look_at_node(&sick, &others, &ways[..1]);
        let said: Vec<&str> = found.iter().map(|finding| finding.what.as_str()).collect();
        for wanted in [
            "the pool is open",
            "no master",
            "big is unplaced: needs 9 GiB",
            "tiny is away: it was on desk",
            "Card is not used any more",
            "attic runs pangea 0.0.9",
            "liar is quarantined: it lied",
            "cellar is refused: another pool",
            "shed is unreachable",
            "kitchen cannot open a connection to this node: nothing answers it at /ip4/10.0.0.2/tcp/7777",
        ] {
            assert!(said.iter().any(|what| what.contains(wanted)), "{wanted}: {said:?}");
        }
        assert!(found.iter().filter(|finding| finding.level != Level::Good).all(|finding| !finding.advice.is_empty()));
    }
}
