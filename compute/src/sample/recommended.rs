//! The sampling terms that a model's authors recommend: what a request that leaves a term out is answered with. They come from the
//! model's file, in the keys that llama.cpp reads.

use super::Sampling;
use crate::gguf::Metadata;

/// Recommended terms; `None` where nothing is recommended. The units are those of [`Sampling`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RecommendedSampling {
    /// [`Sampling::temperature`].
    pub temperature: Option<f32>,
    /// [`Sampling::top_k`].
    pub top_k: Option<usize>,
    /// [`Sampling::top_p`].
    pub top_p: Option<f32>,
    /// [`Sampling::min_p`].
    pub min_p: Option<f32>,
    /// [`Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
}

/// The terms that a request leaves to the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenTerms {
    /// Whether [`Sampling::temperature`] is open.
    pub temperature: bool,
    /// Whether [`Sampling::top_k`] is open.
    pub top_k: bool,
    /// Whether [`Sampling::top_p`] is open.
    pub top_p: bool,
    /// Whether [`Sampling::min_p`] is open.
    pub min_p: bool,
    /// Whether [`Sampling::repetition_penalty`] is open.
    pub repetition_penalty: bool,
}

impl RecommendedSampling {
    /// What a file recommends. Terms that no request could have are ignored: a file is no reason to refuse requests.
    pub fn of(metadata: &Metadata) -> RecommendedSampling {
        let number = |key: &str| metadata.get_f64(&format!("general.sampling.{key}")).ok().flatten();
        let whole = |key: &str| metadata.get_u64(&format!("general.sampling.{key}")).ok().flatten();
        let term = |key: &str| number(key).map(|value| value as f32);
        let said = RecommendedSampling {
            temperature: term("temp"),
            top_k: whole("top_k").and_then(|k| usize::try_from(k).ok()),
            top_p: term("top_p"),
            min_p: term("min_p"),
            repetition_penalty: term("penalty_repeat"),
        };
        let everything =
            OpenTerms { temperature: true, top_k: true, top_p: true, min_p: true, repetition_penalty: true };
        let mut sampling = Sampling::default();
        said.fill(&mut sampling, everything);
        if sampling.check(0).is_ok() { said } else { RecommendedSampling::default() }
    }

    /// These terms, and those of `other` where nothing is recommended.
    #[must_use]
    pub fn or(self, other: RecommendedSampling) -> RecommendedSampling {
        RecommendedSampling {
            temperature: self.temperature.or(other.temperature),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            repetition_penalty: self.repetition_penalty.or(other.repetition_penalty),
        }
    }

    /// Sets the open terms of `sampling` to what is recommended.
    pub fn fill(&self, sampling: &mut Sampling, open: OpenTerms) {
        fn set<T: Copy>(term: &mut T, recommended: Option<T>, open: bool) {
            *term = recommended.filter(|_| open).unwrap_or(*term);
        }
        set(&mut sampling.temperature, self.temperature, open.temperature);
        set(&mut sampling.top_k, self.top_k, open.top_k);
        set(&mut sampling.top_p, self.top_p, open.top_p);
        set(&mut sampling.min_p, self.min_p, open.min_p);
        set(&mut sampling.repetition_penalty, self.repetition_penalty, open.repetition_penalty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_leaves_open_is_what_the_model_recommends() {
        let file = RecommendedSampling { temperature: Some(0.25), ..RecommendedSampling::default() };
        let known = RecommendedSampling { temperature: Some(1.5), top_p: Some(0.5), ..RecommendedSampling::default() };
        let recommended = file.or(known);
        let asked = Sampling { top_p: 0.75, ..Sampling::default() };
        let mut sampling = asked.clone();
        recommended.fill(&mut sampling, OpenTerms { temperature: true, top_k: true, ..OpenTerms::default() });
        assert_eq!(sampling, Sampling { temperature: 0.25, ..asked.clone() }, "top_p was asked for, top_k is nowhere");
        recommended.fill(&mut sampling, OpenTerms { top_p: true, ..OpenTerms::default() });
        assert_eq!(sampling.top_p, 0.5);
    }
}
