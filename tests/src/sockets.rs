//! TCP connections of a process as `/proc` lists them.

use std::collections::BTreeSet;

/// An established connection: the ports at its two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// Port at the process.
    pub local: u16,
    /// Port at the other end.
    pub remote: u16,
}

/// Number of the state "established" in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// Connections of process `pid`, without those at its `services` (ports for programs).
///
/// # Panics
/// Where `/proc` cannot be read.
pub fn connections(pid: u32, services: &[u16]) -> BTreeSet<Connection> {
    let sockets: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let port = |address: &str| u16::from_str_radix(address.split(':').nth(1).unwrap(), 16).unwrap();
    table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[3] == ESTABLISHED && sockets.contains(fields[9]))
        .map(|fields| Connection { local: port(fields[1]), remote: port(fields[2]) })
        .filter(|connection| !services.contains(&connection.local))
        .collect()
}
