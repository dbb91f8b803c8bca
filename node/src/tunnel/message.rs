//! The messages of `/pangea/http/1`: typed here, Cap'n Proto on the wire (`schema/tunnel.capnp`). A message that exists is well
//! formed; its reader checks whether it comes in turn.

use std::time::Duration;

use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_schema::tunnel_capnp as wire;

use super::limits::{BODY_BYTES, CHUNK_BYTES};
use crate::wire::field::{
    header_error, kind_from_wire, kind_to_wire, printable, read_digest, read_text, read_trace, truncated,
    unknown_variant, write_digest,
};
use crate::wire::{FrameLimits, Header, TraceParent, WireError};

/// Maximum header length: that of a failure with its texts.
const MAX_HEADER_BYTES: u32 = 2048;
const MAX_MESSAGE_BYTES: usize = 1024;
const MAX_PARAM_BYTES: usize = 128;
const MAX_CODE_BYTES: usize = 64;

/// Statuses of failures.
const FAILURES: std::ops::RangeInclusive<u16> = 400..=599;

/// The routes that ask a model, and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AskRoute {
    /// OpenAI's chats.
    ChatCompletions,
    /// OpenAI's completions.
    Completions,
    /// OpenAI's embeddings.
    Embeddings,
    /// OpenAI's responses.
    Responses,
    /// Anthropic's messages.
    Messages,
    /// Anthropic's count of a prompt's tokens.
    CountTokens,
    /// Ollama's chats.
    OllamaChat,
    /// Ollama's completions.
    OllamaGenerate,
    /// Ollama's embeddings.
    OllamaEmbed,
    /// Ollama's older embeddings.
    OllamaEmbeddings,
}

impl AskRoute {
    /// Every route.
    pub const ALL: [AskRoute; 10] = [
        AskRoute::ChatCompletions,
        AskRoute::Completions,
        AskRoute::Embeddings,
        AskRoute::Responses,
        AskRoute::Messages,
        AskRoute::CountTokens,
        AskRoute::OllamaChat,
        AskRoute::OllamaGenerate,
        AskRoute::OllamaEmbed,
        AskRoute::OllamaEmbeddings,
    ];

    /// Its path in the HTTP API.
    pub fn path(self) -> &'static str {
        match self {
            AskRoute::ChatCompletions => "/v1/chat/completions",
            AskRoute::Completions => "/v1/completions",
            AskRoute::Embeddings => "/v1/embeddings",
            AskRoute::Responses => "/v1/responses",
            AskRoute::Messages => "/v1/messages",
            AskRoute::CountTokens => "/v1/messages/count_tokens",
            AskRoute::OllamaChat => "/api/chat",
            AskRoute::OllamaGenerate => "/api/generate",
            AskRoute::OllamaEmbed => "/api/embed",
            AskRoute::OllamaEmbeddings => "/api/embeddings",
        }
    }

    /// The route with this path.
    pub fn of_path(path: &str) -> Option<AskRoute> {
        AskRoute::ALL.into_iter().find(|route| route.path() == path)
    }

    fn to_wire(self) -> wire::AskRoute {
        match self {
            AskRoute::ChatCompletions => wire::AskRoute::ChatCompletions,
            AskRoute::Completions => wire::AskRoute::Completions,
            AskRoute::Embeddings => wire::AskRoute::Embeddings,
            AskRoute::Responses => wire::AskRoute::Responses,
            AskRoute::Messages => wire::AskRoute::Messages,
            AskRoute::CountTokens => wire::AskRoute::CountTokens,
            AskRoute::OllamaChat => wire::AskRoute::OllamaChat,
            AskRoute::OllamaGenerate => wire::AskRoute::OllamaGenerate,
            AskRoute::OllamaEmbed => wire::AskRoute::OllamaEmbed,
            AskRoute::OllamaEmbeddings => wire::AskRoute::OllamaEmbeddings,
        }
    }

    fn of_wire(route: wire::AskRoute) -> AskRoute {
        match route {
            wire::AskRoute::ChatCompletions => AskRoute::ChatCompletions,
            wire::AskRoute::Completions => AskRoute::Completions,
            wire::AskRoute::Embeddings => AskRoute::Embeddings,
            wire::AskRoute::Responses => AskRoute::Responses,
            wire::AskRoute::Messages => AskRoute::Messages,
            wire::AskRoute::CountTokens => AskRoute::CountTokens,
            wire::AskRoute::OllamaChat => AskRoute::OllamaChat,
            wire::AskRoute::OllamaGenerate => AskRoute::OllamaGenerate,
            wire::AskRoute::OllamaEmbed => AskRoute::OllamaEmbed,
            wire::AskRoute::OllamaEmbeddings => AskRoute::OllamaEmbeddings,
        }
    }
}

