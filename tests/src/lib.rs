//! What needs several processes or hosts, or a world in virtual time: shared by the tests in `tests/tests`.
//! Never reaches into private functions of the crates it tests.
//!
//! * [`cluster`]: real `pangea node` processes with their own folders. [`process`]: one process, its lines and its end.
//! * [`command`]: the binary as one process that ends by itself.
//! * [`matrix`]: products asked of a node, and what they must be.
//! * [`forwarder`]: a TCP link that is slow or breaks. [`namespaces`]: hosts of their own on one machine.
//! * [`http`]: requests and answers as bytes. [`test_model`]: the models that tests use.
//! * [`sockets`]: which connections a process has.
//! * [`stranger`]: a peer that says what it likes. [`skip`]: tests that cannot run here.
//! * [`tiny_model`]: a model file of some hundred kilobytes.
//!   [`file_host`]: a host of one file over HTTP.
//! * [`parsers`]: what parsers of bytes from outside must hold to. [`simulation`]: the scheduler in virtual time.

// A harness stops a test at the first thing that is not as it should be.
#![allow(clippy::unwrap_used)]

pub mod cluster;
pub mod command;
pub mod file_host;
pub mod forwarder;
pub mod http;
pub mod matrix;
pub mod namespaces;
pub mod parsers;
pub mod process;
pub mod simulation;
pub mod skip;
pub mod sockets;
pub mod stranger;
pub mod test_model;
pub mod tiny_model;
