//! The cost model of a worker: its speed and link, predictions from them, and corrections by observations.
//! Nothing is decided here, and queues are unknown.

use super::limits::{
    IN_FLIGHT_LOCAL, IN_FLIGHT_MAX, LEARN_BYTES_MIN, LEARN_SECONDS_MIN, LEARN_WEIGHT, LEARN_WEIGHT_FAST, SURPRISE,
    SURPRISE_MAX,
};

/// Kind of arithmetic, which selects a worker's rate for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arithmetic {
    /// 32-bit floats.
    F32,
    /// 64-bit floats.
    F64,
    /// 16-bit floats of either kind, summed in 32 bits.
    Half,
    /// 8-bit integers, summed in 32 bits.
    Int8,
    /// One pass over operands and result, limited by memory for every type.
    Elementwise,
}

impl Arithmetic {
    /// Every kind, in the order of [`WorkerEstimate::flops_per_s`].
    pub const ALL: [Arithmetic; 5] =
        [Arithmetic::F32, Arithmetic::F64, Arithmetic::Half, Arithmetic::Int8, Arithmetic::Elementwise];

    /// Number of kinds: the length of [`WorkerEstimate::flops_per_s`].
    pub const COUNT: usize = Arithmetic::ALL.len();
}

/// A worker's advertised speed and the known properties of its link, before any observation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerEstimate {
    /// Additions and multiplications per second, indexed by [`Arithmetic`].
    pub flops_per_s: [f64; Arithmetic::COUNT],
    /// Bytes per second to the worker.
    pub send_bytes_per_s: f64,
    /// Bytes per second from the worker.
    pub receive_bytes_per_s: f64,
    /// Round-trip time, in seconds.
    pub rtt_s: f64,
    /// Fixed cost of one task beyond the round trip, in seconds.
    pub overhead_s: f64,
    /// Bytes for operands and answers.
    pub memory_bytes: u64,
    /// Maximum attempts that it accepts at once.
    pub max_in_flight: usize,
    /// Seconds of other nodes' work queued at the worker.
    pub busy_s: f64,
}

impl WorkerEstimate {
    /// This node: no link; the fixed cost is the hand-over to the compute pool.
    pub fn local(flops_per_s: [f64; Arithmetic::COUNT], memory_bytes: u64) -> Self {
        Self {
            flops_per_s,
            send_bytes_per_s: f64::INFINITY,
            receive_bytes_per_s: f64::INFINITY,
            rtt_s: 0.0,
            overhead_s: 20e-6,
            memory_bytes,
            max_in_flight: IN_FLIGHT_LOCAL,
            busy_s: 0.0,
        }
    }

    /// A peer, with the fixed cost of a task on a warm link.
    pub fn remote(flops_per_s: [f64; Arithmetic::COUNT], bytes_per_s: f64, rtt_s: f64, memory_bytes: u64) -> Self {
        Self {
            flops_per_s,
            send_bytes_per_s: bytes_per_s,
            receive_bytes_per_s: bytes_per_s,
            rtt_s,
            overhead_s: 150e-6,
            memory_bytes,
            max_in_flight: IN_FLIGHT_MAX,
            busy_s: 0.0,
        }
    }

    /// The rate for one arithmetic; never 0, so that times stay finite.
    pub fn flops_per_s(&self, arithmetic: Arithmetic) -> f64 {
        sane(self.flops_per_s[arithmetic as usize])
    }
}

/// One measured transfer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transfer {
    /// Number of bytes.
    pub bytes: u64,
    /// Seconds of the transfer, without queueing.
    pub seconds: f64,
}

/// Accuracy of predictions of whole attempts, from start to answer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Accuracy {
    /// Number of compared attempts.
    pub attempts: u64,
    /// Predicted seconds of the last one.
    pub predicted_s: f64,
    /// Actual seconds of the last one.
    pub actual_s: f64,
    /// Moving mean of |actual − predicted| / predicted.
    pub relative_error: f64,
}

/// The cost model of one worker.
#[derive(Debug, Clone)]
pub struct CostModel {
    flop_s: [Learned; Arithmetic::COUNT],
    send_byte_s: Learned,
    receive_byte_s: Learned,
    /// Round trip, in seconds.
    pub rtt_s: f64,
    /// Fixed cost of one task, in seconds.
    pub overhead_s: f64,
    accuracy: Accuracy,
}

