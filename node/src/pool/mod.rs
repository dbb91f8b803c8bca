//! The nodes that share a pool key, seen from one of them: who is there, how they are connected, who is the master.
//!
//! ```text
//!  gossip, peers up and down ──► Driver ──► Roster (who is there) ──► Election (who is the master)
//!  Pool::say ──► own Advert ──► gossip                    └──► View ──► Pool::view
//! ```
//!
//! * [`codec`]: adverts as bytes. Who is there and who is the master is decided by [`pangea_control::pool`].
//! * [`memory`]: what outlives the process.
//! * [`handle`]: what the rest of the node sees; [`topology`]: the same as a graph for people.
//! * [`driver`]: the task that feeds these.
//!
//! What follows from a view (placements, routes) is not decided here.

pub mod codec;
pub mod driver;
#[cfg(test)]
mod goldens;
pub mod handle;
pub mod memory;
pub mod topology;

pub use driver::{Driver, Settings};
#[cfg(test)]
pub(crate) use goldens::advert_of;
pub use handle::Pool;
pub use pangea_control::pool::{
    Advert, LayerSpeed, LinkAdvert, ModelAdvert, ModelSize, StageAdvert, StageState, Term, View,
};
