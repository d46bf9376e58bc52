//! The files that make a model, from bytes: a GGUF file, a folder as the hub keeps it, and the texts
//! of a tokenizer alone. What loads computes an answer.

use std::path::Path;

use disagg_bench::model::engine::Engine;
use disagg_bench::model::kv_cache::{KvCache, KvDtype};
use disagg_bench::model::tokenizer::Tokenizer;
use disagg_bench::model::weights::WeightsFormat;

use super::{edited, file, folder};

/// A byte-level tokenizer with settings and template behind it, and one of pieces.
const TOKENIZER: &[u8] = include_bytes!("../corpus/tokenizer/byte-level");
const PIECES: &[u8] = include_bytes!("../corpus/tokenizer/pieces");
/// A folder with an index.
const FOLDER: &[u8] = include_bytes!("../corpus/model_folder/qwen2");

/// Ends a file where the bytes hold several.
const END: u8 = 0;

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
    answers_of_folder(bytes);
}

/// As [`model_folder`]; in how many formats of its weights it gave an answer.
pub fn answers_of_folder(bytes: &[u8]) -> usize {
    let mut parts = parts(bytes);
    let [config, index, header, data] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let tokenizer = self::parts(TOKENIZER).next().expect("a first part");
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
        ("tokenizer.json", tokenizer),
        (name, &weights[..]),
    ]);
    answer(here.path())
}

/// What [`TOKENIZER`] has: `tokenizer.json`, the settings, and a chat template, with [`END`] between
/// them.
pub fn tokenizer(bytes: &[u8]) {
    conversations_by_tokenizer(bytes);
}

/// As [`tokenizer`]; of how many texts it made tokens, as they are and in a conversation.
pub fn conversations_by_tokenizer(bytes: &[u8]) -> usize {
    let mut parts = parts(bytes);
    let here = with_files(
        &[
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ]
        .map(|name| (name, parts.next().unwrap_or_default())),
    );
    let Ok(tokenizer) = Tokenizer::from_folder(here.path()) else {
        return 0;
    };
    for id in [0, tokenizer.largest_id(), u32::MAX] {
        let _ = tokenizer.decode(&[id]);
        let _ = tokenizer.is_end(id);
    }
    let texts = TEXTS.iter();
    (texts.filter(|text| there_and_back(&tokenizer, text))).count()
}

/// A sound tokenizer or folder, in one file of which values were exchanged as the bytes say.
pub fn model_values(bytes: &[u8]) {
    let Some((choice, edits)) = bytes.split_first() else {
        return;
    };
    let (target, sound, edited_part): (fn(&[u8]), _, _) = match choice % 7 {
        0 => (tokenizer, TOKENIZER, 0),
        1 => (tokenizer, TOKENIZER, 1),
        2 => (tokenizer, PIECES, 0),
        3 => (tokenizer, PIECES, 1),
        4 => (model_folder, FOLDER, 0),
        5 => (model_folder, FOLDER, 1),
        _ => (model_folder, FOLDER, 2),
    };
    let mut parts: Vec<Vec<u8>> = parts(sound).map(<[u8]>::to_vec).collect();
    let part = std::str::from_utf8(&parts[edited_part]).expect("JSON of the corpus");
    parts[edited_part] = edited(part, edits);
    target(&parts.join(&END));
}

/// The files that bytes hold, up to four.
fn parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.splitn(4, |byte| *byte == END)
}

/// A new folder with those of the files that have content.
fn with_files(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let here = tempfile::tempdir_in(folder()).expect("a temporary folder");
    for (name, content) in files.iter().filter(|(_, content)| !content.is_empty()) {
        std::fs::write(here.path().join(name), content).expect("the temporary folder is writable");
    }
    here
}

/// Whether a text could become tokens, and text again, as it is and in a conversation.
fn there_and_back(tokenizer: &Tokenizer, text: &str) -> bool {
    let plain = tokenizer.encode(text).and_then(|ids| {
        assert!(ids.iter().all(|id| *id <= tokenizer.largest_id()));
        tokenizer.decode(&ids)
    });
    let chat = tokenizer.chat(&[("system", "short"), ("user", text)]);
    let chat = chat.and_then(|text| tokenizer.ids(&text));
    plain.is_ok() && chat.is_ok()
}

/// Loads a model in each format of its weights and computes two tokens; in how many it could.
fn answer(path: &Path) -> usize {
    let mut answers = 0;
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
                let step = engine.step(logits.argmax(), &cache);
                answers += usize::from(step.is_ok());
            }
        }
    }
    answers
}
