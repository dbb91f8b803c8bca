//! Facts about a connection to a peer: its transport, and the bytes that it moved.

use std::fmt;

/// Transport of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP, Noise, Yamux.
    Tcp,
    /// QUIC version 1.
    Quic,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
        })
    }
}

/// Bytes exchanged with a peer over its current connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received bytes, encryption included (QUIC: without).
    pub received_bytes: u64,
    /// Sent bytes, encryption included (QUIC: without).
    pub sent_bytes: u64,
}
