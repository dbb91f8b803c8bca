//! One vote: asks the voters that the ballot box names, hands it what they give, and returns its decision. Dropping the vote
//! cancels every sample. Nothing is decided here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{AbortHandle, Aborted, BoxFuture, abortable};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use libp2p::PeerId;
use pangea_client::Result;
use pangea_compute::sample::AnswerFormat;
use pangea_control::federation::limits::DEADLINE;
use pangea_control::federation::{Action, BallotBox, Event, Strategy, VoteResult, VoteTerms, Voter};

use super::sample::{Charge, Sample};
use crate::clock;
use crate::serve::{Engine, Request, Summary};

/// Interval at which the ballot box gets the time: a part of the time after which a sample is asked of a second voter.
const TICK: Duration = Duration::from_millis(250);

/// What is put to the vote.
pub struct VoteRequest {
    /// The model.
    pub engine: Engine,
    /// The request that every voter answers; its seed is that of the first sample.
    pub request: Request,
    /// Who pays for the samples.
    pub charge: Charge,
    /// How the vote is decided.
    pub strategy: Strategy,
    /// Samples at most; `None`: as many as the strategy takes.
    pub samples: Option<usize>,
    /// Time of the vote; `None`: [`DEADLINE`].
    pub deadline: Option<Duration>,
    /// Samples that this node generates at once.
    pub places: usize,
}

/// A vote that is decided.
#[derive(Debug)]
pub struct Vote {
    /// The decision.
    pub result: VoteResult,
    /// Peer id of each voter.
    pub voters: Vec<PeerId>,
    /// The winner.
    pub winner: Sample,
    /// Samples that the vote could have taken.
    pub samples_max: usize,
    /// Cost and trust of all samples together.
    pub summary: Summary,
}

/// How a sample ended; `Aborted` if nobody waits for it.
type Ended = (usize, usize, std::result::Result<Result<Sample>, Aborted>);

/// Puts a request to the vote.
///
/// # Errors
/// That of the best voter if no voter gives a sample.
pub(super) async fn vote(local: PeerId, asked: VoteRequest) -> Result<Vote> {
    let VoteRequest { engine, request, charge, strategy, samples, deadline, places } = asked;
    let voters = vec![local];
    let mut ballots = BallotBox::new(VoteTerms {
        strategy,
        samples: samples.unwrap_or(strategy.samples()),
        seed: request.sampling.seed,
        greedy: request.sampling.temperature == 0.0,
        json: request.format != AnswerFormat::Text,
        deadline: clock::now() + deadline.unwrap_or(DEADLINE),
        voters: vec![Voter::this_node(places)],
    });
    let mut running: FuturesUnordered<BoxFuture<'static, Ended>> = FuturesUnordered::new();
    let mut handles: BTreeMap<(usize, usize), AbortHandle> = BTreeMap::new();
    let mut given: BTreeMap<(usize, usize), Sample> = BTreeMap::new();
    let mut actions = VecDeque::from(ballots.handle(Event::Start, clock::now()));
    loop {
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Ask { voter, sample, seed } => {
                    let mut request = request.clone();
                    request.sampling.seed = seed;
                    let (sampled, handle) = abortable(Sample::generate(engine.clone(), request, Arc::clone(&charge)));
                    handles.insert((voter, sample), handle);
                    running.push(sampled.map(move |ended| (voter, sample, ended)).boxed());
                }
                Action::Cancel { voter, sample } => {
                    if let Some(handle) = handles.remove(&(voter, sample)) {
                        handle.abort();
                    }
                }
                Action::Decide(result) => {
                    let summary = total(given.values());
                    let samples_max = ballots.samples_max();
                    let winner = &result.ballots[result.winner];
                    let winner = given.remove(&(winner.voter, winner.sample)).unwrap_or_default();
                    return Ok(Vote { result, voters, winner, samples_max, summary });
                }
                Action::Fail(error) => return Err(error),
            }
        }
        let event = tokio::select! {
            Some((voter, sample, ended)) = running.next() => match ended {
                Err(Aborted) => continue,
                Ok(Ok(sampled)) => {
                    let answer = sampled.answer();
                    given.insert((voter, sample), sampled);
                    Event::Arrived { voter, sample, answer }
                }
                Ok(Err(error)) => Event::Failed { voter, sample, error },
            },
            () = tokio::time::sleep(TICK) => Event::Tick,
        };
        actions.extend(ballots.handle(event, clock::now()));
    }
}

/// What all samples cost together, and the weakest of their verdicts: each of them had a part in the answer.
fn total<'a>(samples: impl Iterator<Item = &'a Sample>) -> Summary {
    samples.fold(Summary::default(), |mut sum, Sample { summary, .. }| {
        // Every sample has the same prompt, which counts once as in a request for several answers.
        sum.prompt_tokens = sum.prompt_tokens.max(summary.prompt_tokens);
        sum.cached_tokens = sum.cached_tokens.max(summary.cached_tokens);
        sum.answer_tokens += summary.answer_tokens;
        sum.drafted_tokens += summary.drafted_tokens;
        sum.accepted_tokens += summary.accepted_tokens;
        sum.queued = sum.queued.max(summary.queued);
        sum.prompt = sum.prompt.max(summary.prompt);
        sum.answer = sum.answer.max(summary.answer);
        sum.failovers += summary.failovers;
        sum.verdict = sum.verdict.max(summary.verdict);
        sum.receipts.extend_from_slice(&summary.receipts);
        sum
    })
}
