//! The phases of a layer whose feed-forward block is a mixture of experts: the router, the experts' products, their weighted
//! sum. Rows are grouped by expert, so that a batch reads the weights of each expert once; the arithmetic, in which the
//! groups leave no trace, is in `kernel::float::mixture` and `kernel::quant`.
//!
//! A slot is one row with one of its experts. Slots are in ascending order of their experts, those of one expert in ascending
//! order of their rows.
#![allow(unsafe_code)]

use super::fault::Step;
use super::pass::{Pass, PreparedInput};
use super::workspace::grow;
use crate::Error;
use crate::kernel::float::activation::{all_finite, gated, sigmoid};
use crate::kernel::float::mixture::{Chosen, Gating, add_scaled, route, shared_logit};
use crate::kernel::quant::{self, Matrix, Quantized, Store};
use crate::kernel::shared::Shared;
use crate::pool::Worker;
use std::ops::Range;

/// The experts of a layer. Lengths: hidden size h, intermediate size of one expert f; all experts have the same shapes.
pub(crate) struct ExpertWeights {
    /// Experts that the router chooses for a row. Those beyond the router's compute every row.
    pub(crate) used: usize,
    /// `[experts that it chooses from, h]`, not quantised.
    pub(crate) router: Matrix,
    pub(crate) gating: Gating,
    /// Of each expert `[f, h]`.
    pub(crate) gate: Vec<Matrix>,
    /// Of each expert `[f, h]`.
    pub(crate) up: Vec<Matrix>,
    /// Of each expert `[h, f]`.
    pub(crate) down: Vec<Matrix>,
    /// `[h]`: the gate of those that compute every row; without one they count whole.
    pub(crate) shared_gate: Option<Vec<f32>>,
    /// What is added to the results of router, gate, up and down, if anything is.
    pub(crate) biases: Option<ExpertBiases>,
}

/// The biases of a layer's experts.
pub(crate) struct ExpertBiases {
    /// `[experts]`
    pub(crate) router: Vec<f32>,
    /// `[experts, f]`
    pub(crate) gate: Vec<f32>,
    /// `[experts, f]`
    pub(crate) up: Vec<f32>,
    /// `[experts, h]`
    pub(crate) down: Vec<f32>,
}

/// Adds a bias to the results of a product.
fn add_bias(x: &mut [f32], bias: &[f32]) {
    x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
}

impl ExpertWeights {
    fn hidden_size(&self) -> usize {
        self.router.k()
    }

    /// Experts that compute a row.
    fn per_row(&self) -> usize {
        self.used + self.gate.len() - self.router.rows()
    }

    fn intermediate_size(&self) -> usize {
        self.gate[0].rows()
    }

    /// Whether gate or up take their input as floats.
    fn takes_floats(&self) -> bool {
        self.gate[0].takes_floats() || self.up[0].takes_floats()
    }
}

/// The slots of one layer, by expert.
#[derive(Default)]
struct Groups {
    /// `[experts + 1]`: the first slot of each expert, and the end.
    starts: Vec<usize>,
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    row: usize,
    weight: f32,
}

impl Groups {
    /// Makes room for the slots of `rows` rows.
    fn reserve(&mut self, rows: usize, layer: &ExpertWeights) -> Result<(), Error> {
        grow(&mut self.starts, layer.gate.len() + 1)?;
        grow(&mut self.slots, rows * layer.per_row())
    }

    /// Groups the experts of each row, `[rows, per_row]`.
    fn fill(&mut self, chosen: &[Chosen], per_row: usize, experts: usize) {
        let starts = &mut self.starts[..=experts];
        starts.fill(0);
        chosen.iter().for_each(|chosen| starts[chosen.expert as usize + 1] += 1);
        for expert in 1..=experts {
            starts[expert] += starts[expert - 1];
        }
        // Each start moves to the end of its group while the group is filled, and back afterwards.
        for (index, chosen) in chosen.iter().enumerate() {
            let next = &mut starts[chosen.expert as usize];
            self.slots[*next] = Slot { row: index / per_row, weight: chosen.weight };
            *next += 1;
        }
        starts.copy_within(..experts, 1);
        starts[0] = 0;
    }

    /// The experts that have slots, in ascending order, with their slots.
    fn occupied(&self, experts: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let slots = |expert: usize| self.starts[expert]..self.starts[expert + 1];
        (0..experts).map(move |expert| (expert, slots(expert))).filter(|(_, slots)| !slots.is_empty())
    }
}

