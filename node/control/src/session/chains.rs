//! Decides how long a node keeps its stages of chains: while a placement names them, and after that as long as sessions
//! may need them. Nothing is started or ended here.

use std::collections::BTreeMap;
use std::time::Duration;

use pangea_units::Digest;

use super::ChainId;
use crate::Time;

/// Time that a chain with sessions is kept after its placement was replaced, so that sessions can finish on it.
const LINGER: Duration = Duration::from_secs(600);

/// Time that a chain without sessions is kept after its placement was replaced, so that requests already routed to it
/// arrive.
const IDLE_LINGER: Duration = Duration::from_secs(2);

/// Current use of a chain.
#[derive(Clone, Copy, Debug)]
pub struct ChainUse {
    /// Whether a current placement names the chain.
    pub named: bool,
    /// Whether any placement of its model is current.
    pub placed: bool,
    /// Whether the chain has failed.
    pub broken: bool,
    /// Sessions of this node's stage.
    pub sessions: usize,
}

/// The placed chains that this node has a stage of.
#[derive(Clone, Debug, Default)]
pub struct Chains {
    /// The chains, with the time since which no placement names each.
    known: BTreeMap<ChainId, Option<Time>>,
}

impl Chains {
    /// Adds a chain whose stage was started.
    pub fn insert(&mut self, chain: ChainId) {
        self.known.insert(chain, None);
    }

    /// Removes a chain whose stage was ended.
    pub fn remove(&mut self, chain: &ChainId) {
        self.known.remove(chain);
    }

    /// Whether the chain's stage was started and is kept.
    pub fn contains(&self, chain: &ChainId) -> bool {
        self.known.contains_key(chain)
    }

    /// Every chain.
    pub fn all(&self) -> Vec<ChainId> {
        self.known.keys().copied().collect()
    }

    /// The chains of one model.
    pub fn of(&self, model: &Digest) -> Vec<ChainId> {
        self.known.keys().filter(|chain| chain.model == *model).copied().collect()
    }

    /// Removes and returns the chains whose stages must end now.
    pub fn sweep(&mut self, now: Time, state: impl Fn(&ChainId) -> ChainUse) -> Vec<ChainId> {
        let mut ended = Vec::new();
        self.known.retain(|chain, unnamed| {
            let ChainUse { named, placed, broken, sessions } = state(chain);
            if named {
                *unnamed = None;
                return true;
            }
            let quiet = now.since(*unnamed.get_or_insert(now));
            // A failed chain is kept until its model is placed again.
            let over = (sessions == 0 && quiet > IDLE_LINGER) || (placed && broken) || quiet > LINGER;
            if over {
                ended.push(*chain);
            }
            !over
        });
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USED: ChainUse = ChainUse { named: true, placed: true, broken: false, sessions: 1 };

    fn chain(epoch: u64) -> ChainId {
        ChainId { model: Digest::from_bytes([1; 32]), epoch }
    }

    #[test]
    fn a_chain_with_sessions_outlives_its_placement_for_a_limited_time() {
        let mut chains = Chains::default();
        chains.insert(chain(1));
        let unnamed = ChainUse { named: false, ..USED };
        assert!(chains.sweep(Time::from_secs(1), |_| USED).is_empty());
        for second in [2, 500, 602] {
            assert!(chains.sweep(Time::from_secs(second), |_| unnamed).is_empty());
        }
        assert_eq!(chains.sweep(Time::from_secs(603), |_| unnamed), [chain(1)]);
        assert!(!chains.contains(&chain(1)));
    }

    #[test]
    fn a_chain_without_sessions_ends_soon_unless_it_is_named_again() {
        let mut chains = Chains::default();
        chains.insert(chain(1));
        let idle = ChainUse { named: false, sessions: 0, ..USED };
        assert!(chains.sweep(Time::from_secs(1), |_| idle).is_empty());
        assert!(chains.sweep(Time::from_secs(3), |_| USED).is_empty());
        assert!(chains.sweep(Time::from_secs(4), |_| idle).is_empty());
        assert!(chains.sweep(Time::from_secs(6), |_| idle).is_empty());
        assert_eq!(chains.sweep(Time::from_secs(7), |_| idle), [chain(1)]);
    }

    #[test]
    fn a_broken_chain_ends_once_its_model_is_placed_elsewhere() {
        let mut chains = Chains::default();
        chains.insert(chain(1));
        let broken = ChainUse { named: false, placed: false, broken: true, sessions: 1 };
        assert!(chains.sweep(Time::from_secs(1), |_| broken).is_empty());
        assert_eq!(chains.sweep(Time::from_secs(1), |_| ChainUse { placed: true, ..broken }), [chain(1)]);
    }
}