/// The form of an answer's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerForm {
    /// One JSON document.
    Document,
    /// Server-sent events.
    Events,
    /// JSON documents, one a line.
    Lines,
}

impl AnswerForm {
    /// Content types, as the HTTP API writes them.
    const TYPES: [(AnswerForm, &'static str); 3] = [
        (AnswerForm::Document, "application/json"),
        (AnswerForm::Events, "text/event-stream; charset=utf-8"),
        (AnswerForm::Lines, "application/x-ndjson"),
    ];

    /// The content type.
    pub fn content_type(self) -> &'static str {
        AnswerForm::TYPES.into_iter().find(|(form, _)| *form == self).map_or("", |(_, name)| name)
    }

    /// The form with this content type.
    pub fn of_content_type(name: &str) -> Option<AnswerForm> {
        AnswerForm::TYPES.into_iter().find(|(_, known)| *known == name).map(|(form, _)| form)
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Its route.
    pub route: AskRoute,
    /// The model, whatever the body names: nodes may know it under different names.
    pub model: Digest,
    /// Length of the JSON body, 1 to [`BODY_BYTES`].
    pub body_bytes: u32,
    /// The span that the request is a part of.
    pub trace: Option<TraceParent>,
}

impl Ask {
    /// Bytes of the body that travel with the request itself.
    pub fn first_bytes(&self) -> usize {
        (self.body_bytes as usize).min(CHUNK_BYTES)
    }
}

/// Tokens that were computed for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Tokens of the prompt, once it is computed.
    pub prompt_tokens: u32,
    /// Tokens of the answer so far.
    pub answer_tokens: u32,
}

/// Why there is no answer, or no more of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Reason for programs.
    pub kind: ErrorKind,
    /// HTTP status, 400 to 599.
    pub status: u16,
    /// Reason for people.
    pub message: String,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    /// OpenAI's machine-readable code.
    pub code: Option<String>,
    /// Delay after which the request may be taken.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of this kind with nothing else to say.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Failure {
        let status = match kind {
            ErrorKind::InvalidInput => 400,
            ErrorKind::Unauthorized => 403,
            ErrorKind::NotFound => 404,
            ErrorKind::Overloaded => 429,
            ErrorKind::Unavailable | ErrorKind::Cancelled => 503,
            ErrorKind::DeadlineExceeded => 504,
            ErrorKind::VerificationFailed => 502,
            ErrorKind::Internal => 500,
        };
        Failure { kind, status, message: message.into(), param: None, code: None, retry_after: None }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelMessage {
    /// The request, with the first bytes of its body as the payload.
    Ask(Ask),
    /// The next bytes of the body, as the payload.
    More,
    /// The answer is being computed.
    Working(Counted),
    /// The answer begins.
    Head(AnswerForm),
    /// The next bytes of the answer, as the payload.
    Chunk(Counted),
    /// The answer is complete.
    End(Counted),
    /// There is no answer, or no more of it.
    Failure(Failure),
}

impl Header for TunnelMessage {
    const LIMITS: FrameLimits = FrameLimits { header_bytes: MAX_HEADER_BYTES, payload_bytes: CHUNK_BYTES as u32 };

