//! Flags of `pangea node` for the network: the addresses it listens on, the peers it connects to, and who may join.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::FalseyValueParser;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use super::node::ConfigError;
use crate::net::{PoolKey, peer_address};

/// Default port of TCP and QUIC.
const PORT: u16 = 7777;

/// The network, as given on the command line, in the environment or in `config.toml`; no defaults.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Network")]
pub struct NetworkFlags {
    /// Addresses to listen on, such as /ip4/0.0.0.0/tcp/7777; port 0 picks a free one [default: TCP and QUIC on port 7777]
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., value_parser = listen_address)]
    pub listen: Vec<Multiaddr>,

    /// Peers to keep connected to, as multiaddrs or HOST:PORT
    #[arg(long, value_name = "ADDR", num_args = 1.., value_parser = peer_address::parse)]
    pub peer: Vec<Multiaddr>,

    /// File with a list of peers, read again whenever it changes [default: peers.json in the data directory]
    #[arg(long, value_name = "FILE")]
    pub peers_file: Option<PathBuf>,

    /// Do not look for peers on the local network
    #[arg(long, env = "PANGEA_NO_MDNS", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub no_mdns: bool,

    /// File with the key of the pool, 64 hex digits; nodes without the key are refused
    #[arg(long, value_name = "FILE", env = "PANGEA_POOL_KEY", hide_env_values = true, overrides_with = "open")]
    pub pool_key: Option<PathBuf>,

    /// Let anyone on the network join: use no pool key, whatever PANGEA_POOL_KEY or config.toml says
    #[arg(long, overrides_with = "pool_key")]
    pub open: bool,
}

/// Network configuration of a node.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// libp2p addresses to listen on; port 0 picks a free one.
    pub listen: Vec<Multiaddr>,
    /// Peers to stay connected to: a lost connection is made again.
    pub peers: Vec<Multiaddr>,
    /// Path of a `peers.json`, which is watched for changes. The default one may not exist yet.
    pub peers_file: PathBuf,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// Key of the pool. Without a key, anyone on the network can join.
    pub pool_key: Option<PoolKey>,
}

impl NetworkFlags {
    /// Fills in the defaults and reads the pool key.
    pub(super) fn resolve(self, data_dir: &Path) -> Result<NetworkConfig, ConfigError> {
        let listen = if self.listen.is_empty() { default_listen() } else { self.listen };
        let peers_file = match self.peers_file {
            Some(path) if path.exists() => path,
            Some(path) => return Err(ConfigError::NoPeersFile(path)),
            None => data_dir.join("peers.json"),
        };
        let pool_key = self.pool_key.filter(|_| !self.open).as_deref().map(PoolKey::load).transpose()?;
        Ok(NetworkConfig { listen, peers: self.peer, peers_file, mdns: !self.no_mdns, pool_key })
    }
}

fn default_listen() -> Vec<Multiaddr> {
    let any = Multiaddr::from(Ipv4Addr::UNSPECIFIED);
    vec![any.clone().with(Protocol::Tcp(PORT)), any.with(Protocol::Udp(PORT)).with(Protocol::QuicV1)]
}

fn listen_address(text: &str) -> Result<Multiaddr, String> {
    let address = peer_address::parse(text).map_err(|error| error.to_string())?;
    let mut parts = address.iter();
    let host = matches!(parts.next(), Some(Protocol::Ip4(_) | Protocol::Ip6(_)));
    let transport = match parts.next() {
        Some(Protocol::Tcp(_)) => true,
        Some(Protocol::Udp(_)) => parts.next() == Some(Protocol::QuicV1),
        _ => false,
    };
    if !host || !transport || parts.next().is_some() {
        return Err("listen on /ip4/ADDRESS/tcp/PORT or /ip4/ADDRESS/udp/PORT/quic-v1 (or ip6)".to_owned());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::node::tests::{refusal, resolve};

    fn shown(addresses: &[Multiaddr]) -> Vec<String> {
        addresses.iter().map(Multiaddr::to_string).collect()
    }

    #[test]
    fn the_default_listen_addresses_are_tcp_and_quic() {
        let network = resolve(&[], "").network;
        assert_eq!(shown(&network.listen), ["/ip4/0.0.0.0/tcp/7777", "/ip4/0.0.0.0/udp/7777/quic-v1"]);
        let network = resolve(&["--listen", "127.0.0.1:0", "/ip6/::1/udp/9/quic-v1"], "").network;
        assert_eq!(shown(&network.listen), ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/udp/9/quic-v1"]);
        for (address, why) in [
            ("/ip4/127.0.0.1", "/tcp/PORT"),
            ("/ip4/0.0.0.0/udp/1", "quic-v1"),
            ("localhost:1", "/tcp/PORT"),
            ("7777", "port is missing"),
        ] {
            assert!(refusal(&["--listen", address], "").contains(why), "{address}");
        }
    }

    #[test]
    fn peers_are_multiaddrs_or_hosts_with_ports() {
        let network = resolve(&["--peer", "192.168.1.20:7777", "[fd00::7]:1", "/ip4/10.0.0.1/tcp/2"], "").network;
        assert_eq!(shown(&network.peers), ["/ip4/192.168.1.20/tcp/7777", "/ip6/fd00::7/tcp/1", "/ip4/10.0.0.1/tcp/2"]);
        assert!(refusal(&["--peer", "192.168.1.20"], "").contains("HOST:PORT"));
    }

    #[test]
    fn a_file_named_by_a_flag_must_exist() {
        assert!(refusal(&["--peers-file", "/nowhere/p.json"], "").contains("does not exist"));
        assert!(refusal(&["--pool-key", "/nowhere/k"], "").contains("64 hex digits"));
        assert!(resolve(&[], "").network.peers_file.ends_with("peers.json"));
    }

    #[test]
    fn an_open_node_uses_no_pool_key() {
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), "0123456789abcdef".repeat(4)).unwrap();
        let path = key.path().to_str().unwrap();
        let file = format!("pool-key = {path:?}");
        let guarded = |flags: &[&str], file: &str| resolve(flags, file).network.pool_key.is_some();
        assert!(guarded(&[], &file));
        assert!(!guarded(&["--open"], &file));
        assert!(!guarded(&["--open"], "pool-key = \"none.key\""), "a key that is not used is not read");
        assert!(guarded(&["--pool-key", path], "open = true"));
        assert!(guarded(&["--open", "--pool-key", path], ""), "the last one counts");
        assert!(!guarded(&["--pool-key", path, "--open"], ""));
    }

    #[test]
    fn mdns_is_on_unless_switched_off() {
        assert!(resolve(&[], "").network.mdns);
        assert!(!resolve(&["--no-mdns"], "").network.mdns);
    }
}
