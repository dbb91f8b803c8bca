//! Pieces of model files, `/pangea/blob/1`: a node fetches the tensors that its layers need, and no more, from any node that
//! has them. Content-addressed: a model is named by the digest of its manifest, and everything received is checked
//! against it before it counts, part by part, so that a cut transfer goes on where it was and a lie shows at once.
//!
//! ```text
//!  Blobs (handle, any thread) ── Request ──► fetcher (network thread) ── fetch (pure): which part of whom?
//!      │ offer: index                          │
//!      ▼                                       ├─► provider: a stream to each peer that has parts
//!    blob_store: whole files and partial copies ◄───┴─► stored: checked and written on threads of their own
//!      ▲
//!    serve: what peers ask
//! ```
//!
//! * [`blobs`]: the handle. [`limits`]: the numbers. [`message`]: the protocol. [`parts`]: sets of parts.
//! * `stored`, `blob_store`, `index`: files on disk, partial copies in `blobs/<digest>/`, manifests of whole files in
//!   `blobs/manifests/`.
//! * `fetcher`, `provider`: fetching; which part is asked of whom is decided by [`pangea_control::blob`]. `serve`: answering.
//!
//! A partial copy stays for the next run. When a fetch needs room, copies that this run has not used go, the longest unused
//! first. Public weights are the one thing that any peer of the pool may have (DESIGN §1).

mod blob_store;
pub mod blobs;
mod fetcher;
#[cfg(test)]
mod goldens;
mod index;
pub mod limits;
pub mod message;
pub mod parts;
mod provider;
mod serve;
mod size;
mod stored;

pub use blobs::{Blobs, Here, Offered, start};
pub use message::BlobMessage;
pub use pangea_compute::model::Wanted;
pub use size::model_size;

/// The protocol, versioned in its name.
pub const PROTOCOL: &str = "/pangea/blob/1";
