//! The tokenizer that a GGUF file holds.
//!
//! `tokenizer.ggml.model` is `gpt2` for byte-level BPE and `llama` for SentencePiece. How text is
//! cut before byte-level BPE cannot be derived from the vocabulary, so it is looked up by
//! `tokenizer.ggml.pre` in a list of rules, each compared with transformers on the model that it
//! was made for; anything else is refused. Where a `tokenizer.json` of the same vocabulary lies
//! beside a SentencePiece file, it is used: its merges are the model's own, not derived.

use std::collections::{BTreeMap, BTreeSet};

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::chat::ChatTemplate;
use super::sentencepiece::{self, Piece, PieceKind};
use super::{Tokenizer, Vocabulary, bpe, folder, settings};
use crate::model::ModelError;
use crate::model::gguf::Gguf;

/// `tokenizer.ggml.pre` values with checked rules.
pub const PRE_TOKENIZERS: &[&str] = &[
    "gpt-2",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "qwen2",
    "smollm",
    "tekken",
];

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What byte-level BPE is told besides vocabulary and merges.
struct Rules {
    pre_tokenizer: PreTokenizerWrapper,
    /// Unicode's composed form first.
    composes: bool,
    /// A word that is a token stays one, whatever the merges would make of it.
    ignore_merges: bool,
    /// Whether a text gets a beginning where the file does not say.
    add_bos: bool,
}

impl Tokenizer {
    /// Builds the tokenizer of a GGUF file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let (inner, add_bos) = match gguf.text("tokenizer.ggml.model")? {
            "gpt2" => byte_level(gguf, &tokens)?,
            "llama" => {
                let pieces = pieces(gguf, &tokens)?;
                match beside(gguf, &pieces) {
                    Some(inner) => (inner, true),
                    None => (sentencepiece(gguf, &pieces)?, true),
                }
            }
            other => {
                return Err(gguf.error(format!(
                    "tokenizer model {other} is not supported, byte-level BPE (gpt2) and \
                     SentencePiece (llama) are"
                )));
            }
        };
        let id = |name: &str| token_id(gguf, name, tokens.len());
        let bos = id("bos")?;
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token", add_bos)?;
        let ends = [id("eos")?, id("eot")?, id("eom")?];
        let template = match gguf.has("tokenizer.chat_template") {
            true => {
                let named = [
                    ("bos_token", bos),
                    ("eos_token", id("eos")?),
                    ("unk_token", id("unknown")?),
                    ("sep_token", id("seperator")?),
                    ("pad_token", id("padding")?),
                ];
                let special: BTreeMap<_, _> = (named.into_iter())
                    .filter_map(|(name, id)| Some((name, tokens[id? as usize].to_string())))
                    .collect();
                let source = gguf.text("tokenizer.chat_template")?;
                Some(ChatTemplate::new(source, special, Vec::new()))
            }
            false => None,
        };
        Ok(Self {
            vocabulary: Vocabulary::Trained(Box::new(inner)),
            prefix: bos.filter(|_| add_bos).into_iter().collect(),
            ends: ends.into_iter().flatten().collect::<BTreeSet<u32>>(),
            template,
        })
    }
}

/// The id of a special token, where the file has one; GGUF spells `seperator` so.
fn token_id(gguf: &Gguf, name: &str, n_tokens: usize) -> Result<Option<u32>, ModelError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    if !gguf.has(&key) {
        return Ok(None);
    }
    let id = gguf.unsigned(&key)?;
    match u32::try_from(id) {
        Ok(small) if (small as usize) < n_tokens => Ok(Some(small)),
        _ => Err(gguf.error(format!(
            "metadata {key} is {id}, the vocabulary has {n_tokens} tokens"
        ))),
    }
}

/// Byte-level BPE, and whether a text begins with the beginning-of-sequence token by default.
fn byte_level(gguf: &Gguf, tokens: &[&str]) -> Result<(tokenizers::Tokenizer, bool), ModelError> {
    let rules = rules(gguf)?;
    let merges = (gguf.texts("tokenizer.ggml.merges")?.iter())
        .map(|merge| bpe::parts(merge))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|why| gguf.error(why))?;
    let vocabulary = (tokens.iter().zip(0..))
        .map(|(text, id)| (text.to_string(), id))
        .collect();
    let options = BPE::builder().ignore_merges(rules.ignore_merges);
    let model = bpe::build(vocabulary, merges, options).map_err(|why| gguf.error(why))?;
    let bad = |e: tokenizers::Error| gguf.error(format!("tokenizer: {e}"));
    let mut inner = tokenizers::Tokenizer::new(model);
    if rules.composes {
        inner.with_normalizer(Some(NFC)).map_err(bad)?;
    }
    inner.with_pre_tokenizer(Some(rules.pre_tokenizer));
    inner.with_decoder(Some(ByteLevelDecoder::default()));
    let types = gguf.integers("tokenizer.ggml.token_type")?;
    let whole =
        (tokens.iter().zip(types)).filter_map(|(text, kind)| match PieceKind::from_gguf(kind) {
            PieceKind::Control => Some(bpe::whole_token(text, true)),
            PieceKind::UserDefined => Some(bpe::whole_token(text, false)),
            _ => None,
        });
    inner.add_tokens(whole).map_err(bad)?;
    Ok((inner, rules.add_bos))
}

