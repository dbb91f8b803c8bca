//! Which node computes which layers of which model: never slower than the fastest single node, as far as can be predicted.
//!
//! ```text
//!  pool view ──► Placer ─┬─ PlacementMaster (on the master: what is placed where) ──► own advert ──► everyone's view
//!                        └─ StageManager (which stages this node holds) ──► fetch, load, unload
//! ```
//!
//! * [`placer`]: the state machine of a node's part; [`pool_facts`]: what it reads off a view.
//! * [`Placement`]: what is decided, a plain value of the pool.
//! * [`plan()`]: the fastest placement that fits, from what nodes offer. Below it: what it is made from ([`offer`]), what
//!   a chain of nodes takes (`cost`), in which orders nodes are chained (`chains`), how many layers each gets (`shares`), and
//!   why there is no plan (`no_plan`).
//! * [`preview()`]: where a model would be and is, for people who ask.
//! * [`missing_layers()`]: which layers no node has any more.
//! * [`PublishedPlacements`]: what counts while a new master has yet to publish.
//! * `cooldown`: which nodes are excluded for now; `replan_delay`: when a better plan replaces what works.

mod chains;
mod cooldown;
mod cost;
mod missing_layers;
mod no_plan;
pub mod offer;
mod placement_master;
pub mod placer;
mod plan;
pub mod pool_facts;
mod preview;
mod published;
mod replan_delay;
mod running;
mod shares;
mod stage_manager;

pub use crate::pool::placed::{PlacedStage, Placement, PlacementRefusal};
pub use cost::Prediction;
pub use missing_layers::missing_layers;
pub use no_plan::NoPlan;
pub use offer::{LinkSpeed, ModelNeeds, NodeOffer};
pub use placement_master::Note;
pub use placer::{Action, Event, Placer};
pub use plan::{Alternative, Plan, plan, predict};
pub use preview::{ChainPreview, Preview, preview};
pub use published::PublishedPlacements;
pub use stage_manager::{StageOrder, StageReport};

#[cfg(test)]
mod plan_tests;
