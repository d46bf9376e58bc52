//! Models of a hub, fetched from one on loopback: the cache that other tools share, interrupted
//! downloads, every refusal with its reason, and answers that nobody should believe.

#[path = "hub/scene.rs"]
mod scene;
#[path = "hub/server.rs"]
mod server;
mod tiny_model;

use std::fs;

use scene::{CONFIG, Scene, TOKENIZER, names, weights};
use server::{REPOSITORY, Trouble, tag};
use tiny_model::running::Running;
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
    scene.fetch().exits(0);
    let ended = nobody(&fetch).exits(0);
    assert!(ended.stderr.contains("as it was fetched last"), "{ended}");
    let other = nobody(&["models", "fetch", "org/tiny@refs/pr/1"]);
    other.fails(3, &["could not reach"]);
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
fn a_download_goes_on_where_it_broke_off() {
    let content = weights(100_000, 7);
    let scene = Scene::usual();
    let cut = |bytes, times| Trouble {
        cut: Some((bytes, times)),
        ..Trouble::default()
    };
    let ranges = || -> Vec<_> {
        let asked = scene.hub.asked().into_iter();
        asked
            .filter(|asked| asked.at_store)
            .map(|asked| asked.range)
            .collect()
    };
    scene.hub.set(cut(1_000, usize::MAX));
    let parts = [
        "broke off after 5000 of",
        "start again, it goes on from there",
    ];
    scene.fetch().fails(3, &parts);
    let [first, rest @ ..] = &ranges()[..] else {
        panic!("nothing was asked");
    };
    assert_eq!(*first, None);
    let wanted = [1, 2, 3, 4].map(|n| Some(format!("bytes={n}000-")));
    assert_eq!(rest, wanted);
    assert!(!scene.snapshot().join("model.safetensors").exists());

    // The next start needs one break fewer than it tolerates.
    scene.hub.set(cut(20_000, 1));
    scene.fetch().exits(0);
    let wanted = ["bytes=5000-", "bytes=25000-"].map(|range| Some(range.to_owned()));
    assert_eq!(ranges(), wanted);
    assert_eq!(
        fs::read(scene.snapshot().join("model.safetensors")).unwrap(),
        content
    );
    let left = names(&scene.repository().join("blobs"));
    assert!(
        left.iter().all(|name| !name.contains("incomplete")),
        "{left:?}"
    );
}

#[test]
fn of_two_that_fetch_at_once_one_does() {
    let scene = Scene::usual();
    let fetch = || Running::start(scene.command(&["models", "fetch", REPOSITORY]));
    for process in [fetch(), fetch()] {
        process.wait().exits(0);
    }
    let asked = scene.hub.asked();
    let of_store: Vec<_> = asked.iter().filter(|asked| asked.at_store).collect();
    assert_eq!(of_store.len(), 1, "{of_store:?}");
    scene.run(&["models", "verify", REPOSITORY]).exits(0);
}

#[test]
fn a_server_without_ranges_starts_anew() {
    let scene = Scene::usual();
    scene.hub.set(Trouble {
        cut: Some((1_000, 1)),
        has_no_ranges: true,
        ..Trouble::default()
    });
    scene.fetch().exits(0);
    let content = fs::read(scene.snapshot().join("model.safetensors")).unwrap();
    assert!(content == weights(100_000, 7));
}

#[test]
fn what_is_not_what_was_promised_is_thrown_away() {
    let flipped = Trouble {
        flips_a_byte: true,
        ..Trouble::default()
    };
    let longer = Trouble {
        sends_more: true,
        ..Trouble::default()
    };
    for (trouble, part) in [(flipped, "SHA-256"), (longer, "more than")] {
        let scene = Scene::usual();
        scene.hub.set(trouble);
        scene.fetch().fails(3, &["not what it promised", part]);
        assert!(!scene.snapshot().join("model.safetensors").exists());
        scene.hub.set(Trouble::default());
        scene.fetch().exits(0);
    }
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
fn a_damaged_file_is_found_and_named() {
    let scene = Scene::usual();
    scene
        .run(&["models", "verify", REPOSITORY])
        .fails(3, &["nothing of it is there"]);
    scene.fetch().exits(0);
    let ended = scene.run(&["models", "verify", REPOSITORY]).exits(0);
    assert_eq!(ended.stdout.matches("as pinned: ").count(), 1, "{ended}");
    assert_eq!(
        ended.stdout.matches("no SHA-256 is pinned: ").count(),
        3,
        "{ended}"
    );

    let blob = scene.blob(&tag("model.safetensors", &weights(100_000, 7)));
    let mut content = fs::read(&blob).unwrap();
    content[100] ^= 1;
    fs::write(&blob, content).unwrap();
    let ended = scene.run(&["models", "verify", REPOSITORY]);
    let parts = [
        blob.to_str().unwrap(),
        "is damaged",
        "models fetch org/tiny",
    ];
    ended.fails(3, &parts);
    fs::remove_file(&blob).unwrap();
    scene.fetch().exits(0);
    scene.run(&["models", "verify", REPOSITORY]).exits(0);
}

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

#[test]
fn a_login_of_the_hubs_own_tools_is_used() {
    let scene = Scene::usual();
    fs::create_dir_all(scene.place.path("no-hub")).unwrap();
    scene.place.file("no-hub/token", "hf_from_login\n");
    scene.fetch().exits(0);
    let first = &scene.hub.asked()[0];
    assert_eq!(first.authorization.as_deref(), Some("Bearer hf_from_login"));
}
