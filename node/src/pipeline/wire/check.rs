//! Checks that make a message well formed beyond its encoding: limits on it as a whole, and consistency, including its
//! payload. The sender makes the same checks, so that the receiver refuses only faulty or hostile messages.

use std::ops::Range;

use pangea_compute::sample::AnswerFormat;

use super::{Frame, Message, Open, Start, StartSource, Stepped, TokenOut, Tokens};
use crate::pipeline::limits::{
    MAX_CHOICES, MAX_COMMIT_BYTES, MAX_DRAFTED, MAX_DROPS, MAX_LAYERS, MAX_LOGIT_BIAS, MAX_POSITIONS, MAX_ROWS,
    MAX_SCHEMA_BYTES, MAX_SEQUENCES, MAX_STAGES, MAX_TOKENS_OUT, MAX_TOP,
};
use crate::pipeline::payload::Payload;
use crate::wire::{Header, WireError};

/// Bytes of a token or of an element of activations.
const WORD_BYTES: usize = 4;

type Check = Result<(), WireError>;

impl Message {
    /// The payload to send: `payload`, or the tokens of an opening, which brings its own.
    pub fn outgoing(&self, payload: Payload) -> Payload {
        match self {
            Message::Open(open) => Payload::from_u32(&open.tokens),
            _ => payload,
        }
    }

    /// The message as it was sent, given its received payload; returns the remaining payload as well.
    pub fn incoming(mut self, payload: Payload) -> (Message, Payload) {
        if let Message::Open(open) = &mut self {
            open.tokens = payload.to_u32();
            return (self, Payload::empty());
        }
        (self, payload)
    }

    /// Whether the message is well formed and may be sent with a payload of `payload_len` bytes.
    ///
    /// # Errors
    /// Why the message is malformed.
    pub fn check_sendable(&self, payload_len: usize) -> Result<(), WireError> {
        self.check()?;
        self.check_payload(payload_len)
    }

    /// Checks everything except the payload.
    pub(super) fn check(&self) -> Check {
        match self {
            Message::Open(open) => check_open(open),
            Message::Frame(frame) => check_frame(frame),
            Message::Stepped(stepped) => check_stepped(stepped),
            Message::Tokens(tokens) => check_tokens(tokens),
            Message::Accepted { .. }
            | Message::Refused { .. }
            | Message::Close { .. }
            | Message::Failed { .. }
            | Message::Commit { .. } => Ok(()),
        }
    }

    /// Why a payload of this length does not belong to the message; starts with a separator.
    pub(super) fn payload_problem(&self, payload_len: usize) -> Option<String> {
        let tokens = payload_len / WORD_BYTES;
        match self {
            Message::Open(_) if !payload_len.is_multiple_of(WORD_BYTES) => {
                Some(", which is no list of tokens".to_owned())
            }
            Message::Open(open) => {
                let chosen = tokens.checked_sub(open.prompt_len as usize);
                chosen
                    .is_none_or(|chosen| chosen > open.max_new_tokens as usize)
                    .then(|| format!(": a prompt of {} tokens, at most {} more", open.prompt_len, open.max_new_tokens))
            }
            Message::Frame(frame) => rows_problem(frame.rows(), payload_len),
            Message::Commit { .. } => {
                (payload_len > MAX_COMMIT_BYTES).then(|| format!(": at most {MAX_COMMIT_BYTES} are allowed"))
            }
            Message::Accepted { .. }
            | Message::Refused { .. }
            | Message::Close { .. }
            | Message::Stepped(_)
            | Message::Tokens(_)
            | Message::Failed { .. } => (payload_len != 0).then(String::new),
        }
    }
}

/// Activations must be whole rows of one width, which the receiver knows.
fn rows_problem(rows: usize, payload_len: usize) -> Option<String> {
    let fits = match rows {
        0 => payload_len == 0,
        _ => payload_len != 0 && payload_len.is_multiple_of(rows * WORD_BYTES),
    };
    (!fits).then(|| format!(": it is not {rows} rows of f32"))
}

