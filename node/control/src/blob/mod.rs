//! Decisions of fetching pieces of model files: which part is requested from which provider ([`fetch`]), and sets of parts
//! ([`parts`]).

pub mod fetch;
pub mod limits;
pub mod parts;
