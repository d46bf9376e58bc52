//! Downloads that break off, that several processes want at once, and that a server answers in its
//! own way.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use super::scene::{Scene, names, weights};
use super::server::{REPOSITORY, Trouble};
use super::tiny_model::running::Running;
use super::tiny_model::wait_for;

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
    let started = Instant::now();
    scene.fetch().fails(3, &parts);
    let pauses = Duration::from_millis(200 + 400 + 800 + 1600);
    assert!(started.elapsed() >= pauses);
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
fn a_hub_that_refuses_the_rest_is_believed() {
    let scene = Scene::usual();
    let at_store = || {
        let asked = scene.hub.asked().into_iter();
        asked.filter(|asked| asked.at_store).count()
    };
    let refused = |status, headers| Trouble {
        cut: Some((1_000, 1)),
        refuse_rest: Some((status, headers)),
        ..Trouble::default()
    };
    scene.hub.set(refused(429, "Retry-After: 37\r\n"));
    scene.fetch().fails(3, &["(HTTP 429), Retry-After: 37"]);
    assert_eq!(at_store(), 2);
    scene.hub.set(refused(503, ""));
    let broke_off = scene.fetch();
    broke_off.fails(3, &["broke off after 1000 of", "HTTP 503"]);
    assert_eq!(at_store(), 5);
}

#[test]
fn of_two_that_fetch_at_once_one_does() {
    let scene = Scene::usual();
    let held = scene.hub.hold();
    let fetch = || Running::start(scene.command(&["models", "fetch", REPOSITORY]));
    let both = [fetch(), fetch()];
    let waits = "another process is fetching model.safetensors: waiting for it";
    wait_for("one that waits for the other", || {
        let waiting = both.iter().find(|one| one.stderr().contains(waits));
        waiting.map(|_| ())
    });
    drop(held);
    for process in both {
        process.wait().exits(0);
    }
    let mut times_sent = BTreeMap::new();
    for asked in scene.hub.asked() {
        let is_content = asked.at_store || asked.path.contains("/resolve/");
        // A large file is asked for at the hub too, which sends on to the store.
        let is_redirect = !asked.at_store && asked.path.ends_with(".safetensors");
        if is_content && asked.method == "GET" && !is_redirect {
            *times_sent.entry(asked.path).or_insert(0) += 1;
        }
    }
    assert_eq!(times_sent.len(), 4, "{times_sent:?}");
    assert!(times_sent.values().all(|n| *n == 1), "{times_sent:?}");
    scene.run(&["models", "verify", REPOSITORY]).exits(0);
    scene.run(&["models", "remove", REPOSITORY]).exits(0);
    assert!(!scene.repository().exists());
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
