//! The operation of a task in `/pangea/task/1`, with the digests of its operands. The encodings are pinned here.
//!
//! An unknown operation of a later version is no malformed message: the worker refuses that task by kind, and the
//! stream continues.

use pangea_compute::{Digest, Operation};
use pangea_schema::task_capnp::task::operation::{Builder, Reader, Which};

use super::WireError;
use super::field::{header_error, read_digest, write_digest};

pub(super) fn write(operation: Operation, [a, b]: &[Digest; 2], to: Builder<'_>) {
    match operation {
        Operation::Matmul => {
            let mut matmul = to.init_matmul();
            write_digest(a, matmul.reborrow().init_a());
            write_digest(b, matmul.init_b());
        }
        Operation::Add => {
            let mut add = to.init_add();
            write_digest(a, add.reborrow().init_a());
            write_digest(b, add.init_b());
        }
    }
}

/// The operation and its operands; `None` for an operation that this node does not know.
pub(super) fn read(from: Reader<'_>) -> Result<Option<(Operation, [Digest; 2])>, WireError> {
    let (operation, a, b) = match from.which() {
        Ok(Which::Matmul(matmul)) => (Operation::Matmul, matmul.get_a(), matmul.get_b()),
        Ok(Which::Add(add)) => (Operation::Add, add.get_a(), add.get_b()),
        Ok(Which::Unset(())) | Err(capnp::NotInSchema(_)) => return Ok(None),
    };
    Ok(Some((operation, [read_digest(a.map_err(header_error)?), read_digest(b.map_err(header_error)?)])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::conformance::{self, encoded};
    use crate::wire::{Header, Message, PREFIX_BYTES, Task};

    /// One task of each operation, in the order of [`Operation::ALL`].
    fn one_of_each() -> Vec<(Message, usize)> {
        let operands = [Digest::from_bytes([0xaa; 32]), Digest::from_bytes([0xbb; 32])];
        let task = |operation| Task { id: 7, priority: 0, deadline: None, operation, operands, trace: None };
        Operation::ALL.map(|operation| (Message::Task(task(operation)), 0)).into()
    }

    #[test]
    fn tasks_of_each_operation_of_every_version_are_read() {
        let read = |_: &Message, header: &[u8], payload| Message::decode(header, payload).unwrap();
        conformance::assert_frames_recorded("/pangea/task/1/operations", |_| one_of_each(), read);
    }

    #[test]
    fn disturbed_tasks_never_panic() {
        conformance::assert_sturdy(&one_of_each(), |_, _| {});
    }

    #[test]
    fn a_task_with_an_unknown_operation_is_recognised() {
        let task = encoded(&one_of_each()[0].0, 0);
        let header = &task[PREFIX_BYTES..];
        // Finds the operation's number: one 16-bit word of the header.
        let unknown = (0..header.len()).step_by(2).find_map(|at| {
            let mut later = header.to_vec();
            later[at..at + 2].copy_from_slice(&u16::MAX.to_le_bytes());
            Message::decode(&later, 0).ok().filter(|message| matches!(message, Message::UnknownTask(_)))
        });
        assert_eq!(unknown, Some(Message::UnknownTask(7)));
        let unset = encoded(&Message::UnknownTask(9), 0);
        assert_eq!(Message::decode(&unset[PREFIX_BYTES..], 0).unwrap(), Message::UnknownTask(9));
    }
}
