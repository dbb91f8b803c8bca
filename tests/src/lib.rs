//! What needs several processes or hosts, or a world in virtual time: shared by the tests in `tests/tests`.
//! Never reaches into private functions of the crates it tests.

pub mod parsers;
pub mod simulation;
