//! The recurrent states of a session: the one after its last position, the one some positions before with the inputs since, and
//! kept ones to which it goes back. States are never changed: a pass writes new ones, so forks share them, and after an error the
//! session has what it had. Their layout is the kernels' (`kernel::state`); which are kept is [`Rewind`]'s rule.

use super::storage::{Page, PageBudget};
use crate::Error;
use crate::kernel::state::{KEPT_INPUTS, StateShape};
use pangea_units::Rewind;
use pangea_units::rewind::CHECKPOINTS;
use std::sync::Arc;

/// States of a session, at most: between passes, what one pass adds, and what a step of several passes adds, which keeps those
/// from before its first pass in case that it fails.
const BETWEEN_PASSES: u64 = 2 + CHECKPOINTS as u64;
const IN_A_PASS: u64 = 3;
const IN_SEVERAL_PASSES: u64 = 2;

/// Bytes of a session's states while a step of one pass is computed.
pub(in crate::model) fn bytes(shape: StateShape) -> u64 {
    (BETWEEN_PASSES + IN_A_PASS) * shape.bytes() as u64 + 2 * shape.inputs_bytes() as u64
}

/// The same while a step of any number of passes is computed.
pub(in crate::model) fn most_bytes(shape: StateShape) -> u64 {
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

/// What a pass reads of a session's states, and where what the session has after it goes. Pages are those of the part's
/// [`StateShape`].
pub(crate) struct StateRows<'a> {
    /// The state before position `base`; `None` before the first position.
    pub(crate) from: Option<&'a Page>,
    /// At most the pass's first position.
    pub(crate) base: usize,
    /// The inputs of the positions from `base` to the pass's first.
    pub(crate) inputs: Option<&'a Page>,
    /// Where the state after the pass goes.
    pub(crate) to: &'a mut Page,
    /// Where the states before some of the positions go, if they are kept.
    pub(crate) kept: [Option<(usize, &'a mut Page)>; 2],
    /// The first position whose inputs are kept, at least `base`.
    pub(crate) inputs_from: usize,
    /// Where the inputs go of the positions from `inputs_from` to the pass's end.
    pub(crate) inputs_to: &'a mut Page,
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

    /// Takes the memory for a pass over the next `rows` positions, and says what the pass reads and writes.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::OutOfMemory`].
    pub(super) fn rows(&mut self, rows: usize, budget: &PageBudget) -> Result<StateRows<'_>, Error> {
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
        let next = self.next.insert(Next {
            last: page()?,
            base,
            inputs: budget.take(self.shape.inputs_bytes())?,
            checkpoint: is_due.then(page).transpose()?,
        });
        let inputs_from = next.base.0;
        let kept_base = match &mut next.base {
            (position, Err(page)) => Some((*position, page)),
            _ => None,
        };
        Ok(StateRows {
            from: from.state.as_deref(),
            base: from.position,
            inputs: self.inputs.as_deref(),
            to: &mut next.last,
            kept: [kept_base, next.checkpoint.as_mut().map(|page| (position, page))],
            inputs_from,
            inputs_to: &mut next.inputs,
        })
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
