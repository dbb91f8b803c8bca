//! Suspicion of one peer: what counts as suspicious, how much, and how it decays. Suspicion lowers trust, so that a suspect is
//! used last and audited first; it never quarantines, because it is no proof.

use std::time::Duration;

use crate::Time;

/// Time in which suspicion halves: a peer with a passing fault is a suspect for minutes, not for days.
const HALF_LIFE: Duration = Duration::from_secs(600);

/// Upper bound of suspicion: a peer that was suspected without end is no suspect any more an hour after the last reason.
const SUSPICION_MAX: f64 = 8.0;

/// Time in which late first tokens count once: of many answers that wait for the same cause, each says the same of the same nodes.
/// Nodes that were busy for a moment are no suspects after it, a chain that keeps answers waiting for a minute is.
const LATE_ONCE_PER: Duration = Duration::from_secs(30);

/// Suspicion from which on a peer counts as a suspect. One reason of full weight counts for one half-life; one stall alone
/// does not, several in a row do.
const SUSPECT_FROM: f64 = 0.5;

/// Why a peer is suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SuspicionReason {
    /// A signature that was due did not come, or a peer did not countersign what it got.
    Unsigned,
    /// Work that the peer did not sign was wrong when it was computed again.
    WrongUnsigned,
    /// Work of the peer was wrong when it was computed again, and its signature alone does not prove it.
    WrongUnproven,
    /// Work of the peer, on an engine whose bits are not exact, differs by more than what is accepted.
    Unconfirmed,
    /// The peer did not open rows that it had signed, or opened others.
    NotOpened,
    /// Two statements contradict each other, and it cannot be told which of their authors is wrong.
    Contradicted,
    /// The peer kept others waiting although it was connected.
    Stalled,
    /// An answer left the peer's chain because its first token was late. All nodes of the chain are suspected of it alike.
    Late,
    /// The peer said what its part in a session does not allow: another stage's words, too many tokens, an end without a reason.
    BrokeProtocol,
    /// The peer called a request invalid that other nodes answered.
    RefusedWrongly,
    /// An accusation by the peer was refuted when it was checked again.
    AccusedWrongly,
}

impl SuspicionReason {
    /// How much suspicion it adds.
    fn weight(self) -> f64 {
        match self {
            SuspicionReason::Stalled | SuspicionReason::Late => 0.25,
            SuspicionReason::Unsigned
            | SuspicionReason::NotOpened
            | SuspicionReason::Unconfirmed
            | SuspicionReason::Contradicted
            | SuspicionReason::BrokeProtocol
            | SuspicionReason::RefusedWrongly => 1.0,
            SuspicionReason::WrongUnsigned | SuspicionReason::WrongUnproven | SuspicionReason::AccusedWrongly => 2.0,
        }
    }

    /// Name in logs.
    pub fn name(self) -> &'static str {
        match self {
            SuspicionReason::Unsigned => "unsigned",
            SuspicionReason::WrongUnsigned => "wrong_unsigned",
            SuspicionReason::WrongUnproven => "wrong_unproven",
            SuspicionReason::NotOpened => "not_opened",
            SuspicionReason::Unconfirmed => "unconfirmed",
            SuspicionReason::Contradicted => "contradicted",
            SuspicionReason::Stalled => "stalled",
            SuspicionReason::Late => "late",
            SuspicionReason::BrokeProtocol => "broke_protocol",
            SuspicionReason::RefusedWrongly => "refused_wrongly",
            SuspicionReason::AccusedWrongly => "accused_wrongly",
        }
    }
}

/// Suspicion of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Suspicion {
    /// Suspicion at `since`.
    amount: f64,
    since: Time,
    /// When a late first token counted last.
    late: Option<Time>,
}

impl Suspicion {
    /// Adds a reason.
    pub(super) fn add(&mut self, reason: SuspicionReason, now: Time) {
        if reason == SuspicionReason::Late {
            if self.late.is_some_and(|last| now.since(last) < LATE_ONCE_PER) {
                return;
            }
            self.late = Some(now);
        }
        self.amount = (self.amount(now) + reason.weight()).min(SUSPICION_MAX);
        self.since = now;
    }

    /// How much suspicion is left; 0 without any.
    pub fn amount(&self, now: Time) -> f64 {
        self.amount * 0.5f64.powf(now.since(self.since).as_secs_f64() / HALF_LIFE.as_secs_f64())
    }

    /// Whether the peer is used last and audited first.
    pub fn is_suspect(&self, now: Time) -> bool {
        self.amount(now) >= SUSPECT_FROM
    }

    /// Factor by which suspicion lowers trust, above 0 and at most 1.
    pub fn trust_factor(&self, now: Time) -> f64 {
        0.5f64.powf(self.amount(now))
    }

    /// The factor of a peer that has just become a suspect; that of any other peer is above it.
    pub(super) fn factor_of_suspects() -> f64 {
        0.5f64.powf(SUSPECT_FROM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspicion_halves_with_time_and_is_gone_at_last() {
        let mut suspicion = Suspicion::default();
        assert_eq!((suspicion.amount(Time::ZERO), suspicion.trust_factor(Time::MAX)), (0.0, 1.0));
        suspicion.add(SuspicionReason::Unsigned, Time::from_secs(100));
        assert_eq!(suspicion.amount(Time::from_secs(100)), 1.0);
        assert_eq!(suspicion.amount(Time::from_secs(700)), 0.5);
        assert!(suspicion.is_suspect(Time::from_secs(700)) && !suspicion.is_suspect(Time::from_secs(701)));
        assert!(suspicion.trust_factor(Time::from_secs(100)) < suspicion.trust_factor(Time::from_secs(700)));
        assert_eq!(suspicion.amount(Time::MAX), 0.0);
    }

    /// Hundreds of answers that wait in one busy moment must not make honest nodes suspects.
    #[test]
    fn late_first_tokens_make_a_suspect_when_they_go_on_and_not_when_they_are_many() {
        let mut suspicion = Suspicion::default();
        let mut is_suspect_at = |at: Time| {
            (0..100).for_each(|_| suspicion.add(SuspicionReason::Late, at));
            suspicion.is_suspect(at)
        };
        let start = Time::from_secs(100);
        let just_before = start + LATE_ONCE_PER - Duration::from_millis(1);
        assert!(!is_suspect_at(start) && !is_suspect_at(just_before) && !is_suspect_at(start + LATE_ONCE_PER));
        assert!(is_suspect_at(start + 2 * LATE_ONCE_PER));
        assert!(!suspicion.is_suspect(start + HALF_LIFE + 2 * LATE_ONCE_PER), "it decays");
    }

    #[test]
    fn one_stall_makes_no_suspect_and_reasons_without_end_are_bounded() {
        let (mut suspicion, now) = (Suspicion::default(), Time::from_secs(1));
        suspicion.add(SuspicionReason::Stalled, now);
        assert!(!suspicion.is_suspect(now));
        suspicion.add(SuspicionReason::Stalled, now);
        assert!(suspicion.is_suspect(now));
        for _ in 0..1000 {
            suspicion.add(SuspicionReason::WrongUnsigned, now);
        }
        assert_eq!(suspicion.amount(now), SUSPICION_MAX);
        assert!(!suspicion.is_suspect(now + Duration::from_secs(3600)));
    }
}
