//! A model of a running node, used over the node's HTTP API: finds it and streams its answer. Any other client could do
//! the same.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use pangea_client::AnswerStage;
use pangea_client::sse::EventReader;
use pangea_compute::chat::Message;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::chat::{AnswerOptions, ChatAnswer};
use super::failure::{Exit, Failure};

/// Timeout for a node to accept a connection and to list its models.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum bytes of a response that is not a stream, and of one event of a stream.
const MAX_BYTES: usize = 8 << 20;

/// A model that a node serves.
pub(super) struct NodeModel {
    address: String,
    pub(super) model: String,
    key: Option<String>,
}

impl NodeModel {
    /// Finds a model on the node whose HTTP API is at `address`: the one served under one of `names`, or the first if
    /// `names` is empty.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] if no node answers; bad usage if the node does not serve the model.
    pub(super) async fn find(address: &str, key: Option<String>, names: &[String]) -> Result<NodeModel, Failure> {
        let mut node = NodeModel { address: address.to_owned(), model: String::new(), key };
        let listed =
            tokio::time::timeout(CONNECT_TIMEOUT, node.request(Method::GET, "/v1/models", String::new())).await;
        let listed = listed.map_err(|_| node.unreachable("it did not answer"))??;
        let listed = node.whole(listed).await?;
        let served: Vec<&str> =
            listed["data"].as_array().into_iter().flatten().filter_map(|model| model["id"].as_str()).collect();
        let chosen = match names.is_empty() {
            true => served.first(),
            false => names.iter().find_map(|name| served.iter().find(|served| *served == name)),
        };
        match chosen {
            Some(chosen) => {
                node.model = (*chosen).to_owned();
                Ok(node)
            }
            None if served.is_empty() => {
                Err(Failure::usage(format!("the node at {} serves no model; start it with --model", node.address)))
            }
            None => {
                Err(Failure::usage(format!("the node at {} serves other models: {}", node.address, served.join(", "))))
            }
        }
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> Failure {
        let message = format!("cannot reach the HTTP API of a node at {}: {why}", self.address);
        Failure::new(Exit::Unreachable, message)
            .hint("start one there with `pangea node --model NAME`, or name another with --api")
    }

    async fn request(&self, method: Method, path: &str, body: String) -> Result<Response<Incoming>, Failure> {
        let stream = TcpStream::connect(&self.address).await.map_err(|error| self.unreachable(error))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.unreachable(error))?;
        tokio::spawn(async move {
            // An error appears again where the response is read.
            let _ = connection.await;
        });
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address)
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(Bytes::from(body)));
        let request = request.map_err(|error| Failure::usage(format!("cannot send the request: {error}")))?;
        sender.send_request(request).await.map_err(|error| self.unreachable(error))
    }

    /// The body of a response that is not a stream.
    async fn whole(&self, response: Response<Incoming>) -> Result<Value, Failure> {
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), MAX_BYTES).collect().await;
        let bytes =
            body.map_err(|error| Failure::failed(format!("the connection to {} was lost: {error}", self.address)))?;
        let value: Value = serde_json::from_slice(&bytes.to_bytes()).unwrap_or_default();
        match status.is_success() {
            true => Ok(value),
            false => Err(failure(&value["error"], &format!("the node at {} answered {status}", self.address))),
        }
    }

    /// Requests an answer and passes its text on as it arrives.
    pub(super) async fn answer(
        &self,
        messages: &[Message],
        options: AnswerOptions,
        print_text: &mut dyn FnMut(&str) -> Result<(), Failure>,
    ) -> Result<ChatAnswer, Failure> {
        let asked = Instant::now();
        let messages: Vec<Value> =
            messages.iter().map(|message| json!({"role": message.role, "content": message.content})).collect();
        let body = json!({
            "model": self.model, "messages": messages, "stream": true, "stream_options": {"include_usage": true},
            "temperature": options.temperature, "max_tokens": options.max_tokens, "seed": options.seed,
        });
        let response = self.request(Method::POST, "/v1/chat/completions", body.to_string()).await?;
        if !response.status().is_success() {
            return Err(self.whole(response).await.err().unwrap_or_else(|| self.broken_off()));
        }
        let mut body = response.into_body();
        let mut events = EventReader::new(MAX_BYTES);
        let mut answer = ChatAnswer { place: "node", model: self.model.clone(), ..ChatAnswer::default() };
        let mut first = None;
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame.map_err(|_| self.broken_off())?.into_data() else { continue };
            for event in events.read(&bytes)? {
                if event == "[DONE]" {
                    answer.first_token_s = first.unwrap_or_default();
                    return Ok(answer);
                }
                let piece: Value = serde_json::from_str(&event)
                    .map_err(|error| Failure::failed(format!("the node sent invalid JSON: {error}")))?;
                if !piece["error"].is_null() {
                    return Err(failure(&piece["error"], "the node ended the answer without a reason"));
                }
                first.get_or_insert_with(|| asked.elapsed().as_secs_f64());
                take(&piece, &mut answer, print_text)?;
            }
        }
        Err(self.broken_off())
    }

    fn broken_off(&self) -> Failure {
        Failure::failed(format!("the connection to {} was lost before the end of the answer", self.address))
    }
}

