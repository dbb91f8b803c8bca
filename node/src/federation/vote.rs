//! One vote: asks the voters that the ballot box names, hands it what they give, and returns its decision. Dropping the vote
//! cancels every sample. Nothing is decided here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{AbortHandle, Aborted, BoxFuture, abortable};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use libp2p::PeerId;
use pangea_client::Result;
use pangea_compute::sample::AnswerFormat;
use pangea_control::federation::limits::DEADLINE;
use pangea_control::federation::{Absence, Action, BallotBox, Event, Strategy, VoteResult, VoteTerms, VotingNode};
use tokio::sync::watch;
use tracing::{Instrument, Span};

use super::sample::{Charge, Sample};
use crate::clock;
use crate::serve::{Engine, Request, Summary};
use crate::traces::{self, child};

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
    /// Samples that are generated at once where no voter answers the model alone.
    pub places: usize,
}

/// A vote that is decided.
#[derive(Debug)]
pub struct Vote {
    /// The decision.
    pub result: VoteResult,
    /// The nodes that were asked to vote, or could have been.
    pub voters: Vec<VotingNode>,
    /// The winner.
    pub winner: Sample,
    /// Samples that the vote could have taken.
    pub samples_max: usize,
    /// Cost and trust of all samples together.
    pub summary: Summary,
    /// The node that computed each sample of the last resort, where it was one.
    anyone: BTreeMap<usize, PeerId>,
}

impl Vote {
    /// The node that a sample was asked of, or that computed it.
    pub fn peer(&self, voter: usize, sample: usize) -> PeerId {
        let voting = &self.voters[voter];
        let computed = self.anyone.get(&sample).filter(|_| voting.voter.is_last_resort);
        computed.copied().unwrap_or(voting.peer)
    }

    /// Number of other nodes that could be asked to vote.
    pub fn peers(&self) -> usize {
        self.voters.iter().filter(|voting| !voting.voter.local).count()
    }

