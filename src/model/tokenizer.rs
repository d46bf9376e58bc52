//! Text to token ids and back, from the vocabulary and rules inside a GGUF file.
//!
//! The BPE itself is the `tokenizers` crate's. How text is cut before BPE cannot be derived from
//! the vocabulary, so it is looked up by the file's `tokenizer.ggml.pre` in a list of rules that
//! were checked against another implementation; anything else is refused, because a wrong guess
//! gives other ids without any sign of it.

use minijinja::value::Value;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper};

use super::ModelError;
use super::gguf::Gguf;

/// `tokenizer.ggml.pre` values with checked rules.
pub const PRE_TOKENIZERS: &[&str] = &["gpt-2", "smollm"];

/// GGUF's token types that must never be split: control and user-defined.
const WHOLE_TOKEN_TYPES: [i64; 2] = [3, 4];

/// What rendering a chat template may cost, in instructions or 64 bytes each: a template is a
/// program out of a file, and may loop. A conversation of a megabyte takes less than a tenth.
const TEMPLATE_FUEL: u64 = 1 << 21;

/// Tokenizer and chat template of a model.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Put in front of every text where the file asks for it.
    bos: Option<u32>,
    /// Ends a generation.
    eos: Option<u32>,
    template: Option<ChatTemplate>,
}

struct ChatTemplate {
    source: String,
    bos_text: String,
    eos_text: String,
}

impl Tokenizer {
    /// Builds the tokenizer of a GGUF file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let model = gguf.text("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(gguf.error(format!(
                "tokenizer model {model} is not supported, byte-level BPE (gpt2) is"
            )));
        }
        let pre = pre_tokenizer(gguf)?;
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let vocabulary: Vocab = (tokens.iter().enumerate())
            .map(|(id, text)| (text.to_string(), id as u32))
            .collect();
        // The crate panics at a merge that gives more than the longest token.
        let has_all = |a: &str, b: &str| {
            [a, b, &format!("{a}{b}")].map(|token| vocabulary.contains_key(token)) == [true; 3]
        };
        let merges = (gguf.texts("tokenizer.ggml.merges")?.iter())
            .map(|merge| match merge.split_once(' ') {
                Some((a, b)) if has_all(a, b) => Ok((a.to_string(), b.to_string())),
                Some(_) => Err(gguf.error(format!(
                    "tokenizer merge {merge:?} is of tokens, or gives one, that the vocabulary lacks"
                ))),
                None => Err(gguf.error(format!("tokenizer merge {merge:?} has no two parts"))),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let bad = |e: tokenizers::Error| gguf.error(format!("tokenizer: {e}"));
        let bpe = (BPE::builder().vocab_and_merges(vocabulary, merges).build()).map_err(bad)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(pre));
        inner.with_decoder(Some(ByteLevelDecoder::default()));
        let types = gguf.integers("tokenizer.ggml.token_type")?;
        let whole: Vec<AddedToken> = (tokens.iter().zip(types))
            .filter(|(_, kind)| WHOLE_TOKEN_TYPES.contains(kind))
            .map(|(text, _)| AddedToken::from(text.to_string(), true))
            .collect();
        inner.add_special_tokens(whole).map_err(bad)?;

        let id = |key: &str| -> Result<Option<u32>, ModelError> {
            if !gguf.has(key) {
                return Ok(None);
            }
            let id = gguf.unsigned(key)?;
            match u32::try_from(id) {
                Ok(small) if (small as usize) < tokens.len() => Ok(Some(small)),
                _ => Err(gguf.error(format!(
                    "metadata {key} is {id}, the vocabulary has {} tokens",
                    tokens.len()
                ))),
            }
        };
        let bos = id("tokenizer.ggml.bos_token_id")?;
        let eos = id("tokenizer.ggml.eos_token_id")?;
        let text = |id: Option<u32>| id.map_or(String::new(), |id| tokens[id as usize].to_string());
        let template = match gguf.has("tokenizer.chat_template") {
            true => Some(ChatTemplate {
                source: gguf.text("tokenizer.chat_template")?.to_string(),
                bos_text: text(bos),
                eos_text: text(eos),
            }),
            false => None,
        };
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token", false)?;
        Ok(Self {
            inner,
            bos: bos.filter(|_| add_bos),
            eos,
            template,
        })
    }

    /// TEMPORARY until the tokenizers branch is merged.
    pub fn from_folder(folder: &std::path::Path) -> Result<Self, ModelError> {
        let inner = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json"))
            .map_err(|e| ModelError::Tokenize(e.to_string()))?;
        Ok(Self {
            inner,
            bos: None,
            eos: None,
            template: None,
        })
    }

    /// TEMPORARY until the tokenizers branch is merged.
    pub fn of_bytes(_vocabulary: usize) -> Result<Self, ModelError> {
        Err(ModelError::Tokenize("not yet".into()))
    }

    /// Token that ends a generation.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Token ids of `text`; special tokens in the text are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding =
            (self.inner.encode(text, false)).map_err(|e| ModelError::Tokenize(e.to_string()))?;
        Ok(self.bos.iter().chain(encoding.get_ids()).copied().collect())
    }

    /// Text of token ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        (self.inner.decode(ids, true)).map_err(|e| ModelError::Tokenize(e.to_string()))
    }

    /// Renders `(role, content)` messages with the model's chat template, up to where the
    /// assistant's answer starts; a model without a template gets the bare contents.
    pub fn chat(&self, messages: &[(&str, &str)]) -> Result<String, ModelError> {
        let Some(template) = &self.template else {
            let contents: Vec<&str> = messages.iter().map(|(_, content)| *content).collect();
            return Ok(contents.join("\n"));
        };
        let mut environment = minijinja::Environment::new();
        // As transformers renders templates.
        let syntax = (minijinja::syntax::SyntaxConfig::builder())
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| ModelError::ChatTemplate(e.to_string()))?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(TEMPLATE_FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<(), _> {
            Err(minijinja::Error::new(
                minijinja::ErrorKind::InvalidOperation,
                message,
            ))
        });
        let messages: Vec<Value> = (messages.iter())
            .map(|(role, content)| minijinja::context! { role => *role, content => *content })
            .collect();
        let context = minijinja::context! {
            messages,
            add_generation_prompt => true,
            bos_token => template.bos_text.as_str(),
            eos_token => template.eos_text.as_str(),
        };
        (environment.render_str(&template.source, context))
            .map_err(|e| ModelError::ChatTemplate(e.to_string()))
    }
}

/// The rules that cut text before BPE.
fn pre_tokenizer(gguf: &Gguf) -> Result<PreTokenizerWrapper, ModelError> {
    let byte_level = ByteLevel::new(false, true, true);
    match gguf.text("tokenizer.ggml.pre")? {
        "gpt-2" => Ok(byte_level.into()),
        "smollm" => Ok(Sequence::new(vec![Digits::new(true).into(), byte_level.into()]).into()),
        other => Err(gguf.error(format!(
            "pre-tokenizer {other:?} is not supported, these are: {}",
            PRE_TOKENIZERS.join(", ")
        ))),
    }
}
