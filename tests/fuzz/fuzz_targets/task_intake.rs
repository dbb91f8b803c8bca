//! libFuzzer's entry to `intake` among the machines of `node/control`, which owns what must hold.

#![no_main]

#[path = "../../../node/control/tests/machines/bytes.rs"]
mod bytes;
#[path = "../../../node/control/tests/machines/intake.rs"]
mod intake;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| intake::run(bytes));