/// The tiles of an expert's matrix of `tiles` tiles that `share` gives to a thread, where it is a share of all experts'
/// work, counted in tiles times slots, and the expert has the slots `slots`.
fn tiles_within(share: &Range<usize>, slots: &Range<usize>, tiles: usize) -> Range<usize> {
    let first = slots.start * tiles;
    let tile = |at: usize| at.saturating_sub(first).div_ceil(slots.len()).min(tiles);
    tile(share.start)..tile(share.end)
}

/// Buffers of layers with experts; empty for other models. What is kept for a slot and for a row is bounded by the slots of
/// a pass ([`MAX_SLOTS`](super::MAX_SLOTS)).
#[derive(Default)]
pub(super) struct ExpertWorkspace {
    /// Of each thread.
    groups: Vec<Groups>,
    /// `[rows, experts]`
    logits: Vec<f32>,
    /// `[rows, experts of a row]`
    chosen: Vec<Chosen>,
    /// `[slots, h]`: the input of gate and up.
    inputs: Quantized,
    /// `[slots, h]`: the same, where weights are floats.
    floats: Vec<f32>,
    /// `[slots, f]`
    gate: Vec<f32>,
    /// `[slots, f]`
    up: Vec<f32>,
    /// `[slots, f]`: the input of down.
    gated: Quantized,
    /// `[rows, h]`: the results of one expert.
    results: Vec<f32>,
}

impl ExpertWorkspace {
    /// Makes room for `rows` rows in a layer with these experts.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn reserve(&mut self, layer: &ExpertWeights, rows: usize, threads: usize) -> Result<(), Error> {
        let slots = rows * layer.per_row();
        let (hidden, intermediate) = (layer.hidden_size(), layer.intermediate_size());
        self.groups.resize_with(threads, Groups::default);
        self.groups.iter_mut().try_for_each(|groups| groups.reserve(rows, layer))?;
        grow(&mut self.logits, rows * layer.router.rows())?;
        grow(&mut self.chosen, slots)?;
        self.inputs.reshape(slots, hidden)?;
        if layer.takes_floats() {
            grow(&mut self.floats, slots * hidden)?;
        }
        grow(&mut self.gate, slots * intermediate)?;
        grow(&mut self.up, slots * intermediate)?;
        self.gated.reshape(slots, intermediate)?;
        grow(&mut self.results, rows * hidden)
    }

    /// Lends the buffers to the threads of a pass.
    pub(super) fn share(&mut self) -> SharedExperts<'_> {
        SharedExperts {
            groups: Shared::new(&mut self.groups),
            logits: Shared::new(&mut self.logits),
            chosen: Shared::new(&mut self.chosen),
            inputs: &self.inputs,
            floats: Shared::new(&mut self.floats),
            gate: Shared::new(&mut self.gate),
            up: Shared::new(&mut self.up),
            gated: &self.gated,
            results: Shared::new(&mut self.results),
        }
    }
}

/// An [`ExpertWorkspace`] that all threads of a pass use.
pub(super) struct SharedExperts<'a> {
    groups: Shared<'a, Groups>,
    logits: Shared<'a, f32>,
    chosen: Shared<'a, Chosen>,
    inputs: &'a Quantized,
    floats: Shared<'a, f32>,
    gate: Shared<'a, f32>,
    up: Shared<'a, f32>,
    gated: &'a Quantized,
    results: Shared<'a, f32>,
}

