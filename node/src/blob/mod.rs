//! Pieces of model files, `/pangea/blob/1`: a node fetches only the tensors that its layers need, from any node that
//! has them. Content-addressed: a model is named by the digest of its manifest, and each received part is verified
//! against the manifest, so that an interrupted transfer resumes and wrong bytes are detected at once.
//!
//! ```text
//!  Blobs (handle, any thread) ── Request ──► fetcher (network thread) ── fetch (pure): which part of whom?
//!      │ offer: index                          │
//!      ▼                                       ├─► provider: a stream to each peer that has parts
//!    blob_store: whole files and partial copies ◄───┴─► stored: checked and written on threads of their own
//!      ▲
//!    serve: answers peers
//! ```
//!
//! * [`blobs`]: the handle. [`limits`]: the limits. [`message`]: the protocol. [`parts`]: sets of parts.
//! * `stored`, `blob_store`, `index`: files on disk, partial copies in `blobs/<digest>/`, manifests of whole files in
//!   `blobs/manifests/`.
//! * `fetcher`, `provider`: fetching; [`pangea_control::blob`] decides which part is requested from which peer.
//!   `serve`, `turns`: answering; [`pangea_control::blob`] decides which stream's turn it is.
//!
//! A partial copy is kept for the next run. When a fetch needs room, copies that this run has not used are removed,
//! those unused the longest first. Model weights are public: any peer of the pool may fetch them (DESIGN §1).

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
mod turns;

pub use blobs::{Blobs, Offered, StoredModel, start};
pub use index::FileStamp;
pub use message::BlobMessage;
pub use pangea_compute::model::Wanted;
pub use size::{model_size, position_bytes};

/// The protocol, versioned in its name.
pub const PROTOCOL: &str = "/pangea/blob/1";
