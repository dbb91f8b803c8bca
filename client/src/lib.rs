//! What other programs embed to use a Pangea node.
//!
//! * [`error`]: the error kinds, the same on every surface.
//!
//! It knows the Cap'n Proto service and nothing of libp2p or kernels.

pub mod error;

pub use error::{Error, ErrorKind, Result};
