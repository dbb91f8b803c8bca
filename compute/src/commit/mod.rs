//! Commitments of stages, and how they are checked (DESIGN §6): hashes of a stage's input and output, the claim over
//! them that the stage signs, and the replay that shows whether the claim is true. Bytes and numbers only: signatures,
//! peers and receipts are the node's.
//!
//! | module | owns |
//! |---|---|
//! | [`merkle`] | `exact/1`: leaves of single positions, the root over them |
//! | [`claim`] | `exact/1`: a stage's claim about its work in a session |
//! | `sampling_terms` | the rules under which tokens are chosen, as a digest |
//! | [`replay`](mod@replay) | a session computed again, as one prefill; the first difference |
//! | [`grid`] | `canonical-grid/1`: activations of engines whose bits differ |
//!
//! The definition of `exact/1`, for independent implementations. Numbers are little-endian, ‖ joins bytes, every hash
//! is BLAKE3 and begins with a tag that ends with a zero byte:
//!
//! * leaf of position p (u64): `H("pangea exact/1 leaf\0" ‖ p ‖ bytes)`.
//! * root: neighbouring leaves are joined by `H("pangea exact/1 node\0" ‖ left ‖ right)`, and so on upwards; one without a
//!   neighbour goes up as it is. The root of one leaf is that leaf, that of none `H("pangea exact/1 empty\0")`.
//! * bytes of a position: what the first stage receives is the token's id (u32); what a stage without the head gives, and
//!   the next one receives, is the row of activations (f32); what the last stage gives is the token that it chose to
//!   follow that position, see [`merkle::chosen_leaf`], and no bytes at positions where it chose none. Where the prompt's
//!   log-probabilities were asked for, a position that a token of the prompt follows has that token with its own.

pub mod claim;
pub mod grid;
pub mod merkle;
pub mod replay;
pub mod sampling_terms;

pub use claim::Claim;
pub use merkle::{Leaf, leaf, merkle_root};
pub use replay::{ClaimedOutput, Difference, ModelSource, Replay, ReplayBytes, ReplayPace, Transcript, replay};
pub use sampling_terms::SamplingTerms;
