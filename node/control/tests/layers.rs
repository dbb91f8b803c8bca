//! The rooms of this crate form layers without circles, in the order that the map in `lib.rs` states.

#[path = "../../../compute/tests/layers.rs"]
mod layers;
