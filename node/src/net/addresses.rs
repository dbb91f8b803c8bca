//! Chooses which of this host's addresses other devices can most likely reach, for display. The choice is a pure function of
//! interface names and addresses; reading the interfaces is one call. Nothing is opened.

use std::net::IpAddr;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// Name prefixes of interfaces that lead to containers and virtual machines of this host, not to other devices.
const VIRTUAL: [&str; 14] = [
    "docker", "br-", "veth", "virbr", "cni", "podman", "lxc", "lxd", "flannel", "cali", "vmnet", "vboxnet", "kube",
    "nerdctl",
];

/// How likely another device can reach an address; smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    PrivateV4,
    PrivateV6,
    /// 100.64/10: an overlay network or a provider's shared addresses.
    SharedV4,
    PublicV4,
    PublicV6,
    LinkLocal,
    Container,
    Loopback,
}

fn reach(interface: &str, ip: &IpAddr) -> Reach {
    if ip.is_loopback() {
        return Reach::Loopback;
    }
    if is_container(interface) {
        return Reach::Container;
    }
    match ip {
        IpAddr::V4(ip) if ip.is_link_local() => Reach::LinkLocal,
        IpAddr::V4(ip) if ip.is_private() => Reach::PrivateV4,
        IpAddr::V4(ip) if ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64 => Reach::SharedV4,
        IpAddr::V4(_) => Reach::PublicV4,
        IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfe80 => Reach::LinkLocal,
        IpAddr::V6(ip) if ip.segments()[0] & 0xfe00 == 0xfc00 => Reach::PrivateV6,
        IpAddr::V6(_) => Reach::PublicV6,
    }
}

/// Whether an interface leads to containers or virtual machines of this host only.
pub fn is_container(interface: &str) -> bool {
    VIRTUAL.iter().any(|name| interface.starts_with(name))
}

/// Sorts `interfaces` (name, address) by how likely other devices reach them; equal ones keep their order.
pub fn by_reach(interfaces: &[(String, IpAddr)]) -> Vec<IpAddr> {
    let mut ranked: Vec<_> = interfaces.iter().map(|(name, ip)| (reach(name, ip), *ip)).collect();
    ranked.sort_by_key(|(reach, _)| *reach);
    ranked.into_iter().map(|(_, ip)| ip).collect()
}

/// The listen address that another device can most likely reach; TCP before QUIC.
/// `None` only if `listening` is empty.
pub fn reachable(listening: &[Multiaddr], interfaces: &[(String, IpAddr)]) -> Option<Multiaddr> {
    let order = by_reach(interfaces);
    listening
        .iter()
        .min_by_key(|address| {
            let ip = ip_of(address);
            let rank = ip.map_or(usize::MAX, |ip| {
                // An address of no known interface ranks after all known ones.
                order.iter().position(|known| *known == ip).unwrap_or(order.len() + usize::from(ip.is_loopback()))
            });
            let quic = address.iter().any(|part| matches!(part, Protocol::Udp(_)));
            (rank, quic)
        })
        .cloned()
}

/// The IP address at the start of `address`.
pub fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// Interfaces of this host that are up: name and address. Empty if the system does not list them.
pub fn interfaces() -> Vec<(String, IpAddr)> {
    match if_addrs::get_if_addrs() {
        Ok(interfaces) => interfaces.into_iter().map(|interface| (interface.name.clone(), interface.ip())).collect(),
        Err(error) => {
            tracing::debug!(event = "interfaces_unknown", %error);
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(pairs: &[(&str, &str)]) -> Vec<(String, IpAddr)> {
        pairs.iter().map(|(name, ip)| ((*name).to_owned(), ip.parse().unwrap())).collect()
    }

    fn best(pairs: &[(&str, &str)]) -> String {
        by_reach(&host(pairs))[0].to_string()
    }

    #[test]
    fn lan_addresses_rank_before_containers_and_loopback() {
        let laptop = [
            ("lo", "127.0.0.1"),
            ("docker0", "172.17.0.1"),
            ("br-1a2b3c", "172.18.0.1"),
            ("veth77", "10.1.1.1"),
            ("virbr0", "192.168.122.1"),
            ("cni0", "10.244.0.1"),
            ("podman0", "10.88.0.1"),
            ("wlp3s0", "fe80::1"),
            ("wlp3s0", "192.168.1.20"),
        ];
        assert_eq!(best(&laptop), "192.168.1.20");
    }

    #[test]
    fn private_ranks_before_shared_before_public_before_link_local() {
        let order = by_reach(&host(&[
            ("eth3", "169.254.3.4"),
            ("eth1", "2001:db8::1"),
            ("eth0", "203.0.113.9"),
            ("tailscale0", "100.100.1.1"),
            ("eth2", "fd00::1"),
            ("eth2", "10.0.0.5"),
        ]));
        let order: Vec<_> = order.iter().map(ToString::to_string).collect();
        assert_eq!(order, ["10.0.0.5", "fd00::1", "100.100.1.1", "203.0.113.9", "2001:db8::1", "169.254.3.4"]);
    }

    #[test]
    fn a_bridge_ranks_before_loopback_and_loopback_is_the_last_resort() {
        assert_eq!(best(&[("lo", "127.0.0.1"), ("docker0", "172.17.0.1")]), "172.17.0.1");
        assert_eq!(best(&[("lo", "::1"), ("lo", "127.0.0.1")]), "::1");
    }

    #[test]
    fn the_shown_address_is_reachable_and_over_tcp() {
        let interfaces = host(&[("lo", "127.0.0.1"), ("docker0", "172.17.0.1"), ("eth0", "192.168.1.20")]);
        let listening: Vec<Multiaddr> = [
            "/ip4/127.0.0.1/tcp/7777",
            "/ip4/172.17.0.1/tcp/7777",
            "/ip4/192.168.1.20/udp/7777/quic-v1",
            "/ip4/192.168.1.20/tcp/7777",
        ]
        .map(|text| text.parse().unwrap())
        .to_vec();
        assert_eq!(reachable(&listening, &interfaces).unwrap().to_string(), "/ip4/192.168.1.20/tcp/7777");
        assert_eq!(reachable(&listening[..1], &interfaces).unwrap().to_string(), "/ip4/127.0.0.1/tcp/7777");
        assert_eq!(reachable(&[], &interfaces), None);
        // An address of an interface that appeared later is still better than loopback.
        assert_eq!(
            reachable(&["/ip4/127.0.0.1/tcp/1".parse().unwrap(), "/ip4/10.9.9.9/tcp/1".parse().unwrap()], &[])
                .unwrap()
                .to_string(),
            "/ip4/10.9.9.9/tcp/1"
        );
    }

    #[test]
    fn this_host_has_interfaces() {
        assert!(interfaces().iter().any(|(_, ip)| ip.is_loopback()));
    }
}
