//! The decisions below streams: whom to dial when ([`dial`]) and how much of that ([`dial_budget`]), who proves that it may connect ([`admission`]), which of two
//! connections lives ([`connection_table`]), which peers are dead ([`liveness`]), which queued events a slow follower gets
//! ([`backlog`]), which refusals are logged ([`refusal_log`]), which connections at a full port stay open ([`callers`]), how
//! often a client may ask ([`rate`]) and the holder of a key ([`allowance`]), and which announcements on the local network are believed ([`announcements`]).
//! [`traffic_rates`] is what passes over connections now, for people; [`connection`] has the values that they share.

pub mod admission;
pub mod allowance;
pub mod announcements;
pub mod backlog;
pub mod callers;
pub mod connection;
pub mod connection_table;
pub mod dial;
pub mod dial_budget;
pub mod liveness;
pub mod rate;
pub mod refusal_log;
pub mod traffic_rates;

pub use connection::{Traffic, Transport};
pub use dial::FoundBy;
pub use traffic_rates::TrafficRate;
