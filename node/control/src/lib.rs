//! Every decision of a Pangea node, as state machines: events and the time go in, actions come out.
//!
//! Nothing here owns a socket, a file, a thread, a clock or randomness: the manifest lists no crate that has any, and the
//! drivers in `pangea-node` bring all of it. So the binary and the simulated world run the very same types.
//!
//! The map, from the bottom up. A room uses rooms of lower layers only (`tests/layers.rs` checks it):
//!
//! | layer | room | decides |
//! |---|---|---|
//! | 0 | [`time`] | the one type of a moment |
//! | 0 | `backoff` | how long a failure in a row delays the next try |
//! | 0 | [`membership`] | who belongs to the pool: certificates, invitations, nodes that ask to join |
//! | 0 | `test_peers` | the peers of unit tests |
//! | 1 | `token_bucket` | how much may happen at once and per second |
//! | 2 | [`supervise`] | what follows when a thread or a task of the node ends |
//! | 2 | [`devices`] | who holds which part of a node's memory |
//! | 2 | [`trust`] | which sessions are audited; how far an answer can be trusted |
//! | 2 | [`blob`] | which part of a model file is asked of which provider |
//! | 2 | [`net`] | whom to dial when; who is admitted; which of two connections lives; which peers are dead |
//! | 2 | `streams` | when the next stream to a peer is opened after one ended |
//! | 2 | [`pool`] | which nodes are there, and which of them is the master |
//! | 3 | [`tasks`] | which tasks of a peer a worker takes, when each starts and how each ends; which operands it keeps |
//! | 3 | [`peers`] | what is known of each peer, and whether it may compute |
//! | 3 | [`federation`] | which nodes vote on answers; which samples of an answer are asked of whom, when they decide, and which of them is the answer |
//! | 3 | [`session`] | the protocol of a chain's stages: who may say what, which rows of which sequence are computed next, what is signed; which streams make the link to a peer |
//! | 4 | [`jobs`] | what was asked of the node, by whom, how far it is and what it came to; whether a new job is accepted |
//! | 4 | [`placement`] | which node computes which layers of which model |
//! | 4 | [`generation`] | which chain answers a request, when an answer fails over, when the request is concluded and with which verdict |
//! | 4 | [`routing`] | which server of a model takes a request |
//! | 5 | [`schedule`] | how a product is cut into tasks, and which worker gets which task when |

mod backoff;
pub mod blob;
pub mod devices;
pub mod federation;
pub mod generation;
pub mod jobs;
pub mod membership;
pub mod net;
pub mod peers;
pub mod placement;
pub mod pool;
pub mod routing;
pub mod schedule;
pub mod session;
mod streams;
pub mod supervise;
pub mod tasks;
#[cfg(test)]
mod test_peers;
pub mod time;
mod token_bucket;
pub mod trust;

pub use time::Time;
