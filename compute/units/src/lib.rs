//! The quantities and kinds that every crate of Pangea speaks of. Plain values, and rules that several
//! crates keep to: nothing here does I/O or computes.
//!
//! | module | owns |
//! |---|---|
//! | [`digest`] | [`Digest`], a content address |
//! | [`byte_size`] | [`ByteSize`], a number of bytes as people write it: `200M`, `4GiB` |
//! | [`layer_range`] | [`LayerRange`], layers as people write them: `0-14` |
//! | [`error`] | [`ErrorKind`], the error kinds of every surface, and [`Error`], which carries one |
//! | [`limits`] | limits that several crates keep to |
//! | [`rewind`] | [`Rewind`], the positions that a session with a recurrent state can go back to |
//! | [`split_mix`] | [`SplitMix64`], numbers that follow from a seed, for generated matrices, simulations and tests |

pub mod byte_size;
pub mod digest;
pub mod error;
pub mod layer_range;
pub mod limits;
pub mod rewind;
pub mod split_mix;

pub use byte_size::{ByteSize, NotASize};
pub use digest::Digest;
pub use error::{Error, ErrorKind, Result};
pub use layer_range::{LayerRange, NotLayers};
pub use rewind::Rewind;
pub use split_mix::SplitMix64;
