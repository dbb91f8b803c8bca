//! The model of the world: deterministic numbers in place of layers. What a layer gives at a position follows from all that it
//! was given before, so that a cache that is not what it should be shows in every later token; how the layers are shared among
//! stages changes nothing.

use pangea_control::session::{Drafter, EndReason};
use pangea_units::SplitMix64;

/// Different tokens.
pub(crate) const VOCABULARY: usize = 50;

/// The token that ends an answer.
const END: u32 = 0;

/// What the layers of one stage keep of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    layers: usize,
    /// What each layer knows after each position.
    states: Vec<u64>,
    /// What came in at each position.
    inputs: Vec<u64>,
}

impl Cache {
    /// Of so many layers, empty.
    pub(crate) fn new(layers: u32) -> Cache {
        Cache { layers: layers as usize, states: Vec::new(), inputs: Vec::new() }
    }

    /// Positions.
    pub(crate) fn len(&self) -> usize {
        self.states.len() / self.layers
    }

    /// Forgets all positions from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.states.truncate(len * self.layers);
        self.inputs.truncate(len);
    }

    /// What came in at the first positions.
    pub(crate) fn inputs(&self, positions: usize) -> impl Iterator<Item = u64> + '_ {
        self.inputs.iter().take(positions).copied()
    }

    /// What went out at the first positions.
    pub(crate) fn outputs(&self, positions: usize) -> impl Iterator<Item = u64> + '_ {
        self.states.iter().skip(self.layers - 1).step_by(self.layers).take(positions).copied()
    }

    /// Something else went out at the last position.
    pub(crate) fn bend(&mut self, output: u64) {
        if let Some(last) = self.states.last_mut() {
            *last = output;
        }
    }

    /// Takes in the next position, which the layers before `first` gave; what comes out behind the last layer.
    pub(crate) fn forward(&mut self, first: u32, mut activation: u64) -> u64 {
        self.inputs.push(activation);
        let before = self.states.len().checked_sub(self.layers);
        for layer in 0..self.layers {
            let known = before.map_or(0, |before| self.states[before + layer]);
            let number = u64::from(first) + layer as u64;
            activation = SplitMix64::at(activation.rotate_left(17) ^ known.rotate_left(31) ^ number);
            self.states.push(activation);
        }
        activation
    }
}

/// What the first layer is given for a token.
pub(crate) fn embedded(token: u32) -> u64 {
    SplitMix64::at(u64::from(token) + 1)
}

/// The token that follows, for a choice of a request: half of the time what a drafter guesses.
pub(crate) fn chosen(seed: u64, activation: u64, last: u32) -> u32 {
    let bits = SplitMix64::at(activation ^ seed);
    if bits & 1 == 0 { guess(last) } else { (bits >> 20) as u32 % VOCABULARY as u32 }
}

fn guess(last: u32) -> u32 {
    (last * 7 + 3) % VOCABULARY as u32
}

/// Guesses what follows half of the time.
#[derive(Clone, Debug)]
pub(crate) struct Guesser;

impl Drafter for Guesser {
    fn propose(&mut self, tokens: &[u32], limit: usize) -> Vec<u32> {
        let first = guess(tokens.last().copied().unwrap_or(0));
        std::iter::successors(Some(first), |last| Some(guess(*last))).take(limit).collect()
    }

    fn observe(&mut self, _: usize, _: usize, _: f64) {}
}

/// One answer as the last stage chooses it.
#[derive(Clone, Debug)]
pub(crate) struct Chooser {
    seed: u64,
    /// The prompt and what was chosen.
    pub(crate) tokens: Vec<u32>,
    prompt_len: usize,
    max_new_tokens: usize,
    ended: Option<EndReason>,
}

impl Chooser {
    /// After these tokens, of which so many are the prompt's.
    pub(crate) fn new(seed: u64, tokens: Vec<u32>, prompt_len: usize, max_new_tokens: usize) -> Chooser {
        Chooser { seed, tokens, prompt_len, max_new_tokens, ended: None }
    }

    /// Another token in place of the last one.
    pub(crate) fn bend(&mut self) -> u32 {
        let last = self.tokens.pop().unwrap_or(0);
        let token = (last + 1) % VOCABULARY as u32;
        self.tokens.push(token);
        self.ended = None;
        self.end();
        token
    }

    /// Goes on for long after its end.
    pub(crate) fn go_on(&mut self) {
        self.max_new_tokens += 1_000;
        self.ended = None;
    }

    /// Why the answer ended, if it did.
    pub(crate) fn ended(&self) -> Option<EndReason> {
        self.ended
    }

    /// Chooses what follows the last token and each drafted one, as long as the drafts are right; how many were.
    pub(crate) fn take(&mut self, draft: &[u32], activations: &[u64]) -> (Vec<u32>, usize) {
        let (mut taken, mut accepted) = (Vec::new(), 0);
        for (at, activation) in activations.iter().enumerate() {
            self.end();
            if self.ended.is_some() {
                break;
            }
            let token = chosen(self.seed, *activation, self.tokens.last().copied().unwrap_or(0));
            self.tokens.push(token);
            taken.push(token);
            self.end();
            if self.ended.is_some() || draft.get(at) != Some(&token) {
                break;
            }
            accepted += 1;
        }
        (taken, accepted)
    }

    fn end(&mut self) {
        let answer = &self.tokens[self.prompt_len..];
        if answer.last() == Some(&END) {
            self.ended = Some(EndReason::Stop);
        } else if answer.len() >= self.max_new_tokens {
            self.ended = Some(EndReason::Length);
        }
    }
}

/// The answer that one node gives which nothing disturbs.
pub(crate) fn undisturbed(layers: u32, seed: u64, prompt: &[u32], max_new_tokens: usize) -> Vec<u32> {
    let mut cache = Cache::new(layers);
    let mut chooser = Chooser::new(seed, prompt.to_vec(), prompt.len(), max_new_tokens);
    while chooser.ended().is_none() {
        let mut activation = 0;
        for token in &chooser.tokens[cache.len()..] {
            activation = cache.forward(0, embedded(*token));
        }
        chooser.take(&[], &[activation]);
    }
    chooser.tokens.split_off(prompt.len())
}