/// The rules that go with `tokenizer.ggml.pre`.
fn rules(gguf: &Gguf) -> Result<Rules, ModelError> {
    let split = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.to_string());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| gguf.error(format!("tokenizer: {e}")))?;
        let bytes = ByteLevel::new(false, true, false);
        Ok::<_, ModelError>(Sequence::new(vec![split.into(), bytes.into()]).into())
    };
    let words = ByteLevel::new(false, true, true);
    let plain = |pre_tokenizer| Rules {
        pre_tokenizer,
        composes: false,
        ignore_merges: false,
        add_bos: false,
    };
    let tiktoken = |pre_tokenizer| Rules {
        ignore_merges: true,
        add_bos: true,
        ..plain(pre_tokenizer)
    };
    match gguf.text("tokenizer.ggml.pre")? {
        "gpt-2" => Ok(plain(words.into())),
        "smollm" => {
            let digits = Digits::new(true);
            Ok(plain(
                Sequence::new(vec![digits.into(), words.into()]).into(),
            ))
        }
        "qwen2" => Ok(Rules {
            composes: true,
            ..plain(split(QWEN2)?)
        }),
        "llama-bpe" | "llama-v3" | "llama3" => Ok(tiktoken(split(LLAMA3)?)),
        "tekken" => Ok(tiktoken(split(TEKKEN)?)),
        other => Err(gguf.error(format!(
            "pre-tokenizer {other:?} is not supported, these are: {}",
            PRE_TOKENIZERS.join(", ")
        ))),
    }
}

/// A SentencePiece vocabulary.
fn pieces<'a>(gguf: &Gguf, tokens: &[&'a str]) -> Result<Vec<Piece<'a>>, ModelError> {
    let scores = gguf.floats("tokenizer.ggml.scores")?;
    let kinds = gguf.integers("tokenizer.ggml.token_type")?;
    if scores.len() != tokens.len() || kinds.len() != tokens.len() {
        return Err(gguf.error(format!(
            "{} tokens with {} scores and {} types: wanted one of each a token",
            tokens.len(),
            scores.len(),
            kinds.len()
        )));
    }
    Ok((tokens.iter().zip(scores).zip(kinds))
        .map(|((text, score), kind)| Piece {
            text,
            score,
            kind: PieceKind::from_gguf(kind),
        })
        .collect())
}

/// The tokenizer of these pieces and of what else the file says.
fn sentencepiece(gguf: &Gguf, pieces: &[Piece]) -> Result<tokenizers::Tokenizer, ModelError> {
    if gguf.has("tokenizer.ggml.precompiled_charsmap") {
        return Err(gguf.error(
            "its text is normalised by a precompiled map, which is not supported: put the model's \
             tokenizer.json beside the file",
        ));
    }
    let options = sentencepiece::Options {
        unknown: token_id(gguf, "unknown", pieces.len())?,
        add_space_prefix: gguf.flag("tokenizer.ggml.add_space_prefix", true)?,
        remove_extra_whitespaces: gguf.flag("tokenizer.ggml.remove_extra_whitespaces", false)?,
    };
    sentencepiece::build(pieces, &options).map_err(|why| gguf.error(why))
}

/// The `tokenizer.json` beside the file, if it can be used and is of the same vocabulary.
fn beside(gguf: &Gguf, pieces: &[Piece]) -> Option<tokenizers::Tokenizer> {
    let path = gguf.path().with_file_name(folder::TOKENIZER_FILE);
    if !path.exists() {
        return None;
    }
    let used = folder::read_tokenizer(&path, &BTreeMap::new(), &[]).and_then(|read| {
        same_vocabulary(read.inner, pieces).map_err(|why| settings::error(&path, why))
    });
    match used {
        Ok(inner) => {
            tracing::info!("text becomes tokens by {}", path.display());
            Some(inner)
        }
        Err(why) => {
            tracing::warn!("{why}: the GGUF file's own vocabulary is used");
            None
        }
    }
}

/// The tokenizer, if it has the pieces that text can become, with their ids, and no others.
fn same_vocabulary(
    inner: tokenizers::Tokenizer,
    pieces: &[Piece],
) -> Result<tokenizers::Tokenizer, String> {
    let ids = inner.get_vocab(true);
    let other = (ids.iter()).find(|(text, id)| {
        let piece = pieces.get(**id as usize);
        piece.is_none_or(|piece| piece.text != text.as_str())
    });
    if let Some((text, id)) = other {
        return Err(format!(
            "it is of another vocabulary, its token {id} is {text:?}"
        ));
    }
    let mut needed = (pieces.iter().zip(0..)).filter(|(piece, _)| piece.kind != PieceKind::Unused);
    match needed.find(|(piece, id)| ids.get(piece.text) != Some(id)) {
        Some((piece, id)) => Err(format!(
            "it is of another vocabulary, which lacks token {id}, {:?}",
            piece.text
        )),
        None => Ok(inner),
    }
}
