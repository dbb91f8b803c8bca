//! Perplexity of a text under a model, as llama.cpp's tool of that name defines it, so that the figures can be
//! compared. Input is tokens; files and output are the caller's.

use crate::engine::{Input, Logits, Stage, Step};
use crate::{Cancel, Error, Pool};
use std::sync::{Mutex, PoisonError};

/// Logits held at a time, in elements (32 MiB): a whole chunk's would be 256 MiB with a vocabulary of 262,144.
const HELD_LOGITS: usize = 8 << 20;

/// Tokens of a context, at least: the second half must contain a token that predicts a scored one.
const MIN_CONTEXT: usize = 4;

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// e to the mean negative log-likelihood of the scored tokens.
    pub perplexity: f64,
    /// The standard error of `perplexity`, with the tokens taken as independent.
    pub standard_error: f64,
    /// The number of scored tokens.
    pub tokens: usize,
    /// The number of chunks of the text.
    pub chunks: usize,
}

impl Perplexity {
    /// Scores `tokens` in independent chunks of `context`: the first half of a chunk is only read; each further token
    /// is predicted from all tokens before it in the chunk. With `bos`, that token replaces each chunk's first. Tokens
    /// after the last whole chunk are not used.
    ///
    /// The logits are read on the threads of `pool`.
    /// `progress` is called after every chunk with the chunks done, all chunks, and the perplexity so far. It may stop
    /// the work by returning an error.
    ///
    /// Source: llama.cpp, `tools/perplexity`, without a stride.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a context beyond the model's, a text of less than two chunks, and a model without
    /// embedding or head; errors of [`Stage::forward`] and `progress`.
    pub fn measure(
        model: &Stage,
        pool: &Pool,
        tokens: &[u32],
        bos: Option<u32>,
        context: usize,
        progress: &mut dyn FnMut(usize, usize, f64) -> Result<(), Error>,
    ) -> Result<Perplexity, Error> {
        check(model, tokens, context)?;
        let vocabulary = model.config().vocabulary;
        let budget = model.page_budget(model.cache_shape().bytes_for(context));
        let mut cache = model.cache(&budget);
        let slice = (HELD_LOGITS / vocabulary).clamp(1, context);
        let first = context / 2;
        let chunks = tokens.len() / context;
        let (mut sum, cancel) = (Sum::default(), Cancel::new());
        let mut chunk = Vec::with_capacity(context);
        for index in 0..chunks {
            chunk.clear();
            chunk.extend_from_slice(&tokens[index * context..(index + 1) * context]);
            if let Some(bos) = bos {
                chunk[0] = bos;
            }
            cache.truncate(0);
            let step = Step { cache: &mut cache, rows: first, logits: Logits::None };
            model.forward(&mut [step], Input::Tokens(&chunk[..first]), &cancel)?;
            // The last token would predict the next chunk's first, which has another context.
            for start in (first..context - 1).step_by(slice) {
                let end = (start + slice).min(context - 1);
                let step = Step { cache: &mut cache, rows: end - start, logits: Logits::All };
                let output = model.forward(&mut [step], Input::Tokens(&chunk[start..end]), &cancel)?;
                for nll in negative_log_likelihoods(pool, output.logits(0), vocabulary, &chunk[start + 1..=end]) {
                    sum.add(nll);
                }
            }
            progress(index + 1, chunks, sum.mean().exp())?;
        }
        let perplexity = sum.mean().exp();
        Ok(Perplexity { perplexity, standard_error: sum.standard_error() * perplexity, tokens: sum.count, chunks })
    }
}

fn check(model: &Stage, tokens: &[u32], context: usize) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::invalid("perplexity", what));
    let config = model.config();
    if !model.part().embedding || !model.part().head || model.part().layers != (0..config.layers) {
        return wrong("scoring a text needs the whole model, from embedding to head".to_owned());
    }
    if !(MIN_CONTEXT..=config.context).contains(&context) {
        return wrong(format!(
            "a context of {context} tokens is not possible with this model; use {MIN_CONTEXT} to {}",
            config.context
        ));
    }
    if tokens.len() < 2 * context {
        return wrong(format!(
            "a context of {context} needs a text of at least {} tokens; this one has {}; use a longer text or a smaller context",
            2 * context,
            tokens.len()
        ));
    }
    Ok(())
}

/// The negative log-likelihood of each target under its row of `logits` `[targets, vocabulary]`, in order.
fn negative_log_likelihoods(pool: &Pool, logits: &[f32], vocabulary: usize, targets: &[u32]) -> Vec<f64> {
    let parts: Vec<Mutex<Vec<f64>>> = (0..pool.threads()).map(|_| Mutex::default()).collect();
    let per_part = targets.len().div_ceil(parts.len()).max(1);
    pool.run(parts.len(), &|part| {
        let rows = (part * per_part).min(targets.len())..((part + 1) * per_part).min(targets.len());
        let scored = rows.map(|row| {
            negative_log_likelihood(&logits[row * vocabulary..(row + 1) * vocabulary], targets[row] as usize)
        });
        parts[part].lock().unwrap_or_else(PoisonError::into_inner).extend(scored);
    });
    parts.into_iter().flat_map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// −log softmax(logits)\[target\], the sum in f64 as llama.cpp has it.
fn negative_log_likelihood(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    sum.ln() - f64::from(logits[target] - max)
}

/// Sums of what was scored.
#[derive(Default)]
struct Sum {
    nll: f64,
    squares: f64,
    count: usize,
}

impl Sum {
    fn add(&mut self, nll: f64) {
        self.nll += nll;
        self.squares += nll * nll;
        self.count += 1;
    }

    fn mean(&self) -> f64 {
        self.nll / self.count as f64
    }

    /// Of the mean.
    fn standard_error(&self) -> f64 {
        let variance = self.squares / self.count as f64 - self.mean() * self.mean();
        (variance.max(0.0) / self.count.saturating_sub(1).max(1) as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likelihood_of_a_token_is_its_softmax() {
        let logits = [1.0f32, 2.0, 3.0, -40.0];
        let weights: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
        for (target, weight) in weights.iter().enumerate() {
            let expected = -(weight / weights.iter().sum::<f64>()).ln();
            assert!((negative_log_likelihood(&logits, target) - expected).abs() < 1e-6, "{target}");
        }
        // Nothing overflows, however large they are.
        assert_eq!(negative_log_likelihood(&[1e30, -1e30], 0), 0.0);
    }

    #[test]
    fn every_row_is_scored_once_and_in_order_on_any_number_of_threads() {
        let (rows, vocabulary) = (13, 5);
        let logits: Vec<f32> = (0..rows * vocabulary).map(|i| (i * 7 % 11) as f32 * 0.3).collect();
        let targets: Vec<u32> = (0..rows as u32).map(|row| row % vocabulary as u32).collect();
        let one = negative_log_likelihoods(&Pool::new(1).unwrap(), &logits, vocabulary, &targets);
        assert_eq!(one.len(), rows);
        for threads in [2, 3, 16] {
            assert_eq!(one, negative_log_likelihoods(&Pool::new(threads).unwrap(), &logits, vocabulary, &targets));
        }
    }

    #[test]
    fn the_mean_and_its_error_are_those_of_the_textbook() {
        let mut sum = Sum::default();
        [1.0, 2.0, 3.0, 6.0].into_iter().for_each(|nll| sum.add(nll));
        assert_eq!(sum.mean(), 3.0);
        // Deviations −2, −1, 0, 3: variance 3.5, over n − 1.
        assert!((sum.standard_error() - (3.5f64 / 3.0).sqrt()).abs() < 1e-12);
    }
}
