//! The catalogue of deviations: each is one way in which a node departs from the protocol, applied where its messages leave it.
//! Which node deviates how, and how often, follows from the seed. Nothing is judged here (that is `checks`).
//!
//! | file | what is bent |
//! |---|---|
//! | `tasks` | what workers answer, and what coordinators ask |
//! | `accusations` | what nodes say that they proved |
//! | `adverts` | what nodes publish of themselves and of others |
//! | `sessions` | what stages compute and say |
//! | `evasion` | what a node tries that others have quarantined |

mod accusations;
mod adverts;
mod evasion;
mod sessions;
mod tasks;

use std::collections::BTreeMap;

use pangea_units::SplitMix64;

pub(crate) use self::adverts::Recorded;
pub(crate) use self::sessions::Lie;
pub(crate) use self::tasks::{Answer, FLOODED, UNASKED};
use crate::checks::Broken;
use crate::world::World;

/// One way to depart from the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deviation {
    /// Returns a wrong tile.
    WrongTile,
    /// Refuses a sound task as if its input were invalid.
    RefusesTask,
    /// Returns a tile just before its coordinator would stop waiting.
    StallsTask,
    /// Reports again and again that a task has started, and never its result.
    StartsTaskOnly,
    /// Answers tasks that nobody gave it.
    AnswersUnasked,
    /// Asks a worker for results larger than any memory, in more tasks than one peer may have.
    FloodsTasks,
    /// Publishes a speed and links a thousand times faster than its own.
    Boasts,
    /// Publishes a counter of terms that is far above every known one.
    PoisonsCounter,
    /// Publishes a term of its own above the master's.
    Usurps,
    /// Publishes adverts of other nodes again, also of those that are gone.
    ReplaysAdverts,
    /// Publishes adverts of nodes that there are not, and of others in their place, with whatever looks like a certificate.
    ForgesAdverts,
    /// Computes wrong activations, or chooses wrong tokens, and signs that.
    LiesSigned,
    /// The same, and does not sign the session.
    LiesUnsigned,
    /// Sends other activations than it computed, and signs what it computed.
    SendsOtherwise,
    /// Signs other activations than it sent.
    SignsOtherwise,
    /// Does not sign a session that it computed.
    WithholdsSignature,
    /// Signs two different claims of one session.
    SignsTwice,
    /// Tells a coordinator tokens, though it is not the last stage.
    SpeaksOutOfTurn,
    /// Goes on with an answer after its end.
    NeverEnds,
    /// Refuses a sound session as if its input were invalid.
    RefusesSession,
    /// Takes for a pass just as long as nobody gives it up.
    StallsSession,
    /// Keeps new requests for longer than anybody waits for a first token, where it is the first stage.
    HoldsFirstTokens,
    /// Reports frames as done, and keeps their tokens.
    KeepsTokens,
    /// Reports frames that there are not.
    StepsWildly,
    /// Sends to stages of chains that it has no part in.
    Meddles,
    /// Accuses nodes that never lied.
    FalselyAccuses,
    /// Asks for connections, work and mastership where it is quarantined.
    EvadesQuarantine,
}

impl Deviation {
    /// The whole catalogue.
    pub(crate) const ALL: [Deviation; 27] = [
        Deviation::WrongTile,
        Deviation::RefusesTask,
        Deviation::StallsTask,
        Deviation::StartsTaskOnly,
        Deviation::AnswersUnasked,
        Deviation::FloodsTasks,
        Deviation::Boasts,
        Deviation::PoisonsCounter,
        Deviation::Usurps,
        Deviation::ReplaysAdverts,
        Deviation::ForgesAdverts,
        Deviation::LiesSigned,
        Deviation::LiesUnsigned,
        Deviation::SendsOtherwise,
        Deviation::SignsOtherwise,
        Deviation::WithholdsSignature,
        Deviation::SignsTwice,
        Deviation::SpeaksOutOfTurn,
        Deviation::NeverEnds,
        Deviation::RefusesSession,
        Deviation::StallsSession,
        Deviation::HoldsFirstTokens,
        Deviation::KeepsTokens,
        Deviation::StepsWildly,
        Deviation::Meddles,
        Deviation::FalselyAccuses,
        Deviation::EvadesQuarantine,
    ];

    /// Whether it can be proven: a node that never did anything of the kind must not be quarantined.
    pub(crate) fn is_provable(self) -> bool {
        // Whoever lied once, and signs what follows from it, has signed a lie.
        matches!(
            self,
            Deviation::WrongTile
                | Deviation::LiesSigned
                | Deviation::LiesUnsigned
                | Deviation::SendsOtherwise
                | Deviation::SignsOtherwise
                | Deviation::SignsTwice
        )
    }

