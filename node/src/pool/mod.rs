//! The nodes that share a pool key, seen from one of them: which are present, how they are connected, which is the master.
//!
//! ```text
//!  gossip, peers up and down ──► PoolDriver ──► Roster (nodes present) ──► Election (the master)
//!  Pool::update_advert ──► own Advert ──► gossip                    └──► View ──► Pool::view
//! ```
//!
//! * [`codec`]: encoding of adverts. [`pangea_control::pool`] decides which nodes are present and which is the master.
//! * [`members`]: what the owner of the node does about belonging; [`revocations`]: the task that spreads revocations;
//!   [`strangers`]: the task that meets nodes of other pools; [`enrolment`]: how a node that does not run joins a pool.
//! * [`memory`]: state that survives the process; `metrics`: what is counted.
//! * [`handle`]: the interface to the rest of the node; [`topology`]: the pool as a graph for people; [`said`]: what
//!   adverts add to the statuses that people read.
//! * [`driver`]: the task that feeds these.
//!
//! Decisions that follow from a view (placements, routes) are not made here.

pub mod codec;
pub mod driver;
pub mod enrolment;
#[cfg(test)]
mod goldens;
pub mod handle;
pub mod members;
pub mod memory;
mod metrics;
pub mod overview;
pub mod revocations;
pub mod said;
pub mod strangers;
pub mod topology;

pub use driver::{PoolDriver, PoolSettings};
#[cfg(test)]
pub(crate) use goldens::advert_of;
pub use handle::Pool;
pub use members::Members;
pub use pangea_control::pool::{
    Advert, DropRecord, LayerSpeed, LinkAdvert, ModelAdvert, ModelSize, ServingAdvert, StageAdvert, StagePace,
    StageState, Term, View,
};
