//! The nodes that share a pool key, seen from one of them: who is there, how they are connected, who is the master.
//!
//! * [`standing`]: what a node says of itself.
//! * [`view`], [`handle`]: what the rest of the node sees.

pub mod handle;
pub mod standing;
pub mod view;

pub use handle::Pool;
pub use standing::{LayerSpeed, LinkStanding, ModelSize, ModelStanding, StageStanding, StageState, Standing, Term};
pub use view::View;
