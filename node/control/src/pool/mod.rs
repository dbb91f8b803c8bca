//! The nodes of a pool, seen from one of them: which are present, how they are connected, which is the master.
//!
//! * [`advert`]: a node's report of itself, published as [`advert_pace`] says; [`placed`]: the master's decisions about models in it.
//! * [`roster`]: which nodes are present; [`election`]: which of them is the master; [`term_keeper`]: when its term is
//!   announced.
//! * [`drops`]: which models the pool has dropped.
//! * [`served`]: which models count; [`served_lately`]: which were there a short while ago; [`name_choice`]: which of several
//!   with one name a request means.
//! * [`view`]: the pool at one moment, as the rest of the node reads it.
//!
//! What follows from a view (placements, routes) is decided elsewhere.

pub mod advert;
pub mod advert_pace;
pub mod drops;
pub mod election;
mod model_name;
pub(crate) mod models_said;
pub mod name_choice;
pub mod placed;
pub mod roster;
pub mod served;
pub mod served_lately;
pub mod term_keeper;
pub mod view;

pub use advert::{
    Advert, LayerSpeed, LinkAdvert, ModelAdvert, ModelSize, ServingAdvert, StageAdvert, StagePace, StageState, Term,
};
pub use drops::{DropRecord, Drops};
pub use model_name::{full_name, is_full_name};
pub use name_choice::{NameChoices, NameChosen};
pub use served_lately::ServedLately;
pub use view::View;

/// The advert of an ordinary new node.
#[cfg(test)]
pub(crate) fn advert_of(peer: libp2p_identity::PeerId) -> Advert {
    Advert { incarnation: 1_700_000_000_000, sequence: 1, memory_bytes: 8 << 30, ..Advert::new(peer) }
}

/// The advert of an ordinary link, over which nothing passes now.
#[cfg(test)]
pub(crate) fn link_to(peer: libp2p_identity::PeerId) -> LinkAdvert {
    LinkAdvert {
        to: peer,
        rtt: std::time::Duration::from_millis(1),
        bytes_per_s: 1e9,
        sent_bytes_per_s: 0.0,
        transport: "tcp".to_owned(),
        found_by: "mdns".to_owned(),
    }
}
