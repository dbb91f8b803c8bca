//! Addresses of nodes as people write them: multiaddrs, or host and port. Parsing only; no name is resolved and
//! nothing is dialled.

use std::net::{IpAddr, Ipv6Addr};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use thiserror::Error;

/// A text that is not an address of a node.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{text}' is not an address of a node ({why}); use a multiaddr such as /ip4/192.168.1.20/tcp/7777, or HOST:PORT such as 192.168.1.20:7777"
)]
pub struct NotAnAddress {
    text: String,
    why: String,
}

/// Parses a multiaddr as it is; `HOST:PORT`, `[IPV6]:PORT` or `NAME:PORT` as TCP at that host.
///
/// # Errors
/// [`NotAnAddress`], whose text shows both forms.
pub fn parse(text: &str) -> Result<Multiaddr, NotAnAddress> {
    let text = text.trim();
    let wrong = |why: &str| NotAnAddress { text: text.to_owned(), why: why.to_owned() };
    if text.starts_with('/') {
        return text.parse().map_err(|error: libp2p::multiaddr::Error| wrong(&error.to_string()));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(wrong(&format!("nodes speak libp2p, not {scheme}")));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(wrong("write an IPv6 address with a port as [ADDRESS]:PORT"));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    let port: u16 = port.parse().map_err(|_| wrong("the port must be a number from 0 to 65535"))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match (bracketed.unwrap_or(host).parse(), bracketed) {
        (Ok(IpAddr::V4(ip)), None) => Protocol::Ip4(ip),
        (Ok(IpAddr::V6(ip)), Some(_)) => Protocol::Ip6(ip),
        (Ok(IpAddr::V6(_)), None) => return Err(wrong("write an IPv6 address with a port as [ADDRESS]:PORT")),
        (Err(_), None) if is_host_name(host) => Protocol::Dns(host.into()),
        _ => return Err(wrong("the host is neither an IP address nor a name")),
    };
    Ok(Multiaddr::empty().with(host).with(Protocol::Tcp(port)))
}

/// Whether `text` consists of labels of letters, digits and hyphens, the last not all digits (RFC 1123 §2.1).
fn is_host_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let all_digits = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= 253 && text.split('.').all(label) && !text.rsplit('.').next().is_some_and(all_digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_a_port_are_an_address() {
        for (text, expected) in [
            ("192.168.1.20:7777", "/ip4/192.168.1.20/tcp/7777"),
            (" 10.0.0.1:0 ", "/ip4/10.0.0.1/tcp/0"),
            ("[fd00::7]:7777", "/ip6/fd00::7/tcp/7777"),
            ("mac2.local:7777", "/dns/mac2.local/tcp/7777"),
            ("mac2:1", "/dns/mac2/tcp/1"),
            ("/ip4/192.168.1.20/udp/7777/quic-v1", "/ip4/192.168.1.20/udp/7777/quic-v1"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn an_invalid_address_is_refused_with_an_example() {
        for (text, why) in [
            ("", "port is missing"),
            ("192.168.1.20", "port is missing"),
            ("fd00::7:7777", "[ADDRESS]:PORT"),
            ("192.168.1.20:77777", "0 to 65535"),
            ("192.168.1.20:", "0 to 65535"),
            ("192.168.1:7777", "neither an IP address nor a name"),
            ("[192.168.1.20]:7777", "neither"),
            ("[mac2]:7777", "neither"),
            ("a b:7777", "neither"),
            (":7777", "neither"),
            ("http://192.168.1.20:7777", "not http"),
            ("/ip4/nowhere/tcp/7777", "/ip4/nowhere"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("HOST:PORT such as 192.168.1.20:7777"), "{text}: {error}");
        }
    }
}
