//! Encodes and decodes messages as Cap'n Proto (`schema/session.capnp`). Every list's length is checked before memory for it
//! is allocated; `check` checks consistency.

use std::ops::Range;

use libp2p::PeerId;
use pangea_compute::Digest;
use pangea_compute::sample::{AnswerFormat, Sampling};
use pangea_schema::session_capnp as wire;
use pangea_schema::task_capnp;

use super::{
    ChainId, EndReason, Frame, FrameRows, Message, Open, SessionId, StageAt, Start, StartSource, Stepped,
    SteppedSequence, TokenOut, Tokens,
};
use crate::pipeline::limits::{
    MAX_DRAFTED, MAX_DROPS, MAX_HEADER_BYTES, MAX_LOGIT_BIAS, MAX_PAYLOAD_BYTES, MAX_PEER_ID_BYTES, MAX_SCHEMA_BYTES,
    MAX_SEQUENCES, MAX_STAGES, MAX_TEXT_BYTES, MAX_TOKENS_OUT, MAX_TOP,
};
use crate::wire::field::{
    header_error, kind_from_wire, kind_to_wire, read_digest, read_text, read_trace, truncated, unknown_variant,
    write_digest,
};
use crate::wire::{FrameLimits, Header, WireError};

type Read<T> = Result<T, WireError>;

impl Header for Message {
    const LIMITS: FrameLimits = FrameLimits { header_bytes: MAX_HEADER_BYTES, payload_bytes: MAX_PAYLOAD_BYTES };

    fn name(&self) -> &'static str {
        match self {
            Message::Open(_) => "open",
            Message::Accepted { .. } => "accepted",
            Message::Refused { .. } => "refused",
            Message::Close { .. } => "close",
            Message::Frame(_) => "frame",
            Message::Stepped(_) => "stepped",
            Message::Tokens(_) => "tokens",
            Message::Failed { .. } => "failed",
            Message::Commit { .. } => "commit",
        }
    }

    fn write(&self, to: capnp::any_pointer::Builder<'_>) {
        write_message(self, to.init_as());
    }

    fn read(from: capnp::any_pointer::Reader<'_>) -> Read<Message> {
        let message = read_message(from.get_as().map_err(header_error)?)?;
        message.check()?;
        Ok(message)
    }

    fn check_payload(&self, payload_len: usize) -> Read<()> {
        match self.payload_problem(payload_len) {
            None => Ok(()),
            Some(why) => self.refuse_payload(payload_len, why),
        }
    }
}

fn write_message(message: &Message, to: wire::session_message::Builder<'_>) {
    match message {
        Message::Open(open) => write_open(open, to.init_open()),
        Message::Accepted { session } => write_session(*session, to.init_accepted()),
        Message::Refused { session, kind, message, retry_after_ms } => {
            let mut refused = to.init_refused();
            write_session(*session, refused.reborrow().init_session());
            refused.set_kind(kind_to_wire(*kind));
            refused.set_message(truncated(message, MAX_TEXT_BYTES));
            let mut retry = refused.init_retry_after();
            match retry_after_ms {
                None => retry.set_never(()),
                Some(ms) => retry.set_ms(*ms),
            }
        }
        Message::Close { chain, session, commit } => {
            let mut close = to.init_close();
            write_chain(chain, close.reborrow().init_chain());
            write_session(*session, close.reborrow().init_session());
            close.set_commit(commit.is_some());
            close.set_positions(commit.unwrap_or_default());
        }
        Message::Frame(frame) => write_frame(frame, to.init_frame()),
        Message::Stepped(stepped) => write_stepped(stepped, to.init_stepped()),
        Message::Tokens(tokens) => write_tokens(tokens, to.init_tokens()),
        Message::Failed { chain, session, kind, message } => {
            let mut failed = to.init_failed();
            write_chain(chain, failed.reborrow().init_chain());
            write_session(*session, failed.reborrow().init_session());
            failed.set_kind(kind_to_wire(*kind));
            failed.set_message(truncated(message, MAX_TEXT_BYTES));
        }
        Message::Commit { chain, session, positions } => {
            let mut commit = to.init_commit();
            write_chain(chain, commit.reborrow().init_chain());
            write_session(*session, commit.reborrow().init_session());
            commit.set_positions(*positions);
        }
    }
}