impl Pass<'_> {
    /// The experts' weighted sums of all rows of `x`, which become the addends of the residuals, in the batch's layer `index`.
    ///
    /// # Safety
    /// As for [`Pass::run`]; `x` is complete. A barrier follows before the addends are read.
    pub(super) unsafe fn experts(&self, worker: Worker<'_>, index: usize, x: PreparedInput<'_>, layer: &ExpertWeights) {
        // SAFETY: the caller's promise; every phase writes this thread's share, and a barrier follows each.
        unsafe {
            let tiles = worker.share(layer.router.tiles());
            self.product(&layer.router, tiles, x, &self.experts.logits, layer.router.rows());
            worker.barrier();
            self.route(worker, index, x, layer);
            worker.barrier();
            let groups = self.group(worker, layer);
            self.gather(worker, groups, x, index, layer);
            worker.barrier();
            self.expert_gate_and_up(worker, groups, index, layer);
            worker.barrier();
            self.quantize_gated(worker, index, layer);
            worker.barrier();
            self.expert_down(worker, groups, layer);
        }
    }

    /// Chooses the experts of this thread's rows.
    unsafe fn route(&self, worker: Worker<'_>, index: usize, x: PreparedInput<'_>, layer: &ExpertWeights) {
        let hidden = layer.hidden_size();
        let (experts, per_row) = (layer.router.rows(), layer.per_row());
        for row in worker.share(self.rows) {
            // SAFETY: logits were written before the last barrier; the row is this thread's.
            let (logits, chosen) = unsafe {
                let logits = self.experts.logits.part_mut(row * experts..(row + 1) * experts);
                (logits, self.experts.chosen.part_mut(row * per_row..(row + 1) * per_row))
            };
            if let Some(biases) = &layer.biases {
                add_bias(logits, &biases.router);
            }
            let (chosen, shared) = chosen.split_at_mut(layer.used);
            self.check(route(self.isa, &layer.gating, logits, chosen), index, Step::Router);
            let weight = layer.shared_gate.as_ref().map_or(1.0, |gate| {
                // SAFETY: the input's rows are complete and only read.
                let row = unsafe { std::slice::from_raw_parts(x.floats.add(row * hidden), hidden) };
                let logit = shared_logit(self.isa, row, gate);
                self.check(logit.is_finite(), index, Step::Router);
                sigmoid(logit)
            });
            for (chosen, expert) in shared.iter_mut().zip(experts as u32..) {
                *chosen = Chosen { expert, weight };
            }
        }
    }

    /// Groups all rows by expert: every thread for itself, which costs less than one more barrier.
    unsafe fn group(&self, worker: Worker<'_>, layer: &ExpertWeights) -> &Groups {
        // SAFETY: the thread's own groups; what was chosen was written before the last barrier.
        unsafe {
            let groups = &mut self.experts.groups.part_mut(worker.index..worker.index + 1)[0];
            let per_row = layer.per_row();
            groups.fill(self.experts.chosen.part(0..self.rows * per_row), per_row, layer.gate.len());
            groups
        }
    }

    /// Copies the rows of this thread's slots to their places as the experts' input.
    unsafe fn gather(
        &self,
        worker: Worker<'_>,
        groups: &Groups,
        x: PreparedInput<'_>,
        index: usize,
        layer: &ExpertWeights,
    ) {
        let hidden = layer.hidden_size();
        for slot in worker.share(self.rows * layer.per_row()) {
            // SAFETY: the input's rows are complete and only read; the slot is this thread's.
            unsafe {
                let row = std::slice::from_raw_parts(x.floats.add(groups.slots[slot].row * hidden), hidden);
                self.check(self.experts.inputs.quantize_row(self.isa, row, slot), index, Step::FfnNorm);
                if layer.takes_floats() {
                    self.experts.floats.part_mut(slot * hidden..(slot + 1) * hidden).copy_from_slice(row);
                }
            }
        }
    }

    /// Gate and up of this thread's share of all experts' columns, and their combination.
    unsafe fn expert_gate_and_up(&self, worker: Worker<'_>, groups: &Groups, index: usize, layer: &ExpertWeights) {
        let SharedExperts { inputs, floats, gate, up, .. } = &self.experts;
        let (intermediate, tiles) = (layer.intermediate_size(), layer.gate[0].tiles());
        let share = worker.share(self.rows * layer.per_row() * tiles);
        for (expert, slots) in groups.occupied(layer.gate.len()) {
            let tiles = tiles_within(&share, &slots, tiles);
            if tiles.is_empty() {
                continue;
            }
            if self.is_stopped() {
                return;
            }
            // SAFETY: the input is complete and only read; these columns of the expert's slots are this thread's.
            unsafe {
                for (w, out) in [(&layer.gate[expert], gate), (&layer.up[expert], up)] {
                    let x = expert_input(w, inputs, floats);
                    let rows = slots.clone();
                    quant::product(self.isa, w, tiles.clone(), x, rows, out.start(), intermediate, Store::Set);
                }
                let columns = quant::rows_of(&tiles, intermediate);
                let of_expert = expert * intermediate + columns.start..expert * intermediate + columns.end;
                for slot in slots {
                    let part = slot * intermediate + columns.start..slot * intermediate + columns.end;
                    let (gate, up) = (gate.part_mut(part.clone()), up.part_mut(part));
                    if let Some(biases) = &layer.biases {
                        add_bias(gate, &biases.gate[of_expert.clone()]);
                        add_bias(up, &biases.up[of_expert.clone()]);
                    }
                    if self.shape.activation.hides_infinities() {
                        self.check(all_finite(gate) && all_finite(up), index, Step::Gated);
                    }
                    gated(self.isa, self.shape.activation, gate, up);
                }
            }
        }
    }

    /// Quantises this thread's slots as the input of down.
    unsafe fn quantize_gated(&self, worker: Worker<'_>, index: usize, layer: &ExpertWeights) {
        let intermediate = layer.intermediate_size();
        for slot in worker.share(self.rows * layer.per_row()) {
            // SAFETY: written before the last barrier; the slot is this thread's.
            unsafe {
                let row = self.experts.gate.part(slot * intermediate..(slot + 1) * intermediate);
                self.check(self.experts.gated.quantize_row(self.isa, row, slot), index, Step::Gated);
            }
        }
    }

    /// Down of this thread's columns for all experts, and their weighted sums.
    unsafe fn expert_down(&self, worker: Worker<'_>, groups: &Groups, layer: &ExpertWeights) {
        let SharedExperts { gated, gate, results, .. } = &self.experts;
        let hidden = layer.hidden_size();
        let tiles = worker.share(layer.down[0].tiles());
        let columns = quant::rows_of(&tiles, hidden);
        let part = |row: usize| row * hidden + columns.start..row * hidden + columns.end;
        // SAFETY: the input is complete and only read; these columns of results and sums are this thread's.
        unsafe {
            for row in 0..self.rows {
                self.delta.part_mut(part(row)).fill(0.0);
            }
            for (expert, slots) in groups.occupied(layer.gate.len()) {
                if self.is_stopped() {
                    return;
                }
                let w = &layer.down[expert];
                // The results begin with the first slot's.
                let out = results.start().wrapping_sub(slots.start * hidden);
                let x = expert_input(w, gated, gate);
                quant::product(self.isa, w, tiles.clone(), x, slots.clone(), out, hidden, Store::Set);
                for (result, slot) in groups.slots[slots].iter().enumerate() {
                    let (result, sum) = (results.part_mut(part(result)), self.delta.part_mut(part(slot.row)));
                    if let Some(biases) = &layer.biases {
                        add_bias(result, &biases.down[part(expert)]);
                    }
                    add_scaled(self.isa, slot.weight, result, sum);
                }
            }
        }
    }
}

