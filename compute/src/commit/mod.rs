//! What a stage answers for, and how it is checked (DESIGN §6): hashes of what it received and gave, the claim over them
//! that it signs, and the replay that shows whether the claim is true. Bytes and numbers only: signatures, peers and
//! receipts are the node's.
//!
//! | module | owns |
//! |---|---|
//! | [`merkle`] | `exact/1`: leaves of single positions, the root over them |
//! | [`claim`] | `exact/1`: what a stage says it did in a session |
//! | [`terms`] | what the choice of tokens depends on, besides the model |
//! | [`replay`](mod@replay) | the same session again, as one prefill; the first difference |
//! | [`grid`] | `canonical-grid/1`: activations of engines that do not have the same bits |
//!
//! `exact/1`, so that anyone can redo it. Numbers are little-endian, ‖ joins bytes, every hash is BLAKE3 and begins with
//! a tag that ends with a zero byte:
//!
//! * leaf of position p (u64): `H("pangea exact/1 leaf\0" ‖ p ‖ bytes)`.
//! * root: neighbouring leaves are joined by `H("pangea exact/1 node\0" ‖ left ‖ right)`, and so on upwards; one without a
//!   neighbour goes up as it is. The root of one leaf is that leaf, that of none `H("pangea exact/1 empty\0")`.
//! * bytes of a position: what the first stage receives is the token's id (u32); what a stage without the head gives, and
//!   the next one receives, is the row of activations (f32); what the last stage gives is the token that it chose to
//!   follow that position, see [`merkle::chosen_leaf`], and no bytes at positions where it chose none.

pub mod claim;
pub mod grid;
pub mod merkle;
pub mod replay;
pub mod sampling_terms;

pub use claim::Claim;
pub use merkle::{Leaf, leaf, merkle_root};
pub use replay::{Difference, Given, Pace, Replay, Source, Transcript, replay};
pub use sampling_terms::{Form, SamplingTerms};
