//! libFuzzer's entry to `mastership` among the machines of `node/control`, which owns what must hold.

#![no_main]

#[path = "../../../node/control/tests/machines/bytes.rs"]
mod bytes;
#[path = "../../../node/control/tests/machines/mastership.rs"]
mod mastership;
#[path = "../../../node/control/tests/machines/peers.rs"]
mod peers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mastership::run(bytes));
