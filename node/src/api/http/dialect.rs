//! The way of a turn to a client, whole or streamed, whatever dialect the client speaks: a [`Dialect`] writes, this file drives.
//! Nothing is generated here; dropping a response cancels its generation.

use std::convert::Infallible;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};

use super::error::ApiError;
use super::key_holder::{KeyHolder, Metered};
use super::limits::STREAM_SILENCE;
use super::turn::{Parts, TurnPiece, refused};
use crate::serve::{Engine, Event, Request, Summary};

/// A turn with its identity and cost.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn {
    /// Random part of the response's id.
    pub(super) id: String,
    /// When the request was taken, in seconds of Unix time.
    pub(super) created_s: u64,
    /// Name of the model.
    pub(super) model: String,
    /// Tokens of the prompt.
    pub(super) prompt_tokens: usize,
    /// What the model says.
    pub(super) parts: Parts,
    /// The cost, once the turn is complete.
    pub(super) summary: Summary,
}

/// How a turn is written for one kind of client. A stream is written in order: `begin`, then each part with `open`, its text
/// or arguments and `close`, then `end`; `failed` may end it anywhere.
pub(super) trait Dialect: Send + 'static {
    /// Content type of a stream.
    const STREAM_TYPE: &'static str;

    /// The whole turn as one document.
    fn whole(&self, turn: &Turn) -> Value;

    /// The beginning of a stream.
    fn begin(&mut self, turn: &Turn, frames: &mut String);

    /// The beginning of a part, of which `turn` may know more already than is written yet.
    fn open(&mut self, turn: &Turn, part: usize, frames: &mut String);

    /// More of a text, or of the arguments of a call.
    fn more(&mut self, turn: &Turn, part: usize, text: &str, frames: &mut String);

    /// The end of a part.
    fn close(&mut self, turn: &Turn, part: usize, frames: &mut String);

    /// The end of a complete turn.
    fn end(&mut self, turn: &Turn, frames: &mut String);

    /// The end of a turn that failed.
    fn failed(&mut self, turn: &Turn, error: &ApiError, frames: &mut String);

    /// What keeps a connection open on which nothing happens.
    fn silence(&mut self, frames: &mut String);
}

/// What a client wants of a turn.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The request.
    pub(super) request: Request,
    /// Whether at most one tool may be called.
    pub(super) single_call: bool,
    /// Whether the turn is streamed.
    pub(super) stream: bool,
}

/// Has `engine` answer and returns the response: at once for a stream, otherwise when the turn is complete.
pub(super) async fn respond<D: Dialect>(
    engine: &Engine,
    holder: &KeyHolder,
    wanted: Wanted,
    dialect: D,
) -> Result<Response, ApiError> {
    let mut turn = Turn {
        id: format!("{:032x}", rand::random::<u128>()),
        created_s: unix_seconds(),
        model: engine.model().name.clone(),
        parts: Parts::new(engine.answer_reader(&wanted.request, wanted.single_call).await),
        ..Turn::default()
    };
    let request = Request { id: turn.id.clone(), ..wanted.request };
    let mut generation = holder.generate(engine, request).await.map_err(refused)?;
    turn.prompt_tokens = generation.prompt_tokens();
    if wanted.stream {
        return Ok(streamed(Streaming { writer: Writer::new(dialect, turn), generation, over: false }));
    }
    while let Some(event) = generation.next().await {
        match event? {
            Event::Delta(delta) => drop(turn.parts.take(&delta)),
            Event::Done(summary) => turn.summary = summary,
            Event::Prefill(_) | Event::Prompt(_) => {}
        }
    }
    Ok(Json(dialect.whole(&turn)).into_response())
}

