//! From tokens to text as they come, whole characters only. It never knows how tokens become bytes: the tokenizer does.

use super::Tokenizer;

/// Text that arrives token by token. What comes out, put together, is what all the bytes at once would be with every
/// invalid sequence replaced by U+FFFD.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// The beginning of a character: at most 3 bytes between calls.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Before the first token.
    pub fn new() -> Detokenizer {
        Detokenizer::default()
    }

    /// Takes a token and gives the characters that are whole now. Control tokens, and ids that do not exist, are nothing.
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

    /// What is left when no token follows: U+FFFD where a character was not finished, else nothing.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

/// Whether these bytes, which are no character, may be the beginning of one.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}
