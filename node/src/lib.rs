//! One Pangea node and everything its binary does.

pub mod net;
