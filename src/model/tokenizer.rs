//! Text to token ids and back, and conversations to text.
//!
//! What a model's files say becomes a [`Tokenizer`] in the modules below: [`folder`] reads
//! `tokenizer.json` and the settings beside it, [`gguf`] the vocabulary of a GGUF file, byte-level
//! BPE itself or SentencePiece with [`sentencepiece`]; [`chat`] renders. BPE itself is the
//! `tokenizers` crate's. The rule is that of transformers throughout, and what is not known to be
//! the same is refused: a wrong guess gives other ids without any sign of it.

mod bpe;
mod chat;
mod folder;
mod gguf;
mod json;
mod sentencepiece;
mod settings;
mod steps;

use std::collections::BTreeSet;

use jiff::civil::DateTime;

use super::ModelError;
use chat::ChatTemplate;

pub use gguf::PRE_TOKENIZERS;

/// What one byte is as a token of a model without a vocabulary.
const BYTE_TOKENS: usize = 256;

/// Tokenizer and chat template of a model.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    /// Begins every text that no chat template rendered.
    prefix: Vec<u32>,
    /// Each of them ends an answer.
    ends: BTreeSet<u32>,
    template: Option<ChatTemplate>,
}

enum Vocabulary {
    /// A trained one.
    Trained(Box<tokenizers::Tokenizer>),
    /// The bytes of the text.
    Bytes,
}

/// A prompt on its way to token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// As somebody wrote it: the model's beginning-of-sequence token goes in front.
    Plain(String),
    /// By a chat template, which has put all special tokens where they belong.
    Rendered(String),
}

impl Tokenizer {
    /// For a model of random weights without a vocabulary: a token a byte, so that any text has
    /// ids. No beginning, no end, no chat template; an id from 256 on reads as U+FFFD.
    pub fn of_bytes(vocabulary: usize) -> Result<Self, ModelError> {
        if vocabulary < BYTE_TOKENS {
            return Err(ModelError::Tokenize(format!(
                "a vocabulary of {vocabulary} tokens, bytes as tokens need {BYTE_TOKENS}: give the \
                 model a larger one"
            )));
        }
        Ok(Self {
            vocabulary: Vocabulary::Bytes,
            prefix: Vec::new(),
            ends: BTreeSet::new(),
            template: None,
        })
    }

    /// Whether `token` ends an answer.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// The largest id that a text can get; what embeds tokens must have more rows.
    pub fn largest_id(&self) -> u32 {
        let largest = match &self.vocabulary {
            Vocabulary::Bytes => Some(BYTE_TOKENS as u32 - 1),
            Vocabulary::Trained(inner) => inner.get_vocab(true).into_values().max(),
        };
        largest.max(self.prefix.iter().copied().max()).unwrap_or(0)
    }

    /// Token ids of a prompt.
    pub fn ids(&self, text: &Text) -> Result<Vec<u32>, ModelError> {
        match text {
            Text::Plain(text) => self.encode(text),
            Text::Rendered(text) => self.encode_rendered(text),
        }
    }

    /// Token ids of a text as somebody wrote it, with what the model wants in front of every text;
    /// special tokens in the text are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = self.prefix.clone();
        ids.extend(self.encode_rendered(text)?);
        Ok(ids)
    }

    /// Token ids of exactly this text, such as a chat template made it; special tokens in the text
    /// are recognised.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        match &self.vocabulary {
            Vocabulary::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Vocabulary::Trained(inner) => (inner.encode(text, false))
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|e| ModelError::Tokenize(e.to_string())),
        }
    }

    /// Text of token ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        match &self.vocabulary {
            Vocabulary::Bytes => Ok(text_of_bytes(ids)),
            Vocabulary::Trained(inner) => {
                (inner.decode(ids, true)).map_err(|e| ModelError::Tokenize(e.to_string()))
            }
        }
    }

    /// Renders `(role, content)` messages with the model's chat template, up to where the
    /// assistant's answer starts; a model without a template gets the bare contents.
    pub fn chat(&self, messages: &[(&str, &str)]) -> Result<Text, ModelError> {
        #[expect(clippy::disallowed_methods, reason = "a date in a prompt, no duration")]
        let now = jiff::Timestamp::now();
        self.chat_at(messages, now.to_zoned(jiff::tz::TimeZone::UTC).datetime())
    }

    /// [`Tokenizer::chat`] as of a date: some templates tell it to the model.
    pub fn chat_at(&self, messages: &[(&str, &str)], now: DateTime) -> Result<Text, ModelError> {
        let Some(template) = &self.template else {
            let contents: Vec<&str> = messages.iter().map(|(_, content)| *content).collect();
            return Ok(Text::Plain(contents.join("\n")));
        };
        template.render(messages, now).map(Text::Rendered)
    }
}

/// UTF-8 of the ids that are bytes; what is none reads as U+FFFD.
fn text_of_bytes(ids: &[u32]) -> String {
    let mut bytes = Vec::with_capacity(ids.len());
    for id in ids {
        match u8::try_from(*id) {
            Ok(byte) => bytes.push(byte),
            Err(_) => bytes.extend("\u{fffd}".as_bytes()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_tokens_where_there_is_no_vocabulary() {
        let tokenizer = Tokenizer::of_bytes(32_000).unwrap();
        let ids = tokenizer.encode("né\n").unwrap();
        assert_eq!(ids, [0x6e, 0xc3, 0xa9, 0x0a]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "né\n");
        assert_eq!(tokenizer.largest_id(), 255);
        let text = tokenizer.chat(&[("system", "a"), ("user", "b")]).unwrap();
        assert_eq!(text, Text::Plain("a\nb".into()));
    }

    #[test]
    fn every_id_of_random_weights_reads_as_something_and_ends_nothing() {
        let tokenizer = Tokenizer::of_bytes(256).unwrap();
        for id in [0, 65, 0x80, 255, 256, 31_999, u32::MAX] {
            assert!(!tokenizer.decode(&[id]).unwrap().is_empty(), "{id}");
            assert!(!tokenizer.is_end(id));
        }
        assert_eq!(tokenizer.decode(&[65, 300, 66]).unwrap(), "A\u{fffd}B");
        let Err(error) = Tokenizer::of_bytes(255) else {
            panic!("255 tokens cannot be all bytes");
        };
        assert!(error.to_string().contains("vocabulary of 255"), "{error}");
    }
}
