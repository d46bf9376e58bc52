//! Files that are cut short or changed, on their way or in the cache: found, named and mended.

use std::fs;

use super::scene::{CONFIG, Scene, TOKENIZER, names, weights};
use super::server::{REPOSITORY, Trouble};

const VERIFY: [&str; 3] = ["models", "verify", REPOSITORY];
const REMOVE: [&str; 3] = ["models", "remove", REPOSITORY];

impl Scene {
    /// Takes the second half of a cached file away.
    fn cut_short(&self, file: &str) {
        let file = fs::File::options()
            .write(true)
            .open(self.snapshot().join(file));
        let file = file.unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }

    /// Changes one byte of a cached file.
    fn flip_a_byte(&self, file: &str) {
        let path = self.snapshot().join(file);
        let mut content = fs::read(&path).unwrap();
        content[10] ^= 1;
        fs::write(&path, content).unwrap();
    }
}

#[test]
fn what_is_not_what_was_promised_is_thrown_away() {
    let flipped = |file| Trouble {
        flips_a_byte_of: Some(file),
        ..Trouble::default()
    };
    let longer = Trouble {
        sends_more: true,
        ..Trouble::default()
    };
    for (trouble, file, part) in [
        (flipped("model.safetensors"), "model.safetensors", "SHA-256"),
        (flipped("tokenizer.json"), "tokenizer.json", "git's SHA-1"),
        (longer, "model.safetensors", "more than"),
    ] {
        let scene = Scene::usual();
        scene.hub.set(trouble);
        scene
            .fetch()
            .fails(3, &[file, "not what it promised", part]);
        assert!(!scene.snapshot().join(file).exists());
        scene.hub.set(Trouble::default());
        scene.fetch().exits(0);
    }
}

#[test]
fn a_file_that_was_cut_short_is_fetched_again() {
    for has_no_sizes in [false, true] {
        let scene = Scene::usual();
        scene.fetch().exits(0);
        scene.hub.set(Trouble {
            has_no_sizes,
            ..Trouble::default()
        });
        let weights = weights(100_000, 7);
        let files: [(&str, &[u8]); 2] = [
            ("tokenizer.json", TOKENIZER),
            ("model.safetensors", &weights),
        ];
        for (file, content) in files {
            scene.cut_short(file);
            scene.fetch().exits(0);
            let read = fs::read(scene.snapshot().join(file)).unwrap();
            assert!(read == content, "{file}, without sizes: {has_no_sizes}");
        }
        scene.run(&VERIFY).exits(0);
        scene.run(&REMOVE).exits(0);
        assert!(!scene.repository().exists());
    }
}

#[test]
fn what_is_mended_is_still_that_of_others() {
    let scene = Scene::usual();
    let weights = weights(100_000, 7);
    scene.is_cached_by_others(&[
        ("config.json", CONFIG),
        ("tokenizer.json", TOKENIZER),
        ("model.safetensors", &weights),
    ]);
    scene.cut_short("model.safetensors");
    scene.fetch().exits(0);
    scene.run(&VERIFY).exits(0);
    scene.run(&REMOVE).exits(0);
    let left = ["config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names(&scene.snapshot()), left);
    let read = fs::read(scene.snapshot().join("model.safetensors")).unwrap();
    assert!(read == weights);
}

#[test]
fn a_damaged_file_is_found_and_named() {
    let scene = Scene::usual();
    scene.run(&VERIFY).fails(3, &["nothing of it is there"]);
    scene.fetch().exits(0);
    let ended = scene.run(&VERIFY).exits(0);
    assert_eq!(ended.stdout.matches("as pinned: ").count(), 4, "{ended}");

    for (file, digest) in [
        ("model.safetensors", "(SHA-256"),
        ("config.json", "(git's SHA-1"),
    ] {
        scene.flip_a_byte(file);
        let blob = scene.snapshot().join(file).canonicalize().unwrap();
        let parts = [
            blob.to_str().unwrap(),
            "is damaged",
            digest,
            "models fetch org/tiny",
        ];
        scene.run(&VERIFY).fails(3, &parts);
        fs::remove_file(&blob).unwrap();
        scene.fetch().exits(0);
        scene.run(&VERIFY).exits(0);
    }
}

#[test]
fn a_content_without_a_digest_for_a_name_cannot_be_checked() {
    let scene = Scene::usual();
    scene.hub.set(Trouble {
        tag: Some("abc-2"),
        ..Trouble::default()
    });
    scene.fetch().exits(0);
    let ended = scene.run(&VERIFY).exits(0);
    let unpinned = ended.stdout.matches("no digest is pinned: ").count();
    assert_eq!(unpinned, 1, "{ended}");
}
