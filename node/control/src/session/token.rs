//! Tokens as the last stage reports them, and why an answer ends. Values only.

/// A token with its log-probability, if requested.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenOut {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability.
    pub logprob: Option<f32>,
    /// The most likely tokens with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The model chose a token that ends the answer.
    Stop,
    /// The answer has its maximum number of tokens.
    Length,
    /// The grammar allows no further token.
    GrammarComplete,
}
