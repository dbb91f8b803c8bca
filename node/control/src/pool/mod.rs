//! The nodes of a pool, seen from one of them: who is there, how they are connected, who is the master.
//!
//! * [`advert`]: what a node says of itself; [`placed`]: in it, what a master has decided of models.
//! * [`roster`]: which nodes are there; [`election`]: which of them is the master; [`term_keeper`]: when its term is
//!   announced.
//! * [`view`]: the pool at one moment, as the rest of the node reads it.
//!
//! What follows from a view (placements, routes) is decided elsewhere.

pub mod advert;
pub mod election;
mod model_name;
pub mod placed;
pub mod roster;
pub mod term_keeper;
pub mod view;

pub use advert::{Advert, LayerSpeed, LinkAdvert, ModelAdvert, ModelSize, StageAdvert, StageState, Term};
pub use model_name::full_name;
pub use view::View;

/// What an ordinary new node says of itself.
#[cfg(test)]
pub(crate) fn advert_of(peer: libp2p_identity::PeerId) -> Advert {
    Advert { incarnation: 1_700_000_000_000, sequence: 1, memory_bytes: 8 << 30, ..Advert::new(peer) }
}
