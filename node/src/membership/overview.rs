//! Who belongs to this node's pool, as far as it knows: what others have proved to it, whom it admitted, who is revoked, who waits.
//! For people; nothing is decided by it.

use libp2p::PeerId;
use pangea_control::membership::{PendingNode, PoolId, Role, Stranger};

use super::handle::{Membership, Signer, unix_s};

/// A member, as far as this node knows.
#[derive(Clone, Debug)]
pub struct KnownMember {
    /// The peer.
    pub peer: PeerId,
    /// What it called itself when it was admitted here; empty if it was not.
    pub name: String,
    /// Its role.
    pub role: Option<Role>,
    /// The member that admitted it; `None` if the pool's key did.
    pub admitted_by: Option<PeerId>,
    /// When its certificate expires, in seconds since 1970; 0 while unknown.
    pub expires_unix_s: u64,
    /// Whether it is revoked.
    pub revoked: bool,
}

/// Who belongs to the pool, and who would like to.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// The pool; `None` if it is open.
    pub pool: Option<PoolId>,
    /// Whether this node holds the pool's key.
    pub holds_key: bool,
    /// Name of the member that admitted this node; empty if it holds the key.
    pub admitted_at: String,
    /// This node's role.
    pub role: Option<Role>,
    /// Members and revoked peers, without this node.
    pub members: Vec<KnownMember>,
    /// Nodes that wait to be accepted, with their digits.
    pub pending: Vec<PendingNode>,
    /// Nodes of other pools on the network, which have not been asked to compare digits yet.
    pub strangers: Vec<Stranger>,
}

impl Membership {
    /// Who belongs to the pool and who waits, as far as this node knows.
    pub fn overview(&self) -> Overview {
        let mut belonging = self.belonging();
        let now = unix_s();
        let pending = belonging.pending.as_mut().map(|pending| pending.list(now)).unwrap_or_default();
        let mut strangers = belonging.strangers.list(now);
        let Some(proofs) = &belonging.proofs else { return Overview::default() };
        let mut members: Vec<KnownMember> = proofs
            .all_proven()
            .filter(|(peer, _)| **peer != self.local())
            .map(|(peer, proven)| KnownMember {
                peer: *peer,
                name: String::new(),
                role: Some(proven.role),
                admitted_by: proven.admitted_by().copied(),
                expires_unix_s: proven.expires_unix_s,
                revoked: false,
            })
            .collect();
        for admitted in &belonging.admitted {
            let Ok(peer) = admitted.peer.parse::<PeerId>() else { continue };
            match members.iter_mut().find(|known| known.peer == peer) {
                Some(known) => known.name.clone_from(&admitted.name),
                None => members.push(KnownMember {
                    peer,
                    name: admitted.name.clone(),
                    role: Role::named(&admitted.role),
                    admitted_by: Some(self.local()).filter(|_| matches!(belonging.signer, Signer::Node)),
                    expires_unix_s: admitted.expires_unix_s,
                    revoked: false,
                }),
            }
        }
        for revoked in proofs.revocations() {
            let peer = revoked.revocation.peer;
            match members.iter_mut().find(|known| known.peer == peer) {
                Some(known) => known.revoked = true,
                None => members.push(KnownMember {
                    peer,
                    name: String::new(),
                    role: None,
                    admitted_by: None,
                    expires_unix_s: 0,
                    revoked: true,
                }),
            }
        }
        let waits = |peer: &PeerId| belonging.pending.as_ref().is_some_and(|pending| pending.waits(peer));
        let is_member = |peer: &PeerId| members.iter().any(|member| member.peer == *peer);
        strangers.retain(|stranger| !waits(&stranger.peer) && !is_member(&stranger.peer));
        let own = belonging.chain.as_ref().and_then(|chain| Some(chain.role()).filter(|_| belonging.proofs.is_some()));
        Overview {
            pool: belonging.pool(),
            holds_key: matches!(belonging.signer, Signer::Pool { .. }),
            admitted_at: belonging.admitted_at.clone(),
            role: own,
            members,
            pending,
            strangers,
        }
    }
}