    fn name(&self) -> &'static str {
        match self {
            TunnelMessage::Ask(_) => "ask",
            TunnelMessage::More => "more",
            TunnelMessage::Working(_) => "working",
            TunnelMessage::Head(_) => "head",
            TunnelMessage::Chunk(_) => "chunk",
            TunnelMessage::End(_) => "end",
            TunnelMessage::Failure(_) => "failure",
        }
    }

    fn write(&self, to: capnp::any_pointer::Builder<'_>) {
        let mut to: wire::tunnel_message::Builder<'_> = to.init_as();
        match self {
            TunnelMessage::Ask(ask) => {
                let mut to = to.init_ask();
                to.set_route(ask.route.to_wire());
                to.set_body_bytes(ask.body_bytes);
                if let Some(trace) = ask.trace {
                    to.set_trace(trace.to_string());
                }
                write_digest(&ask.model, to.init_model());
            }
            TunnelMessage::More => to.set_more(()),
            TunnelMessage::Working(counted) => write_counted(*counted, to.init_working()),
            TunnelMessage::Head(form) => to.set_head(match form {
                AnswerForm::Document => wire::AnswerForm::Document,
                AnswerForm::Events => wire::AnswerForm::Events,
                AnswerForm::Lines => wire::AnswerForm::Lines,
            }),
            TunnelMessage::Chunk(counted) => write_counted(*counted, to.init_chunk()),
            TunnelMessage::End(counted) => write_counted(*counted, to.init_end()),
            TunnelMessage::Failure(failure) => {
                let mut to = to.init_failure();
                to.set_kind(kind_to_wire(failure.kind));
                to.set_status(failure.status);
                to.set_message(truncated(&failure.message, MAX_MESSAGE_BYTES));
                to.set_param(truncated(failure.param.as_deref().unwrap_or_default(), MAX_PARAM_BYTES));
                to.set_code(truncated(failure.code.as_deref().unwrap_or_default(), MAX_CODE_BYTES));
                let millis = failure.retry_after.map_or(0, |after| after.as_millis().max(1));
                to.set_retry_after_ms(u32::try_from(millis).unwrap_or(u32::MAX));
            }
        }
    }

    fn read(from: capnp::any_pointer::Reader<'_>) -> Result<TunnelMessage, WireError> {
        use wire::tunnel_message::Which;
        let from: wire::tunnel_message::Reader<'_> = from.get_as().map_err(header_error)?;
        Ok(match from.which().map_err(|unknown| unknown_variant("message", unknown.0))? {
            Which::Ask(ask) => {
                let ask = ask.map_err(header_error)?;
                let route = ask.get_route().map_err(|unknown| unknown_variant("route", unknown.0))?;
                let body_bytes = ask.get_body_bytes();
                if body_bytes == 0 || body_bytes as usize > BODY_BYTES {
                    let why = format!("a body of {body_bytes} bytes; it must be 1 to {BODY_BYTES}");
                    return Err(WireError::Header(why));
                }
                let model = read_digest(ask.get_model().map_err(header_error)?);
                let trace = read_trace(ask.get_trace());
                TunnelMessage::Ask(Ask { route: AskRoute::of_wire(route), model, body_bytes, trace })
            }
            Which::More(()) => TunnelMessage::More,
            Which::Working(counted) => TunnelMessage::Working(read_counted(counted)?),
            Which::Head(form) => TunnelMessage::Head(match form {
                Ok(wire::AnswerForm::Document) => AnswerForm::Document,
                Ok(wire::AnswerForm::Events) => AnswerForm::Events,
                Ok(wire::AnswerForm::Lines) => AnswerForm::Lines,
                Err(unknown) => return Err(unknown_variant("form of an answer", unknown.0)),
            }),
            Which::Chunk(counted) => TunnelMessage::Chunk(read_counted(counted)?),
            Which::End(counted) => TunnelMessage::End(read_counted(counted)?),
            Which::Failure(failure) => {
                let failure = failure.map_err(header_error)?;
                let status = failure.get_status();
                if !FAILURES.contains(&status) {
                    return Err(WireError::Header(format!("a failure with status {status}")));
                }
                let text = |what, text, max_bytes| read_text(what, text, max_bytes).map(printable);
                let optional = |text: String| Some(text).filter(|text| !text.is_empty());
                TunnelMessage::Failure(Failure {
                    kind: failure.get_kind().map(kind_from_wire).unwrap_or(ErrorKind::Internal),
                    status,
                    message: text("message", failure.get_message(), MAX_MESSAGE_BYTES)?,
                    param: optional(text("param", failure.get_param(), MAX_PARAM_BYTES)?),
                    code: optional(text("code", failure.get_code(), MAX_CODE_BYTES)?),
                    retry_after: match failure.get_retry_after_ms() {
                        0 => None,
                        millis => Some(Duration::from_millis(millis.into())),
                    },
                })
            }
        })
    }

    /// A request has the first bytes of its body; bodies travel in pieces that are not empty.
    fn check_payload(&self, payload_len: usize) -> Result<(), WireError> {
        match self {
            TunnelMessage::Ask(ask) if payload_len != ask.first_bytes() => {
                self.refuse_payload(payload_len, format!(": a body of {} bytes", ask.body_bytes))
            }
            TunnelMessage::Ask(_) => Ok(()),
            TunnelMessage::More | TunnelMessage::Chunk(_) if payload_len == 0 => {
                self.refuse_payload(payload_len, ": a piece of a body is not empty".to_owned())
            }
            TunnelMessage::More | TunnelMessage::Chunk(_) => Ok(()),
            _ if payload_len != 0 => self.refuse_payload(payload_len, String::new()),
            _ => Ok(()),
        }
    }
}

fn write_counted(counted: Counted, mut to: wire::counted::Builder<'_>) {
    to.set_prompt_tokens(counted.prompt_tokens);
    to.set_answer_tokens(counted.answer_tokens);
}

fn read_counted(counted: capnp::Result<wire::counted::Reader<'_>>) -> Result<Counted, WireError> {
    let counted = counted.map_err(header_error)?;
    Ok(Counted { prompt_tokens: counted.get_prompt_tokens(), answer_tokens: counted.get_answer_tokens() })
}
