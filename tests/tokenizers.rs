//! Tokenizers of every supported kind, from a folder and from a GGUF file, give the ids, the text
//! and the rendered conversations that transformers gives. tests/tokenizers/ holds what is compared
//! with, and says how it was made.

#[path = "tokenizers/refused.rs"]
mod refused;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use disagg_bench::model::gguf::Gguf;
use disagg_bench::model::tokenizer::{Text, Tokenizer};
use serde::Deserialize;
use serde::de::DeserializeOwned;

const TOKENIZERS: [&str; 7] = [
    "gpt-2",
    "llama-2",
    "llama-3",
    "qwen2",
    "smollm",
    "spm-no-prefix",
    "tekken",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokenizers")
}

fn json<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// `expected.json` of a tokenizer.
#[derive(Deserialize)]
struct Expected {
    /// What every plain text begins with.
    beginning: Vec<u32>,
    texts: Vec<ExpectedText>,
}

#[derive(Deserialize)]
struct ExpectedText {
    ids: Vec<u32>,
    /// What the ids read as, if that is not the text.
    decoded: Option<String>,
}

fn compare(name: &str, tokenizer: &Tokenizer) {
    let expected: Expected = json(&fixtures().join(name).join("expected.json"));
    let texts: Vec<String> = json(&fixtures().join("texts.json"));
    assert_eq!(texts.len(), expected.texts.len());
    for (text, wanted) in texts.iter().zip(&expected.texts) {
        let rendered = tokenizer.encode_rendered(text).unwrap();
        assert_eq!(rendered, wanted.ids, "{name}: {text:?}");
        let plain = tokenizer.encode(text).unwrap();
        let (beginning, rest) = plain.split_at(expected.beginning.len());
        assert_eq!(
            (beginning, rest),
            (&expected.beginning[..], &rendered[..]),
            "{name}"
        );
        let decoded = tokenizer.decode(&plain).unwrap();
        assert_eq!(
            &decoded,
            wanted.decoded.as_ref().unwrap_or(text),
            "{name}: {text:?}"
        );
        assert!(plain.iter().all(|id| *id <= tokenizer.largest_id()));
    }
}

/// The GGUF file of a tokenizer, alone in a folder.
fn gguf_alone(name: &str) -> (tempfile::TempDir, Gguf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::copy(fixtures().join(name).join("model.gguf"), &path).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    (folder, gguf)
}

#[test]
fn folders_give_the_ids_of_transformers() {
    for name in TOKENIZERS {
        compare(
            name,
            &Tokenizer::from_folder(&fixtures().join(name)).unwrap(),
        );
    }
}

#[test]
fn gguf_files_give_the_ids_of_transformers() {
    for name in TOKENIZERS {
        compare(name, &Tokenizer::from_gguf(&gguf_alone(name).1).unwrap());
    }
}

/// `rendered.json`.
#[derive(Deserialize)]
struct Rendered {
    now: String,
    conversations: BTreeMap<String, Vec<(String, String)>>,
    templates: BTreeMap<String, Template>,
}

