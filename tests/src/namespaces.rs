//! Several hosts on one machine: network namespaces joined by a switch, created with `ip` from iproute2 as root.
//! The namespaces have the process id in their names and are removed when dropped; the machine's own network is unchanged.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::skip::{skip, unless_root};

/// One host's network.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    /// Address of the host on the switch.
    pub address: String,
}

/// A switch and the hosts on it.
pub struct Namespaces {
    switch: String,
    hosts: Vec<Namespace>,
}

impl Namespaces {
    /// `count` hosts on one switch; `None` where this machine does not allow them, after a line that says that `test` is skipped.
    ///
    /// # Panics
    /// As [`skip`].
    pub fn for_test(test: &str, count: usize) -> Option<Namespaces> {
        if unless_root(test) {
            return None;
        }
        Namespaces::new(count).map_err(|why| skip(test, &format!("no network namespaces can be made: {why}"))).ok()
    }

    fn new(count: usize) -> Result<Namespaces, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("pgt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut made = Namespaces { switch: format!("{prefix}-switch"), hosts: Vec::new() };
        ip(&["netns", "add", &made.switch])?;
        let switch = made.switch.clone();
        ip(&["-n", &switch, "link", "add", "switch", "type", "bridge", "mcast_snooping", "0"])?;
        ip(&["-n", &switch, "link", "set", "switch", "up"])?;
        for number in 1..=count {
            let host = Namespace { name: format!("{prefix}-{number}"), address: format!("10.231.77.{number}") };
            let (name, port) = (host.name.clone(), format!("port{number}"));
            ip(&["netns", "add", &name])?;
            made.hosts.push(host);
            ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "switch", "up"])?;
            ip(&["-n", &name, "addr", "add", &format!("10.231.77.{number}/24"), "brd", "+", "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        }
        Ok(made)
    }

    /// The hosts.
    pub fn hosts(&self) -> &[Namespace] {
        &self.hosts
    }

    /// Isolates these hosts from each other; they still reach all others.
    pub fn isolate(&self, hosts: &[usize]) {
        for host in hosts {
            let port = format!("port{}", host + 1);
            ip(&["-n", &self.switch, "link", "set", &port, "type", "bridge_slave", "isolated", "on"]).unwrap();
        }
    }

    /// Disconnects a host from the switch, or connects it again.
    pub fn set_plugged(&self, host: usize, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        ip(&["-n", &self.switch, "link", "set", &format!("port{}", host + 1), state]).unwrap();
    }

    /// Gives a host a bridge as container engines make one, with this address, such as `172.17.0.1/16`.
    pub fn add_bridge(&self, host: usize, bridge: &str, address: &str) {
        let host = &self.hosts[host].name;
        ip(&["-n", host, "link", "add", bridge, "type", "bridge"]).unwrap();
        ip(&["-n", host, "addr", "add", address, "dev", bridge]).unwrap();
        ip(&["-n", host, "link", "set", bridge, "up"]).unwrap();
    }

    /// Loses every packet from one host to another, or delivers them again. Packets the other way still arrive.
    pub fn set_one_way(&self, from: usize, to: usize, lost: bool) {
        let (from, to) = (&self.hosts[from], &self.hosts[to].address);
        // An entry of the neighbour table that names no interface: the switch delivers the frame to nobody.
        let words: &[&str] = match lost {
            true => &["neigh", "replace", to, "lladdr", "02:00:00:00:00:01", "nud", "permanent", "dev", "eth0"],
            false => &["neigh", "del", to, "dev", "eth0"],
        };
        ip(&[&["-n", from.name.as_str()], words].concat()).unwrap();
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in self.hosts.iter().map(|host| &host.name).chain([&self.switch]) {
            if let Err(why) = ip(&["netns", "delete", name]) {
                eprintln!("the namespace {name} could not be removed: {why}");
            }
        }
    }
}

impl Namespace {
    /// Moves the calling thread into this host: the sockets that it makes from now on are the host's, and those of threads that
    /// it starts.
    ///
    /// # Panics
    /// Where the host is gone.
    pub fn enter(&self) {
        let namespace = File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// The result of `work`, done by a thread in this host.
    pub fn within<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|threads| {
            let worker = threads.spawn(|| {
                self.enter();
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `program` in this namespace; the process that starts becomes the program.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