fn check_open(open: &Open) -> Check {
    ensure(!open.stages.is_empty(), || "a session without stages".to_owned())?;
    within("stages", open.stages.len(), MAX_STAGES)?;
    let mut next = 0;
    for stage in &open.stages {
        check_layers(&stage.layers)?;
        ensure(stage.layers.start == next, || format!("a stage begins at layer {}, not {next}", stage.layers.start))?;
        next = stage.layers.end;
    }
    ensure((1..=MAX_CHOICES).contains(&open.choices), || {
        format!("{} answers to a prompt; 1 to {MAX_CHOICES} are allowed", open.choices)
    })?;
    let last = open.sequence.unwrap_or(0).checked_add(u64::from(open.choices));
    ensure(last.is_some(), || "sequence numbers that overflow".to_owned())?;
    ensure(open.prompt_len > 0, || "an empty prompt".to_owned())?;
    let positions = open.prompt_len.checked_add(open.max_new_tokens);
    ensure(positions.is_some_and(|positions| positions <= MAX_POSITIONS), || {
        format!("a prompt of {} tokens and {} more; {MAX_POSITIONS} are allowed", open.prompt_len, open.max_new_tokens)
    })?;
    within("biases", open.sampling.logit_bias.len(), MAX_LOGIT_BIAS)?;
    // Only nodes with the model know whether tokens are within its vocabulary.
    open.sampling.check(usize::MAX).map_err(|error| WireError::Header(error.to_string()))?;
    match &open.format {
        AnswerFormat::JsonSchema(schema) => within("bytes of a JSON Schema", schema.len(), MAX_SCHEMA_BYTES),
        AnswerFormat::Text | AnswerFormat::JsonObject => Ok(()),
    }
}

fn check_frame(frame: &Frame) -> Check {
    within("drops", frame.drops.len(), MAX_DROPS)?;
    within("starts", frame.starts.len(), MAX_SEQUENCES)?;
    within("sequences", frame.rows.len(), MAX_SEQUENCES)?;
    for Start { source, .. } in &frame.starts {
        if let StartSource::Fork { tokens, .. } | StartSource::Take { tokens, .. } = source {
            ensure(*tokens <= MAX_POSITIONS, || format!("a sequence that begins with {tokens} positions"))?;
        }
    }
    let mut drafted = 0;
    for of in &frame.rows {
        ensure((1..=MAX_ROWS).contains(&of.rows), || format!("{} rows; 1 to {MAX_ROWS} are allowed", of.rows))?;
        check_positions(u64::from(of.start), of.rows)?;
        ensure(of.draft.len() <= of.rows as usize, || {
            format!("{} drafted tokens in {} rows", of.draft.len(), of.rows)
        })?;
        drafted += of.draft.len();
    }
    within("rows", frame.rows(), MAX_ROWS as usize)?;
    within("drafted tokens", drafted, MAX_DRAFTED)
}

fn check_stepped(stepped: &Stepped) -> Check {
    within("sequences", stepped.advances.len(), MAX_SEQUENCES)?;
    within("chosen tokens", stepped.advances.iter().map(|advance| advance.chosen.len()).sum(), MAX_DRAFTED)?;
    for advance in &stepped.advances {
        ensure(advance.computed <= MAX_POSITIONS, || format!("{} computed positions", advance.computed))?;
    }
    Ok(())
}

fn check_tokens(tokens: &Tokens) -> Check {
    within("tokens", tokens.tokens.len() + tokens.prompt.len(), MAX_TOKENS_OUT)?;
    check_positions(u64::from(tokens.position), tokens.tokens.len() as u32)?;
    ensure(tokens.accepted <= tokens.drafted, || {
        format!("{} of {} drafted tokens were right", tokens.accepted, tokens.drafted)
    })?;
    for TokenOut { logprob, top, .. } in tokens.tokens.iter().chain(&tokens.prompt) {
        within("most likely tokens", top.len(), MAX_TOP)?;
        let mut values = logprob.iter().chain(top.iter().map(|(_, value)| value));
        // Rounding may lift a probability of one slightly.
        ensure(values.all(|value| *value < 1.0), || "an invalid log-probability".to_owned())?;
    }
    Ok(())
}

fn check_layers(layers: &Range<u32>) -> Check {
    ensure(layers.start < layers.end && layers.end <= MAX_LAYERS, || {
        format!("layers {} to {}", layers.start, layers.end)
    })
}

fn check_positions(first: u64, rows: u32) -> Check {
    let end = first.checked_add(u64::from(rows));
    ensure(end.is_some_and(|end| end <= u64::from(MAX_POSITIONS)), || {
        format!("{rows} positions from {first}; a session has at most {MAX_POSITIONS}")
    })
}

fn within(what: &str, len: usize, max: usize) -> Check {
    ensure(len <= max, || format!("{len} {what}; at most {max} are allowed"))
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(WireError::Header(why())) }
}
