//! `report` through the binary: what a run wrote is what its run file gives again, byte for byte,
//! and what is no run is refused.

mod tiny_model;

use std::collections::BTreeMap;
use std::path::Path;

use tiny_model::{Ended, Workplace};

/// A run that the repository keeps, with its report.
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/reports/loopback-smollm2-135m");

/// Every file of a folder but the run's.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap();
    let files = entries.map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, std::fs::read(entry.path()).unwrap())
    });
    files.filter(|(name, _)| name != "run.json").collect()
}

#[track_caller]
fn are_equal(one: &Path, other: &Path) {
    let (one, other) = (files(one), files(other));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&one), names(&other));
    for (name, bytes) in &one {
        assert!(bytes == &other[name], "{name} differs");
    }
}

#[test]
fn a_run_and_its_rebuilt_report_are_the_same_bytes() {
    let place = Workplace::new();
    let ended = place.run(&[
        "split",
        "--prompt",
        "hello",
        "--prompt",
        "what is the other one",
        "--transfer",
        "bulk,layered,auto",
        "--output-tokens",
        "4",
        "--repeats",
        "2",
        "--out",
        "run",
    ]);
    ended.exits(0);
    let report = |arguments: &[&str]| Ended::of(place.command(arguments)).exits(0);
    let ended = report(&["report", "run", "--out", "again"]);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("report: again"), "{ended}");
    assert!(place.path("again/samples.csv").exists());
    are_equal(&place.path("run"), &place.path("again"));
    // Beside its run file, in place.
    std::fs::remove_file(place.path("run/report.md")).unwrap();
    report(&["report", "run/run.json", "-q"]);
    are_equal(&place.path("run"), &place.path("again"));
}

#[test]
fn the_committed_report_is_that_of_its_run() {
    let place = Workplace::new();
    Ended::of(place.command(&["report", RECORDED, "--out", "again"])).exits(0);
    are_equal(Path::new(RECORDED), &place.path("again"));
}

#[test]
fn several_runs_are_laid_over_each_other() {
    let place = Workplace::new();
    std::fs::create_dir(place.path("slower")).unwrap();
    let text = std::fs::read_to_string(Path::new(RECORDED).join("run.json")).unwrap();
    let mut slower: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rate = &mut slower["link"]["fit"]["beta_gbps"];
    *rate = (rate.as_f64().expect("the sample's link was fitted") / 10.0).into();
    place.file("slower/run.json", slower.to_string());
    let report =
        |out: &str| Ended::of(place.command(&["report", RECORDED, "slower", "--out", out]));
    report("both").exits(0);
    let names: Vec<String> = files(&place.path("both")).into_keys().collect();
    let wanted = [
        "bandwidth.svg",
        "by-link.svg",
        "e2e.svg",
        "overhead.svg",
        "predicted.svg",
        "report.html",
        "report.md",
    ];
    assert_eq!(names, wanted);
    let markdown = std::fs::read_to_string(place.path("both/report.md")).unwrap();
    let rows = markdown
        .lines()
        .filter(|l| l.starts_with("| declaration | 1472 |"));
    assert_eq!(rows.count(), 4, "{markdown}");
    report("again").exits(0);
    are_equal(&place.path("both"), &place.path("again"));
    report("slower").fails(3, &["records are never overwritten"]);
}

#[test]
fn a_sweep_has_a_page_and_a_chart() {
    let place = Workplace::new();
    let sizes = [
        "--sizes",
        "64KiB,1MiB",
        "--streams",
        "1,2",
        "--repeats",
        "3",
    ];
    let quick = ["--idle-seconds", "0", "--format", "json", "-o", "link.json"];
    let sweep = [&["link"][..], &sizes, &quick].concat();
    Ended::of(place.command(&sweep)).exits(0);
    let report = ["report", "link.json", "--out"];
    let report = |out| Ended::of(place.command(&[&report[..], &[out]].concat())).exits(0);
    report("sweep");
    let names: Vec<String> = files(&place.path("sweep")).into_keys().collect();
    assert_eq!(names, ["report.html", "report.md", "sweep.svg"]);
    let markdown = std::fs::read_to_string(place.path("sweep/report.md")).unwrap();
    assert!(markdown.contains("| 1059840 | 2 | 30 |"), "{markdown}");
    report("again");
    are_equal(&place.path("sweep"), &place.path("again"));
    let both = Ended::of(place.command(&["report", "link.json", RECORDED, "--out", "both"]));
    both.fails(3, &["link.json", "give it alone"]);
    place.file("old.json", r#"{"schema_version": 0, "fits": []}"#);
    let old = Ended::of(place.command(&["report", "old.json", "--out", "both"]));
    old.fails(3, &["its schema_version is 0"]);
}

#[test]
fn what_is_no_run_is_refused() {
    let place = Workplace::new();
    place.file("notes.txt", "no run");
    place.file("other.json", r#"{"schema_version": 1, "rows": []}"#);
    place.file("newer.json", r#"{"schema_version": 2}"#);
    std::fs::create_dir(place.path("empty")).unwrap();
    for (run, part) in [
        ("none/run.json", "cannot read the run file none/run.json"),
        (
            "none",
            "os error 2): give the run.json of a run, or its folder",
        ),
        ("empty", "cannot read the run file empty/run.json"),
        ("notes.txt", "notes.txt is not a run file of this tool"),
        ("other.json", "give the run.json of a run"),
        ("newer.json", "has schema version 2, this build reads 1"),
    ] {
        let ended = Ended::of(place.command(&["report", run, "--out", "new"]));
        ended.fails(3, &[part]);
        assert!(!place.path("new").exists());
    }
    Ended::of(place.command(&["report"])).fails(2, &["RUN"]);
}

#[test]
fn a_folder_that_cannot_take_the_report_is_refused() {
    let place = Workplace::new();
    place.file("file", "");
    let report = |out: &str| Ended::of(place.command(&["report", RECORDED, "--out", out]));
    let next = "choose another folder with --out";
    report("file/report").fails(3, &["cannot write into file/report", next]);
    std::fs::create_dir(place.path("other")).unwrap();
    place.file("other/run.json", "{}");
    report("other").fails(3, &["other/run.json is another run", next]);
}
