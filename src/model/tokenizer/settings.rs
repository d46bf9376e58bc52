//! The settings beside a `tokenizer.json`: which tokens are special, what begins a text, what ends
//! an answer, and the chat template. Each file may be missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::AddedToken;

use crate::model::ModelError;
use crate::text_file::{self, MAX_CONFIGURATION_BYTES};

/// The file that most of it stands in.
pub const CONFIG_FILE: &str = "tokenizer_config.json";

/// What the files say, in the words of transformers.
#[derive(Debug, Default)]
pub struct Settings {
    /// Texts of the special tokens that have a name, by that name: `bos_token` and so on.
    pub special: BTreeMap<&'static str, String>,
    /// Further special tokens.
    pub additional: Vec<String>,
    /// Tokens that are never split, by their ids.
    pub added: BTreeMap<u32, AddedToken>,
    /// Whether a text begins with `bos_token`, where the files say.
    pub add_bos: Option<bool>,
    /// Ends of an answer besides `eos_token`.
    pub ends: BTreeSet<u32>,
    /// The chat template's source.
    pub template: Option<String>,
}

/// `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    sep_token: Option<Token>,
    pad_token: Option<Token>,
    cls_token: Option<Token>,
    mask_token: Option<Token>,
    additional_special_tokens: Option<Vec<Token>>,
    added_tokens_decoder: BTreeMap<u32, Added>,
    add_bos_token: Option<bool>,
    chat_template: Option<Templates>,
}

/// A token as text, or with how it is matched, which `tokenizer.json` says too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

/// A token that is never split.
#[derive(Deserialize)]
pub struct Added {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

/// One chat template or several with names.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// `generation_config.json` or `config.json`.
#[derive(Default, Deserialize)]
struct Ends {
    eos_token_id: Option<OneOrMore>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(BTreeSet<u32>),
}

impl Settings {
    /// Reads what there is.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let config: Config = parsed(&folder.join(CONFIG_FILE))?;
        let map: Config = parsed(&folder.join("special_tokens_map.json"))?;
        let template = match text(&folder.join("chat_template.jinja"))? {
            Some(template) => Some(template),
            None => (config.chat_template)
                .map(|templates| templates.default())
                .transpose()
                .map_err(|why| error(&folder.join(CONFIG_FILE), why))?,
        };
        let named = [
            ("bos_token", config.bos_token, map.bos_token),
            ("eos_token", config.eos_token, map.eos_token),
            ("unk_token", config.unk_token, map.unk_token),
            ("sep_token", config.sep_token, map.sep_token),
            ("pad_token", config.pad_token, map.pad_token),
            ("cls_token", config.cls_token, map.cls_token),
            ("mask_token", config.mask_token, map.mask_token),
        ];
        let additional = config
            .additional_special_tokens
            .or(map.additional_special_tokens);
        // transformers asks the second only where there is no first.
        let ends: Ends = match parsed::<Ends>(&folder.join("generation_config.json"))? {
            Ends { eos_token_id: None } => parsed(&folder.join("config.json"))?,
            found => found,
        };
        Ok(Self {
            special: (named.into_iter())
                .filter_map(|(name, config, map)| Some((name, config.or(map)?.text())))
                .collect(),
            additional: (additional.into_iter().flatten())
                .map(Token::text)
                .collect(),
            added: (config.added_tokens_decoder.into_iter())
                .map(|(id, token)| (id, token.into()))
                .collect(),
            add_bos: config.add_bos_token,
            ends: match ends.eos_token_id {
                None => BTreeSet::new(),
                Some(OneOrMore::One(id)) => BTreeSet::from([id]),
                Some(OneOrMore::More(ids)) => ids,
            },
            template,
        })
    }
}

impl Token {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

impl From<Added> for AddedToken {
    fn from(added: Added) -> Self {
        Self {
            content: added.content,
            single_word: added.single_word,
            lstrip: added.lstrip,
            rstrip: added.rstrip,
            normalized: added.normalized.unwrap_or(!added.special),
            special: added.special,
        }
    }
}

impl Templates {
    fn default(self) -> Result<String, String> {
        let named = match self {
            Self::One(template) => return Ok(template),
            Self::Named(named) => named,
        };
        let names: Vec<&str> = named.iter().map(|one| one.name.as_str()).collect();
        let none = format!(
            "chat templates named {}, wanted one named default: put the right one into \
             chat_template.jinja beside it",
            names.join(", ")
        );
        (named.into_iter().find(|one| one.name == "default"))
            .map(|one| one.template)
            .ok_or(none)
    }
}

/// An error about a file of the tokenizer.
pub fn error(path: &Path, why: impl Into<String>) -> ModelError {
    ModelError::Tokenizer {
        path: path.to_path_buf(),
        why: why.into(),
    }
}

/// A file's text; `None` where there is no such file.
fn text(path: &Path) -> Result<Option<String>, ModelError> {
    match text_file::read(path, MAX_CONFIGURATION_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(error(path, e.to_string())),
    }
}

/// A JSON file; as if empty where there is none.
fn parsed<T: DeserializeOwned + Default>(path: &Path) -> Result<T, ModelError> {
    match text(path)? {
        Some(text) => serde_json::from_str(&text).map_err(|e| error(path, e.to_string())),
        None => Ok(T::default()),
    }
}
