//! One model over several nodes: sessions whose activations go from stage to stage, frame by frame.
//!
//! * [`wire`]: the messages of `/pangea/session/1`; the codec is sans-I/O.
//! * [`links`]: the streams that they travel on.
//! * [`payload`]: the raw bytes behind a message, ready to be read as numbers.
//! * [`limits`]: the numbers that senders and receivers keep to.

pub mod limits;
pub mod links;
pub mod payload;
pub mod wire;
