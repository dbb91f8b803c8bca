//! Which node computes which layers of which model: never slower than the fastest single node, as far as can be foretold.
//!
//! * [`placement`]: what is decided, a plain value.

pub mod placement;

pub use placement::{PlacedStage, Placement};
