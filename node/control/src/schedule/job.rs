//! One job as the scheduler sees it: its waiting tiles, the records of started ones, the operands at each worker, and
//! which tile suits a worker best.
//! Workers' speeds are unknown here.

use super::offload_history::JobClass;
use super::tile_set::{Indices, TileSet};
use super::{
    AttemptId, FailureKind, JobId, JobReport, JobSpec, Operand, TaskCounts, Tile, TileGrid, WorkerId, WorkerShare,
};
use std::collections::BTreeMap;
use std::ops::Range;

/// A checked answer that is kept until enough others agree.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckedAnswer {
    pub(super) attempt: AttemptId,
    pub(super) worker: WorkerId,
    pub(super) answer: u64,
    pub(super) seconds: f64,
}

/// Record of a tile that has been started and not accepted yet.
#[derive(Debug, Default)]
pub(super) struct TileRecord {
    /// Attempts in flight or being checked.
    pub(super) active: Vec<(AttemptId, WorkerId)>,
    pub(super) answers: Vec<CheckedAnswer>,
    /// Peers that failed it and do not get it again.
    pub(super) failed: Vec<WorkerId>,
    pub(super) failures: u32,
    pub(super) local_failures: u32,
    pub(super) overloads: u32,
}

impl TileRecord {
    /// Whether this worker has the tile, has answered it or has failed it.
    pub(super) fn bars(&self, worker: WorkerId) -> bool {
        self.active.iter().any(|&(_, active)| active == worker)
            || self.answers.iter().any(|answer| answer.worker == worker)
            || self.failed.contains(&worker)
    }

    /// The answer of most workers (this node's among equals, then the first), and their number.
    pub(super) fn best(&self) -> Option<(CheckedAnswer, u32)> {
        let agreeing =
            |of: &CheckedAnswer| self.answers.iter().filter(|other| other.answer == of.answer).count() as u32;
        let score = |answer: &CheckedAnswer| (agreeing(answer), answer.worker.is_local());
        let best = self.answers.iter().rev().max_by_key(|answer| score(answer))?;
        Some((*best, agreeing(best)))
    }
}

/// Operands of the job that a worker has or is being sent, with the time of their last use.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bands: Indices,
    pub(super) panels: Indices,
    band_used: Vec<u64>,
    panel_used: Vec<u64>,
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) spec: JobSpec,
    pub(super) grid: TileGrid,
    pub(super) submitted: f64,
    /// Jobs of one priority run in this order.
    pub(super) rank: f64,
    pub(super) predicted_s: f64,
    /// Class of the job in the offload history.
    pub(super) class: Option<JobClass>,
    /// Failures that counted against a worker; forgiven if this node fails in the same way.
    pub(super) counted_failures: Vec<(WorkerId, FailureKind)>,
    pub(super) connect_until: f64,
    /// Predicted arrival of the last answer in flight.
    pub(super) expected: f64,
    pub(super) pending: TileSet,
    /// Number of tiles not accepted yet.
    pub(super) remaining: u32,
    /// Number of attempts in flight or being checked.
    pub(super) active: u32,
    pub(super) records: BTreeMap<Tile, TileRecord>,
    pub(super) held: BTreeMap<WorkerId, Held>,
    /// Number of peers with each band and each panel.
    band_users: Vec<u32>,
    panel_users: Vec<u32>,
    /// The group of panels that this node has packed.
    pub(super) local: LocalPlace,
    pub(super) tasks: TaskCounts,
    pub(super) shares: Vec<WorkerShare>,
    /// Accepted tiles of each peer, which are computed again if the peer is convicted.
    pub(super) merged: BTreeMap<WorkerId, Vec<Tile>>,
    /// Mean operations per tile.
    pub(super) mean_flops: f64,
    pub(super) mean_operand_bytes: f64,
    pub(super) mean_answer_bytes: f64,
}

impl Job {
    pub(super) fn new(id: JobId, spec: JobSpec, grid: TileGrid, submitted: f64) -> Self {
        let shape = grid.shape();
        let (bands, panels) = (grid.bands(), grid.panels());
        let tiles = f64::from(grid.tiles().max(1));
        let [a_bytes, b_bytes, c_bytes] = shape.bytes().map(|bytes| bytes as f64);
        Self {
            id,
            submitted,
            rank: submitted,
            predicted_s: 0.0,
            class: None,
            counted_failures: Vec::new(),
            connect_until: submitted,
            expected: submitted,
            pending: if shape.shares_operands() { TileSet::full(bands, panels) } else { TileSet::paired(bands) },
            remaining: grid.tiles(),
            active: 0,
            records: BTreeMap::new(),
            held: BTreeMap::new(),
            band_users: vec![0; bands as usize],
            panel_users: vec![0; panels as usize],
            local: LocalPlace { band: bands.saturating_sub(1), group: 0..0 },
            tasks: TaskCounts { total: grid.tiles(), ..TaskCounts::default() },
            shares: Vec::new(),
            merged: BTreeMap::new(),
            mean_flops: shape.flops() / tiles,
            mean_operand_bytes: (a_bytes / f64::from(bands.max(1)) + b_bytes / f64::from(panels.max(1))) / 2.0,
            mean_answer_bytes: c_bytes / tiles,
            spec,
            grid,
        }
    }

