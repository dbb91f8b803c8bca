//! Tokens as the last stage reports them, and why an answer ends. Values only.

/// A token with its log-probability, where it was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenOut {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability.
    pub logprob: Option<f32>,
    /// The most likely tokens with theirs, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The model ended it.
    Stop,
    /// It has as many tokens as it may.
    Length,
    /// The grammar allows no further token.
    GrammarComplete,
}