fn read_message(from: wire::session_message::Reader<'_>) -> Read<Message> {
    use wire::session_message::Which;
    Ok(match from.which().map_err(|unknown| unknown_variant("message", unknown.0))? {
        Which::Unset(()) => return Err(WireError::Header("a message without a kind".to_owned())),
        Which::Open(open) => Message::Open(Box::new(read_open(open.map_err(header_error)?)?)),
        Which::Accepted(session) => Message::Accepted { session: read_session(session)? },
        Which::Refused(refused) => {
            use wire::refused::retry_after::Which as Retry;
            let refused = refused.map_err(header_error)?;
            let retry_after_ms = match refused.get_retry_after().which() {
                Ok(Retry::Ms(ms)) => Some(ms),
                // An unknown form of delay is no reason to drop the refusal.
                Ok(Retry::Never(())) | Err(_) => None,
            };
            Message::Refused {
                session: read_session(refused.get_session())?,
                kind: read_kind(refused.get_kind()),
                message: read_text("refusal", refused.get_message(), MAX_TEXT_BYTES)?,
                retry_after_ms,
            }
        }
        Which::Close(close) => {
            let close = close.map_err(header_error)?;
            Message::Close {
                chain: read_chain(close.get_chain())?,
                session: read_session(close.get_session())?,
                commit: close.get_commit().then(|| close.get_positions()),
            }
        }
        Which::Frame(frame) => Message::Frame(read_frame(frame.map_err(header_error)?)?),
        Which::Stepped(stepped) => Message::Stepped(read_stepped(stepped.map_err(header_error)?)?),
        Which::Tokens(tokens) => Message::Tokens(read_tokens(tokens.map_err(header_error)?)?),
        Which::Failed(failed) => {
            let failed = failed.map_err(header_error)?;
            Message::Failed {
                chain: read_chain(failed.get_chain())?,
                session: read_session(failed.get_session())?,
                kind: read_kind(failed.get_kind()),
                message: read_text("failure", failed.get_message(), MAX_TEXT_BYTES)?,
            }
        }
        Which::Commit(commit) => {
            let commit = commit.map_err(header_error)?;
            Message::Commit {
                chain: read_chain(commit.get_chain())?,
                session: read_session(commit.get_session())?,
                positions: commit.get_positions(),
            }
        }
    })
}

fn write_open(open: &Open, mut to: wire::open::Builder<'_>) {
    write_session(open.session, to.reborrow().init_session());
    to.set_coordinator(&open.coordinator.to_bytes());
    write_digest(&open.model, to.reborrow().init_model());
    to.set_epoch(open.epoch);
    to.set_numerics(open.numerics);
    let mut stages = to.reborrow().init_stages(open.stages.len() as u32);
    for (index, stage) in open.stages.iter().enumerate() {
        let mut to = stages.reborrow().get(index as u32);
        to.set_peer(&stage.peer.to_bytes());
        write_layers(&stage.layers, to.init_layers());
    }
    to.set_choices(open.choices);
    match open.sequence {
        None => to.reborrow().init_sequence().set_none(()),
        Some(first) => to.reborrow().init_sequence().set_first(first),
    }
    to.set_prompt_len(open.prompt_len);
    to.set_max_new_tokens(open.max_new_tokens);
    write_sampling(&open.sampling, to.reborrow().init_sampling());
    let mut format = to.reborrow().init_format();
    match &open.format {
        AnswerFormat::Text => format.set_text(()),
        AnswerFormat::JsonObject => format.set_json_object(()),
        AnswerFormat::JsonSchema(schema) => format.set_json_schema(schema.as_str()),
    }
    to.set_prompt_logprobs(open.prompt_logprobs);
    if let Some(trace) = open.trace {
        to.set_trace(trace.to_string());
    }
}