    /// Whether it says something that is not so. The others keep back or delay what is due, or ask for too much.
    pub(crate) fn is_lie(self) -> bool {
        !matches!(
            self,
            Deviation::StallsTask
                | Deviation::FloodsTasks
                | Deviation::WithholdsSignature
                | Deviation::StallsSession
                | Deviation::HoldsFirstTokens
                | Deviation::KeepsTokens
                | Deviation::EvadesQuarantine
        )
    }

    /// Whether it shows in products.
    pub(crate) fn is_of_tasks(self) -> bool {
        matches!(
            self,
            Deviation::WrongTile
                | Deviation::RefusesTask
                | Deviation::StallsTask
                | Deviation::StartsTaskOnly
                | Deviation::AnswersUnasked
                | Deviation::Boasts
        )
    }

    /// Whether an answer may be wrong after it, where nobody checks.
    pub(crate) fn is_lie_in_sessions(self) -> bool {
        matches!(self, Deviation::LiesSigned | Deviation::LiesUnsigned | Deviation::SendsOtherwise)
    }

    /// Odds with which it is drawn for every occasion, one in so many; occasions are tasks, or seconds.
    fn odds(self, chance: &mut SplitMix64) -> u64 {
        match self {
            Deviation::Boasts | Deviation::EvadesQuarantine => 1,
            // There are many passes in a session, and one is enough.
            Deviation::LiesSigned | Deviation::LiesUnsigned | Deviation::SendsOtherwise => 10 + chance.below(60),
            Deviation::StallsSession | Deviation::SpeaksOutOfTurn | Deviation::KeepsTokens => 10 + chance.below(60),
            _ => 1 + chance.below(4),
        }
    }
}

/// How one node deviates: one in so many times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deviations(BTreeMap<Deviation, u64>);

impl Deviations {
    /// One deviation alone.
    pub(crate) fn only(deviation: Deviation, one_in: u64) -> Deviations {
        Deviations(BTreeMap::from([(deviation, one_in)]))
    }

    /// Some of the catalogue.
    pub(crate) fn of(chance: &mut SplitMix64) -> Deviations {
        let count = 4 + chance.index(6);
        let some = (0..count).map(|_| {
            let deviation = Deviation::ALL[chance.index(Deviation::ALL.len())];
            (deviation, deviation.odds(chance))
        });
        let mut some: BTreeMap<Deviation, u64> = some.collect();
        // What is found out by a product's check needs products on that very node; and only a node that is found out has anything
        // to evade.
        if chance.one_in(3) || some.contains_key(&Deviation::EvadesQuarantine) {
            some.insert(Deviation::WrongTile, 2);
        }
        Deviations(some)
    }

    /// How often it deviates in this way, if it does.
    pub(crate) fn one_in(&self, deviation: Deviation) -> Option<u64> {
        self.0.get(&deviation).copied()
    }

    /// Whether it never deviates.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same without one of them, for each.
    pub(crate) fn smaller(&self) -> impl Iterator<Item = Deviations> + '_ {
        self.0.keys().map(|without| {
            let mut smaller = self.clone();
            smaller.0.remove(without);
            smaller
        })
    }
}

impl World {
    /// Whether a node deviates on this occasion; then it is counted as done.
    pub(crate) fn deviates(&mut self, at: usize, deviation: Deviation) -> bool {
        let Some(one_in) = self.nodes[at].spec.deviations.one_in(deviation) else { return false };
        let deviates = !self.relented && self.chance.one_in(one_in);
        if deviates {
            self.checks.deviated(self.now, at, deviation);
        }
        deviates
    }

    /// Once a second, a node does what it does of its own accord.
    pub(crate) fn deviate(&mut self, at: usize) -> Result<(), Broken> {
        if self.relented || self.nodes[at].spec.deviations.is_empty() {
            return Ok(());
        }
        self.flood(at)?;
        self.replay_advert(at);
        self.forge_adverts(at);
        self.meddle(at);
        self.accuse_falsely(at);
        self.evade(at)
    }

    /// Whether a node is one that deviates in this way, on whatever occasion.
    pub(crate) fn is_one_that(&self, at: usize, deviation: Deviation) -> bool {
        let node = self.nodes.get(at).filter(|_| !self.relented);
        node.is_some_and(|node| node.spec.deviations.one_in(deviation).is_some())
    }
}