    /// Why fewer nodes voted than could be asked, or none but this one; `None` if nothing is amiss.
    pub fn degraded(&self) -> Option<String> {
        if self.peers() == 0 {
            return Some("no other node of the federation serves this model now".to_owned());
        }
        let (mut failed, mut late) = (BTreeMap::new(), BTreeSet::new());
        for absent in &self.result.absent {
            match &absent.why {
                Absence::Failed(error) => {
                    failed.entry(self.voters[absent.voter].peer).or_insert(error);
                }
                Absence::Late => {
                    late.insert(self.voters[absent.voter].peer);
                }
                Absence::NotNeeded => {}
            }
        }
        let failures = failed.iter().map(|(peer, error)| format!("{peer} failed: {}", error.message()));
        let late = late.iter().map(|peer| format!("{peer} was late"));
        let reasons: Vec<String> = failures.chain(late).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// How a sample ended; `Aborted` if nobody waits for it.
type Ended = (usize, usize, std::result::Result<Result<Sample>, Aborted>);

/// Puts a request to the vote of `voters`. `excluded`: the peers that may not compute, which changes with every conviction.
///
/// # Errors
/// That of the best voter if no voter gives a sample.
pub(super) async fn vote(
    voters: Vec<VotingNode>,
    mut excluded: watch::Receiver<Arc<BTreeSet<PeerId>>>,
    asked: VoteRequest,
) -> Result<Vote> {
    let VoteRequest { engine, request, charge, strategy, samples, deadline, .. } = asked;
    let mut ballots = BallotBox::new(VoteTerms {
        strategy,
        samples: samples.unwrap_or(strategy.samples()),
        seed: request.sampling.seed,
        greedy: request.sampling.temperature == 0.0,
        json: request.format != AnswerFormat::Text,
        deadline: clock::now() + deadline.unwrap_or(DEADLINE),
        voters: voters.iter().map(|voting| voting.voter).collect(),
    });
    let span = child!(
        &Span::current(),
        "vote",
        gen_ai.request.model = engine.model().name,
        pangea.strategy = %strategy,
        pangea.voters = voters.len() as i64
    );
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
                    let voting = &voters[voter];
                    request.server = (!voting.voter.is_last_resort).then_some(voting.peer);
                    let asked = span_of(&span, voting, sample);
                    let sampled = generate(engine.clone(), request, Arc::clone(&charge), asked.clone());
                    let (sampled, handle) = abortable(sampled.instrument(asked));
                    handles.insert((voter, sample), handle);
                    running.push(sampled.map(move |ended| (voter, sample, ended)).boxed());
                }
                Action::Cancel { voter, sample } => {
                    if let Some(handle) = handles.remove(&(voter, sample)) {
                        handle.abort();
                    }
                }
                Action::Decide(result) => {
                    let anyone = computed_by(&voters, &given);
                    // What a node gave that was convicted meanwhile had no part in the answer.
                    given.retain(|(voter, sample), _| {
                        result.ballots.iter().any(|ballot| (ballot.voter, ballot.sample) == (*voter, *sample))
                    });
                    let summary = total(given.values());
                    let samples_max = ballots.samples_max();
                    traces::set(&span, "pangea.decided", result.decided.name());
                    traces::set(&span, "pangea.ballots", result.ballots.len() as i64);
                    let winner = &result.ballots[result.winner];
                    let winner = given.remove(&(winner.voter, winner.sample)).unwrap_or_default();
                    return Ok(Vote { result, voters, winner, samples_max, summary, anyone });
                }
                Action::Fail(error) => {
                    traces::failed(&span, error.kind());
                    return Err(error);
                }
            }
        }
        tokio::select! {
            Some((voter, sample, ended)) = running.next() => {
                let event = match ended {
                    Err(Aborted) => continue,
                    Ok(Ok(sampled)) => {
                        let answer = sampled.answer();
                        given.insert((voter, sample), sampled);
                        Event::Arrived { voter, sample, answer }
                    }
                    Ok(Err(error)) => Event::Failed { voter, sample, error },
                };
                actions.extend(ballots.handle(event, clock::now()));
            }
            Ok(()) = excluded.changed() => {
                let liars = Arc::clone(&excluded.borrow_and_update());
                for (voter, voting) in voters.iter().enumerate().filter(|(_, voting)| liars.contains(&voting.peer)) {
                    tracing::warn!(event = "voter_excluded", peer = %voting.peer, "the ballots of {} do not count", voting.peer);
                    actions.extend(ballots.handle(Event::Excluded { voter }, clock::now()));
                }
                let touched = |sample: &Sample| sample.summary.stages.iter().any(|stage| liars.contains(&stage.peer));
                for ((voter, sample), _) in given.iter().filter(|(_, sample)| touched(sample)) {
                    let event = Event::Withdrawn { voter: *voter, sample: *sample };
                    actions.extend(ballots.handle(event, clock::now()));
                }
            }
            () = tokio::time::sleep(TICK) => actions.extend(ballots.handle(Event::Tick, clock::now())),
        }
    }
}

/// The span of a sample that is asked of a voter.
fn span_of(vote: &Span, voting: &VotingNode, sample: usize) -> Span {
    let kind = if voting.voter.local || voting.voter.is_last_resort { "internal" } else { "client" };
    let sampled = child!(vote, "sample", otel.kind = kind, pangea.sample = sample as i64);
    if !voting.voter.is_last_resort {
        traces::set(&sampled, "server.address", voting.peer.to_string());
    }
    sampled
}

/// Generates a sample; `asked` is its span.
async fn generate(engine: Engine, request: Request, charge: Charge, asked: Span) -> Result<Sample> {
    let sampled = Sample::generate(engine, request, charge).await;
    match &sampled {
        Ok(sampled) => traces::set(&asked, "gen_ai.usage.output_tokens", sampled.summary.answer_tokens as i64),
        Err(error) => traces::failed(&asked, error.kind()),
    }
    sampled
}

/// The node that computed each sample of the last resort, where one node alone did.
fn computed_by(voters: &[VotingNode], given: &BTreeMap<(usize, usize), Sample>) -> BTreeMap<usize, PeerId> {
    let of_anyone = given.iter().filter(|((voter, _), _)| voters[*voter].voter.is_last_resort);
    of_anyone
        .filter_map(|((_, sample), given)| match &given.summary.stages[..] {
            [only] => Some((*sample, only.peer)),
            _ => None,
        })
        .collect()
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
