//! Embeddings of texts: the hidden state after the last layer and the final norm, pooled over the positions as the file says, and
//! scaled to length 1. The bits are the same on every machine.

use super::forward::PASS_ROWS;
use super::{Input, Loaded, Logits, Stage, Step};
use crate::kernel::float::norm::rms_norm;
use crate::model::{Cache, Pooling};
use crate::{Error, Isa};

const OPERATION: &str = "embedding";

impl Stage {
    /// The embedding of a text: `[hidden_size]`, of length 1. `cache` is empty, and holds the text's keys and values afterwards.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a part of a model without its last layer, for no tokens, and for those of [`Stage::forward`];
    /// [`Error::NonFinite`] for a state that has no length.
    pub fn embed(&self, cache: &mut Cache, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let (norm, isa) = match &self.loaded {
            Loaded::Cpu(stage) => (stage.head_norm(), stage.isa()),
            Loaded::Gpu(stage) => (stage.head_norm(), Isa::best()),
            Loaded::Split(stage) => (stage.gpu.head_norm(), stage.cpu.isa()),
        };
        let Some(norm) = norm else {
            return Err(Error::invalid(OPERATION, "only a model with its last layer has embeddings"));
        };
        if tokens.is_empty() {
            return Err(Error::invalid(OPERATION, "the text has no tokens"));
        }
        let config = self.config();
        let width = config.hidden_size;
        let (mut sum, mut normed) = (vec![0.0_f64; width], vec![0.0_f32; width]);
        for (pass, rows) in tokens.chunks(PASS_ROWS).enumerate() {
            let step = Step { cache, rows: rows.len(), logits: Logits::None };
            let states = self.hidden_states(&mut [step], Input::Tokens(rows))?;
            for (row, state) in states.chunks_exact(width).enumerate() {
                let position = pass * PASS_ROWS + row;
                let counts = match config.pooling {
                    Pooling::Mean => true,
                    Pooling::First => position == 0,
                    Pooling::Last => position + 1 == tokens.len(),
                };
                if !counts {
                    continue;
                }
                if !rms_norm(isa, state, norm, config.epsilon, &mut normed) {
                    return Err(infinite());
                }
                sum.iter_mut().zip(&normed).for_each(|(sum, value)| *sum += f64::from(*value));
            }
        }
        unit(&sum)
    }
}

/// The vector with length 1.
///
/// # Errors
/// [`Error::NonFinite`] for one that has no length.
pub fn unit(values: &[f64]) -> Result<Vec<f32>, Error> {
    let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    if !length.is_finite() || length == 0.0 {
        return Err(infinite());
    }
    Ok(values.iter().map(|value| (value / length) as f32).collect())
}

fn infinite() -> Error {
    Error::NonFinite { operation: OPERATION, what: "the hidden state has no length".to_owned() }
}
