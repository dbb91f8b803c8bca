//! Votes: several samples of one model's answer to one request, and which of them is the answer; the nodes that give them.
//!
//! One good model sampled several times beats a mix of models (Self-MoA, arXiv 2502.00674), so every voter serves the same
//! model and samples differ by their seeds only. A sample is the same text whichever voter generates it, so a vote can be
//! replayed from its seeds, and a sample that one voter owes is asked of another.
//!
//! * [`strategy`]: `best_of_n`, `weighted_vote`, `first_valid`.
//! * [`canonical`]: the part of an answer that can be compared with another answer: a JSON field, a choice, a number, a short
//!   string.
//! * `posterior`: how sure a lead is.
//! * `tally`: what the samples so far say: decided, or how many more are needed.
//! * [`ballot_box`]: the state of one vote: which voter generates which sample, what follows from failures and the deadline.
//! * [`peers`]: the other nodes that take part in votes.
//! * [`voters`]: which of them vote on one request.
//! * [`limits`]: numbers, with their reasons.
//!
//! Voters of one vote are indexes; the driver owns the requests to them and the form of the answer.

pub mod ballot_box;
pub mod canonical;
pub mod limits;
pub mod peers;
mod posterior;
pub mod strategy;
mod tally;
pub mod voters;

pub use ballot_box::{Action, BallotBox, Event, VoteTerms, Voter};
pub use canonical::Canonical;
pub use peers::{Change, FederationPeer, FederationPeers, PeerState, takes_part};
pub use strategy::{Strategy, UnknownStrategy};
pub use tally::{Absence, Absent, Ballot, Decided, SampledAnswer, VoteResult};
pub use voters::{Standing, VotingNode, voting_nodes};

#[cfg(test)]
mod ballot_box_tests;
#[cfg(test)]
mod tally_tests;
