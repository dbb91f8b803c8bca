//! Who belongs to the pool of a node: invitations, joining, accepting, revoking, and their wire forms.

use std::rc::Rc;
use std::time::Duration;

use pangea_schema::membership_capnp::{joined, member, members, membership};
use serde::Serialize;

use crate::connection::Connection;
use crate::text::string;
use crate::{Error, Result};

/// Who belongs to a pool, and who would like to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MembersStatus {
    /// By which people tell pools apart; empty for an open pool.
    pub pool: String,
    /// Whether whoever is on the network is in.
    pub open: bool,
    /// Whether the node holds the pool's key.
    pub holds_key: bool,
    /// The node first, then members and revoked peers, then nodes that wait to be accepted.
    pub members: Vec<MemberStatus>,
}

/// A member of a pool, or a node that would like to be one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemberStatus {
    /// Peer id.
    pub peer: String,
    /// Name that the node gives itself; empty while unknown.
    pub name: String,
    /// `this node`, `connected`, `away`, `revoked`, `pending` (it can be accepted) or `comparing` (it may accept this node).
    pub state: String,
    /// `member` or `client`; empty while unknown.
    pub role: String,
    /// Name or peer id of the member that admitted it; empty if the pool's key did.
    pub admitted_by: String,
    /// When its certificate expires, in seconds since 1970; 0 while unknown.
    #[serde(rename = "expires")]
    pub expires_unix_s: u64,
    /// The six digits of a node that waits and has compared them, or of a member that may accept this node; otherwise empty.
    pub digits: String,
}

/// What an invitation is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct InviteOptions {
    /// `member` or `client`.
    pub role: String,
    /// Validity of the token.
    pub valid: Duration,
    /// Validity of the certificates.
    pub member_for: Duration,
    /// Nodes that may use the token.
    pub uses: u32,
    /// Whether one node may join with a PIN.
    pub pin: bool,
}

/// An open invitation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Invitation {
    /// Text of the token.
    pub token: String,
    /// Six digits; empty if none were asked for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pin: String,
    /// When the token expires, in seconds since 1970.
    #[serde(rename = "expires")]
    pub expires_unix_s: u64,
    /// Seconds that the PIN is open; 0 without one.
    #[serde(skip_serializing_if = "is_zero")]
    pub pin_life_s: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A pool that a node has joined.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct JoinedPool {
    /// By which people tell pools apart.
    pub pool: String,
    /// Name of the member that admitted the node.
    pub member: String,
    /// `member` or `client`.
    pub role: String,
    /// Peers that the node is connected to.
    pub connected: u32,
}

/// A member that was asked to compare digits.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AskedMember {
    /// Peer id of the member.
    pub peer: String,
    /// Its name.
    pub name: String,
    /// By which people tell its pool apart.
    pub pool: String,
    /// Six digits that its screen shows too.
    pub digits: String,
}

