//! One sample of a vote: the text of one answer, how probable the model finds it, and what is known of how it came about.

use std::sync::Arc;

use pangea_client::{Error, Result};
use pangea_control::federation::SampledAnswer;

use crate::serve::{Engine, Event, Finish, Request, Summary};

/// Told of the tokens that are computed for the client, while they come: an answer that is left is paid as well.
pub type Charge = Arc<dyn Fn(usize) + Send + Sync>;

/// A sample that arrived.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The text.
    pub text: String,
    /// Mean natural logarithm of the probabilities of its tokens.
    pub mean_logprob: f64,
    /// Number of these tokens.
    pub tokens: usize,
    /// Why it ended.
    pub finish: Option<Finish>,
    /// Its cost, and who computed it.
    pub summary: Summary,
}

impl Sample {
    /// Generates a sample with a model of this node. Dropping the future cancels it.
    pub(super) async fn generate(engine: Engine, mut request: Request, charge: Charge) -> Result<Sample> {
        request.choices = 1;
        request.sampling.logprobs = Some(0);
        let mut generation = engine.generate(request).await.map_err(Error::from)?;
        charge(generation.prompt_tokens());
        let mut sample = Sample::default();
        let mut sum = 0.0;
        while let Some(event) = generation.next().await {
            match event? {
                Event::Prefill(_) | Event::Prompt(_) => {}
                Event::Delta(delta) => {
                    charge(delta.tokens.len());
                    sample.text.push_str(&delta.text);
                    sample.tokens += delta.logprobs.len();
                    sum += delta.logprobs.iter().filter_map(|token| token.logprob).map(f64::from).sum::<f64>();
                    sample.finish = delta.finish.or(sample.finish);
                }
                Event::Done(summary) => sample.summary = summary,
            }
        }
        sample.mean_logprob = sum / sample.tokens.max(1) as f64;
        Ok(sample)
    }

    /// What the vote needs to know of it.
    pub(super) fn answer(&self) -> SampledAnswer {
        SampledAnswer { text: self.text.clone(), mean_logprob: self.mean_logprob, tokens: self.tokens }
    }
}
