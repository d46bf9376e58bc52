//! Models of a hub, fetched from one on loopback: what is asked for and what is believed, the cache
//! that other tools share, every refusal with its reason. Broken downloads are in `downloads`,
//! damaged files in `damage`, the upkeep of the cache in `upkeep`.

#[path = "hub/damage.rs"]
mod damage;
#[path = "hub/downloads.rs"]
mod downloads;
#[path = "hub/scene.rs"]
mod scene;
#[path = "hub/server.rs"]
mod server;
mod tiny_model;
#[path = "hub/upkeep.rs"]
mod upkeep;
#[path = "hub/whole_model.rs"]
mod whole_model;

use std::fs;

use scene::{CONFIG, Scene, TOKENIZER, names, weights};
use server::{REPOSITORY, Trouble, tag};
use tiny_model::{Ended, TinyModel};

#[test]
fn a_model_is_fetched_once_and_only_what_is_needed() {
    let scene = Scene::usual();
    let mut command = scene.command(&["models", "fetch", REPOSITORY]);
    command.env("HF_TOKEN", "hf_secret");
    let ended = Ended::of(command).exits(0);
    let snapshot = scene.snapshot();
    assert!(ended.stdout.contains(snapshot.to_str().unwrap()), "{ended}");
    assert!(
        ended
            .stderr
            .contains("fetching org/tiny from http://127.0.0.1"),
        "{ended}"
    );
    assert!(!ended.stdout.contains("hf_secret") && !ended.stderr.contains("hf_secret"));

    let wanted = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&snapshot), wanted);
    let weights = weights(100_000, 7);
    assert_eq!(
        fs::read(snapshot.join("model.safetensors")).unwrap(),
        weights
    );
    let blob = scene.blob(&tag("model.safetensors", &weights));
    assert_eq!(
        snapshot.join("model.safetensors").canonicalize().unwrap(),
        blob.canonicalize().unwrap()
    );
    let main = fs::read_to_string(scene.repository().join("refs/main")).unwrap();
    assert_eq!(main, scene.hub.commit());
    for asked in scene.hub.asked() {
        let wanted = (!asked.at_store).then_some("Bearer hf_secret");
        assert_eq!(asked.authorization.as_deref(), wanted, "{asked:?}");
    }

    scene.fetch().exits(0);
    let again = scene.hub.asked();
    assert_eq!(again.len(), 1, "{again:?}");
    for arguments in [
        vec!["models", "fetch", REPOSITORY, "--offline"],
        vec![
            "models",
            "fetch",
            &format!("{REPOSITORY}@{}", scene.hub.commit()),
        ],
    ] {
        scene.run(&arguments).exits(0);
        assert_eq!(scene.hub.asked().len(), 0, "{arguments:?}");
    }
}

#[test]
fn a_renamed_repository_is_followed_with_the_token() {
    let scene = Scene::usual();
    let mut command = scene.command(&["models", "fetch", "org/renamed"]);
    command.env("HF_TOKEN", "hf_secret");
    Ended::of(command).exits(0);
    let asked = scene.hub.asked();
    assert!(
        asked
            .iter()
            .any(|asked| asked.path.starts_with("/org/tiny/"))
    );
    for asked in asked.into_iter().filter(|asked| !asked.at_store) {
        assert_eq!(
            asked.authorization.as_deref(),
            Some("Bearer hf_secret"),
            "{asked:?}"
        );
    }
}

#[test]
fn a_gguf_file_of_a_hub_runs_and_then_runs_offline() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::default().write(&path);
    let scene = Scene::new(&[("q/tiny.gguf", &fs::read(&path).unwrap())]);
    let arguments = [
        "baseline",
        "--model",
        "org/tiny:q/tiny.gguf",
        "--prompt",
        "hello",
        "--output-tokens",
        "3",
        "--repeats",
        "1",
    ];
    scene.run(&arguments).exits(0);
    assert!(!scene.hub.asked().is_empty());
    let mut offline = scene.command(&arguments);
    offline.env("HF_HUB_OFFLINE", "1");
    Ended::of(offline).exits(0);
    assert!(scene.hub.asked().is_empty());
    let other = scene.run(&["models", "fetch", "org/tiny:other.gguf"]);
    other.fails(3, &["no file `other.gguf`", "such as q/tiny.gguf"]);
    scene.fetch().fails(3, &["GGUF", "q/tiny.gguf"]);
}