fn read_open(from: wire::open::Reader<'_>) -> Read<Open> {
    use wire::open::format::Which as Format;
    use wire::open::sequence::Which as Sequence;
    let stages = from.get_stages().map_err(header_error)?;
    within("stages", stages.len(), MAX_STAGES)?;
    let read_stage = |stage: wire::stage::Reader<'_>| {
        Ok(StageAt { peer: read_peer(stage.get_peer())?, layers: read_layers(stage.get_layers())? })
    };
    Ok(Open {
        session: read_session(from.get_session())?,
        coordinator: read_peer(from.get_coordinator())?,
        model: read_model(from.get_model())?,
        epoch: from.get_epoch(),
        numerics: from.get_numerics(),
        stages: stages.iter().map(read_stage).collect::<Read<_>>()?,
        choices: from.get_choices(),
        sequence: match from.get_sequence().which().map_err(|unknown| unknown_variant("sequence", unknown.0))? {
            Sequence::None(()) => None,
            Sequence::First(first) => Some(first),
        },
        prompt_len: from.get_prompt_len(),
        max_new_tokens: from.get_max_new_tokens(),
        sampling: read_sampling(from.get_sampling().map_err(header_error)?)?,
        format: match from.get_format().which().map_err(|unknown| unknown_variant("format", unknown.0))? {
            Format::Text(()) => AnswerFormat::Text,
            Format::JsonObject(()) => AnswerFormat::JsonObject,
            Format::JsonSchema(schema) => AnswerFormat::JsonSchema(read_text("schema", schema, MAX_SCHEMA_BYTES)?),
        },
        prompt_logprobs: from.get_prompt_logprobs(),
        trace: read_trace(from.get_trace()),
        // The tokens are the payload.
        tokens: Vec::new(),
    })
}

fn write_sampling(sampling: &Sampling, mut to: wire::sampling::Builder<'_>) {
    to.set_temperature(sampling.temperature);
    to.set_top_k(sampling.top_k as u64);
    to.set_top_p(sampling.top_p);
    to.set_min_p(sampling.min_p);
    to.set_typical_p(sampling.typical_p);
    to.set_repetition_penalty(sampling.repetition_penalty);
    match sampling.repetition_window {
        None => to.reborrow().init_repetition_window().set_all(()),
        Some(last) => to.reborrow().init_repetition_window().set_last(last as u64),
    }
    to.set_presence_penalty(sampling.presence_penalty);
    to.set_frequency_penalty(sampling.frequency_penalty);
    write_values(&sampling.logit_bias, to.reborrow().init_logit_bias(sampling.logit_bias.len() as u32));
    to.set_seed(sampling.seed);
    match sampling.logprobs {
        None => to.init_logprobs().set_none(()),
        // `check` has limited the number.
        Some(most) => to.init_logprobs().set_most(u8::try_from(most).unwrap_or(u8::MAX)),
    }
}

fn read_sampling(from: wire::sampling::Reader<'_>) -> Read<Sampling> {
    use wire::sampling::logprobs::Which as Logprobs;
    use wire::sampling::repetition_window::Which as Window;
    // A number beyond usize means all tokens.
    let count = |tokens: u64| usize::try_from(tokens).unwrap_or(usize::MAX);
    let window = from.get_repetition_window().which();
    let logprobs = from.get_logprobs().which();
    Ok(Sampling {
        temperature: from.get_temperature(),
        top_k: count(from.get_top_k()),
        top_p: from.get_top_p(),
        min_p: from.get_min_p(),
        typical_p: from.get_typical_p(),
        repetition_penalty: from.get_repetition_penalty(),
        repetition_window: match window.map_err(|unknown| unknown_variant("window", unknown.0))? {
            Window::All(()) => None,
            Window::Last(tokens) => Some(count(tokens)),
        },
        presence_penalty: from.get_presence_penalty(),
        frequency_penalty: from.get_frequency_penalty(),
        logit_bias: read_values("biases", from.get_logit_bias(), MAX_LOGIT_BIAS)?,
        seed: from.get_seed(),
        logprobs: match logprobs.map_err(|unknown| unknown_variant("logprobs", unknown.0))? {
            Logprobs::None(()) => None,
            Logprobs::Most(most) => Some(usize::from(most)),
        },
    })
}

