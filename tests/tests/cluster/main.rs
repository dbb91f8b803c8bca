//! Several real nodes: the fabric's promises while processes die, stop, lie, run out of memory and receive bytes from
//! strangers. Each test starts its own nodes and owns their folders.
#![allow(clippy::unwrap_used)]

mod accusations;
mod connecting;
mod doctor;
mod failures;
mod hostile;
mod lies;
mod lifecycle;
mod log;
mod memory;
mod networks;
mod products;