/// The slots' rows in the form that `w` takes.
///
/// # Safety
/// No thread writes the floats as long as they are read here.
unsafe fn expert_input<'a>(w: &Matrix, quantized: &'a Quantized, floats: &'a Shared<'_, f32>) -> quant::Input<'a> {
    match w.takes_floats() {
        // SAFETY: the caller's promise.
        true => quant::Input::Floats(unsafe { floats.part(0..quantized.rows() * quantized.k()) }),
        false => quant::Input::Quantized(quantized),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_in_the_order_of_experts_then_rows() {
        let chosen: Vec<Chosen> = [(0, 0.5), (3, 0.5), (1, 0.25), (3, 0.75), (0, 1.0), (1, 0.0)]
            .map(|(expert, weight)| Chosen { expert, weight })
            .to_vec();
        let mut groups = Groups { starts: vec![9; 6], slots: vec![Slot::default(); 6] };
        for _ in 0..2 {
            groups.fill(&chosen, 2, 5);
            let occupied: Vec<(usize, Vec<(usize, f32)>)> = groups
                .occupied(5)
                .map(|(expert, slots)| (expert, groups.slots[slots].iter().map(|s| (s.row, s.weight)).collect()))
                .collect();
            let want = [(0, vec![(0, 0.5), (2, 1.0)]), (1, vec![(1, 0.25), (2, 0.0)]), (3, vec![(0, 0.5), (1, 0.75)])];
            assert_eq!(occupied, want);
        }
    }

    #[test]
    fn every_tile_of_every_expert_belongs_to_one_thread() {
        let groups = [0..1, 1..9, 9..9, 9..12, 12..40];
        for (threads, tiles) in [(1, 3), (2, 3), (3, 48), (7, 5), (16, 2)] {
            let units = 40 * tiles;
            let shares: Vec<Range<usize>> =
                (0..threads).map(|index| units * index / threads..units * (index + 1) / threads).collect();
            for slots in groups.iter().filter(|slots| !slots.is_empty()) {
                let mut next = 0;
                for share in &shares {
                    let mine = tiles_within(share, slots, tiles);
                    if !mine.is_empty() {
                        assert_eq!(mine.start, next, "{threads} threads, {slots:?}");
                        next = mine.end;
                    }
                }
                assert_eq!(next, tiles, "{threads} threads, {slots:?}");
            }
        }
    }
}
