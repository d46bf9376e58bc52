//! Folders with and without what a model needs.

use std::fs;

use super::*;

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| name.to_string()).collect()
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        fs::write(folder.join(name), content).unwrap();
    }
}

#[test]
fn what_is_needed_is_chosen_and_nothing_else() {
    let all = [
        "README.md",
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let selection = select(&names(&all)).unwrap();
    assert!(!selection.is_sharded);
    assert_eq!(
        selection.texts,
        [
            "config.json",
            "tokenizer.json",
            "special_tokens_map.json",
            "tokenizer_config.json"
        ]
    );
    let sharded = names(&[
        "config.json",
        "tokenizer.json",
        INDEX,
        "chat_template.jinja",
    ]);
    let sharded = select(&sharded).unwrap();
    assert!(sharded.is_sharded);
    assert_eq!(sharded.texts[2], "chat_template.jinja");
}

#[test]
fn what_cannot_run_is_refused_with_its_reason() {
    let refused = |all: &[&str]| select(&names(all)).unwrap_err();
    let pickle = refused(&["config.json", "tokenizer.json", "pytorch_model.bin"]);
    assert_eq!(pickle, Unusable::OnlyPickle("pytorch_model.bin".into()));
    assert!(pickle.to_string().contains("can run code"), "{pickle}");
    let gguf = refused(&["a.gguf", "b.gguf", "pytorch_model.bin"]);
    assert_eq!(gguf, Unusable::OnlyGguf("a.gguf, b.gguf".into()));
    assert_eq!(refused(&["README.md"]), Unusable::NoWeights);
    let bare = refused(&["config.json", WEIGHTS]);
    assert_eq!(bare, Unusable::Lacks("tokenizer.json"));
}

#[test]
fn an_index_that_leaves_its_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join(INDEX);
    let of = |map: &str| {
        fs::write(&index, map).unwrap();
        shards(&index)
    };
    let two =
        r#"{"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}}"#;
    assert_eq!(of(two).unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
    for bad in [
        "../m.safetensors",
        "/m.safetensors",
        "a/m.safetensors",
        "m.bin",
    ] {
        let error = of(&format!(r#"{{"weight_map":{{"a":"{bad}"}}}}"#)).unwrap_err();
        assert!(error.to_string().contains(bad), "{error}");
    }
    for broken in [
        "",
        "[]",
        "{}",
        r#"{"weight_map":{}}"#,
        r#"{"weight_map":{"a":1}}"#,
    ] {
        let error = of(broken).unwrap_err();
        assert!(matches!(error, Unusable::Index(_)), "{broken}: {error}");
    }
    let many: Vec<String> = (0..=MAX_SHARDS)
        .map(|i| format!(r#""{i}":"{i}.safetensors""#))
        .collect();
    let many = of(&format!(r#"{{"weight_map":{{{}}}}}"#, many.join(","))).unwrap_err();
    assert!(many.to_string().contains("2001 files"), "{many}");
}

#[test]
fn the_digest_is_that_of_sha256sum_over_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let index = r#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#;
    write(
        path,
        &[
            ("config.json", "{}"),
            ("tokenizer.json", "{\"a\":1}"),
            (INDEX, index),
            ("m-1.safetensors", "one"),
            ("m-2.safetensors", "two"),
            ("unrelated.txt", "x"),
        ],
    );
    let known = Fingerprints::nowhere();
    let digest = digest(path, &known).unwrap();
    assert_eq!(digest.bytes, 2 + 7 + 3 + 3);
    // sha256sum config.json m-1.safetensors m-2.safetensors tokenizer.json | sha256sum
    assert_eq!(
        digest.sha256,
        "8aedbc3e70cb05026c191b06719bcf5788d6b371d302ab8cfe7b2f17b66b1b15"
    );
    assert_eq!(name(&path.join(".")), name(path));

    fs::remove_file(path.join("m-2.safetensors")).unwrap();
    let error = files(path).unwrap_err().to_string();
    assert!(
        error.contains("m-2.safetensors is named but not there"),
        "{error}"
    );
    write(path, &[("m-2.safetensors", "")]);
    let error = files(path).unwrap_err().to_string();
    assert!(error.contains("m-2.safetensors is empty"), "{error}");
}
