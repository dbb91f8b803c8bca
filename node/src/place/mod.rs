//! Which node computes which layers of which model: never slower than the fastest single node, as far as can be foretold.
//!
//! * [`placement`]: what is decided, a plain value.
//! * [`plan()`]: the fastest placement that fits, from what nodes offer; pure. Below it: what it is made from ([`offer`]), what
//!   a chain of nodes takes, in which orders nodes are chained, how many layers each gets, and why there is no plan.

//!
//! ```text
//!  pool view ──► Placer ─┬─ Ruler (master: what is placed where) ──► own standing ──► everyone's view
//!                        └─ Keeper (which stages this node holds) ──► fetch, load, unload
//! ```
//!
//! * [`placer`]: the state machine of a node's part; [`survey`]: what it reads off a view; [`driver`]: the task that feeds it.
//! * [`preview()`]: where a model would be and is, for people.

mod blame;
mod chains;
mod cost;
pub mod driver;
mod keeper;
mod no_plan;
pub mod offer;
mod patience;
pub mod placement;
pub mod placer;
mod plan;
mod preview;
mod ruler;
mod running;
mod shares;
pub mod survey;

pub use cost::Prediction;
pub use driver::{Driver, Sessions, StageLoader, measure_speed};
pub use keeper::{StageOrder, StageReport};
pub use no_plan::NoPlan;
pub use offer::{Link, ModelNeeds, NodeOffer};
pub use placement::{PlacedStage, Placement, Refusal};
pub use placer::{Action, Event, Placer};
pub use plan::{Alternative, Plan, plan, predict};
pub use preview::preview;
pub use ruler::Note;

#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod simulation;
