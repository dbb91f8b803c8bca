//! What is wrong with this machine, this data directory and the node that runs with it, and what to do: each check looks at one
//! thing and says one sentence. Nothing is changed or kept, and
//! nothing is decided for the node.
//!
//! | file | looks at |
//! |---|---|
//! | `machine` | memory, clock, threads, GPUs |
//! | `folder` | the data directory: permissions, certificate, disk, models |
//! | `network` | ports, mDNS, addresses |
//! | `running` | what a running node says of itself and of its peers |

mod folder;
mod machine;
mod network;
mod running;

use std::path::Path;

use pangea_client::{NodeStatus, PeerStatus, WayBack};
use serde::Serialize;

use crate::data_dir::NodeFile;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// Works, and could be better.
    Note,
    /// Something does not work.
    Problem,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What is the case.
    pub what: String,
    /// What to do; empty where nothing is to be done.
    pub advice: String,
}

impl Finding {
    fn good(check: &'static str, what: impl Into<String>) -> Finding {
        Finding { check, level: Level::Good, what: what.into(), advice: String::new() }
    }

    fn note(check: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { check, level: Level::Note, what: what.into(), advice: advice.into() }
    }

    fn problem(check: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { check, level: Level::Problem, what: what.into(), advice: advice.into() }
    }
}

/// Looks at this machine and at a data directory. `node`: the node that runs with it.
pub fn look(data_dir: &Path, node: Option<&NodeFile>) -> Vec<Finding> {
    let mut findings = vec![machine::memory(), machine::clock(data_dir)];
    findings.extend(machine::devices());
    findings.extend(folder::permissions(data_dir));
    findings.extend(folder::membership(data_dir));
    findings.extend(folder::disk(data_dir));
    findings.extend(folder::models(&data_dir.join("models")));
    findings.extend(network::ports(node));
    findings.push(network::mdns());
    findings.push(network::addresses(node));
    findings
}

/// Looks at what a running node says of itself and of its peers.
pub fn look_at_node(status: &NodeStatus, peers: &[PeerStatus], ways: &[WayBack]) -> Vec<Finding> {
    let mut findings = vec![machine::threads(status.threads)];
    findings.extend(running::pool(status));
    findings.extend(running::models(status));
    findings.extend(running::devices(status));
    findings.extend(running::peers(peers));
    findings.extend(running::ways_back(ways));
    findings.extend(running::versions(&status.version, peers));
    findings
}
