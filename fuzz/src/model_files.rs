//! The files that make a model, from bytes: a GGUF file, a folder as the hub keeps it, and the texts
//! of a tokenizer alone. What loads computes an answer.

use std::path::Path;

use disagg_bench::model::engine::Engine;
use disagg_bench::model::kv_cache::{KvCache, KvDtype};
use disagg_bench::model::tokenizer::Tokenizer;
use disagg_bench::model::weights::WeightsFormat;

use super::{file, folder};

/// A byte-level tokenizer with settings and template behind it.
const TOKENIZER: &str = include_str!("../corpus/tokenizer/byte-level");

/// Ends a file where the bytes hold several.
const END: char = '\0';

/// Positions for which a model's answer is computed.
const PROMPT: [u32; 3] = [0, 1, 2];

/// What becomes tokens: special ones, spaces in a row, composed letters, bytes of several.
const TEXTS: [&str; 4] = [
    "",
    "the thin <|end|> one",
    "\u{2581}  The e\u{301} \u{1d11e} 12\n\n",
    "<s>the</s>",
];

/// A GGUF file: shape, tokenizer, chat template, weights in every format, and an answer.
pub fn model(bytes: &[u8]) {
    answer(&file("model.gguf", bytes));
}

/// A folder: configuration, index and header of the weights, each with [`END`] behind it, then the
/// weights; a header of nothing is in them. The weights are a shard where there is an index.
pub fn model_folder(bytes: &[u8]) {
    let mut parts = bytes.splitn(4, |byte| *byte == END as u8);
    let [config, index, header, data] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let tokenizer = TOKENIZER.split(END).next().expect("a first part");
    let length = (header.len() as u64).to_le_bytes();
    let weights = match header {
        [] => data.to_vec(),
        _ => [&length, header, data].concat(),
    };
    let name = match index {
        [] => "model.safetensors",
        _ => "a.safetensors",
    };
    let here = with_files(&[
        ("config.json", config),
        ("model.safetensors.index.json", index),
        ("tokenizer.json", tokenizer.as_bytes()),
        (name, &weights[..]),
    ]);
    answer(here.path());
}

/// What [`TOKENIZER`] has: `tokenizer.json`, the settings, and a chat template, with [`END`] between
/// them.
pub fn tokenizer(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == END as u8);
    let here = with_files(
        &[
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ]
        .map(|name| (name, parts.next().unwrap_or_default())),
    );
    let Ok(tokenizer) = Tokenizer::from_folder(here.path()) else {
        return;
    };
    TEXTS
        .iter()
        .for_each(|text| there_and_back(&tokenizer, text));
    for id in [0, tokenizer.largest_id(), u32::MAX] {
        let _ = tokenizer.decode(&[id]);
        let _ = tokenizer.is_end(id);
    }
}

/// A new folder with those of the files that have content.
fn with_files(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let here = tempfile::tempdir_in(folder()).expect("a temporary folder");
    for (name, content) in files.iter().filter(|(_, content)| !content.is_empty()) {
        std::fs::write(here.path().join(name), content).expect("the temporary folder is writable");
    }
    here
}

fn there_and_back(tokenizer: &Tokenizer, text: &str) {
    if let Ok(ids) = tokenizer.encode(text) {
        assert!(ids.iter().all(|id| *id <= tokenizer.largest_id()));
        let _ = tokenizer.decode(&ids);
    }
    let chat = tokenizer.chat(&[("system", "short"), ("user", text)]);
    let _ = chat.and_then(|text| tokenizer.ids(&text));
}

/// Loads a model in each format of its weights and computes two tokens.
fn answer(path: &Path) {
    for weights in [None, Some(WeightsFormat::Q8), Some(WeightsFormat::F32)] {
        let Ok(engine) = Engine::load(path, "fuzzed", "", weights, &|_, _| {}) else {
            continue;
        };
        there_and_back(&engine.tokenizer, TEXTS[1]);
        let vocabulary = engine.shape().vocabulary as u32;
        if engine.check_length(PROMPT.len(), 1).is_ok() && PROMPT.iter().all(|t| *t < vocabulary) {
            let layout = engine.shape().kv_layout(KvDtype::F16);
            let cache = KvCache::new(layout, PROMPT.len() + 1);
            if let Ok(logits) = engine.prefill(&PROMPT, Some(2), &cache, |_| {}) {
                let _ = engine.step(logits.argmax(), &cache);
            }
        }
    }
}
