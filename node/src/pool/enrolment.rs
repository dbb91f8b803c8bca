//! A node that does not run joins a pool: it asks a member, and its certificate is stored for its next start. Nothing listens here, and
//! nobody is connected to for longer than the question takes.

use std::path::Path;

use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use pangea_client::{Error, ErrorKind, JoinedPool, Result};
use pangea_control::membership::join::Grant;
use pangea_control::membership::{Role, Token};

use super::members::{ask_with_pin, ask_with_token, members_of};
use crate::data_dir::DataDir;
use crate::membership::{Membership, Stored, handle};
use crate::net::{self, NetConfig, identity};
use crate::storage::State;

/// The node of a data directory, which does not run as long as this lives.
pub struct Enrolment {
    keypair: Keypair,
    membership: Membership,
    _claimed: DataDir,
}

impl Enrolment {
    /// The node with the data directory `data_dir`, which others will know as `name`.
    ///
    /// # Errors
    /// `Unavailable` if the node runs; `InvalidInput` if its files cannot be used.
    pub fn open(data_dir: &Path, name: &str) -> Result<Enrolment> {
        let claimed = DataDir::claim(data_dir, false)?;
        let keypair = identity::load_or_create(&data_dir.join("node.key"))
            .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))?;
        let stored = Stored::new(Some(State::open(data_dir)), Some(data_dir));
        let (membership, _) = handle::own_or_joined(&keypair, Role::Member, data_dir, name, stored, true)?;
        Ok(Enrolment { keypair, membership, _claimed: claimed })
    }

    /// Joins the pool of `token`.
    ///
    /// # Errors
    /// Why the member does not admit this node; `Unavailable` if it cannot be reached; `Internal` if the certificate cannot be
    /// stored.
    pub async fn with_token(&self, token: &Token) -> Result<JoinedPool> {
        if self.membership.pool() == Some(token.pool) {
            let overview = self.membership.overview();
            let role = self.membership.role().unwrap_or(token.role);
            return Ok(joined(token.pool.to_string(), overview.admitted_at, role));
        }
        let grant = ask_with_token(&self.membership, token).await?;
        self.keep(grant, members_of(token)).await
    }

    /// Joins the pool of the member that has `pin` open: one at `addresses`, or on the local network.
    ///
    /// # Errors
    /// `NotFound` if no member has a PIN open; why the member does not admit this node; `Internal`.
    pub async fn with_pin(&self, pin: &str, addresses: &[Multiaddr]) -> Result<JoinedPool> {
        let config = NetConfig {
            membership: self.membership.clone(),
            mdns: addresses.is_empty(),
            dials: false,
            ..NetConfig::new(self.keypair.clone())
        };
        let failed = |error: net::NetError| Error::new(ErrorKind::Unavailable, error.to_string());
        let (network, mut events) = net::start(config).map_err(failed)?;
        let unread = tokio::spawn(async move { while events.recv().await.is_some() {} });
        let asked = ask_with_pin(&self.membership, &network, pin, addresses).await;
        network.shutdown().await;
        unread.abort();
        let (grant, member) = asked?;
        self.keep(grant, vec![member]).await
    }

    async fn keep(&self, grant: Grant, members: Vec<Multiaddr>) -> Result<JoinedPool> {
        let membership = self.membership.clone();
        let joining = tokio::task::spawn_blocking(move || membership.join(grant, members)).await;
        let new = joining.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))??;
        Ok(joined(new.pool.to_string(), new.member, new.role))
    }
}

fn joined(pool: String, member: String, role: Role) -> JoinedPool {
    JoinedPool { pool, member, role: role.name().to_owned(), connected: 0 }
}
