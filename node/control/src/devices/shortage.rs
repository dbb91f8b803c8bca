//! Reasons why memory was not leased, with the numbers, and their texts.

use pangea_units::{ByteSize, Error, ErrorKind};

use super::Kind;

/// Why a request was refused. Nothing is leased then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// The request is larger than this kind may ever have on this node.
    #[error("needs {}; at most {} of this node's {} may go to {}; start the node with a larger --max-memory", ByteSize(*.needs), ByteSize(*.most), ByteSize(*.limit), .kind.name())]
    TooLarge {
        /// The purpose.
        kind: Kind,
        /// Bytes asked for.
        needs: u64,
        /// The most bytes that this kind may have.
        most: u64,
        /// All of the node's memory in bytes.
        limit: u64,
    },
    /// Other leases hold the memory that the request needs.
    #[error("needs {}; {} free of {} (--max-memory); try again later, or start the node with a larger --max-memory", ByteSize(*.needs), ByteSize(*.free), ByteSize(*.limit))]
    Full {
        /// Bytes asked for.
        needs: u64,
        /// Bytes that this kind can get now.
        free: u64,
        /// All of the node's memory in bytes.
        limit: u64,
    },
    /// Too many requests of this kind wait already.
    #[error("needs {}; {waiting} requests for {} wait for memory already; try again later", ByteSize(*.needs), .kind.name())]
    Queued {
        /// The purpose.
        kind: Kind,
        /// Bytes asked for.
        needs: u64,
        /// Number of requests that wait.
        waiting: usize,
    },
}

impl From<Shortage> for Error {
    fn from(shortage: Shortage) -> Error {
        Error::new(ErrorKind::Overloaded, shortage.to_string())
    }
}
