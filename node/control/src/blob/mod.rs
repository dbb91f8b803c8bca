//! Decisions about pieces of model files: which part is requested from which provider ([`fetch`]), which of many peers'
//! streams is answered now ([`uploads`]), and sets of parts ([`parts`]).

pub mod fetch;
pub mod limits;
pub mod parts;
pub mod uploads;
