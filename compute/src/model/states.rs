//! The recurrent states of a session: the one after its last position, the one some positions before with the inputs since, and
//! kept ones to which it goes back. States are never changed: a pass writes new ones, so forks share them, and after an error the
//! session has what it had. Their layout is the kernels' (`kernel::state`); which are kept is [`Rewind`]'s rule.

use super::cache::{Page, PageBudget};
use crate::Error;
use crate::kernel::state::{KEPT_INPUTS, StateShape};
use crate::kernel::transformer::ChunkState;
use pangea_units::Rewind;
use pangea_units::rewind::CHECKPOINTS;
use std::sync::Arc;

/// States of a session, at most: between passes, what one pass adds, and what a step of several passes adds, which keeps those
/// from before its first pass in case that it fails.
const BETWEEN_PASSES: u64 = 2 + CHECKPOINTS as u64;
const IN_A_PASS: u64 = 3;
const IN_SEVERAL_PASSES: u64 = 2;

/// Bytes of a session's states while a step of one pass is computed.
pub(super) fn bytes(shape: StateShape) -> u64 {
    (BETWEEN_PASSES + IN_A_PASS) * shape.bytes() as u64 + 2 * shape.inputs_bytes() as u64
}

/// The same while a step of any number of passes is computed.
pub(super) fn most_bytes(shape: StateShape) -> u64 {
    bytes(shape) + IN_SEVERAL_PASSES * shape.bytes() as u64 + shape.inputs_bytes() as u64
}

/// A state and the position before which it is; none is all zeros, before the first position.
#[derive(Clone, Default)]
struct At {
    position: usize,
    state: Option<Arc<Page>>,
}

/// The states of one session for the layers of one part.
pub(super) struct States {
    shape: StateShape,
    rewind: Rewind,
    /// The state after the last position; `None` where the session went back to between two states.
    last: Option<At>,
    /// A state up to [`KEPT_INPUTS`] positions before.
    base: At,
    /// The inputs of the positions from `base` on.
    inputs: Option<Arc<Page>>,
    checkpoints: Vec<At>,
    /// What the pass at hand writes.
    next: Option<Next>,
}

/// The states that a pass writes.
struct Next {
    last: Page,
    /// `Ok`: a state that is there already.
    base: (usize, Result<Option<Arc<Page>>, Page>),
    inputs: Page,
    /// The kept state before the pass, where the session had none there.
    checkpoint: Option<Page>,
}

impl Clone for States {
    /// Without what a pass at hand writes.
    fn clone(&self) -> States {
        States {
            shape: self.shape,
            rewind: self.rewind.clone(),
            last: self.last.clone(),
            base: self.base.clone(),
            inputs: self.inputs.clone(),
            checkpoints: self.checkpoints.clone(),
            next: None,
        }
    }
}

impl States {
    pub(super) fn new(shape: StateShape) -> States {
        States {
            shape,
            rewind: Rewind::default(),
            last: Some(At::default()),
            base: At::default(),
            inputs: None,
            checkpoints: Vec::new(),
            next: None,
        }
    }

    pub(super) fn shape(&self) -> StateShape {
        self.shape
    }

    /// The last of the positions up to `position` to which the session can go back.
    pub(super) fn reach(&self, position: usize) -> usize {
        self.rewind.reach(position)
    }

    /// Goes back to [`States::reach`] of a position.
    pub(super) fn truncate(&mut self, position: usize) {
        let before = self.rewind.len();
        let len = self.rewind.truncate(position);
        self.next = None;
        if len == before {
            return;
        }
        let is_kept = |at: &At| at.position == len;
        self.checkpoints.retain(|at| at.position <= len);
        if let Some(at) = self.checkpoints.iter().find(|at| is_kept(at)).cloned().or((len == 0).then(At::default)) {
            (self.last, self.base, self.inputs) = (Some(at.clone()), at, None);
        } else {
            self.last = Some(self.base.clone()).filter(is_kept);
        }
    }

    /// A step begins: its state may become a kept one.
    pub(super) fn begin(&mut self) {
        self.rewind.begin();
        let kept = self.rewind.checkpoints();
        self.checkpoints.retain(|at| kept.contains(&at.position));
        if let Some(last) = &self.last
            && kept.contains(&last.position)
            && self.checkpoints.last().is_none_or(|at| at.position < last.position)
        {
            self.checkpoints.push(last.clone());
        }
    }

    /// Takes the memory for a pass over the next `rows` positions, and says what the pass reads and writes. The pointers are valid
    /// until the states change.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::OutOfMemory`].
    pub(super) fn chunk(&mut self, rows: usize, budget: &PageBudget) -> Result<ChunkState, Error> {
        let (position, end) = (self.rewind.len(), self.rewind.len() + rows);
        let exact = self.rewind.exact_from(end);
        // From the base on where the session will have to go back to before its last state.
        let from = match &self.last {
            Some(last) if last.position <= exact => last,
            _ => &self.base,
        };
        let page = || budget.take(self.shape.bytes());
        let base = match end - from.position <= KEPT_INPUTS {
            true => (from.position, Ok(from.state.clone())),
            false => (exact, Err(page()?)),
        };
        let is_due = self.rewind.checkpoints().last() == Some(&position)
            && self.checkpoints.last().is_none_or(|at| at.position < position);
        let mut next = Next {
            last: page()?,
            base,
            inputs: budget.take(self.shape.inputs_bytes())?,
            checkpoint: is_due.then(page).transpose()?,
        };
        let kept_base = match &mut next.base {
            (position, Err(page)) => Some((*position, floats_mut(page))),
            _ => None,
        };
        let read =
            |page: &Option<Arc<Page>>| page.as_ref().map_or(std::ptr::null(), |page| page.bytes().as_ptr().cast());
        let chunk = ChunkState {
            from: read(&from.state),
            base: from.position,
            inputs: read(&self.inputs),
            to: floats_mut(&mut next.last),
            kept: [kept_base, next.checkpoint.as_mut().map(|page| (position, floats_mut(page)))],
            inputs_from: next.base.0,
            inputs_to: floats_mut(&mut next.inputs),
        };
        self.next = Some(next);
        Ok(chunk)
    }

    /// The pass over `rows` positions is computed.
    pub(super) fn advance(&mut self, rows: usize) {
        let position = self.rewind.len();
        self.rewind.advance(rows);
        let Some(Next { last, base, inputs, checkpoint }) = self.next.take() else { return };
        self.last = Some(At { position: self.rewind.len(), state: Some(Arc::new(last)) });
        self.base = At { position: base.0, state: base.1.unwrap_or_else(|page| Some(Arc::new(page))) };
        self.inputs = Some(Arc::new(inputs));
        self.checkpoints.extend(checkpoint.map(|page| At { position, state: Some(Arc::new(page)) }));
    }

    /// The number of states held, for a line about the cache.
    pub(super) fn count(&self) -> usize {
        let of = |at: &At| usize::from(at.state.is_some());
        self.last.iter().chain([&self.base]).chain(&self.checkpoints).map(of).sum()
    }
}

fn floats_mut(page: &mut Page) -> *mut f32 {
    page.bytes_mut().as_mut_ptr().cast()
}