fn write_frame(frame: &Frame, mut to: wire::frame::Builder<'_>) {
    to.set_epoch(frame.epoch);
    write_digest(&frame.model, to.reborrow().init_model());
    to.set_number(frame.number);
    to.set_first_stage(&frame.first_stage.to_bytes());
    let mut drops = to.reborrow().init_drops(frame.drops.len() as u32);
    for (index, sequence) in frame.drops.iter().enumerate() {
        drops.set(index as u32, *sequence);
    }
    let mut starts = to.reborrow().init_starts(frame.starts.len() as u32);
    for (index, start) in frame.starts.iter().enumerate() {
        let mut to = starts.reborrow().get(index as u32);
        to.set_sequence(start.sequence);
        write_session(start.session, to.reborrow().init_session());
        let (from, tokens) = match start.source {
            StartSource::Empty => continue,
            StartSource::Fork { from, tokens } => {
                to.reborrow().init_source().set_fork(());
                (from, tokens)
            }
            StartSource::Take { from, tokens } => {
                to.reborrow().init_source().set_take(());
                (from, tokens)
            }
        };
        to.set_from(from);
        to.set_tokens(tokens);
    }
    let mut rows = to.init_rows(frame.rows.len() as u32);
    for (index, of) in frame.rows.iter().enumerate() {
        let mut to = rows.reborrow().get(index as u32);
        to.set_sequence(of.sequence);
        to.set_start(of.start);
        to.set_rows(of.rows);
        to.set_choose(of.choose);
        to.set_all_logits(of.all_logits);
        if !of.draft.is_empty() {
            write_ids(&of.draft, to.init_draft(of.draft.len() as u32));
        }
    }
}

fn read_frame(from: wire::frame::Reader<'_>) -> Read<Frame> {
    let drops = from.get_drops().map_err(header_error)?;
    let starts = from.get_starts().map_err(header_error)?;
    let rows = from.get_rows().map_err(header_error)?;
    within("drops", drops.len(), MAX_DROPS)?;
    within("starts", starts.len(), MAX_SEQUENCES)?;
    within("sequences", rows.len(), MAX_SEQUENCES)?;
    let read_rows = |of: wire::frame_rows::Reader<'_>| {
        Ok(FrameRows {
            sequence: of.get_sequence(),
            start: of.get_start(),
            rows: of.get_rows(),
            choose: of.get_choose(),
            all_logits: of.get_all_logits(),
            draft: read_ids("drafted tokens", of.get_draft())?,
        })
    };
    Ok(Frame {
        epoch: from.get_epoch(),
        model: read_model(from.get_model())?,
        number: from.get_number(),
        first_stage: read_peer(from.get_first_stage())?,
        drops: drops.iter().collect(),
        starts: starts.iter().map(read_start).collect::<Read<_>>()?,
        rows: rows.iter().map(read_rows).collect::<Read<_>>()?,
    })
}

fn read_start(from: wire::start::Reader<'_>) -> Read<Start> {
    use wire::start::source::Which;
    let source = match from.get_source().which().map_err(|unknown| unknown_variant("source", unknown.0))? {
        Which::Empty(()) => StartSource::Empty,
        Which::Fork(()) => StartSource::Fork { from: from.get_from(), tokens: from.get_tokens() },
        Which::Take(()) => StartSource::Take { from: from.get_from(), tokens: from.get_tokens() },
    };
    Ok(Start { sequence: from.get_sequence(), session: read_session(from.get_session())?, source })
}

fn write_stepped(stepped: &Stepped, mut to: wire::stepped::Builder<'_>) {
    to.set_epoch(stepped.epoch);
    write_digest(&stepped.model, to.reborrow().init_model());
    to.set_number(stepped.number);
    let mut advances = to.init_advances(stepped.advances.len() as u32);
    for (index, advance) in stepped.advances.iter().enumerate() {
        let mut to = advances.reborrow().get(index as u32);
        to.set_sequence(advance.sequence);
        to.set_computed(advance.computed);
        write_ids(&advance.chosen, to.reborrow().init_chosen(advance.chosen.len() as u32));
        to.set_ended(advance.ended);
        to.set_failed(advance.failed);
    }
}