    pub(super) fn report(&mut self, now: f64) -> JobReport {
        self.shares.sort_by_key(|share| share.worker);
        JobReport {
            tasks: self.tasks,
            predicted_seconds: self.predicted_s,
            actual_seconds: now - self.submitted,
            workers: std::mem::take(&mut self.shares),
        }
    }

    /// Un-accepts every tile of a peer, so that each waits for another start; returns those tiles.
    pub(super) fn revoke(&mut self, peer: WorkerId) -> Vec<Tile> {
        let tiles = self.merged.remove(&peer).unwrap_or_default();
        self.remaining += tiles.len() as u32;
        self.tasks.remote -= tiles.len() as u32;
        self.shares.retain(|share| share.worker != peer);
        for &tile in &tiles {
            self.records.entry(tile).or_default().failures += 1;
            self.pending.insert(tile);
        }
        tiles
    }

    /// Operand bytes of a tile that a worker lacks.
    pub(super) fn missing_bytes(&self, tile: Tile, worker: WorkerId) -> u64 {
        if worker.is_local() {
            return 0;
        }
        let held = self.held.get(&worker);
        let band = held.is_some_and(|held| held.bands.contains(tile.band));
        let panel = held.is_some_and(|held| held.panels.contains(tile.panel));
        let bytes = |has: bool, operand| {
            if has { 0 } else { self.grid.operand_bytes(operand) }
        };
        bytes(band, Operand::Band(tile.band)) + bytes(panel, Operand::Panel(tile.panel))
    }

    /// Share of the operands that a worker lacks, 0 to 1.
    pub(super) fn missing_share(&self, worker: WorkerId) -> f64 {
        let Some(held) = self.held.get(&worker) else {
            return if worker.is_local() { 0.0 } else { 1.0 };
        };
        let all = f64::from(self.grid.bands() + self.grid.panels());
        1.0 - f64::from(held.bands.len() + held.panels.len()) / all
    }

    /// Records that a peer has an operand or is being sent it; returns the bytes that it lacked.
    pub(super) fn hold(&mut self, worker: WorkerId, operand: Operand, stamp: u64) -> u64 {
        let (bands, panels) = (self.grid.bands(), self.grid.panels());
        let held = self.held.entry(worker).or_insert_with(|| Held {
            bands: Indices::new(bands),
            panels: Indices::new(panels),
            band_used: vec![0; bands as usize],
            panel_used: vec![0; panels as usize],
            bytes: 0,
        });
        let (new, users) = match operand {
            Operand::Band(band) if band < bands => {
                held.band_used[band as usize] = stamp;
                (held.bands.insert(band), &mut self.band_users[band as usize])
            }
            Operand::Panel(panel) if panel < panels => {
                held.panel_used[panel as usize] = stamp;
                (held.panels.insert(panel), &mut self.panel_users[panel as usize])
            }
            _ => return 0,
        };
        if !new {
            return 0;
        }
        *users += 1;
        let bytes = self.grid.operand_bytes(operand);
        held.bytes += bytes;
        bytes
    }

    /// Records that a peer no longer has an operand; returns the released bytes.
    pub(super) fn drop_operand(&mut self, worker: WorkerId, operand: Operand) -> u64 {
        let Some(held) = self.held.get_mut(&worker) else {
            return 0;
        };
        let (old, users) = match operand {
            Operand::Band(band) if band < self.grid.bands() => {
                (held.bands.remove(band), &mut self.band_users[band as usize])
            }
            Operand::Panel(panel) if panel < self.grid.panels() => {
                (held.panels.remove(panel), &mut self.panel_users[panel as usize])
            }
            _ => return 0,
        };
        if !old {
            return 0;
        }
        *users -= 1;
        let bytes = self.grid.operand_bytes(operand);
        held.bytes -= bytes;
        bytes
    }

    /// Removes all operands of a peer.
    pub(super) fn drop_holder(&mut self, worker: WorkerId) {
        if let Some(held) = self.held.remove(&worker) {
            held.bands.iter().for_each(|band| self.band_users[band as usize] -= 1);
            held.panels.iter().for_each(|panel| self.panel_users[panel as usize] -= 1);
        }
    }

    /// A peer's least recently used operand that is not needed now.
    pub(super) fn coldest(&self, worker: WorkerId, needed: impl Fn(Operand) -> bool) -> Option<(u64, Operand)> {
        let held = self.held.get(&worker)?;
        let bands = held.bands.iter().map(|band| (held.band_used[band as usize], Operand::Band(band)));
        let panels = held.panels.iter().map(|panel| (held.panel_used[panel as usize], Operand::Panel(panel)));
        bands.chain(panels).filter(|&(_, operand)| !needed(operand)).min()
    }

