//! `/v1/federation/…`: answers that are put to the vote of several samples, and who takes part; also chats of a node with
//! `--federation`. This file parses and formats; `crate::federation` votes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use pangea_client::ErrorKind;
use pangea_control::federation::limits::SAMPLES_MAX;
use pangea_control::federation::{Absence, FederationPeer, PeerState, Strategy};
use serde_json::{Value, json};

use super::answer::{fingerprint, usage};
use super::chat;
use super::dialect::{pangea, unix_seconds};
use super::error::ApiError;
use super::fields::Fields;
use super::key_holder::KeyHolder;
use super::{App, Body};
use crate::clock;
use crate::federation::{Federation, Vote, VoteRequest};
use crate::pool::{ServingAdvert, View};
use crate::serve::Finish;

/// Value of `strategy` for an answer without a vote.
const NO_VOTE: &str = "none";

/// Longest time of a vote that a request may ask for: what clients wait for an answer.
const DEADLINE_MAX: Duration = Duration::from_secs(600);

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/federation/vote", post(put_to_the_vote))
        .route("/v1/federation/health", get(health))
        .route("/v1/federation/peers", get(peers))
}

/// `/v1/federation/vote`: a chat whose answer is voted on.
async fn put_to_the_vote(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body).await?;
    let default = app.federation.as_ref().ok_or_else(takes_no_part)?.strategy();
    let strategy = match strategy(&mut fields)? {
        None => default,
        Some(Some(strategy)) => strategy,
        Some(None) => {
            return Err(ApiError::field("strategy", "a vote has a strategy; ask /v1/chat/completions instead"));
        }
    };
    respond(&app, &holder, fields, strategy).await
}

/// How a chat is to be voted on, if it is. A request that says nothing is voted on at a node with `--federation` where that can
/// help: samples that differ, of one answer that is sent whole.
pub(super) fn chosen(app: &App, fields: &mut Fields) -> Result<Option<Strategy>, ApiError> {
    match (strategy(fields)?, app.federation.as_ref().map(Federation::strategy)) {
        (Some(None), _) | (None, None) => Ok(None),
        (Some(Some(_)), None) => Err(takes_no_part().about("strategy")),
        (Some(Some(strategy)), Some(_)) => Ok(Some(strategy)),
        (None, Some(default)) => {
            let said = |field| fields.peek(field);
            let is_whole = said("stream").is_none_or(|stream| *stream == json!(false));
            let is_text = said("tools").is_none() && said("logprobs").is_none_or(|wanted| *wanted == json!(false));
            let is_one = said("n").is_none_or(|choices| *choices == json!(1));
            Ok(Some(default).filter(|_| is_whole && is_text && is_one))
        }
    }
}

fn takes_no_part() -> ApiError {
    ApiError::new(ErrorKind::InvalidInput, "this node takes no part in votes; start it with --federation")
        .code("federation_off")
}

/// The field `strategy`; `Some(None)`: no vote.
fn strategy(fields: &mut Fields) -> Result<Option<Option<Strategy>>, ApiError> {
    let Some(name) = fields.optional::<String>("strategy")? else { return Ok(None) };
    if name == NO_VOTE {
        return Ok(Some(None));
    }
    let unknown = |error| ApiError::field("strategy", format!("strategy is {name:?}: {error}, or none for no vote"));
    name.parse().map(|strategy| Some(Some(strategy))).map_err(unknown)
}

/// Answers a chat by vote.
pub(super) async fn respond(
    app: &App,
    holder: &KeyHolder,
    mut fields: Fields,
    strategy: Strategy,
) -> Result<Response, ApiError> {
    let samples = fields.optional::<usize>("samples")?;
    if samples.is_some_and(|samples| !(1..=SAMPLES_MAX).contains(&samples)) {
        return Err(ApiError::field("samples", format!("samples must be 1 to {SAMPLES_MAX}")));
    }
    let deadline = deadline(&mut fields)?;
    for (field, harmless) in
        [("stream", json!(false)), ("n", json!(1)), ("logprobs", json!(false)), ("tools", json!([]))]
    {
        fields.unsupported(field, &[harmless])?;
    }
    let model: Option<String> = fields.optional("model")?;
    let chat::Parsed { generate, prompt, .. } = chat::parse(&mut fields)?;
    let engine = app.engine(model.as_deref(), holder).await?;
    let model = engine.model().name.clone();
    let mut request = generate.request;
    request.prompt = prompt;
    let seed = request.sampling.seed;
    let id = format!("chatcmpl-{:032x}", rand::random::<u128>());
    request.id.clone_from(&id);
    let payer = holder.clone();
    let charge = Arc::new(move |tokens| payer.spend(tokens));
    let asked = VoteRequest { engine, request, charge, strategy, samples, deadline, places: app.served.places() };
    let federation = app.federation.as_ref().ok_or_else(takes_no_part)?;
    let vote = federation.vote(asked).await?;
    let mut answer = completion(&vote, &model);
    answer["id"] = json!(id);
    answer["ballots"] = ballots(&vote, seed);
    let result = &vote.result;
    answer["federation"] = json!({
        "strategy": strategy.name(),
        "decided": result.decided.name(),
        "posterior": result.posterior,
        "answer": result.ballots[result.winner].canonical.as_ref().map(ToString::to_string),
        "samples": result.ballots.len() + result.absent.len(),
        "samples_max": vote.samples_max,
        "seed": seed,
        "peers": vote.peers(),
        "degraded": vote.degraded(),
    });
    Ok(Json(answer).into_response())
}

