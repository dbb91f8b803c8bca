//! libFuzzer's entry to `fetch` among the machines of `node/control`, which owns what must hold.

#![no_main]

#[path = "../../../node/control/tests/machines/bytes.rs"]
mod bytes;
#[path = "../../../node/control/tests/machines/fetch.rs"]
mod fetch;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fetch::run(bytes));