fn read_stepped(from: wire::stepped::Reader<'_>) -> Read<Stepped> {
    let advances = from.get_advances().map_err(header_error)?;
    within("sequences", advances.len(), MAX_SEQUENCES)?;
    let read_advance = |from: wire::stepped_sequence::Reader<'_>| {
        Ok(SteppedSequence {
            sequence: from.get_sequence(),
            computed: from.get_computed(),
            chosen: read_ids("chosen tokens", from.get_chosen())?,
            ended: from.get_ended(),
            failed: from.get_failed(),
        })
    };
    Ok(Stepped {
        epoch: from.get_epoch(),
        model: read_model(from.get_model())?,
        number: from.get_number(),
        advances: advances.iter().map(read_advance).collect::<Read<_>>()?,
    })
}

fn write_tokens(tokens: &Tokens, mut to: wire::tokens::Builder<'_>) {
    write_session(tokens.session, to.reborrow().init_session());
    to.set_position(tokens.position);
    write_tokens_out(&tokens.tokens, to.reborrow().init_tokens(tokens.tokens.len() as u32));
    let mut ended = to.reborrow().init_ended();
    match tokens.ended {
        None => ended.set_no(()),
        Some(EndReason::Stop) => ended.set_because(wire::EndReason::Stop),
        Some(EndReason::Length) => ended.set_because(wire::EndReason::Length),
        Some(EndReason::GrammarComplete) => ended.set_because(wire::EndReason::GrammarComplete),
    }
    write_tokens_out(&tokens.prompt, to.reborrow().init_prompt(tokens.prompt.len() as u32));
    to.set_drafted(tokens.drafted);
    to.set_accepted(tokens.accepted);
    to.set_cached(tokens.cached);
    to.set_computed(tokens.computed);
}

fn read_tokens(from: wire::tokens::Reader<'_>) -> Read<Tokens> {
    use wire::tokens::ended::Which;
    let ended = match from.get_ended().which().map_err(|unknown| unknown_variant("end", unknown.0))? {
        Which::No(()) => None,
        Which::Because(reason) => Some(match reason.map_err(|unknown| unknown_variant("end", unknown.0))? {
            wire::EndReason::Stop => EndReason::Stop,
            wire::EndReason::Length => EndReason::Length,
            wire::EndReason::GrammarComplete => EndReason::GrammarComplete,
        }),
    };
    Ok(Tokens {
        session: read_session(from.get_session())?,
        position: from.get_position(),
        tokens: read_tokens_out(from.get_tokens())?,
        ended,
        prompt: read_tokens_out(from.get_prompt())?,
        drafted: from.get_drafted(),
        accepted: from.get_accepted(),
        cached: from.get_cached(),
        computed: from.get_computed(),
    })
}

fn write_tokens_out(tokens: &[TokenOut], mut to: capnp::struct_list::Builder<'_, wire::token_out::Owned>) {
    for (index, token) in tokens.iter().enumerate() {
        let mut to = to.reborrow().get(index as u32);
        to.set_token(token.token);
        match token.logprob {
            None => to.reborrow().init_logprob().set_none(()),
            Some(ln) => to.reborrow().init_logprob().set_ln(ln),
        }
        if !token.top.is_empty() {
            write_values(&token.top, to.init_top(token.top.len() as u32));
        }
    }
}

