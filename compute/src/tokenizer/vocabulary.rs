//! The tokens of a model: texts, kinds and special roles, checked once when they are read from GGUF metadata.

use super::merge::NONE;
use crate::Error;
use crate::gguf::{Metadata, Strings};
use std::hash::{BuildHasher, RandomState};

/// Bytes of a token, at most: known models have tokens of a few hundred bytes. The bound keeps it cheap to test whether
/// a piece of text is a token.
const MAX_TOKEN_BYTES: usize = 4096;

/// The kind of a token; the ids are those of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for text without a token. Never shown.
    Unknown,
    /// Controls the model; parsed from text only on request, and not shown.
    Control,
    /// A piece of text that is matched before all others.
    UserDefined,
    /// Not used in training.
    Unused,
    /// One byte, written `<0x0A>`.
    Byte,
}

impl TokenKind {
    fn from_id(id: i32) -> Option<TokenKind> {
        Some(match id {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            // 0 is "undefined".
            0 | 5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }
}

/// Texts of tokens that end a generation, under the names of various model families. Source: the texts that llama.cpp
/// looks for; these are control tokens even where a file says otherwise.
const END_TEXTS: [&str; 31] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "<turn|>",
    "<|tool_response>",
    "<|calls|>",
    "<|flush|>",
    "[e~[",
    // The end of a file in a repository, of models that fill in the middle of code.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<reponame>",
    "<|file_sep|>",
];

/// Control tokens of models that fill in the middle of code, even where a file says otherwise.
const CONTROL_TEXTS: [&str; 9] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
];

#[derive(Debug)]
pub(super) struct Vocabulary {
    texts: Strings,
    kinds: Vec<TokenKind>,
    index: TokenIndex,
    longest: usize,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unknown: Option<u32>,
    /// Sorted.
    ends: Vec<u32>,
}

impl Vocabulary {
    /// # Errors
    /// [`Error::Parse`] for values of another type; [`Error::Invalid`] for missing lists and lists of other lengths,
    /// tokens that are duplicate or too long, unknown kinds, and roles of tokens that do not exist.
    pub(super) fn from_gguf(metadata: &Metadata) -> Result<Vocabulary, Error> {
        let texts = metadata
            .get_strs("tokenizer.ggml.tokens")?
            .ok_or_else(|| invalid("the file has no tokenizer.ggml.tokens: the file is incomplete; fetch it again"))?
            .clone();
        // `NONE` must not be an id.
        if texts.is_empty() || texts.len() >= NONE as usize {
            return Err(invalid(format!("a vocabulary of {} tokens is not supported", texts.len())));
        }
        let longest = texts.iter().map(str::len).max().unwrap_or(0);
        if longest > MAX_TOKEN_BYTES {
            return Err(invalid(format!("a token has {longest} bytes; at most {MAX_TOKEN_BYTES} are supported")));
        }
        let kinds = kinds(metadata, texts.len())?;
        let index = TokenIndex::new(&texts)?;
        let mut vocabulary =
            Vocabulary { texts, kinds, index, longest, bos: None, eos: None, unknown: None, ends: Vec::new() };
        vocabulary.bos = vocabulary.role(metadata, "bos_token_id")?;
        vocabulary.eos = vocabulary.role(metadata, "eos_token_id")?;
        vocabulary.unknown = vocabulary.role(metadata, "unknown_token_id")?;
        vocabulary.find_ends(metadata)?;
        Ok(vocabulary)
    }

    fn role(&self, metadata: &Metadata, role: &str) -> Result<Option<u32>, Error> {
        match metadata.get_u64(&format!("tokenizer.ggml.{role}"))? {
            Some(id) if id >= self.len() as u64 => Err(invalid(format!(
                "tokenizer.ggml.{role} is {id}, but there are only {} tokens: the file is corrupt",
                self.len()
            ))),
            id => Ok(id.map(|id| id as u32)),
        }
    }

    /// Sets the end of a sequence if the file does not define one.
    pub(super) fn default_eos(&mut self, eos: Option<u32>) {
        if self.eos.is_none() {
            self.eos = eos;
            self.ends.extend(eos);
            self.ends.sort_unstable();
            self.ends.dedup();
        }
    }

    fn find_ends(&mut self, metadata: &Metadata) -> Result<(), Error> {
        let mut ends: Vec<u32> = self.eos.into_iter().collect();
        for role in ["eot_token_id", "eom_token_id"] {
            ends.extend(self.role(metadata, role)?);
        }
        for text in END_TEXTS {
            let Some(id) = self.index.find(&self.texts, text) else { continue };
            // In a vocabulary of web pages `</s>` closes a strikethrough.
            let is_markup = self.kind(id) == TokenKind::UserDefined || self.find("<|tool_response>").is_some();
            if text == "</s>" && is_markup && self.eos != Some(id) {
                continue;
            }
            self.kinds[id as usize] = TokenKind::Control;
            if text != "<|end|>" || !self.has_messages() {
                ends.push(id);
            }
        }
        for text in CONTROL_TEXTS {
            if let Some(id) = self.index.find(&self.texts, text) {
                self.kinds[id as usize] = TokenKind::Control;
            }
        }
        ends.sort_unstable();
        ends.dedup();
        self.ends = ends;
        Ok(())
    }

