//! What every protocol between nodes needs of a stream, and none of them has for itself.
//!
//! | file | owns |
//! |---|---|
//! | [`framed`] | messages and payloads on a byte stream, with a deadline on progress |
//! | [`opening`] | opening a stream to a connected peer, with a deadline |
//! | [`places`] | how many streams peers may have here at once: one peer, and all together |
//!
//! When a stream that ended is opened again is decided by the room `streams` of `pangea_control`. What the messages say is the
//! protocols' business.

use std::time::Duration;

pub mod framed;
pub mod opening;
pub mod places;

/// Silence in the middle of a frame after which its stream has failed: a dead peer or a cut line. Generous, because the
/// failure detector, which knows more, is faster.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(20);

/// Time in which a connected peer must take a stream that is opened to it.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
