//! Which sessions are audited: a share of them, by a draw that comes after the signatures, so that whoever signs cannot
//! foresee it. The random bits are passed in; nothing is computed again here.

use pangea_units::{Error, ErrorKind, Result};

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
        let why = format!("--audit must be between 0 (no session) and 1 (all sessions), not {share}");
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

    /// Whether a session whose stages have signed is audited. `random`: bits that nobody could know before the signatures;
    /// where there are none, every session is audited unless none is.
    pub fn draws(self, random: Option<u64>) -> bool {
        let Some(random) = random else { return self.share > 0.0 };
        // 53 bits: below 1 always, at least 0.
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
    fn a_share_is_drawn_as_often_as_it_says() {
        let drawn = |share: f64| {
            let policy = AuditPolicy::new(share).unwrap();
            bits().filter(|random| policy.draws(Some(*random))).count()
        };
        assert_eq!(drawn(0.0), 0);
        assert_eq!(drawn(1.0), 20_000);
        assert!(drawn(0.05).abs_diff(1000) <= 2, "{}", drawn(0.05));
    }

    #[test]
    fn the_draw_is_right_at_its_limits() {
        let half = AuditPolicy::new(0.5).unwrap();
        assert!(half.draws(Some(0)) && half.draws(Some((1 << 63) - 1)));
        assert!(!half.draws(Some(1 << 63)) && !half.draws(Some(u64::MAX)));
        assert!(AuditPolicy::new(1.0).unwrap().draws(Some(u64::MAX)));
    }

    #[test]
    fn without_randomness_every_session_is_audited_unless_none_is() {
        assert!(AuditPolicy::new(0.01).unwrap().draws(None));
        assert!(!AuditPolicy::new(0.0).unwrap().draws(None));
    }

    #[test]
    fn a_share_outside_zero_to_one_is_refused() {
        for share in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(AuditPolicy::new(share).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(AuditPolicy::default().share(), 0.05);
    }
}
