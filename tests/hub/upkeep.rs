//! What is in the cache: used, listed and removed, and what others put there left alone.

use std::fs;

use super::scene::{CONFIG, Scene, TOKENIZER, names, weights};
use super::server::{REPOSITORY, Trouble};

#[test]
fn what_was_fetched_can_be_removed_and_nothing_else() {
    let scene = Scene::usual();
    let remove = ["models", "remove", REPOSITORY];
    scene.fetch().exits(0);
    let ended = scene.run(&remove).exits(0);
    assert!(ended.stdout.contains("removed 4 files, 0.4 MB"), "{ended}");
    assert!(!scene.repository().exists());
    scene.run(&remove).fails(3, &["nothing to remove"]);

    // Half of it was there before.
    let theirs: [(&str, &[u8]); 2] = [("config.json", CONFIG), ("tokenizer.json", TOKENIZER)];
    scene.is_cached_by_others(&theirs);
    scene.run(&remove).fails(3, &["this tool did not fetch it"]);
    scene.fetch().exits(0);
    let ended = scene.run(&remove).exits(0);
    assert!(
        ended.stdout.contains("what others put there is left"),
        "{ended}"
    );
    assert_eq!(names(&scene.snapshot()), ["config.json", "tokenizer.json"]);
    assert_eq!(
        fs::read(scene.snapshot().join("config.json")).unwrap(),
        CONFIG
    );
    assert_eq!(names(&scene.blob("")).len(), 2);
    scene
        .run(&["models", "remove", "tiny.gguf"])
        .fails(3, &["your own"]);
    assert!(scene.place.path("tiny.gguf").exists());
}

#[test]
fn gguf_files_beside_safetensors_are_models_of_their_own() {
    let scene = Scene::usual();
    scene.hub.put("q/tiny.gguf", b"GGUF");
    let gguf = "org/tiny:q/tiny.gguf";
    scene.run(&["models", "fetch", gguf]).exits(0);
    scene.fetch().exits(0);
    let list = scene.run(&["models", "list"]).exits(0);
    for name in ["org/tiny: ", "org/tiny:q/tiny.gguf: "] {
        assert!(list.stdout.contains(name), "{name}: {list}");
    }
    scene.run(&["models", "remove", REPOSITORY]).exits(0);
    assert_eq!(names(&scene.snapshot()), ["q"]);
    scene.run(&["models", "fetch", gguf, "--offline"]).exits(0);
    scene.run(&["models", "remove", gguf]).exits(0);
    assert!(!scene.repository().exists());
}

#[test]
fn what_two_commits_share_goes_with_the_last_of_them() {
    let scene = Scene::usual();
    scene.fetch().exits(0);
    let first = format!("{REPOSITORY}@{}", scene.hub.commit());
    scene.hub.put("README.md", b"other words");
    scene.fetch().exits(0);
    scene.run(&["models", "remove", &first]).exits(0);
    scene.run(&["models", "verify", REPOSITORY]).exits(0);
    assert_eq!(
        names(&scene.repository().join("snapshots")),
        [scene.hub.commit()]
    );
    let ended = scene.run(&["models", "remove", REPOSITORY]).exits(0);
    assert!(ended.stdout.contains("removed 4 files"), "{ended}");
    assert!(!scene.repository().exists());
}

#[test]
fn an_interrupted_download_is_removed_too() {
    let scene = Scene::usual();
    scene.hub.set(Trouble {
        cut: Some((10, usize::MAX)),
        ..Trouble::default()
    });
    scene.fetch().fails(3, &["broke off"]);
    assert!(scene.repository().exists());
    scene.run(&["models", "remove", REPOSITORY]).exits(0);
    assert!(!scene.repository().exists());
}

#[test]
fn a_snapshot_of_another_tool_is_used_where_it_is() {
    let scene = Scene::usual();
    let weights = weights(100_000, 7);
    let theirs: [(&str, &[u8]); 3] = [
        ("config.json", CONFIG),
        ("tokenizer.json", TOKENIZER),
        ("model.safetensors", &weights),
    ];
    scene.is_cached_by_others(&theirs);
    let ended = scene
        .run(&["models", "fetch", REPOSITORY, "--offline"])
        .exits(0);
    assert!(
        ended.stdout.contains(scene.snapshot().to_str().unwrap()),
        "{ended}"
    );
    assert!(scene.hub.asked().is_empty());
}

#[test]
fn the_list_has_the_names_that_can_be_given_and_fits_80_columns() {
    let scene = Scene::usual();
    scene.fetch().exits(0);
    fs::remove_file(scene.snapshot().join("tokenizer.json")).unwrap();
    scene.hub.put("README.md", b"other words");
    scene.fetch().exits(0);
    let ended = scene.run(&["models", "list"]).exits(0);
    let table = ended.stdout.split("\n\n").next().unwrap();
    assert!(
        table.lines().all(|line| line.chars().count() <= 80),
        "{ended}"
    );
    for (name, here) in [
        ("smollm2-135m", "no"),
        ("org/tiny ", "yes"),
        ("org/tiny@", "no"),
    ] {
        let row = table
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        assert!(
            row.is_some_and(|row| row.trim_end().ends_with(here)),
            "{name}: {ended}"
        );
    }
    assert!(ended.stdout.contains("it has no tokenizer.json"), "{ended}");
}
