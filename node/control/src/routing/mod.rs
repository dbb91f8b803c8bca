//! Which server of a model takes a request. A server is a node that answers with all layers of its own; chains of several nodes
//! are placed elsewhere and come first where they are in force.
//!
//! * [`servers`]: the servers of a model, as adverts tell, and what this node sent to each.
//! * [`choice`]: the best of them for one prompt.
//! * [`prefix`]: which server has read which prompt, so that prompts with the same start go to the same server.

pub mod choice;
pub mod prefix;
pub mod servers;

pub use choice::choose;
pub use prefix::{Prefix, ReadPrefixes};
pub use servers::{Server, Servers};
