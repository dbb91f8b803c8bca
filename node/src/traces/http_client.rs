//! The HTTP client of the exporter: the one that the node has anyway. It blocks, which only the queue's own thread notices.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use pangea_client::Result;
use ureq::Agent;

use crate::https;

/// Time for one request to the collector, from connecting to the end of its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum length of a collector's answer: a number and a sentence.
const ANSWER_BYTES: u64 = 64 << 10;

/// Why the last request failed. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    /// The reason, which is forgotten.
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is(&self, why: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

/// A client for one collector.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    trouble: Trouble,
}

impl Client {
    /// A client for the collector at this URL.
    ///
    /// # Errors
    /// `Unavailable` if it is an `https` URL and no certificates are trusted here.
    pub(super) fn new(endpoint: &str) -> Result<Client> {
        let agent = https::agent(endpoint, |config| config.timeout_global(Some(REQUEST_TIMEOUT)))?;
        Ok(Client { agent, trouble: Trouble::default() })
    }

    /// Why the last request failed.
    pub(super) fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    fn send(&self, request: Request<Bytes>) -> std::result::Result<Response<Bytes>, ureq::Error> {
        let (parts, mut body) = self.agent.run(request.map(|body| body.to_vec()))?.into_parts();
        let body = body.with_config().limit(ANSWER_BYTES).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> std::result::Result<Response<Bytes>, HttpError> {
        let answer = self.send(request);
        // A status that is no success is told by the library.
        self.trouble.is(answer.as_ref().err().map(ToString::to_string));
        Ok(answer?)
    }
}
