//! Text from tokens as they arrive, in whole characters. The bytes of a token are the tokenizer's.

use super::Tokenizer;

/// Text that arrives token by token. The pieces together are the text of all bytes, with every invalid sequence
/// replaced by U+FFFD.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// The beginning of a character: at most 3 bytes between calls.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// A detokenizer before the first token.
    pub fn new() -> Detokenizer {
        Detokenizer::default()
    }

    /// Adds a token and returns the characters that are complete now. Control tokens and unknown ids add nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.push_bytes(&tokenizer.token_bytes(id, false).unwrap_or_default())
    }

    /// As [`Detokenizer::push`], for bytes.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut out = String::new();
        let mut taken = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            taken += chunk.valid().len();
            let invalid = chunk.invalid();
            let last = taken + invalid.len() == self.pending.len();
            if invalid.is_empty() || (last && may_go_on(invalid)) {
                break;
            }
            out.push(char::REPLACEMENT_CHARACTER);
            taken += invalid.len();
        }
        self.pending.drain(..taken);
        out
    }

    /// The rest at the end of the tokens: U+FFFD for an incomplete character, else nothing.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

/// Whether these bytes, which are not a character, may be the beginning of one.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}
