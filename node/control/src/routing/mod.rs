//! Which server of a model takes a request. A server is a node that answers with all layers of its own; chains of several nodes
//! are placed elsewhere and come first where they are in force.
//!
//! * [`servers`]: the servers of a model, as adverts tell, and what this node sent to each.
//! * [`choice`]: the best of them for one prompt.
//! * [`prefix`]: which server has read which prompt, so that prompts with the same start go to the same server.
//! * [`way`]: whether this node coordinates a request itself or has another node answer it as a whole.
//! * [`attempts`]: the servers that such a whole request is sent to, one after the other or two at once.

pub mod attempts;
pub mod choice;
pub mod prefix;
pub mod servers;
pub mod way;

pub use attempts::Attempts;
pub use choice::choose;
pub use prefix::{Prefix, ReadPrefixes};
pub use servers::{Server, Servers, has_numerics};
pub use way::{ModelKnowledge, Way, way_of};