    /// The waiting tile with the fewest bytes for a peer now and later: one whose operands it has, otherwise one that
    /// extends its block of C by the operand that serves the most tiles, otherwise one far from other peers' blocks.
    pub(super) fn choose_remote(&self, worker: WorkerId, allowed: impl Fn(Tile) -> bool) -> Option<Tile> {
        let in_band = |band, panel| Tile { band, panel };
        if let Some(held) = self.held.get(&worker) {
            for band in held.bands.iter() {
                let mut both = self.pending.of_band(band).iter_both(&held.panels);
                if let Some(panel) = both.find(|&panel| allowed(in_band(band, panel))) {
                    return Some(Tile { band, panel });
                }
            }
            let mut best: Option<(f64, Tile)> = None;
            let mut offer = |opened: u32, users: u32, operand: Operand, tile: &dyn Fn() -> Option<Tile>| {
                let bytes = self.grid.operand_bytes(operand).max(1) as f64;
                let score = f64::from(opened) / (bytes * f64::from(1 + users));
                if opened > 0
                    && best.is_none_or(|(most, _)| score > most)
                    && let Some(tile) = tile()
                {
                    best = Some((score, tile));
                }
            };
            for band in (0..self.grid.bands()).filter(|&band| !held.bands.contains(band)) {
                let waiting = self.pending.of_band(band);
                let tile = || {
                    let mut both = waiting.iter_both(&held.panels).map(|panel| Tile { band, panel });
                    both.find(|&tile| allowed(tile))
                };
                let users = self.band_users[band as usize];
                offer(waiting.count_both(&held.panels), users, Operand::Band(band), &tile);
            }
            for panel in (0..self.grid.panels()).filter(|&panel| !held.panels.contains(panel)) {
                let waiting = self.pending.of_panel(panel);
                let tile = || {
                    let mut both = waiting.iter_both(&held.bands).map(|band| Tile { band, panel });
                    both.find(|&tile| allowed(tile))
                };
                let users = self.panel_users[panel as usize];
                offer(waiting.count_both(&held.bands), users, Operand::Panel(panel), &tile);
            }
            if let Some((_, tile)) = best {
                return Some(tile);
            }
        }
        let mut fewest: Option<(u32, Tile)> = None;
        for band in 0..self.grid.bands() {
            let users = self.band_users[band as usize];
            if fewest.is_some_and(|(fewest, _)| users >= fewest) {
                continue;
            }
            let waiting = self.pending.of_band(band).iter().filter(|&panel| allowed(in_band(band, panel)));
            if let Some(panel) = waiting.min_by_key(|&panel| (self.panel_users[panel as usize], panel)) {
                fewest = Some((users, Tile { band, panel }));
            }
        }
        fewest.map(|(_, tile)| tile)
    }

    /// The waiting tile that suits this node best. It works through a group of panels that its executor keeps packed
    /// together, band by band, so that each band is packed once for all of them; then through the next group, from the
    /// end that peers reach last. Tiles whose operands are both at a peer come last.
    pub(super) fn choose_local(&self, allowed: impl Fn(Tile) -> bool) -> Option<Tile> {
        if self.pending.is_empty() {
            return None;
        }
        let free = |tile: Tile| self.band_users[tile.band as usize] == 0 || self.panel_users[tile.panel as usize] == 0;
        let in_group = |band: u32| {
            let mut tiles = self.local.group.clone().rev().map(move |panel| Tile { band, panel });
            tiles.find(|&tile| self.pending.contains(tile) && free(tile) && allowed(tile))
        };
        let bands = std::iter::once(self.local.band).chain((0..self.grid.bands()).rev());
        if let Some(tile) = bands.into_iter().find_map(in_group) {
            return Some(tile);
        }
        let of_panel = |panel: u32, all: bool| {
            let tiles = self.pending.of_panel(panel).iter_down().map(move |band| Tile { band, panel });
            tiles.filter(|&tile| all || free(tile)).find(|&tile| allowed(tile))
        };
        let mut best: Option<(u32, Tile)> = None;
        for panel in (0..self.grid.panels()).rev() {
            let users = self.panel_users[panel as usize];
            if self.pending.of_panel(panel).len() > 0
                && best.is_none_or(|(fewest, _)| users < fewest)
                && let Some(tile) = of_panel(panel, false)
            {
                best = Some((users, tile));
            }
        }
        best.map(|(_, tile)| tile).or_else(|| {
            let group = self.local.group.clone().rev();
            group.chain((0..self.grid.panels()).rev()).find_map(|panel| of_panel(panel, true))
        })
    }

    /// Records the tile that this node starts; a panel of another group starts that group.
    pub(super) fn local_started(&mut self, tile: Tile) {
        self.local.band = tile.band;
        if !self.local.group.contains(&tile.panel) {
            let end = tile.panel + 1;
            let band_bytes = self.grid.operand_bytes(Operand::Band(tile.band));
            let panel_bytes = self.grid.operand_bytes(Operand::Panel(tile.panel)).max(1);
            let panels = (self.grid.group_bytes().saturating_sub(band_bytes) / panel_bytes).clamp(1, u64::from(end));
            self.local.group = end - panels as u32..end;
        }
    }
}

/// This node's position in a job.
#[derive(Debug)]
pub(super) struct LocalPlace {
    /// Band of the last tile.
    band: u32,
    /// Panels whose packed forms fit beside a band's.
    group: Range<u32>,
}
