//! The driver of this node's part in placement, and what people see of it. What is placed where is decided by
//! [`pangea_control::placement`].
//!
//! * [`driver`]: the task that feeds the placer.
//! * [`plan_report()`]: where a model would be and is, for programs and people.

pub mod driver;
mod plan_report;

pub use driver::{PlacementDriver, Sessions, StageLoader, measure_speed};
pub use plan_report::plan_report;
