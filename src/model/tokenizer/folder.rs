//! The tokenizer of a model folder: `tokenizer.json` with the settings beside it.
//!
//! BPE only, byte-level or SentencePiece's, which is what decoder-only language models have.
//! Truncation, padding and dropout are for training and are left out or refused; what a text would
//! get at its end too, since the answer comes there.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};

use super::chat::ChatTemplate;
use super::settings::{self, Added, Settings};
use super::{Tokenizer, Vocabulary, bpe, steps};
use crate::model::ModelError;
use crate::text_file;

/// The file that holds vocabulary, merges and rules.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Largest [`TOKENIZER_FILE`], in bytes: that of a vocabulary of 262,144 tokens has 33 million.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// Most tokens in front of a text: published tokenizers have one or two.
const MAX_PREFIX_TOKENS: usize = 16;

/// As the file has it; what is not here is not read.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedWithId>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedWithId {
    id: u32,
    #[serde(flatten)]
    token: Added,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
    merges: Vec<Merge>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// Older files write a merge as one text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

/// The file once more, for its kind alone: other kinds have other fields.
#[derive(Deserialize)]
struct OfKind {
    model: Kind,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    name: Option<String>,
}

/// What a [`TOKENIZER_FILE`] gives.
pub struct Read {
    pub inner: tokenizers::Tokenizer,
    /// What it puts in front of a text.
    prefix: Vec<u32>,
}

impl Tokenizer {
    /// Builds the tokenizer of a model folder.
    pub fn from_folder(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(TOKENIZER_FILE);
        let settings = Settings::read(folder)?;
        let special: Vec<&str> = (settings.special.values().chain(&settings.additional))
            .map(String::as_str)
            .collect();
        let Read { inner, prefix } = read_tokenizer(&path, &settings.added, &special)?;
        let id = |name: &str| match settings.special.get(name) {
            None => Ok(None),
            Some(text) => match inner.token_to_id(text) {
                Some(id) => Ok(Some(id)),
                None => Err(settings::error(
                    &folder.join(settings::CONFIG_FILE),
                    format!("{name} is {text:?}, which {TOKENIZER_FILE} has no token for"),
                )),
            },
        };
        let bos = id("bos_token")?;
        let prefix = match settings.add_bos {
            Some(add) => bos.filter(|_| add).into_iter().collect(),
            None => prefix,
        };
        let mut ends = settings.ends;
        ends.extend(id("eos_token")?);
        let template = (settings.template)
            .map(|source| ChatTemplate::new(&source, settings.special, settings.additional));
        Ok(Self {
            vocabulary: Vocabulary::Trained(Box::new(inner)),
            prefix,
            ends,
            template,
        })
    }
}

/// Reads a [`TOKENIZER_FILE`]. `added` joins the tokens that it never splits, and so does each of
/// `special` that it has in its vocabulary.
pub fn read_tokenizer(
    path: &Path,
    added: &BTreeMap<u32, AddedToken>,
    special: &[&str],
) -> Result<Read, ModelError> {
    let text = text_file::read(path, MAX_TOKENIZER_BYTES)
        .map_err(|e| settings::error(path, e.to_string()))?;
    build(&text, added, special).map_err(|why| settings::error(path, why))
}

fn build(text: &str, added: &BTreeMap<u32, AddedToken>, special: &[&str]) -> Result<Read, String> {
    let of_kind: OfKind = serde_json::from_str(text).map_err(|e| e.to_string())?;
    // Files from before there was a type are BPE's where they have merges.
    if let Some(kind) = of_kind.model.name.filter(|kind| kind != "BPE") {
        return Err(format!("a model of type {kind:?} is not supported, BPE is"));
    }
    let file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let whole = whole_tokens(file.added_tokens, added, special, &file.model.vocab);
    let mut model = file.model;
    for (id, token) in &whole {
        // With the id that the file says, whatever ids the crate would count up.
        let known = *model.vocab.entry(token.content.clone()).or_insert(*id);
        if known != *id {
            return Err(format!(
                "added token {:?} has id {id}, the vocabulary has it as {known}",
                token.content
            ));
        }
    }
    let prefix = prefix(file.post_processor.as_ref(), &model.vocab)?;
    let bad = |e: tokenizers::Error| format!("tokenizer: {e}");
    let mut inner = tokenizers::Tokenizer::new(bpe_model(model)?);
    inner
        .with_normalizer(steps::normalizer(file.normalizer)?)
        .map_err(bad)?;
    inner.with_pre_tokenizer(steps::pre_tokenizer(file.pre_tokenizer)?);
    inner.with_decoder(steps::decoder(file.decoder)?);
    inner.add_tokens(whole.into_values()).map_err(bad)?;
    Ok(Read { inner, prefix })
}

