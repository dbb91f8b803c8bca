//! Text to tokens and back, as a model's GGUF metadata defines it. The tokens are those of llama.cpp for the same file; where
//! llama.cpp only comes near to the expression that a family publishes (`gpt-4o`, `tekken`), they are those of the expression.
//!
//! | module | owns |
//! |---|---|
//! | `vocabulary` | the tokens: texts, kinds, roles |
//! | `special` | special tokens written out in a text |
//! | `pretokenize`, `unicode_class` | cuts a text into words before byte-level BPE |
//! | `byte_pair`, `byte_level` | BPE over bytes (`gpt2`) |
//! | `sentence_piece` | BPE over characters by score (`llama`) |
//! | `character_pair` | BPE over characters by a list of merges (`gemma4`) |
//! | `merge`, `merge_list` | merges neighbours, best first; which pairs merge |
//! | `detokenize` | text from tokens as they arrive |

mod byte_level;
mod byte_pair;
mod character_pair;
mod detokenize;
mod merge;
mod merge_list;
mod pretokenize;
mod sentence_piece;
mod special;
mod unicode_class;
mod vocabulary;

pub use detokenize::Detokenizer;

use crate::Error;
use crate::gguf::Metadata;
use byte_pair::BytePair;
use character_pair::CharacterPair;
use sentence_piece::SentencePiece;
use special::{ControlTokens, Fragment, SpecialTokens};
use std::borrow::Cow;
use vocabulary::{TokenKind, Vocabulary, invalid};

enum Algorithm {
    BytePair(Box<BytePair>),
    CharacterPair(Box<CharacterPair>),
    SentencePiece(Box<SentencePiece>),
}

/// A model's tokenizer.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    special: SpecialTokens,
    algorithm: Algorithm,
    /// The tokens that [`Tokenizer::encode`] adds before and after a text on request.
    before: Option<u32>,
    after: Option<u32>,
    /// Whether a space is added before a text, at its beginning and after special tokens.
    space_prefix: bool,
}

impl Tokenizer {
    /// The tokenizer of a file with this metadata: `tokenizer.ggml.model` `gpt2` with the pre-tokenizers that `pretokenize`
    /// lists, `gemma4`, or `llama`.
    ///
    /// # Errors
    /// [`Error::Parse`] for values of another type; [`Error::Invalid`] for unsupported models and pre-tokenizers, and
    /// for lists and ids that are missing or inconsistent.
    pub fn from_gguf(metadata: &Metadata) -> Result<Tokenizer, Error> {
        let model = metadata
            .get_str("tokenizer.ggml.model")?
            .ok_or_else(|| invalid("the file has no tokenizer.ggml.model: the file is incomplete; fetch it again"))?;
        let mut vocabulary = Vocabulary::from_gguf(metadata)?;
        let flag = |key: &str, default| {
            Ok::<_, Error>(metadata.get_bool(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default))
        };
        let mut adds_bos_always = false;
        let (algorithm, adds_bos, prefixes) = match model {
            "gemma4" => {
                // Files that say otherwise are wrong: the model needs it.
                adds_bos_always = true;
                (Algorithm::CharacterPair(Box::new(CharacterPair::from_gguf(metadata, &vocabulary)?)), true, false)
            }
            "gpt2" => {
                let algorithm = BytePair::from_gguf(metadata, &vocabulary)?;
                let adds_bos = algorithm.adds_bos();
                (Algorithm::BytePair(Box::new(algorithm)), adds_bos, false)
            }
            "llama" => {
                // SentencePiece's <unk>, <s> and </s>, unless the file names others.
                let exists = |id: u32| Some(id).filter(|&id| (id as usize) < vocabulary.len());
                let (unknown, bos, eos) = (exists(0), exists(1), exists(2));
                vocabulary.unknown = vocabulary.unknown.or(unknown);
                vocabulary.bos = vocabulary.bos.or(bos);
                vocabulary.default_eos(eos);
                (Algorithm::SentencePiece(Box::new(SentencePiece::from_gguf(metadata, &vocabulary)?)), true, true)
            }
            other => {
                return Err(invalid(format!(
                    "the tokenizer {other:?} is not supported, only gpt2 (byte-level BPE), gemma4 and llama (SentencePiece): \
                     use a model with one of these"
                )));
            }
        };
        let around = |adds: bool, token: Option<u32>, key: &str| match (adds, token) {
            (true, None) => {
                Err(invalid(format!("texts need a token of the role {key}, which the file does not define")))
            }
            (adds, token) => Ok(token.filter(|_| adds)),
        };
        Ok(Tokenizer {
            before: around(
                flag("add_bos_token", adds_bos && vocabulary.bos.is_some())? || adds_bos_always,
                vocabulary.bos,
                "bos_token_id",
            )?,
            after: around(flag("add_eos_token", false)?, vocabulary.eos, "eos_token_id")?,
            space_prefix: flag("add_space_prefix", prefixes)? && prefixes,
            special: SpecialTokens::new(&vocabulary),
            vocabulary,
            algorithm,
        })
    }

