//! The task that meets the nodes of other pools on the network: it introduces this node to each, so that both list the other one as
//! pending, and follows the offers of members to admit this node. `membership` decides whom to meet and which offers count.

use std::net::IpAddr;

use libp2p::PeerId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Members;
use crate::membership::{Membership, Offer};
use crate::net::{Follower, NetEvent};

/// Nodes that are met at once; others are met when they are next seen.
const MAX_MEETING: usize = 4;

/// Offers that are followed at once; others wait in their queue.
const MAX_FOLLOWING: usize = 2;

/// The driver; [`StrangersDriver::run`] must be called on the network thread.
pub struct StrangersDriver {
    membership: Membership,
    members: Members,
    events: Follower,
    offers: Option<mpsc::Receiver<Offer>>,
}

impl StrangersDriver {
    /// The driver of a node's `members`; nodes of other pools arrive through `events`.
    pub fn new(membership: Membership, members: Members, events: Follower) -> StrangersDriver {
        let offers = membership.take_offers();
        StrangersDriver { membership, members, events, offers }
    }

    /// Runs until the network ends.
    pub async fn run(mut self) {
        let mut meeting = JoinSet::new();
        let mut following = JoinSet::new();
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(NetEvent::Stranger { peer, host }) if meeting.len() < MAX_MEETING => {
                        self.meet(peer, host, &mut meeting);
                    }
                    Some(_) => {}
                    None => return,
                },
                Some(offer) = next(&mut self.offers), if following.len() < MAX_FOLLOWING => {
                    let members = self.members.clone();
                    following.spawn_local(async move { members.follow(offer).await });
                }
                Some(_) = meeting.join_next() => {}
                Some(_) = following.join_next() => {}
            }
        }
    }

    fn meet(&self, peer: PeerId, host: Option<IpAddr>, meeting: &mut JoinSet<()>) {
        if self.membership.saw_stranger(peer, host) {
            let members = self.members.clone();
            meeting.spawn_local(async move { members.introduce(peer, host).await });
        }
    }
}

async fn next(offers: &mut Option<mpsc::Receiver<Offer>>) -> Option<Offer> {
    match offers {
        Some(offers) => offers.recv().await,
        None => std::future::pending().await,
    }
}
