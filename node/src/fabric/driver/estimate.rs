//! The scheduler's estimate of a worker: its advertised speed and the measurements of its link.

use std::time::Duration;

use libp2p::PeerId;
use pangea_compute::{Cut, DType, Operation};

use super::FabricDriver;
use crate::worker::executor::Speeds;
use pangea_control::schedule::limits::IN_FLIGHT_MAX;
use pangea_control::schedule::{Arithmetic, Event, WorkerEstimate};

/// Assumed speed of an unmeasured link: ordinary Ethernet.
const DEFAULT_BYTES_PER_S: f64 = 100e6;

/// Assumed round-trip time before the first ping.
const DEFAULT_RTT: Duration = Duration::from_millis(1);

impl FabricDriver {
    pub(super) fn update_worker(&mut self, peer: PeerId) {
        let worker = self.links.worker_of(&peer);
        if let (Some(worker), Some(estimate)) = (worker, self.estimate(&peer)) {
            self.events.push_back(Event::WorkerUpdated { worker, estimate });
        }
    }

    pub(super) fn estimate(&self, peer: &PeerId) -> Option<WorkerEstimate> {
        let (hello, rtt, bytes_per_s) = self.peers.read(|directory| {
            let known = directory.get(peer)?;
            Some((known.hello.clone()?, known.rtt, known.bytes_per_s))
        })?;
        let speeds = Speeds {
            f32_flops_per_s: hello.f32_flops_per_s,
            f64_flops_per_s: hello.f64_flops_per_s,
            i8_flops_per_s: hello.i8_flops_per_s,
        };
        let bytes_per_s = bytes_per_s.unwrap_or(DEFAULT_BYTES_PER_S);
        let rtt = rtt.unwrap_or(DEFAULT_RTT).as_secs_f64();
        let mut estimate = WorkerEstimate::remote(rates(&speeds), bytes_per_s, rtt, hello.store_bytes);
        estimate.max_in_flight = usize::from(hello.tasks_max).clamp(1, IN_FLIGHT_MAX);
        estimate.busy_s = self.links.get(peer).map_or(0.0, |link| link.busy.as_secs_f64());
        Some(estimate)
    }
}

pub(super) fn rates(speeds: &Speeds) -> [f64; Arithmetic::COUNT] {
    let mut rates = [0.0; Arithmetic::COUNT];
    rates[Arithmetic::F32 as usize] = speeds.f32_flops_per_s;
    rates[Arithmetic::F64 as usize] = speeds.f64_flops_per_s;
    // Halves are widened while they are packed; the product itself is f32.
    rates[Arithmetic::Half as usize] = speeds.f32_flops_per_s;
    rates[Arithmetic::Int8 as usize] = speeds.i8_flops_per_s;
    // Counted in products that take as long, until measured.
    rates[Arithmetic::Elementwise as usize] = speeds.f32_flops_per_s;
    rates
}

pub(super) fn arithmetic(operation: Operation, a: DType, b: DType) -> Arithmetic {
    match (a, b) {
        _ if operation.cut() == Cut::Paired => Arithmetic::Elementwise,
        (DType::I8, DType::I8) => Arithmetic::Int8,
        (DType::F64, _) | (_, DType::F64) => Arithmetic::F64,
        (DType::F32, _) | (_, DType::F32) => Arithmetic::F32,
        _ => Arithmetic::Half,
    }
}
