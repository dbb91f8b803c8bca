//! Serving models from this process.
//!
//! * [`batch`]: which sequences are computed when; a pure state machine.

pub mod batch;