#[test]
fn shards_are_those_that_the_index_names() {
    let index = br#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#;
    let scene = Scene::new(&[
        ("config.json", CONFIG),
        ("tokenizer.json", TOKENIZER),
        ("model.safetensors.index.json", index),
        ("m-1.safetensors", &weights(10, 1)),
        ("m-2.safetensors", &weights(10, 2)),
        ("m-3.safetensors", &weights(10, 3)),
    ]);
    scene.fetch().exits(0);
    let there = names(&scene.snapshot());
    assert!(there.contains(&"m-2.safetensors".to_owned()), "{there:?}");
    assert!(!there.contains(&"m-3.safetensors".to_owned()), "{there:?}");

    for bad in ["../../../../m.safetensors", "m-4.safetensors"] {
        let index = format!(r#"{{"weight_map":{{"a":"{bad}"}}}}"#);
        scene
            .hub
            .put("model.safetensors.index.json", index.as_bytes());
        scene
            .fetch()
            .fails(3, &["could not get the model org/tiny", bad]);
    }
}

#[test]
fn a_hub_that_cannot_be_reached_leaves_what_is_cached() {
    let scene = Scene::usual();
    let nobody = |arguments: &[&str]| {
        let mut command = scene.command(arguments);
        // The discard port, where nothing listens.
        command.env("HF_ENDPOINT", "http://127.0.0.1:9");
        Ended::of(command)
    };
    let fetch = ["models", "fetch", REPOSITORY];
    nobody(&fetch).fails(3, &["could not reach http://127.0.0.1:9", "HTTPS_PROXY"]);
    let mut with_password = scene.command(&fetch);
    with_password.env("HF_ENDPOINT", "http://user:secret@127.0.0.1:9");
    let ended = Ended::of(with_password).fails(3, &["could not reach http://…@127.0.0.1:9"]);
    assert!(!ended.stderr.contains("secret"), "{ended}");
    scene.fetch().exits(0);
    let ended = nobody(&fetch).exits(0);
    assert!(ended.stderr.contains("as it was fetched last"), "{ended}");
    let other = nobody(&["models", "fetch", "org/tiny@refs/pr/1"]);
    other.fails(3, &["could not reach"]);
}

#[test]
fn a_login_page_in_place_of_the_hub_leaves_what_is_cached() {
    let scene = Scene::usual();
    scene.fetch().exits(0);
    scene.hub.set(Trouble {
        refuse: Some(("/", 200, "Content-Type: text/html\r\n")),
        ..Trouble::default()
    });
    let ended = scene.fetch().exits(0);
    assert!(ended.stderr.contains("as it was fetched last"), "{ended}");
    let other = scene.run(&["models", "fetch", "org/tiny@refs/pr/1"]);
    other.fails(3, &["makes no sense", "HF_ENDPOINT"]);
}

#[test]
fn a_malformed_token_concerns_only_who_asks_the_hub() {
    let scene = Scene::usual();
    let run = |arguments: &[&str]| {
        let mut command = scene.command(arguments);
        command.env("HF_TOKEN", "two words");
        Ended::of(command)
    };
    run(&["models", "fetch", REPOSITORY]).fails(3, &["HF_TOKEN holds no token"]);
    assert!(scene.hub.asked().is_empty());
    scene.fetch().exits(0);
    run(&["models", "list"]).exits(0);
    run(&["models", "fetch", REPOSITORY, "--offline"]).exits(0);
    run(&["models", "verify", REPOSITORY]).exits(0);
    run(&["models", "remove", REPOSITORY]).exits(0);
}

#[test]
fn offline_means_that_nobody_is_asked() {
    let scene = Scene::usual();
    let refused = |ended: Ended| {
        let parts = [
            "org/tiny",
            "nothing of it is there",
            "fetching is off",
            "models fetch",
        ];
        ended.fails(3, &parts);
    };
    refused(scene.run(&["models", "fetch", REPOSITORY, "--offline"]));
    refused(scene.run(&["baseline", "--model", REPOSITORY, "--offline"]));
    let mut variable = scene.command(&["models", "fetch", REPOSITORY]);
    variable.env("HF_HUB_OFFLINE", "1");
    refused(Ended::of(variable));
    assert!(scene.hub.asked().is_empty());
}

#[test]
fn every_refusal_says_why_and_what_to_do() {
    let gated = "X-Error-Code: GatedRepo\r\n";
    let hidden = "X-Error-Code: RepoNotFound\r\n";
    let cases: [(&str, u16, &str, &[&str]); 10] = [
        (
            "/api/",
            403,
            gated,
            &[
                "gated (HTTP 403)",
                "licence on http://",
                "/org/tiny",
                "HF_TOKEN",
            ],
        ),
        (
            "/api/",
            401,
            "",
            &["refuses it (HTTP 401), without a token", "HF_TOKEN"],
        ),
        (
            "/api/",
            401,
            hidden,
            &["no such repository", "check the name"],
        ),
        ("/api/", 404, "", &["no such repository", "(HTTP 404)"]),
        (
            "/api/",
            429,
            "Retry-After: 37\r\n",
            &["(HTTP 429), Retry-After: 37", "HF_TOKEN"],
        ),
        (
            "/api/",
            503,
            "",
            &["the hub failed (HTTP 503)", "try again later"],
        ),
        ("/api/", 418, "", &["HTTP 418", "check HF_ENDPOINT"]),
        ("/resolve/", 403, gated, &["gated (HTTP 403)"]),
        ("/tokenizer.json", 404, "", &["no file `tokenizer.json`"]),
        (
            "/model.safetensors",
            500,
            "",
            &["the hub failed (HTTP 500)", "model.safetensors"],
        ),
    ];
    for (part, status, headers, wanted) in cases {
        let scene = Scene::usual();
        scene.hub.set(Trouble {
            refuse: Some((part, status, headers)),
            ..Trouble::default()
        });
        scene.fetch().fails(3, wanted);
        assert!(!scene.repository().join("refs").exists(), "{part} {status}");
    }
    let scene = Scene::usual();
    let revision = scene.run(&["models", "fetch", "org/tiny@v9"]);
    revision.fails(3, &["no revision `v9`", "(HTTP 404)"]);
}

#[test]
fn an_answer_cannot_lead_out_of_the_cache() {
    for tag in ["../../../../escaped", "/tmp/escaped", "..", ""] {
        let scene = Scene::usual();
        scene.hub.set(Trouble {
            tag: Some(tag),
            ..Trouble::default()
        });
        scene.fetch().fails(3, &["its tag is none"]);
        assert!(!scene.place.path("escaped").exists());
    }
    for commit in ["../../../escaped", "main", ""] {
        let scene = Scene::usual();
        scene.hub.set(Trouble {
            commit: Some(commit),
            ..Trouble::default()
        });
        scene.fetch().fails(3, &["its commit is no commit"]);
        assert!(!scene.repository().exists());
    }
    let scene = Scene::usual();
    scene.hub.put("../../config.json", b"{}");
    scene.hub.put("/etc/x", b"{}");
    scene.fetch().exits(0);
}

#[test]
fn an_answer_about_another_commit_is_refused() {
    let scene = Scene::usual();
    let named = format!("{REPOSITORY}@{}", scene.hub.commit());
    scene.hub.set(Trouble {
        commit: Some("0123456789012345678901234567890123456789"),
        ..Trouble::default()
    });
    let ended = scene.run(&["models", "fetch", &named]);
    ended.fails(3, &["it is about commit 0123456789", "HF_ENDPOINT"]);
    assert!(!scene.repository().exists());
}

#[test]
fn weights_that_can_run_code_are_refused() {
    let scene = Scene::new(&[
        ("config.json", CONFIG),
        ("tokenizer.json", TOKENIZER),
        ("pytorch_model.bin", b"pickle"),
    ]);
    scene.fetch().fails(
        3,
        &["only there as pickle (pytorch_model.bin)", "can run code"],
    );
    assert_eq!(scene.hub.asked().len(), 1);
}

#[test]
fn a_branch_that_moved_is_fetched_and_what_is_the_same_is_not() {
    let scene = Scene::usual();
    scene.fetch().exits(0);
    let before = scene.snapshot();
    scene.hub.put("tokenizer.json", b"{\"version\":\"2.0\"}");
    scene.hub.asked();
    scene.fetch().exits(0);
    assert_ne!(scene.snapshot(), before);
    let read = fs::read_to_string(scene.snapshot().join("tokenizer.json")).unwrap();
    assert!(read.contains("2.0"));
    let asked = scene.hub.asked();
    assert!(asked.iter().all(|asked| !asked.at_store), "{asked:?}");
}

#[test]
fn a_login_of_the_hubs_own_tools_is_used() {
    let scene = Scene::usual();
    fs::create_dir_all(scene.place.path("no-hub")).unwrap();
    scene.place.file("no-hub/token", "hf_from_login\n");
    scene.fetch().exits(0);
    let first = &scene.hub.asked()[0];
    assert_eq!(first.authorization.as_deref(), Some("Bearer hf_from_login"));
}