impl MemberStatus {
    /// Reads the wire form.
    pub fn from_wire(wire: member::Reader<'_>) -> capnp::Result<MemberStatus> {
        Ok(MemberStatus {
            peer: string(wire.get_peer()?)?,
            name: string(wire.get_name()?)?,
            state: string(wire.get_state()?)?,
            role: string(wire.get_role()?)?,
            admitted_by: string(wire.get_admitted_by()?)?,
            expires_unix_s: wire.get_expires(),
            digits: string(wire.get_digits()?)?,
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: member::Builder<'_>) {
        wire.set_peer(&self.peer);
        wire.set_name(&self.name);
        wire.set_state(&self.state);
        wire.set_role(&self.role);
        wire.set_admitted_by(&self.admitted_by);
        wire.set_expires(self.expires_unix_s);
        wire.set_digits(&self.digits);
    }
}

impl MembersStatus {
    fn from_wire(wire: members::Reader<'_>) -> capnp::Result<MembersStatus> {
        Ok(MembersStatus {
            pool: string(wire.get_pool()?)?,
            open: wire.get_open(),
            holds_key: wire.get_holds_key(),
            members: wire.get_members()?.iter().map(MemberStatus::from_wire).collect::<capnp::Result<_>>()?,
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: members::Builder<'_>) {
        wire.set_pool(&self.pool);
        wire.set_open(self.open);
        wire.set_holds_key(self.holds_key);
        let mut members = wire.init_members(self.members.len() as u32);
        for (index, member) in self.members.iter().enumerate() {
            member.to_wire(members.reborrow().get(index as u32));
        }
    }
}

impl JoinedPool {
    fn from_wire(wire: joined::Reader<'_>) -> capnp::Result<JoinedPool> {
        Ok(JoinedPool {
            pool: string(wire.get_pool()?)?,
            member: string(wire.get_member()?)?,
            role: string(wire.get_role()?)?,
            connected: wire.get_connected(),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: joined::Builder<'_>) {
        wire.set_pool(&self.pool);
        wire.set_member(&self.member);
        wire.set_role(&self.role);
        wire.set_connected(self.connected);
    }
}

/// The calls of a node's owner about who belongs to its pool. Keeps the connection open.
#[derive(Clone)]
pub struct Membership {
    remote: membership::Client,
    _connection: Rc<Connection>,
}

fn error(failure: capnp::Error) -> Error {
    crate::exception::from_exception(&failure)
}

fn fill(mut list: capnp::text_list::Builder<'_>, texts: &[String]) {
    for (index, text) in texts.iter().enumerate() {
        list.set(index as u32, text);
    }
}

impl Membership {
    pub(crate) fn new(remote: membership::Client, connection: Rc<Connection>) -> Membership {
        Membership { remote, _connection: connection }
    }

    /// Who belongs to the pool, and who waits to be accepted.
    ///
    /// # Errors
    /// `Unavailable` where the node is gone.
    pub async fn list(&self) -> Result<MembersStatus> {
        let response = self.remote.list_request().send().promise.await.map_err(error)?;
        let members = response.get().and_then(|results| results.get_members()).map_err(error)?;
        MembersStatus::from_wire(members).map_err(error)
    }

    /// Opens an invitation.
    ///
    /// # Errors
    /// `Unauthorized` where the node may admit nobody; `InvalidInput` in an open pool; `Overloaded` where too many are open.
    pub async fn invite(&self, options: &InviteOptions) -> Result<Invitation> {
        let mut request = self.remote.invite_request();
        let mut wire = request.get();
        wire.set_role(&options.role);
        wire.set_valid_s(options.valid.as_secs());
        wire.set_member_for_s(options.member_for.as_secs());
        wire.set_uses(options.uses);
        wire.set_pin(options.pin);
        let response = request.send().promise.await.map_err(error)?;
        let read = |wire: pangea_schema::membership_capnp::invitation::Reader<'_>| {
            let (token, pin) = (string(wire.get_token()?)?, string(wire.get_pin()?)?);
            Ok(Invitation { token, pin, expires_unix_s: wire.get_expires(), pin_life_s: wire.get_pin_life_s() })
        };
        response.get().and_then(|results| results.get_invitation()).and_then(read).map_err(error)
    }

    /// Joins the pool of a token or PIN. With a PIN, members are asked at `addresses`, or on the local network if there are none.
    ///
    /// # Errors
    /// `Unauthorized` where the invitation opens nothing; `NotFound` where no member is found; `Unavailable`.
    pub async fn join(&self, invitation: &str, addresses: &[String]) -> Result<JoinedPool> {
        let mut request = self.remote.join_request();
        request.get().set_invitation(invitation);
        fill(request.get().init_addresses(addresses.len() as u32), addresses);
        let response = request.send().promise.await.map_err(error)?;
        response.get().and_then(|results| results.get_joined()).and_then(JoinedPool::from_wire).map_err(error)
    }

    /// Asks members to admit the node; people compare the digits on both screens.
    ///
    /// # Errors
    /// `NotFound` where no member is found; `Overloaded` where too many nodes wait.
    pub async fn ask(&self, addresses: &[String]) -> Result<Vec<AskedMember>> {
        let mut request = self.remote.ask_request();
        fill(request.get().init_addresses(addresses.len() as u32), addresses);
        let response = request.send().promise.await.map_err(error)?;
        let asked = response.get().and_then(|results| results.get_asked()).map_err(error)?;
        let one = |wire: pangea_schema::membership_capnp::asked::Reader<'_>| {
            Ok(AskedMember {
                peer: string(wire.get_peer()?)?,
                name: string(wire.get_name()?)?,
                pool: string(wire.get_pool()?)?,
                digits: string(wire.get_digits()?)?,
            })
        };
        asked.iter().map(one).collect::<capnp::Result<_>>().map_err(error)
    }

    /// Waits until the member `peer`, whose screen shows `digits`, has accepted the node, and joins its pool.
    ///
    /// # Errors
    /// `VerificationFailed` for other digits; `Unauthorized` where the node was turned away; `DeadlineExceeded`.
    pub async fn await_acceptance(&self, peer: &str, digits: &str, timeout: Duration) -> Result<JoinedPool> {
        let mut request = self.remote.await_acceptance_request();
        let mut wire = request.get();
        wire.set_peer(peer);
        wire.set_digits(digits);
        wire.set_timeout_ms(timeout.as_millis() as u64);
        let response = request.send().promise.await.map_err(error)?;
        response.get().and_then(|results| results.get_joined()).and_then(JoinedPool::from_wire).map_err(error)
    }

    /// Accepts the waiting node called `node`, whose screen shows `digits`.
    ///
    /// # Errors
    /// `VerificationFailed` for other digits; `NotFound` for a node that does not wait.
    pub async fn accept(&self, node: &str, digits: &str, role: &str, member_for: Duration) -> Result<MemberStatus> {
        let mut request = self.remote.accept_request();
        let mut wire = request.get();
        wire.set_node(node);
        wire.set_digits(digits);
        wire.set_role(role);
        wire.set_member_for_s(member_for.as_secs());
        let response = request.send().promise.await.map_err(error)?;
        response.get().and_then(|results| results.get_accepted()).and_then(MemberStatus::from_wire).map_err(error)
    }

    /// Has the waiting node called `node` compare digits; returns it with its digits, for [`Membership::accept`].
    ///
    /// # Errors
    /// `NotFound` where no such node waits; `Unavailable` or `DeadlineExceeded` where it cannot be asked or does not answer;
    /// `Unauthorized` where this node may admit nobody.
    pub async fn compare(&self, node: &str) -> Result<MemberStatus> {
        let mut request = self.remote.compare_request();
        request.get().set_node(node);
        let response = request.send().promise.await.map_err(error)?;
        response.get().and_then(|results| results.get_pending()).and_then(MemberStatus::from_wire).map_err(error)
    }

    /// Turns a waiting node away, or revokes a member for good.
    ///
    /// # Errors
    /// `Unauthorized` where the node does not hold the pool's key; `NotFound`.
    pub async fn revoke(&self, node: &str) -> Result<MemberStatus> {
        let mut request = self.remote.revoke_request();
        request.get().set_node(node);
        let response = request.send().promise.await.map_err(error)?;
        response.get().and_then(|results| results.get_revoked()).and_then(MemberStatus::from_wire).map_err(error)
    }
}