fn streamed<D: Dialect>(streaming: Streaming<D>) -> Response {
    let frames = stream::unfold(streaming, |mut streaming| async {
        let frames = streaming.next().await?;
        Some((Ok::<_, Infallible>(frames), streaming))
    });
    let mut response = Body::from_stream(frames).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(D::STREAM_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Writes one stream.
struct Writer<D> {
    dialect: D,
    turn: Turn,
    begun: bool,
    /// Parts that were begun.
    parts: usize,
    /// Whether the last of them is text.
    in_text: bool,
}

impl<D: Dialect> Writer<D> {
    /// Writes `turn`, which has no parts yet.
    fn new(dialect: D, turn: Turn) -> Writer<D> {
        Writer { dialect, turn, begun: false, parts: 0, in_text: false }
    }

    /// The beginning of the stream, once.
    fn begin(&mut self, frames: &mut String) {
        if !std::mem::replace(&mut self.begun, true) {
            self.dialect.begin(&self.turn, frames);
        }
    }

    fn event(&mut self, event: Event, frames: &mut String) {
        match event {
            Event::Delta(delta) => {
                for piece in self.turn.parts.take(&delta) {
                    self.piece(&piece, frames);
                }
            }
            Event::Done(summary) => self.turn.summary = summary,
            Event::Prefill(_) | Event::Prompt(_) => {}
        }
    }

    fn piece(&mut self, piece: &TurnPiece, frames: &mut String) {
        let is_text = matches!(piece, TurnPiece::Text(_));
        if matches!(piece, TurnPiece::Call(_)) || (is_text && !self.in_text) {
            self.close(frames);
            self.dialect.open(&self.turn, self.parts, frames);
            self.parts += 1;
            self.in_text = is_text;
        }
        if let TurnPiece::Text(text) | TurnPiece::Arguments(text) = piece {
            self.dialect.more(&self.turn, self.parts - 1, text, frames);
        }
    }

    fn close(&mut self, frames: &mut String) {
        if let Some(last) = self.parts.checked_sub(1) {
            self.dialect.close(&self.turn, last, frames);
        }
    }

    fn end(&mut self, frames: &mut String) {
        self.close(frames);
        self.dialect.end(&self.turn, frames);
    }
}

struct Streaming<D> {
    writer: Writer<D>,
    generation: Metered,
    over: bool,
}

impl<D: Dialect> Streaming<D> {
    /// The next bytes of the stream; `None` at its end.
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        let mut frames = String::new();
        self.writer.begin(&mut frames);
        while frames.is_empty() {
            match tokio::time::timeout(STREAM_SILENCE, self.generation.next()).await {
                Err(_) => self.writer.dialect.silence(&mut frames),
                Ok(Some(Ok(event))) => self.writer.event(event, &mut frames),
                Ok(Some(Err(error))) => {
                    self.over = true;
                    self.writer.dialect.failed(&self.writer.turn, &ApiError::from(error), &mut frames);
                }
                Ok(None) => {
                    self.over = true;
                    self.writer.end(&mut frames);
                }
            }
        }
        Some(frames)
    }
}

/// Now, in seconds of Unix time.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// An event of a stream of server-sent events: its name and its data.
pub(super) fn named_event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// The extra object of DESIGN §4.3.
pub(super) fn pangea(summary: &Summary) -> Value {
    json!({
        "verdict": summary.verdict.name(),
        "stages": summary.answer_stages(),
        "failovers": summary.failovers,
        "receipts": summary.receipts,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use pangea_compute::chat::answer::AnswerReader;
    use pangea_compute::chat::tools::ToolSyntax;

    use super::*;
    use crate::serve::{Delta, Finish};

    /// An answer that says something, then calls `add`; in pieces as they come from a model.
    pub(crate) const CALLING: &[&str] =
        &["I ", "look.", "\n<tool_", "call>{\"name\": \"add\", \"arguments\": {\"a\"", ": 1}}</tool_call>"];

    /// A turn of 5 tokens after a prompt of 7.
    fn turn() -> Turn {
        let reader = AnswerReader::of_calls(ToolSyntax::Hermes, &serde_json::json!([]), false, false);
        Turn {
            id: "id".to_owned(),
            created_s: 1_700_000_000,
            model: "m".to_owned(),
            prompt_tokens: 7,
            parts: Parts::new(Some(reader)),
            summary: Summary::default(),
        }
    }

    /// The stream that a dialect writes of an answer in these pieces; the ids of calls are replaced by CALL.
    pub(crate) fn written(dialect: impl Dialect, pieces: &[&str]) -> String {
        let mut writer = Writer::new(dialect, turn());
        let mut frames = String::new();
        writer.begin(&mut frames);
        writer.begin(&mut frames);
        for (at, text) in pieces.iter().enumerate() {
            let finish = (at + 1 == pieces.len()).then_some(Finish::Stop);
            writer.event(Event::Delta(Delta { text: (*text).to_owned(), finish, ..Delta::default() }), &mut frames);
        }
        let summary = Summary { prompt_tokens: 7, answer_tokens: 5, ..Summary::default() };
        writer.event(Event::Done(summary), &mut frames);
        writer.end(&mut frames);
        let ids: Vec<String> = writer.turn.parts.calls().map(|call| call.id.clone()).collect();
        ids.iter().fold(frames, |frames, id| frames.replace(id, "CALL"))
    }

    /// The document that a dialect writes of the same answer.
    pub(crate) fn whole(dialect: &impl Dialect, pieces: &[&str]) -> Value {
        let mut turn = turn();
        for (at, text) in pieces.iter().enumerate() {
            let finish = (at + 1 == pieces.len()).then_some(Finish::Stop);
            turn.parts.take(&Delta { text: (*text).to_owned(), finish, ..Delta::default() });
        }
        turn.summary = Summary { prompt_tokens: 7, answer_tokens: 5, ..Summary::default() };
        let ids: Vec<String> = turn.parts.calls().map(|call| call.id.clone()).collect();
        let text = ids.iter().fold(dialect.whole(&turn).to_string(), |text, id| text.replace(id, "CALL"));
        serde_json::from_str(&text).unwrap()
    }
}
