//! This node's status for callers, and its hello and goodbye for peers.

use super::FabricDriver;
use crate::devices::threads::Purpose;
use crate::fabric::status::NodeStatus;
use crate::link::limits::TASKS_PER_PEER;
use crate::wire::{TaskHello, VERSION};
use pangea_client::MemoryUse;

impl FabricDriver {
    pub(super) fn hello(&self) -> TaskHello {
        let speeds = &self.settings.speeds;
        TaskHello {
            version: VERSION,
            name: self.settings.name.clone(),
            software: concat!("pangea ", env!("CARGO_PKG_VERSION")).to_owned(),
            threads: u16::try_from(self.settings.devices.threads(Purpose::Products)).unwrap_or(u16::MAX),
            f32_flops_per_s: speeds.f32_flops_per_s,
            f64_flops_per_s: speeds.f64_flops_per_s,
            i8_flops_per_s: speeds.i8_flops_per_s,
            store_bytes: self.served.borrow().store.quota(),
            tasks_max: TASKS_PER_PEER as u16,
            isa: self.executor.isa().to_owned(),
            works: self.settings.works,
        }
    }

    pub(super) fn say_goodbye(&mut self) {
        for (_, open) in self.links.iter() {
            // If the queue is full, the peer just sees the stream end.
            let _ = open.link.goodbye("the node is shutting down");
        }
    }

    pub(super) fn status(&self) -> NodeStatus {
        let served = self.served.borrow();
        let jobs = self.settings.jobs.counts();
        let held = self.settings.devices.held_by_kind().into_iter();
        let memory = held.map(|(kind, bytes)| MemoryUse { purpose: kind.name().to_owned(), bytes }).collect::<Vec<_>>();
        NodeStatus {
            peer: self.settings.peer.to_string(),
            name: self.settings.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            listening: self.listening.borrow().clone(),
            rpc: self.rpc.clone(),
            pool_key: self.settings.pool_key,
            threads: u32::try_from(self.settings.devices.threads(Purpose::Products)).unwrap_or(u32::MAX),
            gflops: self.settings.speeds.f32_flops_per_s / 1e9,
            isa: self.executor.isa().to_owned(),
            memory_used_bytes: memory.iter().map(|held| held.bytes).sum(),
            memory_limit_bytes: self.settings.devices.limit(),
            peers: self.peers.read(|directory| directory.connected()) as u32,
            jobs_running: u32::try_from(jobs.live).unwrap_or(u32::MAX),
            jobs_done: jobs.done,
            jobs_failed: jobs.failed,
            tasks_served: served.tasks_done,
            bytes_sent: self.counters.bytes_sent + served.bytes_sent,
            bytes_received: self.counters.bytes_received + served.bytes_received,
            memory,
            devices: self.settings.devices.show(),
            // The services add what does not concern products.
            ..NodeStatus::default()
        }
    }
}