#[derive(Deserialize)]
struct Template {
    tokenizer: String,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Case {
    Chat { text: String, ids: Vec<u32> },
    Refused { error: String },
}

/// A tokenizer's folder anew, with a chat template beside it.
fn with_template(name: &str, template: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixtures().join(name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    std::fs::copy(template, folder.path().join("chat_template.jinja")).unwrap();
    folder
}

#[test]
fn chat_templates_give_the_text_and_the_ids_of_transformers() {
    let Rendered {
        now,
        conversations,
        templates,
    } = json(&fixtures().join("rendered.json"));
    let now: jiff::civil::DateTime = now.parse().unwrap();
    assert_eq!(templates.len(), 9);
    for (name, Template { tokenizer, cases }) in templates {
        let source = fixtures().join(format!("templates/{name}.jinja"));
        let folder = with_template(&tokenizer, &source);
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        for (conversation, wanted) in cases {
            let messages: Vec<(&str, &str)> = (conversations[&conversation].iter())
                .map(|(role, content)| (role.as_str(), content.as_str()))
                .collect();
            let rendered = tokenizer.chat_at(&messages, now);
            match wanted {
                Case::Chat { text, ids } => {
                    let rendered = rendered.unwrap();
                    assert_eq!(rendered, Text::Rendered(text), "{name}, {conversation}");
                    // No second beginning of sequence.
                    assert_eq!(
                        tokenizer.ids(&rendered).unwrap(),
                        ids,
                        "{name}, {conversation}"
                    );
                }
                Case::Refused { error } => {
                    let refusal = rendered.unwrap_err().to_string();
                    assert!(
                        refusal.contains(&error),
                        "{name}, {conversation}: {refusal}"
                    );
                }
            }
        }
    }
}

#[test]
fn each_end_of_an_answer_counts() {
    let id = |tokenizer: &Tokenizer, text: &str| tokenizer.encode_rendered(text).unwrap()[0];
    // From generation_config.json, a list and a number; from the settings of the tokenizer.
    let cases: [(&str, &[&str], &str); 4] = [
        (
            "llama-3",
            &["<|end_of_text|>", "<|eot_id|>"],
            "<|begin_of_text|>",
        ),
        ("qwen2", &["<|endoftext|>", "<|im_end|>"], "<|im_start|>"),
        ("smollm", &["<|im_end|>"], "<|endoftext|>"),
        ("llama-2", &["</s>"], "<s>"),
    ];
    for (name, ends, other) in cases {
        let tokenizer = Tokenizer::from_folder(&fixtures().join(name)).unwrap();
        for end in ends {
            assert!(tokenizer.is_end(id(&tokenizer, end)), "{name}: {end}");
        }
        assert!(!tokenizer.is_end(id(&tokenizer, other)), "{name}");
    }
    let tokenizer = Tokenizer::from_gguf(&gguf_alone("llama-2").1).unwrap();
    assert!(tokenizer.is_end(id(&tokenizer, "</s>")));
}

#[test]
fn the_chat_template_is_the_default_one_of_several() {
    let tokenizer = Tokenizer::from_folder(&fixtures().join("llama-2")).unwrap();
    let text = tokenizer.chat(&[("user", "Hi")]).unwrap();
    assert_eq!(text, Text::Rendered("<s>[INST] Hi [/INST]".into()));
    let tokenizer = Tokenizer::from_folder(&fixtures().join("gpt-2")).unwrap();
    assert_eq!(
        tokenizer.chat(&[("user", "Hi")]).unwrap(),
        Text::Plain("Hi".into())
    );
}

#[test]
fn a_tokenizer_beside_a_sentencepiece_file_is_used_if_it_is_of_the_same_vocabulary() {
    let (folder, gguf) = gguf_alone("llama-2");
    let beside = folder.path().join("tokenizer.json");
    let text = "it's the same";
    let own = Tokenizer::from_gguf(&gguf).unwrap().encode(text).unwrap();

    // No merges: every character for itself.
    let mut changed: serde_json::Value = json(&fixtures().join("llama-2/tokenizer.json"));
    changed["model"]["merges"] = serde_json::json!([]);
    std::fs::write(&beside, changed.to_string()).unwrap();
    let used = Tokenizer::from_gguf(&gguf).unwrap().encode(text).unwrap();
    assert_eq!(used.len(), 1 + "\u{2581}".chars().count() + text.len());

    let vocabulary = changed["model"]["vocab"].as_object_mut().unwrap();
    assert!(vocabulary.remove("s").is_some());
    let lacks = changed.to_string();
    let other = std::fs::read_to_string(fixtures().join("tekken/tokenizer.json")).unwrap();
    for ignored in [
        &other[..],
        &lacks,
        r#"{"model": {"vocab": {"<s>": 1}, "merges": []}}"#,
        // What cannot be read or used, though the file could do without.
        r#"{"model": {"type": "Unigram", "vocab": []}}"#,
        "{",
    ] {
        std::fs::write(&beside, ignored).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).expect(ignored);
        assert_eq!(tokenizer.encode(text).unwrap(), own, "{ignored}");
    }
    std::fs::remove_file(&beside).unwrap();
    std::fs::create_dir(&beside).unwrap();
    assert_eq!(
        Tokenizer::from_gguf(&gguf).unwrap().encode(text).unwrap(),
        own
    );
}

#[test]
fn a_folder_says_whether_text_has_a_beginning() {
    let beginning = |config: serde_json::Value| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::copy(
            fixtures().join("llama-2/tokenizer.json"),
            path("tokenizer.json"),
        )
        .unwrap();
        std::fs::write(path("tokenizer_config.json"), config.to_string()).unwrap();
        Tokenizer::from_folder(folder.path())
            .unwrap()
            .encode("")
            .unwrap()
    };
    let said = |add: bool| serde_json::json!({"bos_token": "<s>", "add_bos_token": add});
    assert_eq!(beginning(said(true)), [1]);
    assert!(beginning(said(false)).is_empty());
    // Else the post-processor decides.
    assert_eq!(beginning(serde_json::json!({})), [1]);
    // A beginning that the model does not have is none.
    assert!(beginning(serde_json::json!({"add_bos_token": true})).is_empty());
}
