//! Folders whose files ask for what is not supported, or contradict each other.

use disagg_bench::model::tokenizer::Tokenizer;

use super::{fixtures, json};

/// What the folder of `llama-2` says of itself after a change of one of its files.
fn refusal(file: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(
            fixtures().join("llama-2").join(name),
            folder.path().join(name),
        )
        .unwrap();
    }
    let path = folder.path().join(file);
    let mut value = match path.exists() {
        true => json(&path),
        false => serde_json::json!({}),
    };
    change(&mut value);
    std::fs::write(&path, value.to_string()).unwrap();
    match Tokenizer::from_folder(folder.path()) {
        Ok(tokenizer) => panic!("{file} was taken: {:?}", tokenizer.encode("the <s> 7")),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_folder_that_says_something_else_is_refused_with_its_file() {
    use serde_json::json;

    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change, &str); 21] = [
        // The crate would panic at the first two.
        (
            "tokenizer.json",
            |v| v["model"]["merges"] = json!([["<unk>", "<unk>"]]),
            "lacks",
        ),
        (
            "tokenizer.json",
            |v| v["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AA=="}),
            "normalizer of type \"Precompiled\"",
        ),
        (
            "tokenizer.json",
            |v| v["model"]["merges"] = json!(["ab"]),
            "no two parts",
        ),
        (
            "tokenizer.json",
            |v| v["model"]["type"] = json!("Unigram"),
            "type \"Unigram\"",
        ),
        (
            "tokenizer.json",
            |v| v["model"]["dropout"] = json!(0.1),
            "dropout",
        ),
        (
            "tokenizer.json",
            |v| v["model"]["end_of_word_suffix"] = json!("</w>"),
            "</w>",
        ),
        (
            "tokenizer.json",
            |v| v["model"]["vocab"] = json!([]),
            "tokenizer.json",
        ),
        (
            "tokenizer.json",
            |v| v["added_tokens"][1]["id"] = json!(7),
            "\"<s>\" has id 7",
        ),
        (
            "tokenizer.json",
            |v| v["post_processor"] = json!({"type": "BertProcessing"}),
            "post_processor of type \"BertProcessing\"",
        ),
        ("tokenizer.json", |v| *v = json!([1]), "tokenizer.json"),
        (
            "tokenizer.json",
            |v| {
                let grows = json!({"type": "Replace", "pattern": {"String": "a"},
                                   "content": "aaaa"});
                v["normalizer"] = json!({"type": "Sequence", "normalizers": vec![grows; 10]});
            },
            "the normalizer makes more than 256 bytes",
        ),
        (
            "tokenizer.json",
            |v| v["normalizer"] = json!({"type": "Prepend", "prepend": "a".repeat(256)}),
            "the normalizer makes more than 256 bytes",
        ),
        (
            "tokenizer.json",
            |v| {
                let bytes = json!({"type": "ByteLevel", "add_prefix_space": false,
                                   "trim_offsets": true});
                v["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": vec![bytes; 10]});
            },
            "the pre_tokenizer makes more than 256 bytes",
        ),
        (
            "tokenizer.json",
            |v| {
                v["decoder"] = json!({"type": "Replace", "pattern": {"String": "ab"},
                                      "content": "c".repeat(513)});
            },
            "the decoder makes more than 256 bytes",
        ),
        (
            "tokenizer.json",
            |v| {
                v["decoder"] = json!({"type": "Replace", "pattern": {"Regex": "x*"},
                                      "content": "y"});
            },
            "regular expression",
        ),
        (
            "tokenizer.json",
            |v| {
                let inner =
                    json!({"type": "Sequence", "decoders": vec![json!({"type": "Fuse"}); 11]});
                v["decoder"] = json!({"type": "Sequence", "decoders": vec![inner; 3]});
            },
            "the decoder has more than 32 steps",
        ),
        (
            "tokenizer.json",
            |v| {
                let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
                v["post_processor"] =
                    json!({"type": "TemplateProcessing", "single": vec![bos; 17]});
            },
            "more than 16 tokens in front",
        ),
        (
            "tokenizer_config.json",
            |v| v["bos_token"] = json!("<none>"),
            "bos_token is \"<none>\"",
        ),
        (
            "tokenizer_config.json",
            |v| v["chat_template"] = json!([{"name": "rag", "template": ""}]),
            "named rag",
        ),
        (
            "generation_config.json",
            |v| v["eos_token_id"] = json!([2, "x"]),
            "generation_config.json",
        ),
        (
            "config.json",
            |v| v["eos_token_id"] = json!(-1),
            "config.json",
        ),
    ];
    for (file, change, part) in cases {
        let error = refusal(file, change);
        assert!(
            error.contains(part) && error.contains(file),
            "{part}: {error}"
        );
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(Tokenizer::from_folder(empty.path()).is_err());
}