/// The tokens that are never split, by id: the file's, then those that the settings add.
fn whole_tokens(
    own: Vec<AddedWithId>,
    added: &BTreeMap<u32, AddedToken>,
    special: &[&str],
    vocabulary: &Vocab,
) -> BTreeMap<u32, AddedToken> {
    let mut whole: BTreeMap<u32, AddedToken> = (own.into_iter())
        .map(|AddedWithId { id, token }| (id, token.into()))
        .collect();
    for (id, token) in added {
        whole.entry(*id).or_insert_with(|| token.clone());
    }
    for text in special {
        if let Some(id) = vocabulary.get(*text) {
            (whole.entry(*id)).or_insert_with(|| bpe::whole_token(text, true));
        }
    }
    whole
}

fn bpe_model(model: Model) -> Result<BPE, String> {
    if model.dropout.is_some_and(|share| share != 0.0) {
        return Err("BPE with dropout gives other tokens each time, wanted none".into());
    }
    let affixes = [model.continuing_subword_prefix, model.end_of_word_suffix];
    if let Some(affix) = affixes
        .into_iter()
        .flatten()
        .find(|affix| !affix.is_empty())
    {
        return Err(format!(
            "BPE with {affix:?} on parts of words is not supported"
        ));
    }
    let merges = (model.merges.into_iter())
        .map(|merge| match merge {
            Merge::Pair(a, b) => Ok((a, b)),
            Merge::Text(text) => bpe::parts(&text),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut options = (BPE::builder())
        .fuse_unk(model.fuse_unk)
        .byte_fallback(model.byte_fallback)
        .ignore_merges(model.ignore_merges);
    if let Some(unknown) = model.unk_token {
        options = options.unk_token(unknown);
    }
    bpe::build(model.vocab, merges, options)
}

/// Ids that the post-processor puts in front of a text.
fn prefix(post_processor: Option<&Value>, vocabulary: &Vocab) -> Result<Vec<u32>, String> {
    let Some(step) = post_processor else {
        return Ok(Vec::new());
    };
    let ids = match step["type"].as_str().unwrap_or("") {
        "ByteLevel" => Vec::new(),
        "Sequence" => {
            let steps = step["processors"].as_array().map_or(&[][..], Vec::as_slice);
            // A later one works on what an earlier one made.
            let mut ids = Vec::new();
            for step in steps {
                ids.splice(..0, prefix(Some(step), vocabulary)?);
                check_prefix(&ids)?;
            }
            ids
        }
        "TemplateProcessing" => {
            let pieces = step["single"].as_array().map_or(&[][..], Vec::as_slice);
            (pieces.iter())
                .map_while(|piece| piece["SpecialToken"]["id"].as_str())
                .map(|token| {
                    (vocabulary.get(token).copied()).ok_or_else(|| {
                        format!("post_processor: {token:?} is not in the vocabulary")
                    })
                })
                .collect::<Result<_, _>>()?
        }
        other => {
            return Err(format!(
                "post_processor of type {other:?} is not supported, these are: Sequence, \
                 ByteLevel, TemplateProcessing"
            ));
        }
    };
    check_prefix(&ids)?;
    Ok(ids)
}

fn check_prefix(ids: &[u32]) -> Result<(), String> {
    match ids.len() {
        0..=MAX_PREFIX_TOKENS => Ok(()),
        _ => Err(format!(
            "post_processor: more than {MAX_PREFIX_TOKENS} tokens in front of a text"
        )),
    }
}