/// Adds one piece of a stream to an answer.
fn take(
    piece: &Value,
    answer: &mut ChatAnswer,
    print_text: &mut dyn FnMut(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let choice = &piece["choices"][0];
    if let Some(text) = choice["delta"]["content"].as_str() {
        print_text(text)?;
        answer.content.push_str(text);
    }
    if let Some(reason) = choice["finish_reason"].as_str() {
        reason.clone_into(&mut answer.finish_reason);
    }
    if let Some(usage) = piece["usage"].as_object() {
        let count = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or_default();
        answer.prompt_tokens = count("prompt_tokens");
        answer.answer_tokens = count("completion_tokens");
        answer.answer_tokens_per_s = piece["timings"]["answer_tokens_per_s"].as_f64().unwrap_or_default();
        let about = Option::<About>::deserialize(&piece["pangea"])
            .map_err(|error| Failure::failed(format!("cannot read the node's `pangea` object: {error}")))?;
        let about = about.unwrap_or_default();
        (answer.verdict, answer.stages) = (about.verdict, about.stages);
        (answer.failovers, answer.receipts) = (about.failovers, about.receipts);
    }
    Ok(())
}

/// The `pangea` object of an answer; missing fields have defaults.
#[derive(Deserialize)]
#[serde(default)]
struct About {
    verdict: String,
    stages: Vec<AnswerStage>,
    failovers: u64,
    receipts: Vec<String>,
}

impl Default for About {
    fn default() -> About {
        let verdict = "unchecked".to_owned();
        About { verdict, stages: Vec::new(), failovers: 0, receipts: Vec::new() }
    }
}

/// A failure reported by a node, by its kind.
fn failure(error: &Value, otherwise: &str) -> Failure {
    let message = error["message"].as_str().unwrap_or(otherwise);
    let kind = error["kind"].as_str().and_then(pangea_client::ErrorKind::from_name);
    kind.map_or_else(|| Failure::failed(message), |kind| pangea_client::Error::new(kind, message).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last piece of a stream with this `pangea` object.
    fn last(pangea: Value) -> Result<ChatAnswer, Failure> {
        let mut answer = ChatAnswer::default();
        let usage = json!({"prompt_tokens": 5, "completion_tokens": 3});
        let piece = json!({"choices": [], "usage": usage, "timings": {"answer_tokens_per_s": 2.5}, "pangea": pangea});
        take(&piece, &mut answer, &mut |_| Ok(())).map(|()| answer)
    }

    #[test]
    fn an_answer_keeps_the_nodes_verdict_and_stages() {
        let said = json!({
            "verdict": "audited", "failovers": 1, "receipts": ["0123456789abcdef"],
            "stages": [{"peer": "one", "layers": [0, 16]}, {"peer": "other", "layers": [16, 30]}],
        });
        let shown = serde_json::to_value(last(said.clone()).unwrap()).unwrap();
        for field in ["verdict", "failovers", "receipts", "stages"] {
            assert_eq!(shown[field], said[field], "{field}");
        }
        assert_eq!(shown["answer_tokens"], 3);
    }

    #[test]
    fn an_answer_without_a_verdict_is_unchecked() {
        for said in [Value::Null, json!({}), json!({"of a later version": 1})] {
            let answer = last(said).unwrap();
            assert_eq!((answer.verdict.as_str(), answer.stages.len(), answer.failovers), ("unchecked", 0, 0));
        }
        assert!(last(json!({"stages": 7})).is_err());
    }
}
