//! Jobs: what is asked of the fabric, and what came of it.

pub mod job;