    /// Whether an answer is several messages, each of which ends with `<|end|>`; other tokens end the answer: harmony, Solar.
    fn has_messages(&self) -> bool {
        let has = |text: &str| self.find(text).is_some();
        (has("<|return|>") && has("<|call|>")) || (has("<|calls|>") && has("<|flush|>"))
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize)
    }

    /// The kind of a token that exists.
    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds[id as usize]
    }

    /// The token with exactly this text.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        self.index.find(&self.texts, text)
    }

    /// As [`Vocabulary::find`], but without control tokens, which text becomes only on request.
    pub(super) fn find_piece(&self, text: &str) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        self.find(text).filter(|&id| !matches!(self.kind(id), TokenKind::Control | TokenKind::Unknown))
    }

    /// The token of each byte, for characters without a token: `<0x0A>`, else the ASCII character alone, else the unknown token.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a byte that has none of these.
    pub(super) fn byte_tokens(&self) -> Result<[u32; 256], Error> {
        let mut tokens = [NONE; 256];
        for (byte, token) in tokens.iter_mut().enumerate() {
            let alone = char::from(byte as u8).to_string();
            let found = self.find(&format!("<0x{byte:02X}>"));
            *token = found.or_else(|| self.find(&alone).filter(|_| byte < 128)).or(self.unknown).ok_or_else(|| {
                invalid(format!("byte {byte} has no token, and unknown_token_id is not given: the file is incomplete"))
            })?;
        }
        Ok(tokens)
    }

    pub(super) fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// All tokens with their kinds and texts.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, TokenKind, &str)> {
        self.texts.iter().enumerate().map(|(id, text)| (id as u32, self.kinds[id], text))
    }
}

pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::invalid("tokenizer", what)
}

/// The kinds of all tokens; all normal where the file does not say.
fn kinds(metadata: &Metadata, len: usize) -> Result<Vec<TokenKind>, Error> {
    let Some(ids) = metadata.get_i32s("tokenizer.ggml.token_type")? else { return Ok(vec![TokenKind::Normal; len]) };
    if ids.len() != len {
        return Err(invalid(format!(
            "tokenizer.ggml.token_type has {} entries for {len} tokens: the file is corrupt",
            ids.len()
        )));
    }
    ids.iter()
        .enumerate()
        .map(|(token, &id)| {
            TokenKind::from_id(id)
                .ok_or_else(|| invalid(format!("tokenizer.ggml.token_type of token {token} is {id}, not 0 to 6")))
        })
        .collect()
}

/// An open hash table from a token's text to its id. Its hash has a random key, so that no file can make it slow.
#[derive(Debug)]
struct TokenIndex {
    /// A power of two of slots, at most half of them used.
    slots: Vec<Slot>,
    hash: RandomState,
}

/// The token, or [`NONE`] in a free slot, and the upper half of the text's hash, which avoids most comparisons of
/// texts.
#[derive(Clone, Copy, Debug)]
struct Slot {
    tag: u32,
    token: u32,
}

impl TokenIndex {
    fn new(texts: &Strings) -> Result<TokenIndex, Error> {
        let free = Slot { tag: 0, token: NONE };
        let mut index =
            TokenIndex { slots: vec![free; (texts.len() * 2).next_power_of_two()], hash: RandomState::new() };
        for (id, text) in texts.iter().enumerate() {
            // An empty token is part of no text.
            if text.is_empty() {
                continue;
            }
            let (slot, tag) = index.slot(texts, text);
            if index.slots[slot].token != NONE {
                return Err(invalid(format!(
                    "the tokens {} and {id} are both {text:?}: the file is corrupt",
                    index.slots[slot].token
                )));
            }
            index.slots[slot] = Slot { tag, token: id as u32 };
        }
        Ok(index)
    }

    /// The slot of the text, or the free slot for it, and its tag.
    fn slot(&self, texts: &Strings, text: &str) -> (usize, u32) {
        let hash = self.hash.hash_one(text);
        let tag = (hash >> 32) as u32;
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot.token == NONE || (slot.tag == tag && texts.get(slot.token as usize) == Some(text)) {
                return (at, tag);
            }
            at = (at + 1) & mask;
        }
    }

    fn find(&self, texts: &Strings, text: &str) -> Option<u32> {
        Some(self.slots[self.slot(texts, text).0].token).filter(|&id| id != NONE)
    }
}
