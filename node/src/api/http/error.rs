//! Failures as clients read them: a status that follows from the error's kind, and a JSON body in the shape of the dialect that
//! the path belongs to. Messages are written where the failure is found.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use pangea_client::{Error, ErrorKind};
use serde_json::json;

use crate::serve::WrongField;
use crate::tunnel::Failure;

/// `Retry-After` of a failure that names no delay.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A failure as a client receives it.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: ErrorKind,
    message: String,
    /// The field of the request that is wrong.
    param: Option<String>,
    /// OpenAI's machine-readable code.
    code: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
}

impl ApiError {
    /// A failure of this kind.
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> ApiError {
        let status = match kind {
            ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
            ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Unavailable | ErrorKind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::VerificationFailed => StatusCode::BAD_GATEWAY,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let again = matches!(kind, ErrorKind::Overloaded | ErrorKind::Unavailable);
        ApiError {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: again.then_some(RETRY_AFTER),
        }
    }

    /// `InvalidInput` in this field of the request.
    pub(super) fn field(field: &str, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(field.to_owned()), ..ApiError::new(ErrorKind::InvalidInput, message) }
    }

    /// Replaces the status.
    pub(super) fn status(self, status: StatusCode) -> ApiError {
        ApiError { status, ..self }
    }

    /// Sets the machine-readable code.
    pub(super) fn code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code.into()), ..self }
    }

    /// Names the field of the request that the failure is about.
    pub(super) fn about(self, field: &str) -> ApiError {
        ApiError { param: Some(field.to_owned()), ..self }
    }

    /// Sets the delay after which the client may retry.
    pub(super) fn retry_after(self, after: Duration) -> ApiError {
        ApiError { retry_after: Some(after), ..self }
    }

    /// The failure without its form.
    pub(super) fn into_error(self) -> Error {
        Error::new(self.kind, self.message)
    }

    /// The message.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// The code of a failed response in OpenAI's Responses API.
    pub(super) fn responses_code(&self) -> &'static str {
        match self.kind {
            ErrorKind::InvalidInput | ErrorKind::NotFound => "invalid_prompt",
            ErrorKind::Overloaded => "rate_limit_exceeded",
            _ => "server_error",
        }
    }

    /// The body in Anthropic's form.
    pub(super) fn anthropic_body(&self) -> serde_json::Value {
        let r#type = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        json!({"type": "error", "error": {"type": r#type, "message": self.message}})
    }

    /// The body in Ollama's form.
    pub(super) fn ollama_body(&self) -> serde_json::Value {
        json!({"error": self.message})
    }

    /// JSON body of the error response in OpenAI's form; also the last event of a stream that fails.
    pub(super) fn body(&self) -> serde_json::Value {
        let r#type = match self.kind {
            ErrorKind::InvalidInput | ErrorKind::NotFound => "invalid_request_error",
            ErrorKind::Unauthorized => "authentication_error",
            ErrorKind::Overloaded => "rate_limit_error",
            ErrorKind::Unavailable | ErrorKind::Cancelled | ErrorKind::DeadlineExceeded => "service_unavailable_error",
            ErrorKind::VerificationFailed | ErrorKind::Internal => "server_error",
        };
        json!({"error": {
            "message": self.message, "type": r#type, "param": self.param, "code": self.code, "kind": self.kind.name(),
        }})
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure {
            kind: error.kind,
            status: error.status.as_u16(),
            message: error.message,
            param: error.param,
            code: error.code.map(Cow::into_owned),
            retry_after: error.retry_after,
        }
    }
}

impl From<Failure> for ApiError {
    /// A node that refuses this node refuses nobody who asks here.
    fn from(failure: Failure) -> ApiError {
        if failure.kind == ErrorKind::Unauthorized {
            return ApiError::new(ErrorKind::Unavailable, failure.message);
        }
        let of_kind = ApiError::new(failure.kind, failure.message);
        ApiError {
            status: StatusCode::from_u16(failure.status).unwrap_or(of_kind.status),
            param: failure.param,
            code: failure.code.map(Cow::Owned),
            retry_after: failure.retry_after.or(of_kind.retry_after),
            ..of_kind
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        ApiError::new(error.kind(), error.message())
    }
}

impl From<WrongField> for ApiError {
    fn from(wrong: WrongField) -> ApiError {
        ApiError::field(&wrong.field, wrong.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() && self.kind == ErrorKind::Internal {
            tracing::warn!(event = "api_error", message = self.message, "http request failed");
        }
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives failures the shape of the dialect that the request's path belongs to.
pub(super) async fn in_dialect(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_ollama = path.starts_with("/api/") && OLLAMA.contains(&&path["/api/".len()..]);
    let is_anthropic = path == "/v1/messages" || path.starts_with("/v1/messages/");
    let mut response = next.run(request).await;
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    let body = match (is_anthropic, is_ollama) {
        (true, _) => error.anthropic_body(),
        (_, true) => error.ollama_body(),
        _ => return response,
    };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, body.to_string().into())
}

/// Ollama's paths below `/api/`, with those that this node does not have.
const OLLAMA: [&str; 13] = [
    "chat",
    "copy",
    "create",
    "delete",
    "embed",
    "embeddings",
    "generate",
    "ps",
    "pull",
    "push",
    "show",
    "tags",
    "version",
];
