//! The nodes that share a pool key, seen from one of them: who is there, how they are connected, who is the master.
//!
//! ```text
//!  gossip, peers up and down ──► Driver ──► Roster (who is there) ──► Election (who is the master)
//!  Pool::say ──► own Standing ──► gossip                    └──► View ──► Pool::view
//! ```
//!
//! * [`standing`]: what a node says of itself; [`codec`]: the same as bytes.
//! * [`roster`], [`election`]: pure state machines.
//! * [`memory`]: what outlives the process.
//! * [`view`], [`handle`]: what the rest of the node sees; [`topology`]: the same as a graph for people.
//! * [`driver`]: the task that feeds these.
//!
//! What follows from a view (placements, routes) is not decided here.

pub mod codec;
pub mod driver;
pub mod election;
#[cfg(test)]
mod goldens;
pub mod handle;
pub mod memory;
pub mod roster;
#[cfg(test)]
mod simulation;
pub mod standing;
pub mod topology;
pub mod view;

pub use driver::{Driver, Settings};
#[cfg(test)]
pub(crate) use goldens::standing_of;
pub use handle::Pool;
pub use standing::{LayerSpeed, LinkStanding, ModelSize, ModelStanding, StageStanding, StageState, Standing, Term};
pub use view::View;
