//! Commitments of stages, and how they are checked (DESIGN §6): hashes of a stage's input and output, the claim over
//! them that the stage signs, and the replay that shows whether the claim is true. Bytes and numbers only: signatures,
//! peers and receipts are the node's.
//!
//! | module | owns |
//! |---|---|
//! | [`merkle`] | `exact/1`: leaves of single positions, the root over them |
//! | [`claim`] | a stage's claim about its work in a session, and how its output is checked |
//! | `sampling_terms` | the rules under which tokens are chosen, as a digest |
//! | [`replay`](mod@replay) | a session computed again, as one prefill; the first difference |
//! | `chooser` | the last stage's choices in a replay |
//! | [`grid`] | `canonical-grid/1`: what engines whose bits differ may differ by |
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
//! * claim: the bytes of [`Claim::to_bytes`], which the stage signs.
//!
//! `canonical-grid/1` is for stages on engines whose bits differ. Leaves and roots are the same, over what the stage gave, bit for
//! bit: so whoever receives it countersigns it, and the next stage's claim names it. What differs is the claim's tag, and the check:
//!
//! * the stage keeps the rows that it gave and opens them when it is asked; rows that do not have the claimed root are none;
//! * every stage is computed again from what it received: the tokens, the opened rows of the stage before, or the output of one whose
//!   root was right;
//! * rows are compared with those computed again: [`grid::compare_rows`], as many layers after the last common value as the stage has;
//! * the tokens of a last stage are compared with the logits computed again: [`plausible::could_choose`](crate::sample::plausible::could_choose)
//!   within [`grid::logit_bound`], and its log-probabilities by [`grid::close_logprobs`].
//!
//! What differs by more than is accepted confirms nothing; only a multiple of that is evidence against the stage, and never in models
//! with experts: which of them compute a row depends on the order of nearly equal scores, so one row of an honest engine may be quite
//! another.

mod chooser;
pub mod claim;
pub mod grid;
pub mod merkle;
pub mod replay;
pub mod sampling_terms;

pub use claim::{Claim, Profile};
pub use merkle::{Leaf, leaf, merkle_root};
pub use replay::{
    ClaimedOutput, Compared, Difference, ModelSource, Replay, ReplayBytes, ReplayPace, ReplayedStage, Transcript,
    replay,
};
pub use sampling_terms::SamplingTerms;
