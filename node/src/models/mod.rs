//! Models on disk: which file a name means, what the file contains, where it can be downloaded, and downloading it.
//! Files are read, into memory too; no model is run here.
//!
//! * [`reference`](mod@reference): how a user names a model: a short name, a path, or where to download it.
//! * [`catalogue`]: models with a short name. [`store`]: the models folder. [`description`]: facts about a file.
//! * [`fetch`](mod@fetch): downloads a model into the folder; `packages`, `hugging_face`, `download`: the sources;
//!   `disk`: free space; `transfer`: progress. `loading`: a part of a file into memory.

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
