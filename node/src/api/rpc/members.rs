//! The `Membership` capability: who belongs to the pool, invitations, joining. Values are parsed here; the rest is `pool`'s.

use std::rc::Rc;
use std::time::Duration;

use libp2p::Multiaddr;
use pangea_client::exception::to_exception;
use pangea_client::{Error, ErrorKind, Result};
use pangea_control::membership::{SixDigits, Token, invitation};
use pangea_schema::membership_capnp::membership;

use super::account::Account;
use super::backend::Backend;
use crate::api::terms::{check_uses, check_validity, digits, terms};
use crate::net::peer_address;
use crate::pool::Members;

/// Maximum addresses of one call: a person names a few.
const MAX_ADDRESSES: u32 = 16;

/// Longest time of a call that waits for people.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// State behind the capability.
pub(super) struct MembershipObject<B: Backend> {
    members: Members,
    account: Rc<Account<B>>,
}

impl<B: Backend> MembershipObject<B> {
    pub(super) fn new(members: Members, account: Rc<Account<B>>) -> MembershipObject<B> {
        MembershipObject { members, account }
    }
}

fn exception(error: Error) -> capnp::Error {
    to_exception(&error)
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

fn addresses(list: capnp::text_list::Reader<'_>) -> capnp::Result<Result<Vec<Multiaddr>>> {
    if list.len() > MAX_ADDRESSES {
        return Ok(Err(invalid(format!("{} addresses; at most {MAX_ADDRESSES} are asked", list.len()))));
    }
    let mut parsed = Vec::new();
    for text in list.iter() {
        match peer_address::parse(text?.to_str()?) {
            Ok(address) => parsed.push(address),
            Err(error) => return Ok(Err(invalid(error.to_string()))),
        }
    }
    Ok(Ok(parsed))
}

impl<B: Backend> membership::Server for MembershipObject<B> {
    async fn list(
        self: Rc<Self>,
        _: membership::ListParams,
        mut results: membership::ListResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        self.members.list().to_wire(results.get().init_members());
        Ok(())
    }

    async fn invite(
        self: Rc<Self>,
        params: membership::InviteParams,
        mut results: membership::InviteResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let params = params.get()?;
        let terms = terms(params.get_role()?.to_str()?, params.get_member_for_s()).map_err(exception)?;
        let (valid_s, uses) = (params.get_valid_s(), params.get_uses());
        check_validity(valid_s).map_err(exception)?;
        check_uses(uses).map_err(exception)?;
        let invited = self.members.invite(terms, Duration::from_secs(valid_s), uses, params.get_pin()).await;
        let invited = invited.map_err(exception)?;
        let mut wire = results.get().init_invitation();
        wire.set_token(&invited.token);
        wire.set_pin(invited.pin.as_deref().unwrap_or_default());
        wire.set_expires(invited.expires_unix_s);
        wire.set_pin_life_s(if invited.pin.is_some() { invitation::PIN_LIFE_S } else { 0 });
        Ok(())
    }

    async fn join(
        self: Rc<Self>,
        params: membership::JoinParams,
        mut results: membership::JoinResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let params = params.get()?;
        let text = params.get_invitation()?.to_str()?;
        let addresses = addresses(params.get_addresses()?)?.map_err(exception)?;
        let joined = if SixDigits::parse(text).is_some() {
            let pin: String = text.chars().filter(char::is_ascii_digit).collect();
            self.members.join_with_pin(&pin, &addresses).await
        } else {
            let token = Token::parse(text).map_err(|error| exception(invalid(error.to_string())))?;
            self.members.join_with_token(&token).await
        };
        joined.map_err(exception)?.to_wire(results.get().init_joined());
        Ok(())
    }

    async fn ask(
        self: Rc<Self>,
        params: membership::AskParams,
        mut results: membership::AskResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let addresses = addresses(params.get()?.get_addresses()?)?.map_err(exception)?;
        let asked = self.members.ask(&addresses).await.map_err(exception)?;
        let mut list = results.get().init_asked(asked.len() as u32);
        for (index, asked) in asked.iter().enumerate() {
            let mut wire = list.reborrow().get(index as u32);
            wire.set_peer(asked.member.to_string());
            wire.set_name(&asked.name);
            wire.set_pool(asked.pool.to_string());
            wire.set_digits(asked.digits.to_string());
        }
        Ok(())
    }

    async fn await_acceptance(
        self: Rc<Self>,
        params: membership::AwaitAcceptanceParams,
        mut results: membership::AwaitAcceptanceResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let params = params.get()?;
        let peer = params.get_peer()?.to_str()?;
        let peer = peer.parse().map_err(|_| exception(invalid(format!("{peer} is not a peer id"))))?;
        let digits = digits(params.get_digits()?.to_str()?).map_err(exception)?;
        let time = Duration::from_millis(params.get_timeout_ms()).min(MAX_WAIT);
        let joined = self.members.await_acceptance(peer, digits, time).await.map_err(exception)?;
        joined.to_wire(results.get().init_joined());
        Ok(())
    }

    async fn accept(
        self: Rc<Self>,
        params: membership::AcceptParams,
        mut results: membership::AcceptResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let params = params.get()?;
        let terms = terms(params.get_role()?.to_str()?, params.get_member_for_s()).map_err(exception)?;
        let digits = digits(params.get_digits()?.to_str()?).map_err(exception)?;
        let accepted = self.members.accept(params.get_node()?.to_str()?, digits, terms).map_err(exception)?;
        accepted.to_wire(results.get().init_accepted());
        Ok(())
    }

    async fn compare(
        self: Rc<Self>,
        params: membership::CompareParams,
        mut results: membership::CompareResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let params = params.get()?;
        let pending = self.members.compare(params.get_node()?.to_str()?).await.map_err(exception)?;
        pending.to_wire(results.get().init_pending());
        Ok(())
    }

    async fn revoke(
        self: Rc<Self>,
        params: membership::RevokeParams,
        mut results: membership::RevokeResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let named = params.get()?.get_node()?.to_str()?;
        self.members.revoke(named).map_err(exception)?.to_wire(results.get().init_revoked());
        Ok(())
    }
}
