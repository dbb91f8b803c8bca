//! [`Rewind`]: the positions that a session with a recurrent state can go back to. Its caches keep states by this rule, and whoever
//! plans what they compute knows by the same rule what they can do.

/// Positions before its end that a step's inputs are kept for: to each of them a session goes back without computing anything
/// again.
pub const KEPT_INPUTS: usize = 16;

/// Positions from one kept state to the next, at least. Computing so many again takes a second or less.
pub const CHECKPOINT_EVERY: usize = 256;

/// Kept states of a session, at most. Each takes as much memory as some hundred to two thousand positions of attention.
pub const CHECKPOINTS: usize = 4;

/// The positions that a session can go back to. It is told of every step in order: [`Rewind::begin`], then [`Rewind::advance`], then
/// [`Rewind::truncate`] if some of its positions are given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewind {
    len: usize,
    /// Where the latest step began.
    step_start: usize,
    /// The first of the positions up to `len` to which the session goes back by kept inputs.
    exact_from: usize,
    /// Positions whose states are kept, ascending.
    checkpoints: Vec<usize>,
}

impl Rewind {
    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no positions are held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The positions before which states are kept, ascending.
    pub fn checkpoints(&self) -> &[usize] {
        &self.checkpoints
    }

    /// The first position whose inputs are kept once a pass of the latest step ends at `end`.
    pub fn exact_from(&self, end: usize) -> usize {
        self.step_start.max(end.saturating_sub(KEPT_INPUTS))
    }

    /// A step begins. Where it is far enough behind the last kept state, its state is kept, and another one given up where there
    /// are too many: they are to be the closer to each other, the closer they are to the end.
    pub fn begin(&mut self) {
        self.step_start = self.len;
        if self.len < self.checkpoints.last().copied().unwrap_or(0) + CHECKPOINT_EVERY {
            return;
        }
        self.checkpoints.push(self.len);
        if self.checkpoints.len() <= CHECKPOINTS {
            return;
        }
        // The state is given up whose neighbours' distances from the end have the least ratio: what is left is spaced like powers.
        let behind = |at: usize| (self.len - self.checkpoints[at]) as u128;
        let ratio = |at: usize| {
            let before = at.checked_sub(1).map_or(self.len as u128, behind);
            (before, behind(at + 1) + CHECKPOINT_EVERY as u128)
        };
        let mut least = 0;
        for at in 1..self.checkpoints.len() - 1 {
            let ((before, after), (least_before, least_after)) = (ratio(at), ratio(least));
            if before * least_after < least_before * after {
                least = at;
            }
        }
        self.checkpoints.remove(least);
    }

    /// A step that began is to have at most `rows` positions. Until it is reported with [`Rewind::advance`], its caches may be where
    /// they were, or have computed it.
    pub fn under_way(&mut self, rows: usize) {
        self.exact_from = self.exact_from(self.len + rows);
    }

    /// `rows` more positions are held.
    pub fn advance(&mut self, rows: usize) {
        self.len += rows;
        self.exact_from = self.exact_from(self.len);
    }

    /// The last of the positions up to `position` to which the session can go back.
    pub fn reach(&self, position: usize) -> usize {
        let position = position.min(self.len);
        if position >= self.exact_from {
            return position;
        }
        self.checkpoints.iter().copied().rfind(|kept| *kept <= position).unwrap_or(0)
    }

    /// Gives up the positions from [`Rewind::reach`]`(position)` on; returns how many are held.
    pub fn truncate(&mut self, position: usize) -> usize {
        self.len = self.reach(position);
        self.step_start = self.step_start.min(self.len);
        self.exact_from = self.exact_from.min(self.len);
        self.checkpoints.retain(|kept| *kept <= self.len);
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stepped(steps: impl IntoIterator<Item = usize>) -> Rewind {
        let mut rewind = Rewind::default();
        for rows in steps {
            rewind.begin();
            rewind.advance(rows);
        }
        rewind
    }

    #[test]
    fn the_latest_step_is_exact_as_far_as_its_inputs_are_kept() {
        let rewind = stepped([100, 5]);
        assert_eq!([99, 100, 103, 105, 900].map(|to| rewind.reach(to)), [0, 100, 103, 105, 105]);
        let rewind = stepped([100, 20]);
        assert_eq!([100, 103, 104, 120].map(|to| rewind.reach(to)), [0, 0, 104, 120]);
        let mut rewind = stepped([100]);
        rewind.begin();
        rewind.under_way(KEPT_INPUTS);
        assert_eq!(rewind.reach(100), 100);
        // By then the caches may have computed it, and given up the state before it.
        rewind.under_way(KEPT_INPUTS + 1);
        assert_eq!(rewind.reach(100), 0);
    }

    #[test]
    fn what_is_computed_again_is_in_proportion_to_how_far_a_session_goes_back() {
        for rows in [1, 7, 64, 256] {
            let mut rewind = Rewind::default();
            while rewind.len() < 20_000 {
                rewind.begin();
                rewind.advance(rows);
                let kept = rewind.checkpoints();
                assert!(kept.len() <= CHECKPOINTS && kept.is_sorted() && kept.iter().all(|kept| *kept < rewind.len()));
                let len = rewind.len();
                for back in [100, 300, 1_000, 3_000].into_iter().filter(|back| *back < len) {
                    let reached = rewind.reach(len - back);
                    assert!(len - reached <= 4 * (back + CHECKPOINT_EVERY), "{len} back by {back} to {reached}");
                }
            }
        }
    }

    #[test]
    fn a_session_that_went_back_has_what_it_had_before_and_goes_back_no_further_than_it_says() {
        let mut rewind = stepped([256; 5]);
        let kept = rewind.checkpoints().to_vec();
        let to = kept[1] + 5;
        assert_eq!(rewind.truncate(to), kept[1]);
        assert_eq!(rewind.checkpoints(), &kept[..2]);
        assert_eq!(rewind.reach(kept[1]), kept[1]);
        assert_eq!(rewind.reach(kept[1] - 1), kept[0]);
        rewind.truncate(0);
        assert_eq!(rewind, Rewind::default());
    }
}
