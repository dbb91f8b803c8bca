//! What outlives the process, below every room that stores something.
//!
//! * `state`: `state.redb`, the database; each room has its own tables in it.
//! * [`whole_file`]: files that are whole or not there, whatever fails.

mod state;
pub mod whole_file;

pub use state::State;
