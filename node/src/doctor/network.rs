//! The network: ports, announcements by mDNS, and which address others are told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::Finding;
use crate::config::{API_PORT, PORT};
use crate::data_dir::NodeFile;
use crate::net::addresses::{interfaces, ip_of, is_container};

const MDNS: SocketAddr = SocketAddr::new(IpAddr::V4(MDNS_GROUP), 5353);
const MDNS_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);

/// Time for an announcement to come back from this machine itself.
const MDNS_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn ports(node: Option<&NodeFile>) -> Vec<Finding> {
    if let Some(node) = node {
        let api = node.api.as_deref().unwrap_or("none");
        return vec![Finding::good("ports", format!("a node runs here: programs {}, HTTP {api}", node.rpc))];
    }
    let of_port = |(port, what, flag): (u16, &str, &str)| match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => Finding::good("ports", format!("{port}, for {what}, is free")),
        Err(error) => Finding::note(
            "ports",
            format!("{port}, for {what}, cannot be used: {error}"),
            format!(
                "a node takes a free port instead; see who has it with: ss -ltnp 'sport = :{port}', or choose with {flag}"
            ),
        ),
    };
    [(PORT, "other nodes", "--listen"), (API_PORT, "the HTTP API", "--api-port")].map(of_port).into()
}

pub(super) fn mdns() -> Finding {
    let others = interfaces().into_iter().filter(|(name, ip)| ip.is_ipv4() && !ip.is_loopback() && !is_container(name));
    let own: Vec<Ipv4Addr> =
        others.filter_map(|(_, ip)| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }).collect();
    if own.is_empty() {
        return mdns_fails("there is no network to announce in".to_owned());
    }
    match announce(&own) {
        Ok(true) => Finding::good("mDNS", "announcements pass: nodes of one network find each other"),
        Ok(false) => mdns_fails("an announcement did not come back within two seconds".to_owned()),
        Err(error) => mdns_fails(format!("announcements cannot be sent or heard: {error}")),
    }
}

fn mdns_fails(what: String) -> Finding {
    let advice = "allow UDP port 5353 in the firewall, or name the first node: pangea node --peer HOST:7777";
    Finding::problem("mDNS", what, advice)
}

/// Sends a query as nodes do, on each interface with one of these addresses, and waits until one comes back; whether it did.
fn announce(own: &[Ipv4Addr]) -> std::io::Result<bool> {
    let hearing = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    sockopt::set_socket_reuseaddr(&hearing, true)?;
    sockopt::set_socket_reuseport(&hearing, true)?;
    rustix::net::bind(&hearing, &SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), MDNS.port()))?;
    let hearing = UdpSocket::from(hearing);
    let query = query(rand::random());
    for ip in own {
        hearing.join_multicast_v4(&MDNS_GROUP, ip)?;
        // An interface's own address chooses it.
        let saying = UdpSocket::bind((*ip, 0))?;
        saying.set_multicast_loop_v4(true)?;
        saying.send_to(&query, MDNS)?;
    }
    let began = Instant::now();
    let mut heard = [0; 1500];
    while let Some(left) = MDNS_TIMEOUT.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        hearing.set_read_timeout(Some(left))?;
        match hearing.recv_from(&mut heard) {
            Ok((length, _)) if heard[..length] == query => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// A question for nodes (RFC 1035): one name, type PTR, class IN.
fn query(id: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in ["_p2p", "_udp", "local"] {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 12, 0, 1]);
    bytes
}

pub(super) fn addresses(node: Option<&NodeFile>) -> Finding {
    let told = node.and_then(|node| node.reachable.as_ref()).and_then(|address| address.parse::<Multiaddr>().ok());
    addresses_of(&interfaces(), told.as_ref().and_then(ip_of))
}

fn addresses_of(interfaces: &[(String, IpAddr)], told: Option<IpAddr>) -> Finding {
    let advice = "connect this machine to the network of the others, or start the node with --listen and an address that they reach";
    match told {
        Some(ip) if ip.is_loopback() => {
            Finding::problem("addresses", format!("others are told {ip}, which only this machine reaches"), advice)
        }
        Some(ip) if interfaces.iter().any(|(name, of)| *of == ip && is_container(name)) => {
            let what = format!("others are told {ip}, which leads to containers of this machine only");
            Finding::problem("addresses", what, advice)
        }
        Some(ip) => Finding::good("addresses", format!("others are told {ip}")),
        None if interfaces.iter().any(|(name, ip)| !ip.is_loopback() && !is_container(name)) => {
            Finding::good("addresses", "this machine has an address that others can reach")
        }
        None => {
            Finding::problem("addresses", "this machine has no address but its own and those of containers", advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn an_address_that_nobody_else_reaches_is_found() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let host = [("lo", "127.0.0.1"), ("docker0", "172.17.0.1"), ("eth0", "192.168.1.2")];
        let host = host.map(|(name, address)| (name.to_owned(), ip(address)));
        let level = |told: Option<&str>| addresses_of(&host, told.map(ip)).level;
        assert_eq!((level(Some("192.168.1.2")), level(None)), (Level::Good, Level::Good));
        assert_eq!((level(Some("127.0.0.1")), level(Some("172.17.0.1"))), (Level::Problem, Level::Problem));
        assert_eq!(addresses_of(&host[..2], None).level, Level::Problem);
    }

    #[test]
    fn a_question_for_nodes_is_well_formed() {
        let query = query(0x1234);
        assert_eq!(query[..12], [0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert!(query.ends_with(b"\x05local\0\0\x0c\0\x01"));
    }
}
