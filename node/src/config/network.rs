//! Flags of `pangea node` for the network: the addresses it listens on, the peers it connects to, and who may join.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::FalseyValueParser;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use super::node::ConfigError;
use crate::membership::PoolKey;
use crate::net::peer_address;
use pangea_control::membership::Token;

/// Default port of TCP and QUIC.
pub const PORT: u16 = 7777;

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

    /// Join the pool of an invitation (`pangea invite --token` on a member); a node that has joined it already only
    /// looks for its members again
    #[arg(long, value_name = "TOKEN", env = "PANGEA_JOIN", hide_env_values = true, value_parser = token)]
    pub join: Option<Token>,

    /// File with the key of the pool, 64 hex digits: whoever has it administers the pool [default: a pool of this node's
    /// own, with the key in pool.key of the data directory, or the pool that it has joined]
    #[arg(long, value_name = "FILE", env = "PANGEA_POOL_KEY", hide_env_values = true, overrides_with = "open")]
    pub pool_key: Option<PathBuf>,

    /// Let ANYONE on the network join, use this node and give it work; whatever PANGEA_POOL_KEY or config.toml says
    #[arg(long, overrides_with = "pool_key")]
    pub open: bool,
}

/// Network configuration of a node.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// libp2p addresses to listen on; port 0 picks a free one.
    pub listen: Vec<Multiaddr>,
    /// Whether a person asked for these addresses; otherwise other ports do as well.
    pub listen_is_asked_for: bool,
    /// Peers to stay connected to: a lost connection is made again.
    pub peers: Vec<Multiaddr>,
    /// Path of a `peers.json`, which is watched for changes. The default one may not exist yet.
    pub peers_file: PathBuf,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// The pool that the node starts in.
    pub pool: PoolChoice,
    /// The invitation to use.
    pub join: Option<Token>,
}

/// The pool that a node starts in.
#[derive(Clone, Debug)]
pub enum PoolChoice {
    /// The pool whose key was named.
    Key(PoolKey),
    /// The pool that the node has joined, or its own.
    Own,
    /// The open pool of whoever is on the network.
    Open,
}

impl NetworkFlags {
    /// Fills in the defaults and reads the pool key.
    pub(super) fn resolve(self, data_dir: &Path) -> Result<NetworkConfig, ConfigError> {
        let listen_is_asked_for = !self.listen.is_empty();
        let listen = if self.listen.is_empty() { default_listen() } else { self.listen };
        let peers_file = match self.peers_file {
            Some(path) if path.exists() => path,
            Some(path) => return Err(ConfigError::NoPeersFile(path)),
            None => data_dir.join("peers.json"),
        };
        let pool = match self.pool_key {
            _ if self.open => PoolChoice::Open,
            Some(path) => PoolChoice::Key(PoolKey::load(&path)?),
            None => PoolChoice::Own,
        };
        if self.join.is_some() && !matches!(pool, PoolChoice::Own) {
            return Err(ConfigError::JoinedOtherwise);
        }
        Ok(NetworkConfig {
            listen,
            listen_is_asked_for,
            peers: self.peer,
            peers_file,
            mdns: !self.no_mdns,
            pool,
            join: self.join,
        })
    }
}

fn default_listen() -> Vec<Multiaddr> {
    let any = Multiaddr::from(Ipv4Addr::UNSPECIFIED);
    vec![any.clone().with(Protocol::Tcp(PORT)), any.with(Protocol::Udp(PORT)).with(Protocol::QuicV1)]
}

fn token(text: &str) -> Result<Token, String> {
    Token::parse(text).map_err(|error| error.to_string())
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
        let guarded = |flags: &[&str], file: &str| matches!(resolve(flags, file).network.pool, PoolChoice::Key(_));
        assert!(guarded(&[], &file));
        assert!(!guarded(&["--open"], &file));
        assert!(!guarded(&["--open"], "pool-key = \"none.key\""), "a key that is not used is not read");
        assert!(guarded(&["--pool-key", path], "open = true"));
        assert!(guarded(&["--open", "--pool-key", path], ""), "the last one counts");
        assert!(!guarded(&["--pool-key", path, "--open"], ""));
    }

    #[test]
    fn a_node_without_a_key_has_a_pool_of_its_own_and_a_token_is_for_such_a_node() {
        let own = resolve(&[], "").network;
        assert!(matches!(own.pool, PoolChoice::Own) && own.join.is_none());
        assert!(matches!(resolve(&["--open"], "").network.pool, PoolChoice::Open));
        assert!(refusal(&["--join", "123456"], "").contains("a token begins with"));
        let member = libp2p::identity::Keypair::generate_ed25519().public().to_peer_id();
        let token = Token {
            member,
            pool: pangea_control::membership::PoolId([1; 32]),
            role: pangea_control::membership::Role::Member,
            expires_unix_s: 1,
            secret: [2; 16],
            addresses: Vec::new(),
        };
        let text = token.to_text();
        assert_eq!(resolve(&["--join", &text], "").network.join, Some(token));
        assert!(refusal(&["--join", &text, "--open"], "").contains("--join"));
    }

    #[test]
    fn mdns_is_on_unless_switched_off() {
        assert!(resolve(&[], "").network.mdns);
        assert!(!resolve(&["--no-mdns"], "").network.mdns);
    }
}
