// What went wrong first in a pass: the least code that was reported, or all ones.

fn report(is_wrong: bool, code: u32) {
  if (is_wrong) {
    atomicMin(&fault, code);
  }
}
