//! Decides which node computes which layers of which model: never slower than the fastest single node, as far as
//! predictable.
//!
//! ```text
//!  pool view ──► Placer ─┬─ PlacementMaster (on the master: what is placed where) ──► own advert ──► everyone's view
//!                        └─ StageManager (which stages this node holds) ──► fetch, load, unload
//! ```
//!
//! * [`placer`]: the state machine of a node's part; [`pool_facts`]: the facts that it reads from a view.
//! * `placement_master`: which models are planned when; `model_placement`: what becomes of one model's placements.
//! * [`Placement`]: a decision, as a plain value of the pool.
//! * [`plan()`]: the fastest placement that fits the nodes' offers. It uses [`offer`] (needs and offers), `cost` (the
//!   time of
//!   a chain), `chains` (orders of nodes), `shares` (layers per node), and
//!   `no_plan` (why there is no plan).
//! * [`preview()`]: a model's planned and current placement, for people.
//! * `loaded_chain`: the layers that a model whose file is gone can still be computed with.
//! * `left_out`: why nodes get no layers of a model.
//! * [`missing_layers()`]: which layers no node has any more.
//! * [`PublishedPlacements`]: the placements that count until a new master has published its own.
//! * [`newest_usable()`]: the placement that a request may use now, the room of its stages, and where a chain failed.
//! * [`assignment`]: what a node without models of its own serves for the pool.
//! * `load_failures`: when a model that cannot be loaded is tried again.
//! * `measured`: the speeds of nodes for a model, as its stages show them; `slowness`: nodes that are slower than they say.
//! * `cooldown`: nodes excluded for now; `replan_delay`: when a better plan replaces a working placement.

pub mod assignment;
mod chains;
mod cooldown;
mod cost;
mod left_out;
mod load_failures;
mod loaded_chain;
mod measured;
mod missing_layers;
mod model_placement;
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
mod slowness;
mod stage_manager;
mod usable;

pub use crate::pool::placed::{PlacedStage, Placement, PlacementRefusal};
pub use cost::Prediction;
pub use loaded_chain::has_loaded_chain;
pub use missing_layers::missing_layers;
pub use no_plan::{NoPlan, without_weights};
pub use offer::{LinkSpeed, ModelNeeds, NodeOffer, SESSION_POSITIONS};
pub use placement_master::{Note, TokenTime};
pub use placer::{Action, Event, Placer};
pub use plan::{Alternative, Plan, plan, predict};
pub use preview::{ChainPreview, Preview, preview};
pub use published::PublishedPlacements;
pub use stage_manager::{StageOrder, StageReport};
pub use usable::{broken_elsewhere, newest_usable, room_positions};

#[cfg(test)]
mod garbage_tests;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod speed_tests;
