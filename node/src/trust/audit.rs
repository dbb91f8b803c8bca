//! Which sessions are looked at again: a share of them, by chance that nobody can foresee when signing. It computes nothing
//! again itself; that is [`replay`](mod@pangea_compute::commit::replay).

use pangea_client::{Error, ErrorKind, Result};
use rand::TryRng;
use rand::rngs::SysRng;

use super::CommitChain;

/// The share of sessions that are audited unless told otherwise.
pub const DEFAULT_SHARE: f64 = 0.05;

/// How many sessions are audited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AuditPolicy {
    share: f64,
}

impl AuditPolicy {
    /// A share of all sessions, 0 to 1.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn new(share: f64) -> Result<AuditPolicy> {
        if (0.0..=1.0).contains(&share) {
            return Ok(AuditPolicy { share });
        }
        let why = format!("{share} is no share of sessions; use 0 (none) to 1 (all)");
        Err(Error::new(ErrorKind::InvalidInput, why))
    }

    /// The share.
    pub fn share(self) -> f64 {
        self.share
    }

    /// Whether every session is audited, so that an answer is held back until its audit is done.
    pub fn is_all(self) -> bool {
        self.share == 1.0
    }

    /// Draws whether the session of this chain is audited. The chain is asked for because the draw comes after the
    /// signatures: who has signed cannot know yet. The system's randomness; where there is none, everything is audited.
    pub fn choose(self, _signed: &CommitChain) -> bool {
        let Ok(bits) = SysRng.try_next_u64() else { return self.share > 0.0 };
        // 53 bits: below 1 always, at least 0.
        ((bits >> 11) as f64) < self.share * (1u64 << 53) as f64
    }
}

impl Default for AuditPolicy {
    fn default() -> AuditPolicy {
        AuditPolicy { share: DEFAULT_SHARE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_drawn_as_often_as_it_says() {
        let drawn = |share: f64| {
            let policy = AuditPolicy::new(share).unwrap();
            (0..20_000).filter(|_| policy.choose(&CommitChain::new())).count()
        };
        assert_eq!(drawn(0.0), 0);
        assert_eq!(drawn(1.0), 20_000);
        // Ten standard deviations.
        let some = drawn(0.05);
        assert!(some.abs_diff(1000) < 310, "{some}");
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for share in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(AuditPolicy::new(share).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(AuditPolicy::default().share(), 0.05);
    }
}
