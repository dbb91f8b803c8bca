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

    /// In the order of [`Operation::ALL`].
    const GOLDEN: &str = "\
task
  9000000000000000 0000000011000000 0000000002000100 0200000000000000 0000000000000000 0000000002000300 0700000000000000 0000010000000000 0800000004000000 1400000004000000 0000000000000000 aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbb bbbbbbbbbbbbbbbb bbbbbbbbbbbbbbbb bbbbbbbbbbbbbbbb
task
  9000000000000000 0000000011000000 0000000002000100 0200000000000000 0000000000000000 0000000002000300 0700000000000000 0000020000000000 0800000004000000 1400000004000000 0000000000000000 aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbb bbbbbbbbbbbbbbbb bbbbbbbbbbbbbbbb bbbbbbbbbbbbbbbb
";

    /// One task of each operation.
    fn one_of_each() -> Vec<(Message, usize)> {
        let operands = [Digest::from_bytes([0xaa; 32]), Digest::from_bytes([0xbb; 32])];
        let task = |operation| Task { id: 7, priority: 0, deadline: None, operation, operands, trace: None };
        Operation::ALL.map(|operation| (Message::Task(task(operation)), 0)).into()
    }

    #[test]
    fn the_bytes_of_a_task_of_each_operation_are_pinned() {
        conformance::assert_pinned(&one_of_each(), GOLDEN);
    }

    #[test]
    fn tasks_survive_encoding_and_disturbed_ones_never_panic() {
        conformance::assert_comes_back(&one_of_each(), |_, header, payload| Message::decode(header, payload).unwrap());
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
