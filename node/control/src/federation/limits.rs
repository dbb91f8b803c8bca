//! Numbers of a vote, each with its reason.

use std::time::Duration;

/// Samples of one vote at most. Above this the share of a majority says little that it did not say before, and each sample costs
/// a whole answer.
pub const SAMPLES_MAX: usize = 32;

/// Other nodes that vote on one request at most: one for each sample.
pub const VOTERS_MAX: usize = SAMPLES_MAX;

/// How many times as fast as this node another one must be to be preferred for a sample: this node's samples need no network and
/// nobody has to check them.
pub const OWN_WORTH: f64 = 1.25;

/// Samples of a weighted vote, unless the request says otherwise. Four that agree end it, so easy questions take a quarter.
pub const WEIGHTED_VOTE_SAMPLES: usize = 16;

/// Samples of the best of n, unless the request says otherwise: a free text takes all of them.
pub const BEST_OF_N_SAMPLES: usize = 4;

/// Samples of `first_valid`, one after the other, unless the request says otherwise: a model that fails three times to give a
/// valid answer needs another question.
pub const FIRST_VALID_SAMPLES: usize = 3;

/// Probability that the leading answer leads among all answers that the model would give, from which on a vote ends.
pub const CONSENSUS: f64 = 0.95;

/// Samples after which a vote may be given up that no further samples would decide: half of those of a weighted vote.
pub const SAMPLES_BEFORE_GIVING_UP: usize = WEIGHTED_VOTE_SAMPLES / 2;

/// Weight that the leading answer has by then, or the model does not know the answer: on questions with known answers, votes
/// that went on from less ended no better than the samples by themselves, and took half of all samples.
pub const LEAD_BEFORE_GIVING_UP: f64 = 3.0;

/// Time of a vote, unless the request says otherwise. Later samples are cut off once there is one; a vote without any waits for
/// its first.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Time after which a sample is asked of a second voter, at least. Shorter silences are ordinary on a wireless network.
pub const HEDGE_DELAY: Duration = Duration::from_secs(2);

/// A sample that takes this many times as long as the slowest one so far is asked of a second voter.
pub const HEDGE_FACTOR: u32 = 2;

/// Trust of an admitted voter that is not suspect, at least. Trust is earned by checked products, which a node that only serves
/// models never computes.
pub const UNSUSPECTED_TRUST: f64 = 0.9;

/// Characters of a text that is compared as a whole: a name, a date, a short list. Longer texts are hardly ever equal.
pub const SHORT_CHARS: usize = 64;

/// Words of a text that is compared as a whole.
pub const SHORT_WORDS: usize = 6;

/// Bytes at the end of a text in which its answer is looked for: the last paragraphs.
pub const TAIL_BYTES: usize = 4096;

/// Bytes of a text that is read as JSON; larger ones are free text.
pub const JSON_BYTES: usize = 64 * 1024;

/// Bytes of a JSON value that is compared as a whole.
pub const CANONICAL_BYTES: usize = 512;

/// Words of a free text that its agreement with others is measured on; a few pages say as much as all of it.
pub const AGREEMENT_WORDS: usize = 2048;

const _: () = assert!(FIRST_VALID_SAMPLES <= SAMPLES_MAX && BEST_OF_N_SAMPLES <= SAMPLES_MAX);
const _: () = assert!(WEIGHTED_VOTE_SAMPLES <= SAMPLES_MAX && CANONICAL_BYTES < JSON_BYTES);
