//! Several real nodes as one pool: who is the master, who is connected to whom, connections that last, and all of it where
//! nodes reach each other through tunnels only.
#![allow(clippy::unwrap_used)]

mod election;
mod persistence;
mod soak;
mod topology;
mod tunnels;
