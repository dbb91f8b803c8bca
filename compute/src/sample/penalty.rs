//! Penalties for tokens that have occurred. Only logits are changed here.

use super::{Sampling, invalid};
use crate::Error;

/// Repetition (prompt and answer), then frequency and presence (answer only), each over the window.
pub(super) fn apply(sampling: &Sampling, prompt: &[u32], generated: &[u32], logits: &mut [f32]) -> Result<(), Error> {
    let window = sampling.repetition_window.unwrap_or(usize::MAX);
    let recent = &generated[generated.len().saturating_sub(window)..];
    let before = &prompt[prompt.len().saturating_sub(window - recent.len())..];
    if sampling.repetition_penalty != 1.0 {
        let mut seen = vec![false; logits.len()];
        for &token in before.iter().chain(recent) {
            let logit = at(logits, token)?;
            if !std::mem::replace(&mut seen[token as usize], true) {
                *logit = if *logit > 0.0 {
                    *logit / sampling.repetition_penalty
                } else {
                    *logit * sampling.repetition_penalty
                };
            }
        }
    }
    if sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0 {
        let mut counts = vec![0_u32; logits.len()];
        for &token in recent {
            at(logits, token)?;
            counts[token as usize] += 1;
        }
        // Each token once, with its total count: the result must not depend on the order of occurrence.
        for &token in recent {
            let count = std::mem::take(&mut counts[token as usize]);
            if count > 0 {
                *at(logits, token)? -= sampling.frequency_penalty * count as f32 + sampling.presence_penalty;
            }
        }
    }
    Ok(())
}

fn at(logits: &mut [f32], token: u32) -> Result<&mut f32, Error> {
    let vocabulary = logits.len();
    logits.get_mut(token as usize).ok_or_else(|| {
        invalid(format!("token {token} is in the text so far, but the vocabulary has {vocabulary} tokens"))
    })
}
