//! The gossip topic: configures libp2p's gossipsub for messages of a pool. This file knows nothing of their content:
//! each message is delivered with a verified signature and forwarded to others only after it was judged.

use std::time::Duration;

use libp2p::gossipsub::{Behaviour, ConfigBuilder, IdentTopic, MessageAcceptance, MessageAuthenticity, ValidationMode};
use libp2p::identity::Keypair;

use super::network::{GossipConfig, GossipJudgement};

/// Interval of gossipsub's mesh maintenance: a new node joins the mesh within this time.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Messages queued for one peer: one per node of a large pool. Older messages beyond that are superseded anyway.
const QUEUE: usize = 1024;

/// Bytes from which on a node tells its neighbours at once that it has a message: below, that costs as much as a second copy.
const LARGE: usize = 16 << 10;

/// Neighbours beyond the mesh that hear the ids of messages at each heartbeat and ask for those that they lack.
const TOLD: usize = 2;

/// Time that a message's id is remembered to detect duplicates: a message is outdated after a second.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Gossipsub, subscribed to the topic of `config`.
///
/// # Errors
/// Gossipsub's error for an invalid setting.
pub(super) fn behaviour(config: &GossipConfig, identity: &Keypair) -> Result<(Behaviour, IdentTopic), String> {
    let settings = ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .heartbeat_interval(HEARTBEAT)
        .heartbeat_initial_delay(HEARTBEAT)
        .gossip_lazy(TOLD)
        .gossip_factor(0.0)
        .idontwant_message_size_threshold(LARGE)
        .duplicate_cache_time(REMEMBERED)
        // Id, signature and framing of a message take less than a KiB.
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

/// Converts a judgement to gossipsub's type.
pub(super) fn acceptance(judgement: GossipJudgement) -> MessageAcceptance {
    match judgement {
        GossipJudgement::Accept => MessageAcceptance::Accept,
        GossipJudgement::Ignore => MessageAcceptance::Ignore,
        GossipJudgement::Reject => MessageAcceptance::Reject,
    }
}
