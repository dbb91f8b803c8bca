//! libFuzzer's entry to `stage` among the machines of `node/control`, which owns what must hold.

#![no_main]

#[path = "../../../node/control/tests/machines/bytes.rs"]
mod bytes;
#[path = "../../../node/control/tests/machines/peers.rs"]
mod peers;
#[path = "../../../node/control/tests/machines/stage.rs"]
mod stage;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stage::run(bytes));
