//! Embeddings of texts: one text at a time on the threads of the model's stage, beside its sessions. Only a node that has the whole
//! model computes them.

use std::sync::Arc;

use pangea_client::{Error, ErrorKind, Result};
use pangea_control::generation::Exclusions;
use pangea_control::routing::Prefix;
use tokio::sync::Semaphore;
use tracing::Span;

use super::engine::{Engine, RequestRefused};
use crate::compute_error;
use crate::model_text::Prompt;
use crate::pipeline::host::StageLayers;
use crate::traces::{self, child};

/// Requests for embeddings that wait for one model, each with its texts in memory; more are refused.
const MAX_WAITING: usize = 64;

/// Who embeds now, and who waits.
pub(super) struct EmbeddingQueue {
    places: Semaphore,
    turn: Semaphore,
}

impl Default for EmbeddingQueue {
    fn default() -> EmbeddingQueue {
        // A second text at once would only take the cores from the first.
        EmbeddingQueue { places: Semaphore::new(MAX_WAITING), turn: Semaphore::new(1) }
    }
}

/// The embedding of one text.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// `[hidden_size]`, of length 1.
    pub values: Vec<f32>,
    /// Tokens of the text.
    pub tokens: usize,
}

impl Engine {
    /// The embeddings of texts, in order. `cut`: whether texts beyond the context are cut.
    ///
    /// # Errors
    /// [`RequestRefused`]: `InvalidInput` for a text beyond the context, `Overloaded` if too many requests wait, `Unavailable`
    /// where this node does not have the whole model.
    pub async fn embed(&self, texts: Vec<Prompt>, cut: bool) -> std::result::Result<Vec<Embedding>, RequestRefused> {
        let span = child!(
            &Span::current(),
            "embeddings",
            gen_ai.operation.name = "embeddings",
            gen_ai.provider.name = "pangea",
            gen_ai.request.model = self.model().name,
            pangea.texts = texts.len() as i64
        );
        let embedded = self.embed_in(&span, texts, cut).await;
        match &embedded {
            Ok(embeddings) => {
                let tokens: usize = embeddings.iter().map(|embedding| embedding.tokens).sum();
                traces::set(&span, "gen_ai.usage.input_tokens", tokens as i64);
            }
            Err(refused) => traces::failed(&span, refused.error.kind()),
        }
        embedded
    }

    async fn embed_in(
        &self,
        span: &Span,
        texts: Vec<Prompt>,
        cut: bool,
    ) -> std::result::Result<Vec<Embedding>, RequestRefused> {
        let waiting = child!(span, "queue");
        let queue = self.shared().embeddings();
        let full = |_| Error::new(ErrorKind::Overloaded, "too many requests for embeddings wait for this model");
        let _place = queue.places.try_acquire().map_err(full)?;
        let closed = |_| Error::new(ErrorKind::Internal, "the queue of embeddings is closed");
        let _turn = queue.turn.acquire().await.map_err(closed)?;
        drop(waiting);
        let whole = Arc::new(self.whole()?);
        let _computing = child!(span, "compute");
        let mut embeddings = Vec::with_capacity(texts.len());
        for text in texts {
            let (shared, whole) = (Arc::clone(self.shared()), Arc::clone(&whole));
            // One text after the other, so that a client that is gone is noticed between them.
            let embedded = tokio::task::spawn_blocking(move || {
                let context = shared.facts.context;
                let mut tokens = shared.text.tokens(&text)?;
                if cut {
                    tokens.truncate(context);
                }
                if tokens.len() > context {
                    let message = format!("a text has {} tokens; the context of this model is {context}", tokens.len());
                    let error = Error::new(ErrorKind::InvalidInput, message);
                    return Err(RequestRefused { error, retry_after: None, context_exceeded: true });
                }
                Ok(embed(&whole, &tokens)?)
            });
            let gone = |_| Error::new(ErrorKind::Internal, "the embedding ended unexpectedly");
            embeddings.push(embedded.await.map_err(gone)??);
        }
        Ok(embeddings)
    }

    fn whole(&self) -> Result<StageLayers> {
        let shared = self.shared();
        let route = shared.routes.best(&Exclusions::default(), &Prefix::default());
        let whole = route.and_then(|route| shared.pipeline.whole(route.chain));
        whole.ok_or_else(|| {
            shared.routes.request_local();
            let message =
                "embeddings are computed by a node that has the whole model; this node has not, or only a part of it";
            Error::new(ErrorKind::Unavailable, message)
        })
    }
}

fn embed(whole: &StageLayers, tokens: &[u32]) -> Result<Embedding> {
    let mut cache = whole.model.cache(&whole.budget);
    let values = whole.model.embed(&mut cache, tokens).map_err(compute_error)?;
    Ok(Embedding { values, tokens: tokens.len() })
}