impl CostModel {
    /// A model from an estimate.
    pub fn new(estimate: &WorkerEstimate) -> Self {
        Self {
            flop_s: estimate.flops_per_s.map(|rate| Learned::new(1.0 / sane(rate))),
            send_byte_s: Learned::new(1.0 / sane(estimate.send_bytes_per_s)),
            receive_byte_s: Learned::new(1.0 / sane(estimate.receive_bytes_per_s)),
            rtt_s: sane_seconds(estimate.rtt_s),
            overhead_s: sane_seconds(estimate.overhead_s),
            accuracy: Accuracy::default(),
        }
    }

    /// Takes over a new estimate for everything that was not observed yet, and always for the round trip.
    pub fn update(&mut self, estimate: &WorkerEstimate) {
        for (learned, rate) in self.flop_s.iter_mut().zip(estimate.flops_per_s) {
            learned.assume(1.0 / sane(rate));
        }
        self.send_byte_s.assume(1.0 / sane(estimate.send_bytes_per_s));
        self.receive_byte_s.assume(1.0 / sane(estimate.receive_bytes_per_s));
        self.rtt_s = sane_seconds(estimate.rtt_s);
        self.overhead_s = sane_seconds(estimate.overhead_s);
    }

    /// Seconds to compute this many additions and multiplications, including the fixed cost.
    pub fn compute_s(&self, arithmetic: Arithmetic, flops: f64) -> f64 {
        self.overhead_s + flops * self.flop_s[arithmetic as usize].value
    }

    /// Seconds to send this many bytes.
    pub fn send_s(&self, bytes: u64) -> f64 {
        bytes as f64 * self.send_byte_s.value
    }

    /// Seconds to receive this many bytes.
    pub fn receive_s(&self, bytes: u64) -> f64 {
        bytes as f64 * self.receive_byte_s.value
    }

    /// Seconds of one attempt on an idle worker: transfer of missing bytes, compute, return.
    pub fn predict_s(&self, arithmetic: Arithmetic, flops: f64, missing_bytes: u64, answer_bytes: u64) -> f64 {
        self.rtt_s + self.send_s(missing_bytes) + self.compute_s(arithmetic, flops) + self.receive_s(answer_bytes)
    }

    /// Current estimate of additions and multiplications per second.
    pub fn flops_per_s(&self, arithmetic: Arithmetic) -> f64 {
        1.0 / self.flop_s[arithmetic as usize].value
    }

    /// Current estimate of bytes per second to the worker.
    pub fn send_bytes_per_s(&self) -> f64 {
        1.0 / self.send_byte_s.value
    }

    /// Current estimate of bytes per second from the worker.
    pub fn receive_bytes_per_s(&self) -> f64 {
        1.0 / self.receive_byte_s.value
    }

    /// Accuracy of predictions.
    pub fn accuracy(&self) -> Accuracy {
        self.accuracy
    }

    /// Learns from a computation. Very short ones are ignored, because they measure the fixed cost.
    pub fn observe_compute(&mut self, arithmetic: Arithmetic, flops: f64, seconds: f64) {
        if seconds.is_finite() && seconds >= LEARN_SECONDS_MIN && flops > 0.0 {
            self.flop_s[arithmetic as usize].observe(seconds / flops);
        }
    }

    /// Learns from a transfer to the worker.
    pub fn observe_send(&mut self, transfer: Transfer) {
        self.send_byte_s.observe_transfer(transfer);
    }

    /// Learns from a transfer from the worker.
    pub fn observe_receive(&mut self, transfer: Transfer) {
        self.receive_byte_s.observe_transfer(transfer);
    }

    /// Records the predicted and the actual time of an attempt.
    pub fn observe_attempt(&mut self, predicted_s: f64, actual_s: f64) {
        let error = (actual_s - predicted_s).abs() / predicted_s.max(1e-6);
        let weight = if self.accuracy.attempts == 0 { 1.0 } else { LEARN_WEIGHT };
        self.accuracy.relative_error += weight * (error - self.accuracy.relative_error);
        self.accuracy.attempts += 1;
        self.accuracy.predicted_s = predicted_s;
        self.accuracy.actual_s = actual_s;
    }
}

