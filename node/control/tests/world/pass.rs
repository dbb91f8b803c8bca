//! A pass through the layers of a stage of the world: rows in, activations or tokens out, within the memory that the layers'
//! sessions have.

use pangea_control::generation::ReportedTokens;
use pangea_control::session::stage::{Action, Event};
use pangea_control::session::{ChainId, FrameRows, SteppedSequence, TokenOut};
use pangea_units::{Error, ErrorKind};

use crate::checks::Broken;
use crate::deviations::{Deviation, Lie};
use crate::node::{PAGE_TOKENS, batch_limits, position_bytes};
use crate::pseudo_model::{Cache, embedded};
use crate::scenario::Micros;
use crate::stages::Stage;
use crate::world::World;

/// The least that a pass takes, and what each row adds.
const PASS_TAKES: (Micros, Micros) = (2_000, 100);

impl Stage {
    fn pages_bytes(&self, lens: impl Iterator<Item = usize>) -> u64 {
        let page = PAGE_TOKENS;
        lens.map(|len| (len.div_ceil(page) * page) as u64).sum::<u64>() * position_bytes() * u64::from(self.layers())
    }
}

impl World {
    /// Computes rows; where memory is short, on the first stage nothing of them, elsewhere those that fit.
    pub(crate) fn pass(
        &mut self,
        at: usize,
        chain: ChainId,
        rows: Vec<FrameRows>,
        tokens: &[u32],
        following: &mut Vec<Action>,
    ) -> Result<(), Broken> {
        let (now, slower) = (self.now, self.nodes[at].slower);
        let stalls = self.stalls_pass(at);
        let short = self.memory_short_one_in > 0 && self.chance.one_in(self.memory_short_one_in);
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let Some(stage) = run.stages.get(&chain) else { return Ok(()) };
        let others: u64 = run
            .stages
            .iter()
            .filter(|(of, other)| **of != chain && other.key == stage.key)
            .map(|(_, other)| other.pages_bytes(other.caches.values().map(Cache::len)))
            .sum();
        let limit = run.layers.session_bytes(&stage.key);
        let Some(stage) = run.stages.get_mut(&chain) else { return Ok(()) };
        let (first_layer, is_first, is_last) = (stage.key.1, stage.index == 0, stage.index + 1 == stage.stages.len());
        let len_after = |stage: &Stage, planned: &[FrameRows]| {
            let grown = |(sequence, cache): (&u64, &Cache)| {
                let rows = planned.iter().find(|rows| rows.sequence == *sequence);
                rows.map_or(cache.len(), |rows| (rows.start + rows.rows) as usize)
            };
            others + stage.pages_bytes(stage.caches.iter().map(grown).collect::<Vec<_>>().into_iter())
        };
        if is_first && (short || len_after(stage, &rows) > limit) {
            self.checks.counts.add("exhausted passes");
            self.tell_stage(at, chain, Event::Exhausted(rows), following);
            return Ok(());
        }
        if is_first {
            let prompts = |rows: &&FrameRows| rows.rows as usize - rows.draft.len() > 1 || !rows.choose;
            let prompt_rows: u32 = rows.iter().filter(prompts).map(|rows| rows.rows).sum();
            let drafted = rows.iter().any(|rows| !rows.draft.is_empty());
            let (running, waiting) = stage.protocol.load();
            let limits = batch_limits(stage.stages.len(), 0, 1);
            let most = limits.running + limits.waiting;
            if prompt_rows as usize > limits.prompt_rows || (drafted && rows.len() > 1) || running + waiting > most {
                let what = format!("node {at} computes {rows:?} of {running} that run and {waiting} that wait");
                return Err(Broken::new(now, what));
            }
        }
        let named: u64 = rows.iter().map(|rows| u64::from(rows.rows)).sum();
        stage.busy_until = stage.busy_until.max(now) + (PASS_TAKES.0 + named * PASS_TAKES.1) * slower + stalls;
        let input: Vec<u64> = match is_first {
            true => tokens.iter().map(|token| embedded(*token)).collect(),
            false => std::mem::take(&mut stage.received),
        };
        let (mut passed, mut advances, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        stage.activations.clear();
        let deviates = !self.nodes[at].spec.deviations.is_empty();
        let goes_on = deviates && self.is_one_that(at, Deviation::NeverEnds);
        let own_peer = self.nodes[at].peer;
        let mut from = 0;
        for rows in rows {
            let own = &input[from..from + rows.rows as usize];
            from += own.len();
            let Some(stage) = self.nodes[at].run.as_mut().and_then(|run| run.stages.get_mut(&chain)) else {
                return Ok(());
            };
            let fits = is_first || (!short && len_after(stage, std::slice::from_ref(&rows)) <= limit);
            let layers = stage.layers();
            let mut cache = stage.caches.remove(&rows.sequence).unwrap_or_else(|| Cache::new(layers));
            cache.truncate(rows.start as usize);
            let lost = stage.lost.contains(&rows.sequence) || stage.protocol.session_of(rows.sequence).is_none();
            if cache.len() != rows.start as usize && lost {
                // It failed here, or what it was to continue did, and the first stage did not know when it sent this.
                stage.lost.insert(rows.sequence);
                failed.push((rows.sequence, Error::new(ErrorKind::Internal, "positions are missing")));
                continue;
            }
            if cache.len() != rows.start as usize {
                let what = format!("node {at} holds {} positions where {} are needed", cache.len(), rows.start);
                return Err(Broken::new(now, what));
            }
            if !fits {
                self.checks.counts.add("sequences without memory");
                stage.lost.insert(rows.sequence);
                failed.push((rows.sequence, Error::new(ErrorKind::Overloaded, "no memory for keys and values")));
                continue;
            }
            let mut out: Vec<u64> = own.iter().map(|activation| cache.forward(first_layer, *activation)).collect();
            let session = stage.protocol.session_of(rows.sequence);
            let lie = if deviates && (!is_last || rows.choose) { self.lie(at, chain, session) } else { None };
            if deviates
                && !is_last
                && let Some(session) = session
                && let Some(coordinator) = self.stage_coordinator(at, chain, session)
            {
                self.speak_out_of_turn(at, coordinator, session, cache.len() as u32);
            }
            let Some(stage) = self.nodes[at].run.as_mut().and_then(|run| run.stages.get_mut(&chain)) else {
                return Ok(());
            };
            if !is_last
                && let Some(last) = out.last_mut()
                && let Some(lie) = lie
            {
                *last = last.wrapping_add(1);
                if lie == Lie::Whole {
                    cache.bend(*last);
                }
            }
            if !is_last {
                stage.caches.insert(rows.sequence, cache);
                stage.activations.extend(out);
                passed.push(rows);
                continue;
            }
            let chooser = session.and_then(|session| Some((session, stage.choosers.get_mut(&session)?)));
            if let Some((session, (coordinator, chooser))) = chooser.filter(|_| rows.choose) {
                let position = chooser.tokens.len() as u32;
                let (mut taken, accepted) = chooser.take(&rows.draft, &out[out.len() - 1 - rows.draft.len()..]);
                if lie.is_some()
                    && let Some(last) = taken.last_mut()
                {
                    *last = chooser.bend();
                }
                // A node that deceives itself has only itself to blame.
                if goes_on && *coordinator != own_peer && chooser.ended().is_some() {
                    chooser.go_on();
                    self.checks.deviated(now, at, Deviation::NeverEnds);
                }
                let computed = cache.len() - rows.draft.len() + accepted;
                cache.truncate(computed);
                let out = |token: &u32| TokenOut { token: *token, ..TokenOut::default() };
                let reported = ReportedTokens {
                    position,
                    tokens: taken.iter().map(out).collect(),
                    ended: chooser.ended(),
                    drafted: rows.draft.len() as u32,
                    accepted: accepted as u32,
                    ..ReportedTokens::default()
                };
                stage.tokens.push((*coordinator, session, reported));
                let (sequence, computed, ended) = (rows.sequence, computed as u32, chooser.ended().is_some());
                advances.push(SteppedSequence { sequence, computed, chosen: taken, ended, failed: false });
            }
            stage.caches.insert(rows.sequence, cache);
            passed.push(rows);
        }
        let Some(stage) = self.nodes[at].run.as_ref().and_then(|run| run.stages.get(&chain)) else { return Ok(()) };
        let used = others + stage.pages_bytes(stage.caches.values().map(Cache::len));
        if used > limit {
            return Err(Broken::new(now, format!("node {at}: keys and values take {used} of {limit} bytes")));
        }
        self.tell_stage(at, chain, Event::Computed { rows: passed, advances, failed }, following);
        Ok(())
    }
}
