//! What a client has before it has shown the node's key: a bootstrap capability that checks the key and does nothing else.
//! It holds the node's own capability and gives it away for the right key.

use std::cell::Cell;
use std::rc::Rc;

use pangea_client::exception::to_exception;
use pangea_client::{Error, ErrorKind};
use pangea_schema::node_capnp::node;

use super::account::Account;
use super::backend::Backend;
use super::limits::WRONG_KEYS;

/// A node behind its key. Methods that it does not have are `unimplemented`.
pub(super) struct LockedNode<B> {
    key: blake3::Hash,
    node: node::Client,
    account: Rc<Account<B>>,
    wrong: Cell<u32>,
}

impl<B> LockedNode<B> {
    /// Gives `node` to whoever shows the key with this digest.
    pub(super) fn new(key: blake3::Hash, node: node::Client, account: Rc<Account<B>>) -> LockedNode<B> {
        LockedNode { key, node, account, wrong: Cell::new(0) }
    }
}

fn unauthorized(message: &str) -> capnp::Error {
    to_exception(&Error::new(ErrorKind::Unauthorized, message))
}

impl<B: Backend> node::Server for LockedNode<B> {
    async fn hello(self: Rc<Self>, _: node::HelloParams, _: node::HelloResults) -> capnp::Result<()> {
        Err(unauthorized(
            "this node requires an API key; set PANGEA_API_KEY to it, or on the node's own host use \
             --rpc unix:PATH with the path of rpc.sock in its data directory",
        ))
    }

    async fn login(self: Rc<Self>, params: node::LoginParams, mut results: node::LoginResults) -> capnp::Result<()> {
        // blake3::Hash compares in constant time.
        if blake3::hash(params.get()?.get_key()?.as_bytes()) == self.key {
            self.account.prove();
            results.get().set_node(self.node.clone());
            return Ok(());
        }
        self.wrong.set(self.wrong.get() + 1);
        if self.wrong.get() >= WRONG_KEYS {
            self.account.closing().cancel();
        }
        Err(unauthorized("the API key is wrong"))
    }
}