/// A cost per unit: assumed until observed, then a moving mean in which one outlier has limited weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Learned {
    pub(super) value: f64,
    observed: bool,
    /// Sign of the last observation if it was a surprise: a second one in the same direction is a change.
    surprise: i8,
}

impl Learned {
    pub(super) fn new(value: f64) -> Self {
        Self { value, observed: false, surprise: 0 }
    }

    fn assume(&mut self, value: f64) {
        if !self.observed {
            self.value = value;
        }
    }

    fn observe(&mut self, sample: f64) {
        if !(sample.is_finite() && sample > 0.0) {
            return;
        }
        let ratio = (sample / self.value).clamp(1.0 / SURPRISE_MAX, SURPRISE_MAX);
        let surprise = if ratio > SURPRISE { 1 } else { -i8::from(ratio < 1.0 / SURPRISE) };
        let change = surprise != 0 && surprise == self.surprise;
        let weight = if change || !self.observed { LEARN_WEIGHT_FAST } else { LEARN_WEIGHT };
        self.value *= 1.0 + weight * (ratio - 1.0);
        self.surprise = surprise;
        self.observed = true;
    }

    pub(super) fn observe_transfer(&mut self, transfer: Transfer) {
        if transfer.bytes >= LEARN_BYTES_MIN && transfer.seconds > 0.0 {
            self.observe(transfer.seconds / transfer.bytes as f64);
        }
    }
}

/// Makes a rate safe to divide by: adverts may contain anything.
fn sane(rate: f64) -> f64 {
    if rate.is_nan() || rate < 1.0 { 1.0 } else { rate }
}

fn sane_seconds(seconds: f64) -> f64 {
    if seconds.is_finite() { seconds.clamp(0.0, 3600.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> CostModel {
        CostModel::new(&WorkerEstimate::remote([100e9; Arithmetic::COUNT], 1e9, 1e-4, 1 << 30))
    }

    #[test]
    fn a_lasting_change_is_learned_after_a_few_observations() {
        for factor in [20.0, 0.05] {
            let mut model = model();
            for _ in 0..8 {
                model.observe_compute(Arithmetic::F32, 2e9, 2e9 / (100e9 * factor));
            }
            let ratio = model.flops_per_s(Arithmetic::F32) / (100e9 * factor);
            assert!((0.7..1.4).contains(&ratio), "factor {factor}: off by {ratio}");
        }
    }

    #[test]
    fn one_outlier_moves_a_rate_by_less_than_a_factor_of_two() {
        let mut model = model();
        (0..5).for_each(|_| model.observe_compute(Arithmetic::F32, 2e9, 0.02));
        model.observe_compute(Arithmetic::F32, 2e9, 20.0);
        assert!(model.flops_per_s(Arithmetic::F32) > 50e9);
    }

    #[test]
    fn an_advert_does_not_override_observations() {
        let mut model = model();
        model.observe_compute(Arithmetic::F32, 2e9, 0.02);
        model.update(&WorkerEstimate::remote([1e15; Arithmetic::COUNT], 1e9, 1e-4, 1 << 30));
        assert!(model.flops_per_s(Arithmetic::F32) < 101e9);
        assert!(model.flops_per_s(Arithmetic::F64) > 0.9e15);
    }

    #[test]
    fn adverts_and_measurements_may_have_any_value() {
        let mut model = CostModel::new(&WorkerEstimate {
            flops_per_s: [0.0, f64::NAN, f64::INFINITY, -1.0, -0.0],
            send_bytes_per_s: f64::NAN,
            receive_bytes_per_s: 0.0,
            rtt_s: f64::NAN,
            overhead_s: f64::INFINITY,
            memory_bytes: 0,
            max_in_flight: 0,
            busy_s: f64::NAN,
        });
        for seconds in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
            model.observe_compute(Arithmetic::F32, 1e9, seconds);
            model.observe_send(Transfer { bytes: 1 << 20, seconds });
            model.observe_receive(Transfer { bytes: u64::MAX, seconds });
        }
        for arithmetic in Arithmetic::ALL {
            let seconds = model.predict_s(arithmetic, 1e9, 1 << 20, 1 << 20);
            assert!(seconds.is_finite() && seconds >= 0.0, "{seconds}");
        }
    }
}
