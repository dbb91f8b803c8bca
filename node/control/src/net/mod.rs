//! The decisions below streams: whom to dial when ([`dial`]), and which peers are dead ([`liveness`]). [`connection`] is what
//! both look at.

pub mod connection;
pub mod dial;
pub mod liveness;

pub use connection::{Traffic, Transport};
pub use dial::FoundBy;
