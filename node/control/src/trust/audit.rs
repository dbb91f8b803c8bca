//! Decides which sessions are audited: a share of them, drawn after the signatures, so that a signer cannot
//! predict the draw. The random bits are passed in; nothing is recomputed here.

use pangea_units::{Error, ErrorKind, Result};

/// Default share of audited sessions.
pub const DEFAULT_SHARE: f64 = 0.05;

/// Share of sessions that are audited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AuditPolicy {
    share: f64,
}

impl AuditPolicy {
    /// A policy with a share of all sessions, 0 to 1.
    ///
    /// # Errors
    /// `InvalidInput` for any other share.
    pub fn new(share: f64) -> Result<AuditPolicy> {
        if (0.0..=1.0).contains(&share) {
            return Ok(AuditPolicy { share });
        }
        let why = format!("--audit must be between 0 (no session) and 1 (all sessions), not {share}");
        Err(Error::new(ErrorKind::InvalidInput, why))
    }

    /// The share.
    pub fn share(self) -> f64 {
        self.share
    }

    /// Whether every session is audited, so that an answer is held back until its audit has ended.
    pub fn is_all(self) -> bool {
        self.share == 1.0
    }

    /// Whether a session whose stages have signed is audited. `random`: bits that nobody could know before the signatures.
    /// Without them, and for a session that is `suspect` (signatures are missing, or a stage is on a suspect), the audit is
    /// certain unless the share is 0.
    pub fn draws(self, random: Option<u64>, suspect: bool) -> bool {
        let Some(random) = random.filter(|_| !suspect) else { return self.share > 0.0 };
        // The top 53 bits, as a fraction in [0, 1).
        ((random >> 11) as f64) < self.share * (1u64 << 53) as f64
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

    /// Bits spread evenly over all of u64: multiples of the golden ratio.
    fn bits() -> impl Iterator<Item = u64> {
        (1..=20_000u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    #[test]
    fn sessions_are_drawn_at_the_given_share() {
        let drawn = |share: f64| {
            let policy = AuditPolicy::new(share).unwrap();
            bits().filter(|random| policy.draws(Some(*random), false)).count()
        };
        assert_eq!(drawn(0.0), 0);
        assert_eq!(drawn(1.0), 20_000);
        assert!(drawn(0.05).abs_diff(1000) <= 2, "{}", drawn(0.05));
    }

    #[test]
    fn the_draw_is_right_at_its_limits() {
        let half = AuditPolicy::new(0.5).unwrap();
        assert!(half.draws(Some(0), false) && half.draws(Some((1 << 63) - 1), false));
        assert!(!half.draws(Some(1 << 63), false) && !half.draws(Some(u64::MAX), false));
        let [most, all] = [1.0 - f64::EPSILON, 1.0].map(|share| AuditPolicy::new(share).unwrap());
        assert!(all.draws(Some(u64::MAX), false));
        assert!(all.is_all() && !most.is_all(), "one answer that is not audited is not held back for its audit");
    }

    #[test]
    fn without_randomness_every_session_is_audited_unless_the_share_is_zero() {
        assert!(AuditPolicy::new(0.01).unwrap().draws(None, false));
        assert!(!AuditPolicy::new(0.0).unwrap().draws(None, false));
    }

    #[test]
    fn a_suspect_session_is_audited_for_certain_unless_the_share_is_zero() {
        assert!(AuditPolicy::new(0.01).unwrap().draws(Some(u64::MAX), true));
        assert!(!AuditPolicy::new(0.0).unwrap().draws(Some(0), true));
    }

    #[test]
    fn a_share_outside_zero_to_one_is_refused() {
        for share in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(AuditPolicy::new(share).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(AuditPolicy::default().share(), 0.05);
    }
}