fn deadline(fields: &mut Fields) -> Result<Option<Duration>, ApiError> {
    let Some(seconds) = fields.optional::<f64>("deadline_s")? else { return Ok(None) };
    let deadline = Duration::try_from_secs_f64(seconds).ok().filter(|deadline| !deadline.is_zero());
    let wrong =
        || ApiError::field("deadline_s", format!("deadline_s must be above 0 and at most {}", DEADLINE_MAX.as_secs()));
    deadline.filter(|deadline| *deadline <= DEADLINE_MAX).map(Some).ok_or_else(wrong)
}

/// The winner as a chat's completion.
fn completion(vote: &Vote, model: &str) -> Value {
    let mut summary = vote.summary.clone();
    summary.stages.clone_from(&vote.winner.summary.stages);
    json!({
        "object": "chat.completion",
        "created": unix_seconds(),
        "model": model,
        "system_fingerprint": fingerprint(),
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": vote.winner.text, "refusal": null},
            "logprobs": null,
            "finish_reason": vote.winner.finish.map(Finish::name),
        }],
        "usage": usage(&summary),
        "pangea": pangea(&summary),
    })
}

/// Every sample that was asked for, in the order of the seeds.
fn ballots(vote: &Vote, seed: u64) -> Value {
    let of = |voter: usize, sample: usize| json!({"peer": vote.peer(voter, sample).to_string(), "seed": seed.wrapping_add(sample as u64), "text": null, "score": null, "counted": false});
    let arrived = vote.result.ballots.iter().map(|ballot| {
        let mut shown = of(ballot.voter, ballot.sample);
        shown["text"] = json!(ballot.answer.text);
        shown["score"] = json!(ballot.score);
        shown["counted"] = json!(ballot.counted);
        shown["answer"] = json!(ballot.canonical.as_ref().map(ToString::to_string));
        shown["mean_logprob"] = json!(ballot.answer.mean_logprob);
        shown["tokens"] = json!(ballot.answer.tokens);
        (ballot.sample, shown)
    });
    let absent = vote.result.absent.iter().map(|absent| {
        let mut shown = of(absent.voter, absent.sample);
        shown["why"] = match &absent.why {
            Absence::Failed(error) => json!(format!("failed: {}", error.message())),
            Absence::Late => json!("late"),
            Absence::NotNeeded => json!("not needed"),
        };
        (absent.sample, shown)
    });
    let mut all: Vec<(usize, Value)> = arrived.chain(absent).collect();
    all.sort_by_key(|(sample, _)| *sample);
    all.into_iter().map(|(_, shown)| shown).collect()
}

/// `/v1/federation/health`: whether this node takes part in votes, and with what.
async fn health(State(app): State<App>) -> Json<Value> {
    let models: Vec<Value> =
        app.served.list().into_iter().map(|model| json!({"id": model.name, "state": model.state})).collect();
    Json(json!({
        "status": "ok",
        "federation": app.federation.is_some(),
        "strategy": app.federation.as_ref().map(|federation| federation.strategy().name()),
        "version": env!("CARGO_PKG_VERSION"),
        "instances": app.served.places(),
        "models": models,
    }))
}

/// `/v1/federation/peers`: the other nodes that take part in votes, and those that left a short while ago.
async fn peers(State(app): State<App>) -> Json<Value> {
    let others = app.federation.as_ref().map(Federation::others).unwrap_or_default();
    let view = app.pool.as_ref().map(|pool| Arc::clone(&pool.view().borrow()));
    let present = others.iter().filter(|peer| peer.state != PeerState::Gone).count();
    let shown: Vec<Value> = others.iter().map(|peer| peer_shown(peer, view.as_deref())).collect();
    Json(json!({
        "object": "list",
        "federation": app.federation.is_some(),
        "peers": present,
        "data": shown,
    }))
}

fn peer_shown(peer: &FederationPeer, view: Option<&View>) -> Value {
    let FederationPeer { advert, seen, state } = peer;
    let named = |model| advert.models.iter().find(|known| known.digest == model).map(|known| known.name.as_str());
    let model = |serving: &ServingAdvert| {
        json!({
            "id": named(serving.model),
            "digest": serving.model.to_string(),
            "instances": serving.places,
            "running": serving.running,
            "waiting": serving.waiting,
            "tokens_per_s": serving.tokens_per_s,
        })
    };
    let link = view.and_then(|view| view.link(&view.local, &advert.peer)).map(|link| {
        json!({
            "transport": link.transport,
            "found_by": link.found_by,
            "rtt_ms": link.rtt.as_secs_f64() * 1e3,
            "bytes_per_s": link.bytes_per_s,
        })
    });
    json!({
        "peer": advert.peer.to_string(),
        "name": advert.name,
        "version": advert.software,
        "state": state.name(),
        "last_seen_s": clock::now().since(*seen).as_secs_f64(),
        "instances": advert.serving.iter().map(|serving| u32::from(serving.places)).sum::<u32>(),
        "models": advert.serving.iter().map(model).collect::<Vec<Value>>(),
        "hardware": {
            "device": advert.device,
            "threads": advert.threads,
            "memory_bytes": advert.memory_bytes,
            "gflops": advert.f32_flops_per_s / 1e9,
        },
        "link": link,
    })
}
