//! Models on disk: which file a name means, what is in it, where it can be had, and fetching it. It reads files,
//! into memory too; it runs no model.
//!
//! * [`reference`](mod@reference): what a person may write for a model: a name, a path, where to fetch it.
//! * [`catalogue`]: models that have a short name. [`store`]: the folder they are in. [`description`]: what a file says.
//! * [`fetch`](mod@fetch): from where it is into the folder, whole or not at all; `packages`, `hugging_face`, `download`:
//!   the ways there; `disk`: room for it; `transfer`: how far it is. `loading`: a part of a file into memory.

pub mod catalogue;
pub mod description;
pub(crate) mod disk;
mod download;
pub mod fetch;
mod hugging_face;
mod loading;
mod packages;
pub mod reference;
pub mod store;
mod transfer;

pub use description::Description;
pub use fetch::{fetch, get};
pub(crate) use loading::LoadedPart;
pub use reference::{Reference, is_path, name_of};
pub use store::{Entry, Found, find, installed, list, locate, names_of, remove, resolve};
pub use transfer::Transfer;
