//! libFuzzer's entry to `parsers::rows_frame`, which owns what must hold.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pangea_tests::parsers::rows_frame(bytes));
