//! Limits dials to addresses that no person named: how many are in progress at once, and how many addresses are dialled per
//! second for one forwarder of reports, at one host and altogether. A dial that reaches its peer is not counted, so that
//! honest reports are not delayed; what a person named is not limited here.

use std::collections::BTreeMap;

use libp2p_identity::PeerId;
use multiaddr::Multiaddr;

use super::dial::TargetId;
use crate::Time;
use crate::token_bucket::{Rate, TokenBucket};

/// Dials in progress to peers that mDNS announces: hosts that do not answer hold up others of their kind no longer than a
/// dial takes, and never a peer that the user named. With those of reports they stay below what may be pending.
pub(super) const MAX_ANNOUNCED: usize = 32;

/// Dials in progress to peers that gossip reports.
const MAX_REPORTED: usize = 12;

/// Dials in progress to peers that one forwarder reports: one who reports only black holes leaves most of the places to
/// others.
const MAX_OF_FORWARDER: usize = 4;

/// Addresses of strangers that one forwarder reports: the two transports of a node with several networks, twice; then one
/// address per second.
const FORWARDER_ADDRESSES: Rate = Rate { per_second: 1.0, burst: 32.0 };

/// Addresses of strangers, whoever reports them: several forwarders of the same size, then a few per second.
const STRANGERS_ADDRESSES: Rate = Rate { per_second: 4.0, burst: 96.0 };

/// Addresses at one host, whoever reports them: a host may run a dozen nodes, but no report makes this node flood a host.
const HOST_ADDRESSES: Rate = Rate { per_second: 1.0, burst: 16.0 };

/// Forwarders and hosts with a limit of their own: more than a large pool has. Beyond it the first one is forgotten.
const MAX_KNOWN: usize = 1024;

/// A report of gossip that a peer listens at some addresses: the peer signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The peer.
    pub peer: PeerId,
    /// The connected peer that passed the report on.
    pub forwarder: PeerId,
    /// Whether the peer proved that it belongs to the pool; otherwise it is a stranger.
    pub proven: bool,
}

/// A dial in progress.
#[derive(Debug)]
struct InProgress {
    /// The report that it follows; none for an announced peer.
    report: Option<Report>,
    /// The hosts of its addresses.
    hosts: Vec<Multiaddr>,
}

/// What is left for dials that no person asked for.
#[derive(Debug, Default)]
pub(super) struct DialBudget {
    in_progress: BTreeMap<TargetId, InProgress>,
    strangers: Option<TokenBucket>,
    forwarders: BTreeMap<PeerId, TokenBucket>,
    hosts: BTreeMap<Multiaddr, TokenBucket>,
}

/// The host of an address: its first part.
fn host_of(address: &Multiaddr) -> Multiaddr {
    address.iter().take(1).collect()
}

fn bucket<K: Ord + Clone>(buckets: &mut BTreeMap<K, TokenBucket>, key: K, rate: Rate, now: Time) -> &mut TokenBucket {
    if buckets.len() >= MAX_KNOWN && !buckets.contains_key(&key) {
        buckets.pop_first();
    }
    buckets.entry(key).or_insert_with(|| TokenBucket::full(rate, now))
}

impl DialBudget {
    /// Whether a dial to an announced peer may start now.
    pub(super) fn start_announced(&mut self, target: TargetId) -> bool {
        let announced = self.in_progress.values().filter(|dial| dial.report.is_none()).count();
        let starts = announced < MAX_ANNOUNCED;
        if starts {
            self.in_progress.insert(target, InProgress { report: None, hosts: Vec::new() });
        }
        starts
    }

    /// Whether a dial to a reported peer may start now; removes the addresses that may not be dialled yet.
    pub(super) fn start_reported(
        &mut self,
        target: TargetId,
        report: &Report,
        addresses: &mut Vec<Multiaddr>,
        now: Time,
    ) -> bool {
        let reports = self.in_progress.values().filter_map(|dial| dial.report);
        let of_forwarder = reports.clone().filter(|known| known.forwarder == report.forwarder).count();
        if reports.count() >= MAX_REPORTED || of_forwarder >= MAX_OF_FORWARDER {
            return false;
        }
        if !report.proven {
            let all = self.strangers.get_or_insert_with(|| TokenBucket::full(STRANGERS_ADDRESSES, now));
            let of_forwarder = bucket(&mut self.forwarders, report.forwarder, FORWARDER_ADDRESSES, now);
            addresses.retain(|_| of_forwarder.take(1, now).is_ok() && all.take(1, now).is_ok());
        }
        addresses.retain(|address| bucket(&mut self.hosts, host_of(address), HOST_ADDRESSES, now).take(1, now).is_ok());
        if addresses.is_empty() {
            return false;
        }
        let hosts = addresses.iter().map(host_of).collect();
        self.in_progress.insert(target, InProgress { report: Some(*report), hosts });
        true
    }

    /// Records that a dial reached its peer.
    pub(super) fn succeeded(&mut self, target: TargetId) {
        let Some(InProgress { report, hosts }) = self.in_progress.remove(&target) else { return };
        for host in &hosts {
            self.hosts.get_mut(host).into_iter().for_each(|bucket| bucket.put_back(1));
        }
        if let Some(report) = report.filter(|report| !report.proven) {
            let of_forwarder = self.forwarders.get_mut(&report.forwarder);
            let count = u32::try_from(hosts.len()).unwrap_or(u32::MAX);
            of_forwarder.into_iter().chain(&mut self.strangers).for_each(|bucket| bucket.put_back(count));
        }
    }

    /// Records that a dial failed.
    pub(super) fn failed(&mut self, target: TargetId) {
        self.in_progress.remove(&target);
    }
}