fn read_tokens_out(list: capnp::Result<capnp::struct_list::Reader<'_, wire::token_out::Owned>>) -> Read<Vec<TokenOut>> {
    use wire::token_out::logprob::Which;
    let read_token = |from: wire::token_out::Reader<'_>| {
        let logprob = match from.get_logprob().which().map_err(|unknown| unknown_variant("logprob", unknown.0))? {
            Which::None(()) => None,
            Which::Ln(ln) => Some(ln),
        };
        Ok(TokenOut {
            token: from.get_token(),
            logprob,
            top: read_values("most likely tokens", from.get_top(), MAX_TOP)?,
        })
    };
    let list = list.map_err(header_error)?;
    within("tokens", list.len(), MAX_TOKENS_OUT)?;
    list.iter().map(read_token).collect()
}

fn write_values(values: &[(u32, f32)], mut to: capnp::struct_list::Builder<'_, wire::token_value::Owned>) {
    for (index, &(token, value)) in values.iter().enumerate() {
        let mut to = to.reborrow().get(index as u32);
        to.set_token(token);
        to.set_value(value);
    }
}

fn read_values(
    what: &str,
    list: capnp::Result<capnp::struct_list::Reader<'_, wire::token_value::Owned>>,
    max: usize,
) -> Read<Vec<(u32, f32)>> {
    let list = list.map_err(header_error)?;
    within(what, list.len(), max)?;
    Ok(list.iter().map(|of| (of.get_token(), of.get_value())).collect())
}

fn write_ids(ids: &[u32], mut to: capnp::primitive_list::Builder<'_, u32>) {
    for (index, id) in ids.iter().enumerate() {
        to.set(index as u32, *id);
    }
}

fn read_ids(what: &str, list: capnp::Result<capnp::primitive_list::Reader<'_, u32>>) -> Read<Vec<u32>> {
    let list = list.map_err(header_error)?;
    within(what, list.len(), MAX_DRAFTED)?;
    Ok(list.iter().collect())
}

fn write_session(session: SessionId, mut to: wire::session_id::Builder<'_>) {
    let number = u128::from_le_bytes(session.0);
    to.set_w0(number as u64);
    to.set_w1((number >> 64) as u64);
}

fn read_session(from: capnp::Result<wire::session_id::Reader<'_>>) -> Read<SessionId> {
    let from = from.map_err(header_error)?;
    Ok(SessionId((u128::from(from.get_w0()) | u128::from(from.get_w1()) << 64).to_le_bytes()))
}

fn write_chain(chain: &ChainId, mut to: wire::chain::Builder<'_>) {
    write_digest(&chain.model, to.reborrow().init_model());
    to.set_epoch(chain.epoch);
}

fn read_chain(from: capnp::Result<wire::chain::Reader<'_>>) -> Read<ChainId> {
    let from = from.map_err(header_error)?;
    Ok(ChainId { model: read_model(from.get_model())?, epoch: from.get_epoch() })
}

fn write_layers(layers: &Range<u32>, mut to: wire::layer_range::Builder<'_>) {
    to.set_first(layers.start);
    to.set_end(layers.end);
}

fn read_layers(from: capnp::Result<wire::layer_range::Reader<'_>>) -> Read<Range<u32>> {
    let from = from.map_err(header_error)?;
    Ok(from.get_first()..from.get_end())
}

fn read_model(from: capnp::Result<task_capnp::digest::Reader<'_>>) -> Read<Digest> {
    Ok(read_digest(from.map_err(header_error)?))
}

fn read_kind(kind: Result<task_capnp::ErrorKind, capnp::NotInSchema>) -> pangea_client::ErrorKind {
    kind.map(kind_from_wire).unwrap_or(pangea_client::ErrorKind::Internal)
}

fn read_peer(from: capnp::Result<capnp::data::Reader<'_>>) -> Read<PeerId> {
    let bytes = from.map_err(header_error)?;
    if bytes.len() > MAX_PEER_ID_BYTES {
        return Err(WireError::Header(format!("a peer id of {} bytes", bytes.len())));
    }
    PeerId::from_bytes(bytes).map_err(|error| WireError::Header(format!("invalid peer id: {error}")))
}

/// Checks a list's length before memory for it is allocated.
fn within(what: &str, len: u32, max: usize) -> Read<()> {
    if len as usize > max {
        return Err(WireError::Header(format!("{len} {what}; at most {max} are allowed")));
    }
    Ok(())
}
