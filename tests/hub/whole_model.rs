//! A model of several shards, fetched from a hub and run.

use std::fs;
use std::path::Path;

use super::scene::{Scene, names};
use super::server::REPOSITORY;
use super::tiny_model::Ended;

#[test]
fn shards_of_a_hub_run_and_then_run_offline() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/architectures/llama2");
    let names = names(&folder);
    let contents: Vec<Vec<u8>> = (names.iter())
        .map(|name| fs::read(folder.join(name)).unwrap())
        .collect();
    let files: Vec<(&str, &[u8])> = (names.iter().zip(&contents))
        .map(|(name, content)| (&name[..], &content[..]))
        .collect();
    let scene = Scene::new(&files);
    let arguments = [
        "baseline",
        "--model",
        REPOSITORY,
        "--raw",
        "--prompt",
        "hello",
        "--output-tokens",
        "3",
        "--repeats",
        "1",
    ];
    scene.run(&arguments).exits(0);
    let asked = scene.hub.asked();
    let of_store: Vec<_> = asked.iter().filter(|asked| asked.at_store).collect();
    assert_eq!(of_store.len(), 4, "{of_store:?}");

    let mut offline = scene.command(&arguments);
    offline.env("HF_HUB_OFFLINE", "1");
    Ended::of(offline).exits(0);
    let digest = |model: &str| {
        let ended = scene.run(&["models", "show", model, "--offline"]).exits(0);
        let line = ended.stdout.lines().find(|line| line.contains("SHA-256"));
        line.unwrap().to_owned()
    };
    assert_eq!(digest(REPOSITORY), digest(folder.to_str().unwrap()));
    assert!(scene.hub.asked().is_empty());
}
