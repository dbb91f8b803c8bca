//! libFuzzer's entry to `parsers::token`, which owns what must hold.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pangea_tests::parsers::token(bytes));
