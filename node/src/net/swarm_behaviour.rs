//! The parts of libp2p that the swarm runs, and their limits: connections, pings, identify, streams, gossip, mDNS. This
//! file only configures; `swarm` drives.

use std::error::Error as StdError;
use std::time::Duration;

use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{connection_limits, gossipsub, identify};

use super::gossip;
use super::inbound::InboundBehaviour;
use super::mdns::Mdns;
use super::network::{NetConfig, NetError};
use super::pings::Pings;

/// Protocol version that `identify` reports.
const IDENTIFY_PROTOCOL: &str = "/pangea/1";

/// Connections persist until one side ends them.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Maximum dials in progress: those to peers that nobody named, and room for every named one. Incoming handshakes are
/// limited before they reach the swarm (`admitting`).
const MAX_DIALS: u32 = 256;

/// Maximum connections to one peer: one, plus one that a stock libp2p peer may open beside it.
const MAX_PER_PEER: u32 = 2;

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    ping: Pings,
    identify: identify::Behaviour,
    /// Streams that this node opens.
    pub(super) streams: libp2p_stream::Behaviour,
    /// Streams that peers open.
    pub(super) inbound: InboundBehaviour,
    pub(super) gossip: Toggle<gossipsub::Behaviour>,
    mdns: Toggle<Mdns>,
}

/// The behaviour for `config`, and the gossip topic that it subscribes to.
///
/// # Errors
/// [`NetError::Setup`].
pub(super) fn build(config: &NetConfig) -> Result<(Behaviour, Option<gossipsub::IdentTopic>), NetError> {
    let setup = |error: &dyn StdError| NetError::Setup(error.to_string());
    let local = config.identity.public().to_peer_id();
    let mdns = if config.mdns { Some(Mdns::new(local).map_err(|error| setup(&error))?) } else { None };
    let limits = connection_limits::ConnectionLimits::default()
        .with_max_pending_outgoing(Some(MAX_DIALS))
        .with_max_established(Some(config.max_peers.saturating_add(MAX_DIALS)))
        .with_max_established_incoming(Some(config.max_peers))
        .with_max_established_per_peer(Some(MAX_PER_PEER));
    let agent = concat!("pangea/", env!("CARGO_PKG_VERSION")).to_owned();
    let (gossip, topic) = match &config.gossip {
        Some(gossip) => {
            let (behaviour, topic) = gossip::behaviour(gossip, &config.identity).map_err(NetError::Setup)?;
            (Some(behaviour), Some(topic))
        }
        None => (None, None),
    };
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        ping: Pings::default(),
        identify: identify::Behaviour::new(
            identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), config.identity.public()).with_agent_version(agent),
        ),
        streams: libp2p_stream::Behaviour::new(),
        inbound: InboundBehaviour::default(),
        gossip: gossip.into(),
        mdns: mdns.into(),
    };
    Ok((behaviour, topic))
}
