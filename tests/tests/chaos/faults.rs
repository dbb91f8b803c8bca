//! What goes wrong, drawn from a seed, and how each fault is put right. Judges nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use pangea_tests::namespaces::Namespaces;
use pangea_units::SplitMix64;

use super::hosts::{COUNT, Hosts, SMALL_DISK};

/// Milliseconds for which a fault lasts: from shorter than any timeout to longer than the silence that counts as death.
const LASTS_MS: std::ops::Range<u64> = 100..6_500;

/// Reads whose bytes are damaged at once.
const DAMAGED_READS: std::ops::Range<u64> = 1..6;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// SIGKILL; the node is started again.
    Kill,
    /// SIGSTOP, then SIGCONT.
    Stop,
    /// SIGTERM; the node is started again.
    Drain,
    /// The host's cable is unplugged.
    Unplug,
    /// Packets to another host are lost; those from it arrive.
    OneWay,
    /// Bytes to or from the node are damaged.
    Damage,
    /// All connections that others made to the node end.
    Disconnect,
    /// The disk of the node's data directory is full.
    FullDisk,
}

const KINDS: [Kind; 8] =
    [Kind::Kill, Kind::Stop, Kind::Drain, Kind::Unplug, Kind::OneWay, Kind::Damage, Kind::Disconnect, Kind::FullDisk];

/// A fault of one host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    kind: Kind,
    host: usize,
    /// The other end of a link that loses packets.
    to: usize,
}

impl Fault {
    /// The next fault, at a host that has none; `number` is how many were drawn before it.
    pub(crate) fn draw(random: &mut SplitMix64, number: Option<usize>, disorder: &Disorder) -> Fault {
        let first = number.and_then(|number| KINDS.get(number)).copied();
        loop {
            let kind = first.unwrap_or_else(|| KINDS[random.index(KINDS.len())]);
            let host = if kind == Kind::FullDisk { SMALL_DISK } else { random.index(COUNT) };
            let to = (host + 1 + random.index(COUNT - 1)) % COUNT;
            if !disorder.has(host) {
                return Fault { kind, host, to };
            }
            if kind == Kind::FullDisk && first.is_some() {
                // Its only host is taken: another kind takes its place.
                return Fault { kind: Kind::Disconnect, host: to, to };
            }
        }
    }
}

/// The faults that are there now, and how many there were.
#[derive(Default)]
pub(crate) struct Disorder {
    now: Vec<(Instant, Fault)>,
    counts: BTreeMap<Kind, u64>,
}

impl Disorder {
    /// Faults that are there now.
    pub(crate) fn len(&self) -> usize {
        self.now.len()
    }

    fn has(&self, host: usize) -> bool {
        self.now.iter().any(|(_, fault)| fault.host == host)
    }

    /// Begins a fault.
    pub(crate) fn begin(&mut self, fault: Fault, hosts: &mut Hosts, network: &Namespaces, random: &mut SplitMix64) {
        *self.counts.entry(fault.kind).or_default() += 1;
        let lasts = Duration::from_millis(random.within(LASTS_MS));
        println!("{:?} of {}, {} ms", fault.kind, hosts.host(fault.host).name(), lasts.as_millis());
        let host = hosts.host(fault.host);
        match fault.kind {
            Kind::Kill => host.kill(),
            Kind::Stop => host.node().stop(),
            Kind::Drain => host.drain(),
            Kind::Unplug => network.set_plugged(fault.host, false),
            Kind::OneWay => network.set_one_way(fault.host, fault.to, true),
            Kind::Damage => return host.forwarder().damage(random.within(DAMAGED_READS)),
            Kind::Disconnect => return host.forwarder().disconnect(),
            Kind::FullDisk => host.disk().fill(),
        }
        self.now.push((Instant::now() + lasts, fault));
    }

    /// Puts right what has lasted long enough.
    pub(crate) fn end_due(&mut self, hosts: &mut Hosts, network: &Namespaces) {
        let now = Instant::now();
        let (due, left) = self.now.drain(..).partition(|(until, _)| *until <= now);
        self.now = left;
        for (_, fault) in due {
            end(fault, hosts, network);
        }
    }

    /// Waits for the fault that ends first, and puts it right.
    pub(crate) fn end_next(&mut self, hosts: &mut Hosts, network: &Namespaces) {
        if let Some(until) = self.now.iter().map(|(until, _)| *until).min() {
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            self.end_due(hosts, network);
        }
    }
}

fn end(fault: Fault, hosts: &mut Hosts, network: &Namespaces) {
    let host = hosts.host(fault.host);
    match fault.kind {
        Kind::Kill | Kind::Drain => host.start(),
        Kind::Stop => host.node().cont(),
        Kind::Unplug => network.set_plugged(fault.host, true),
        Kind::OneWay => network.set_one_way(fault.host, fault.to, false),
        Kind::FullDisk => host.disk().clear(),
        Kind::Damage | Kind::Disconnect => {}
    }
}

impl fmt::Display for Disorder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.counts.iter().map(|(kind, count)| format!("{kind:?} {count}")).collect();
        formatter.write_str(&parts.join(", "))
    }
}
