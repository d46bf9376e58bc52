//! Files of the user's own, and where the cache is.

use std::fs;

use super::*;

const CONTENT: &str = "GGUF and then some weights\n";
const CONTENT_SHA256: &str = "92cbd1004076631721366c22576c1073138169512c0f7d3bec12795a529daeea";

fn resolve_path(path: &Path) -> Result<ModelFiles, SourceError> {
    given_file(path, &Fingerprints::nowhere())
}

#[test]
fn the_cache_follows_the_variables_in_order() {
    let cache = |set: &[(&str, &str)]| {
        cache_dir_from(|name| {
            let value = set.iter().find(|(key, _)| *key == name)?.1;
            Some(PathBuf::from(value))
        })
    };
    let all = [
        ("HOME", "/h"),
        ("XDG_CACHE_HOME", "/x"),
        ("DISAGG_CACHE", "d"),
    ];
    assert_eq!(cache(&all).unwrap(), Path::new("d"));
    assert_eq!(
        cache(&all[..2]).unwrap(),
        Path::new("/x/disagg-bench/models")
    );
    assert_eq!(
        cache(&all[..1]).unwrap(),
        Path::new("/h/.cache/disagg-bench/models")
    );
    let relative = [("HOME", "/h"), ("XDG_CACHE_HOME", "x")];
    assert_eq!(
        cache(&relative).unwrap(),
        Path::new("/h/.cache/disagg-bench/models")
    );
    assert!(matches!(cache(&[]), Err(SourceError::NoCacheDir)));
}

#[test]
fn a_given_file_is_hashed_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.model.gguf");
    fs::write(&path, CONTENT).unwrap();
    let file = resolve_path(&path).unwrap();
    assert_eq!(file.name, "my.model");
    assert_eq!(file.bytes, CONTENT.len() as u64);
    assert_eq!(file.sha256, CONTENT_SHA256);
    assert_eq!(file.origin, Origin::GivenPath);
}

#[test]
fn the_hash_spans_several_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.gguf");
    let mut content = b"GGUF".to_vec();
    content.resize(3 * 1024 * 1024 + 1, b'x');
    fs::write(&path, &content).unwrap();
    let file = resolve_path(&path).unwrap();
    assert_eq!(file.bytes, content.len() as u64);
    assert_eq!(
        file.sha256,
        "8f70a55e8ecd68e1544abc75df51ae1a734aa2d5d9e48f5b2d58328fe1d7016c"
    );
}

#[test]
fn a_bad_path_is_named_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("empty.gguf"), "").unwrap();
    fs::write(at("short.gguf"), "GG").unwrap();
    fs::write(at("zip.gguf"), b"PK\x03\x04rest").unwrap();

    let missing = resolve_path(&at("none.gguf"));
    assert!(matches!(missing, Err(SourceError::Missing { .. })));
    let below_a_file = resolve_path(&at("zip.gguf/none.gguf"));
    assert!(matches!(below_a_file, Err(SourceError::Missing { .. })));
    let directory = resolve_path(folder.path());
    assert!(matches!(directory, Err(SourceError::IsDirectory { .. })));
    let empty = resolve_path(&at("empty.gguf"));
    assert!(matches!(empty, Err(SourceError::Empty { .. })));
    let short = resolve_path(&at("short.gguf"));
    assert!(matches!(short, Err(SourceError::NotGguf { .. })));
    let zip = resolve_path(&at("zip.gguf")).unwrap_err().to_string();
    assert!(
        zip.contains(r#"it starts with PK\x03\x04, wanted "GGUF""#),
        "{zip}"
    );
}

#[test]
fn a_given_folder_is_known_by_its_name_and_all_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("My-Model-1B");
    fs::create_dir(&path).unwrap();
    let resolved = |change: (&str, &str)| {
        fs::write(path.join(change.0), change.1).unwrap();
        given_folder(&path, &Fingerprints::nowhere())
    };
    resolved(("config.json", "{}")).unwrap_err();
    resolved(("tokenizer.json", "{}")).unwrap_err();
    let first = resolved(("model.safetensors", "weights")).unwrap();
    assert_eq!(first.name, "My-Model-1B");
    assert_eq!(first.location, Location::Folder(path.clone()));
    assert_eq!(first.bytes, 2 + 2 + 7);
    let unrelated = resolved(("README.md", "words")).unwrap();
    assert_eq!(unrelated, first);
    let templated = resolved(("chat_template.jinja", "{}")).unwrap();
    assert_ne!(templated.sha256, first.sha256);
    let other = resolved(("model.safetensors", "Weights")).unwrap();
    assert_ne!(other.sha256, templated.sha256);
}
