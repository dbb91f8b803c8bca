//! The decisions of fetching pieces of model files: which part is asked of which provider ([`fetch`]), and sets of parts
//! ([`parts`]).

pub mod fetch;
pub mod limits;
pub mod parts;
