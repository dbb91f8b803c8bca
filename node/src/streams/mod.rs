//! The parts of streams that every protocol between nodes shares.
//!
//! | file | owns |
//! |---|---|
//! | [`framed`] | messages and payloads on a byte stream, with a deadline on progress |
//! | [`opening`] | opening a stream to a connected peer, with a deadline |
//! | [`places`] | limits on the streams that peers have on this node: per peer, and in total |
//!
//! The room `streams` of `pangea_control` decides when a stream that ended is reopened. The protocols define what the
//! messages mean.

use std::time::Duration;

pub mod framed;
pub mod opening;
pub mod places;

/// Silence within a frame after which its stream has failed: a dead peer or a cut line. Generous, because the
/// failure detector, which knows more, is faster.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(20);

/// Time for a connected peer to accept a stream that is opened to it.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
