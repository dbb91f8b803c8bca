//! The nodes that share a pool key, seen from one of them: who is there, how they are connected, who is the master.
//!
//! * [`standing`]: what a node says of itself.

pub mod standing;

pub use standing::{LayerSpeed, LinkStanding, ModelSize, ModelStanding, StageStanding, StageState, Standing, Term};
