//! Decides about the tasks that one peer sends over one stream: which are accepted, when each starts, how each ends. No
//! bytes are moved and nothing is computed here.
//!
//! * [`Intake`]: the tasks of one stream, from their arrival to their end.
//! * [`TaskQuotas`]: how many tasks each peer may have here, and how fast it may send them.
//! * [`ResultQuotas`]: how much memory the results of each peer may take here.
//! * [`OperandStore`]: the operands that are kept for peers: whose, how many bytes, which go first.

mod intake;
mod operand_store;
mod quota;
mod result_quota;

pub use intake::{Action, Event, Intake, RESULT_MEMORY_TIMEOUT, Refusal, TASKS_PER_PEER, TaskId, Terms, peer_priority};
pub use operand_store::{Admission, OperandStore};
pub use quota::{TASKS_BURST, TASKS_PER_S, TaskQuotas};
pub use result_quota::ResultQuotas;