    /// The tokens of `text`.
    ///
    /// `add_special` adds the tokens that the model wants at the beginning and the end of a sequence. `parse_special`
    /// parses control tokens such as `<|im_end|>` that are written out in the text; without it their texts are ordinary
    /// characters, as untrusted text must be.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        self.encode_with(
            text,
            add_special,
            if parse_special { ControlTokens::Except(&[]) } else { ControlTokens::None },
        )
    }

    /// [`Tokenizer::encode`] of a text that is partly untrusted: control tokens are parsed where they cover none of the byte
    /// offsets `plain`, which are in order.
    pub fn encode_apart(&self, text: &str, add_special: bool, plain: &[usize]) -> Vec<u32> {
        self.encode_with(text, add_special, ControlTokens::Except(plain))
    }

    /// The byte offsets of an untrusted text that no control token may cover ([`Tokenizer::encode_apart`]), in order: its
    /// control tokens, and parts of one at its ends. None for nearly all texts.
    pub fn control_places(&self, text: &str) -> Vec<usize> {
        self.special.control_places(&self.vocabulary, text)
    }

    fn encode_with(&self, text: &str, add_special: bool, control: ControlTokens<'_>) -> Vec<u32> {
        // English has about four bytes per token.
        let mut out = Vec::with_capacity(text.len() / 4 + 2);
        out.extend(self.before.filter(|_| add_special));
        let mut after_special = true;
        for fragment in self.special.fragments(&self.vocabulary, text, control) {
            match fragment {
                Fragment::Token(token) => out.push(token),
                Fragment::Text(text) => self.encode_plain(text, after_special, &mut out),
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        out.extend(self.after.filter(|_| add_special));
        out
    }

    fn encode_plain(&self, mut text: &str, after_special: bool, out: &mut Vec<u32>) {
        let mut prefix = self.space_prefix && after_special;
        while !text.is_empty() {
            let (part, rest) = text.split_at(text.floor_char_boundary(merge::MAX_TEXT_BYTES));
            match &self.algorithm {
                Algorithm::BytePair(bpe) => bpe.encode(&self.vocabulary, part, out),
                Algorithm::CharacterPair(bpe) => bpe.encode(&self.vocabulary, part, out),
                Algorithm::SentencePiece(pieces) => pieces.encode(&self.vocabulary, part, prefix, out),
            }
            prefix = false;
            text = rest;
        }
    }

    /// The text of a whole sequence; with `special`, control tokens are written out. Invalid UTF-8 becomes U+FFFD,
    /// unknown ids are skipped, and a space that [`Tokenizer::encode`] added in front is removed. For text that
    /// continues another, use [`Detokenizer`].
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(&self.token_bytes(id, special).unwrap_or_default());
        }
        let starts_plain = ids.iter().find(|&&id| Some(id) != self.before).is_some_and(|&id| !self.is_control(id));
        let text = match bytes.strip_prefix(b" ") {
            Some(rest) if self.space_prefix && starts_plain => rest,
            _ => &bytes,
        };
        String::from_utf8_lossy(text).into_owned()
    }

    /// The bytes that a token adds to a text, not always whole characters. Control tokens add their text with
    /// `special`, else nothing. `None` for unknown ids.
    pub fn token_bytes(&self, id: u32, special: bool) -> Option<Cow<'_, [u8]>> {
        let text = self.vocabulary.text(id)?;
        Some(match self.vocabulary.kind(id) {
            TokenKind::Control | TokenKind::Unknown if !special => Cow::default(),
            TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined => Cow::Borrowed(text.as_bytes()),
            TokenKind::Unused => Cow::default(),
            TokenKind::Byte => byte_of(text).map_or(Cow::Borrowed(text.as_bytes()), |byte| Cow::Owned(vec![byte])),
            TokenKind::Normal => match self.algorithm {
                Algorithm::BytePair(_) => Cow::Owned(from_byte_level(text)),
                _ if text.contains(sentence_piece::SPACE) => {
                    Cow::Owned(text.replace(sentence_piece::SPACE, " ").into_bytes())
                }
                Algorithm::CharacterPair(_) | Algorithm::SentencePiece(_) => Cow::Borrowed(text.as_bytes()),
            },
        })
    }

    /// The number of tokens: ids are below it.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token at the beginning of a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.vocabulary.bos
    }

    /// The token at the end of a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.vocabulary.eos
    }

    /// The token that [`Tokenizer::encode`] with `add_special` puts first: [`Tokenizer::bos`] where the model wants it.
    pub fn added_bos(&self) -> Option<u32> {
        self.before
    }

    /// Whether this token ends a sequence, a turn or a message, so that the model is done.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.vocabulary.is_end(id)
    }

    /// Whether this is a control token, which is not text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.text(id).is_some()
            && matches!(self.vocabulary.kind(id), TokenKind::Control | TokenKind::Unknown)
    }

    /// A token's text in the vocabulary; byte-level tokens use that alphabet, with `Ġ` for a space.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocabulary.text(id)
    }

    /// The token with exactly this text in the vocabulary.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocabulary.find(text)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocabulary())
    }
}

/// The byte that a token like `<0x0A>` stands for.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// The bytes that a byte-level token's characters stand for; characters outside the alphabet stand for themselves.
fn from_byte_level(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for c in text.chars() {
        match byte_level::byte_of(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

#[cfg(test)]
mod tests;
