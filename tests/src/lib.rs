//! Harness of the tests in `tests/tests`, which need several processes or hosts. Worlds in virtual time are those of
//! `node/control/tests/world`.
//! Uses only the public interfaces of the crates under test.
//!
//! * [`cluster`]: real `pangea node` processes with their own folders. [`process`]: one process, its output and its end.
//! * [`command`]: the binary as one process that ends by itself. [`doctor`]: what `pangea doctor` finds. [`terminal`]: a process on a
//!   terminal of its own.
//! * [`matrix`]: products of a node against a reference.
//! * [`forwarder`]: a TCP link that is slow or breaks. [`namespaces`]: several hosts on one machine.
//! * [`http`]: requests and answers as bytes. [`test_model`]: the models that tests use.
//! * [`sockets`]: the TCP connections of a process. [`memory_limit`], [`small_disk`]: too little of either.
//! * [`stranger`]: an admitted peer that sends arbitrary bytes. [`accuser`]: one that accuses whomever it likes. [`gossip`]:
//!   one that forges, poisons and replays gossip. [`answerer`]: one that serves a model as it likes. [`skip`]: tests that cannot run here.
//! * [`tiny_model`]: a model file of some hundred kilobytes.
//!   [`file_host`]: a host of one file over HTTP.
//! * [`parsers`]: properties of the parsers of bytes from outside.

// A harness ends a test at the first failure.
#![allow(clippy::unwrap_used)]

pub mod accuser;
pub mod answerer;
pub mod cluster;
pub mod command;
pub mod doctor;
pub mod file_host;
pub mod forwarder;
pub mod gossip;
pub mod http;
pub mod matrix;
pub mod memory_limit;
pub mod namespaces;
pub mod parsers;
pub mod process;
pub mod skip;
pub mod small_disk;
pub mod sockets;
pub mod stranger;
pub mod terminal;
pub mod test_model;
pub mod tiny_model;
