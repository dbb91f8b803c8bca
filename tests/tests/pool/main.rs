//! Several real nodes as one pool: master, connections and their lifetime, also if nodes reach each other only through
//! tunnels.
#![allow(clippy::unwrap_used)]

mod crowd;
mod election;
mod persistence;
mod poison;
mod soak;
mod topology;
mod tunnels;
