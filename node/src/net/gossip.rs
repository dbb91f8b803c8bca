//! The gossip topic: how libp2p's gossipsub is set up for messages of a pool. It knows nothing of what they say: each is
//! handed on with a checked signature and passed on to others only once it was judged.

use std::time::Duration;

use libp2p::gossipsub::{Behaviour, ConfigBuilder, IdentTopic, MessageAcceptance, MessageAuthenticity, ValidationMode};
use libp2p::identity::Keypair;

use super::network::{GossipConfig, Verdict};

/// Between two looks of gossipsub at its mesh: a node that joins is in it within this.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Messages to one peer that wait: one of each node of a large pool. Beyond, the oldest news is no loss.
const QUEUE: usize = 1024;

/// How long a message's name is remembered, so that its copies are known: a message is a second's news.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Gossipsub on the topic of `config`, subscribed.
///
/// # Errors
/// What gossipsub says of a setting that it does not take.
pub(super) fn behaviour(config: &GossipConfig, identity: &Keypair) -> Result<(Behaviour, IdentTopic), String> {
    let settings = ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .heartbeat_interval(HEARTBEAT)
        .heartbeat_initial_delay(HEARTBEAT)
        .duplicate_cache_time(REMEMBERED)
        // The name, signature and framing of a message are under a KiB.
        .max_transmit_size(config.max_bytes + 1024)
        .connection_handler_queue_len(QUEUE)
        .max_publish_messages(QUEUE)
        .build()
        .map_err(|error| error.to_string())?;
    let mut behaviour =
        Behaviour::new(MessageAuthenticity::Signed(identity.clone()), settings).map_err(str::to_owned)?;
    let topic = IdentTopic::new(config.topic);
    behaviour.subscribe(&topic).map_err(|error| error.to_string())?;
    Ok((behaviour, topic))
}

/// A verdict in gossipsub's words.
pub(super) fn acceptance(verdict: Verdict) -> MessageAcceptance {
    match verdict {
        Verdict::Accept => MessageAcceptance::Accept,
        Verdict::Ignore => MessageAcceptance::Ignore,
        Verdict::Reject => MessageAcceptance::Reject,
    }
}
