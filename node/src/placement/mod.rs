//! The driver of this node's part in placement, and its report for people. [`pangea_control::placement`] decides what
//! is placed where.
//!
//! * [`driver`]: the task that feeds the placer.
//! * [`plan_report()`]: a model's planned and current placement, for programs and people.
//! * [`view_with_file`]: the pool with a model of this disk, for a plan before it is served.

pub mod driver;
mod plan_report;
mod unserved;

pub use driver::{PlacementDriver, Sessions, StageLoader, measure_speed};
pub use plan_report::plan_report;
pub use unserved::view_with_file;
