//! `compare` through the binary, on the recorded sample run and copies of it that were changed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A recorded run that the repository keeps.
const RECORDED: &str = "reports/loopback-smollm2-135m";

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(RECORDED)
}

/// The folder of a copy of the recorded run, changed.
fn changed(change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let text = std::fs::read_to_string(recorded().join("run.json")).unwrap();
    let mut run: Value = serde_json::from_str(&text).unwrap();
    change(&mut run);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("run.json"), run.to_string()).unwrap();
    folder
}

/// Makes every time of an arm longer.
fn slower(run: &mut Value, arm: &str, factor: f64) {
    for case in run["cases"].as_array_mut().unwrap() {
        let samples = case["samples"].as_array_mut().unwrap().iter_mut();
        for sample in samples.filter(|s| s["arm"] == arm) {
            for event in sample["events"].as_array_mut().unwrap() {
                let t_ns = event["t_ns"].as_f64().unwrap() * factor;
                event["t_ns"] = Value::from(t_ns as u64);
            }
        }
    }
}

fn compare(old: &Path, new: &Path, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_disagg-bench"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DISAGG_") {
            command.env_remove(name);
        }
    }
    let command = command
        .current_dir(&folder)
        .arg("compare")
        .arg(old)
        .arg(new);
    command.args(more).output().unwrap()
}

#[track_caller]
fn ends(output: &Output, code: i32) -> (String, String) {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stdout}\n{stderr}");
    (stdout, stderr)
}

#[test]
fn a_run_is_like_itself() {
    let gates = [
        "--fail-on",
        "split.e2e_ms>0%",
        "--fail-on",
        "single.e2e_ms>0",
    ];
    let (stdout, stderr) = ends(&compare(&recorded(), &recorded(), &gates), 0);
    assert!(
        stdout.contains("40 prompt tokens, single@prefill\n"),
        "{stdout}"
    );
    assert!(
        stdout.contains("1472 prompt tokens, split bulk x1\n"),
        "{stdout}"
    );
    assert!(!stdout.contains('!'), "{stdout}");
    assert_eq!(stderr, "");
    let wide = stdout.lines().find(|l| l.chars().count() > 80);
    assert_eq!(wide, None);
}

#[test]
fn a_regression_ends_with_6_and_is_named() {
    let new = changed(|run| slower(run, "split", 1.5));
    let gate = ["--fail-on", "split.e2e_ms>5%"];
    let (stdout, stderr) = ends(&compare(&recorded(), new.path(), &gate), 6);
    assert!(stdout.contains("split bulk x1"), "{stdout}");
    assert!(
        stderr.contains("e2e_ms of split bulk x1 at 1472 prompt tokens changed by +"),
        "{stderr}"
    );
    // The other arm did not change, and the other way round it is an improvement.
    let gate = ["--fail-on", "single.e2e_ms>5%"];
    ends(&compare(&recorded(), new.path(), &gate), 0);
    let gate = ["--fail-on", "split.e2e_ms>5%"];
    ends(&compare(new.path(), &recorded(), &gate), 0);
    let gate = ["--fail-on", "split.e2e_ms<-5%"];
    ends(&compare(new.path(), &recorded(), &gate), 6);
}

#[test]
fn every_format_has_the_change() {
    let new = changed(|run| slower(run, "split", 1.5));
    let file = new.path().join("run.json");
    let (stdout, _) = ends(&compare(&recorded(), &file, &["--format", "json"]), 0);
    let json: Value = serde_json::from_str(&stdout).unwrap();
    let arms = json["cases"][3]["arms"].as_array().unwrap();
    let split = arms.iter().find(|a| a["arm"] == "split").unwrap();
    let figures = split["figures"].as_array().unwrap();
    let e2e = figures.iter().find(|f| f["figure"] == "e2e_ms").unwrap();
    assert_eq!(e2e["change"]["significant"], true);
    let pct = &e2e["change"]["pct"];
    assert!((pct["value"].as_f64().unwrap() - 50.0).abs() < 5.0, "{e2e}");
    assert!(pct["ci_low"].as_f64() < pct["value"].as_f64(), "{e2e}");
    let written = new.path().join("comparison.md");
    let more = ["--format", "md", "-o", written.to_str().unwrap()];
    let (stdout, _) = ends(&compare(&recorded(), &file, &more), 0);
    assert_eq!(stdout, "");
    let markdown = std::fs::read_to_string(written).unwrap();
    assert!(markdown.contains("| split bulk x1 "), "{markdown}");
    let (_, stderr) = ends(&compare(&recorded(), &file, &["--format", "csv"]), 3);
    assert!(stderr.contains("choose table, md or json"), "{stderr}");
}

#[test]
fn unlike_runs_are_refused_and_other_hosts_warned_of() {
    let other_model = changed(|run| run["model"]["fingerprint"] = "ff".into());
    let (stdout, stderr) = ends(&compare(&recorded(), other_model.path(), &[]), 3);
    assert_eq!(stdout, "");
    assert!(stderr.contains("model: smollm2-135m ("), "{stderr}");
    let fewer = changed(|run| {
        run["cases"].as_array_mut().unwrap().pop();
    });
    let (_, stderr) = ends(&compare(&recorded(), fewer.path(), &[]), 3);
    assert!(
        stderr.contains("prompts: 4 prompts of 40, 361, 726, 1472 tokens"),
        "{stderr}"
    );
    let elsewhere = changed(|run| {
        run["environment"]["prefill"]["host"]["machine_id"] = "elsewhere".into();
        run["environment"]["prefill"]["build"]["git_revision"] = "fedcba987654".into();
    });
    let (stdout, _) = ends(&compare(&recorded(), elsewhere.path(), &[]), 0);
    assert!(stdout.contains("! another prefill host: vm ("), "{stdout}");
    assert!(
        stdout.contains("! another build of the prefill node: "),
        "{stdout}"
    );
}

#[test]
fn what_cannot_be_compared_is_named() {
    let nowhere = Path::new("nowhere/run.json");
    let (_, stderr) = ends(&compare(&recorded(), nowhere, &[]), 3);
    assert!(
        stderr.contains("cannot read the run file nowhere/run.json"),
        "{stderr}"
    );
    let (_, stderr) = ends(
        &compare(&recorded(), &recorded(), &["--fail-on", "split.e2e"]),
        2,
    );
    assert!(stderr.contains("such as split.e2e_ms>5%"), "{stderr}");
    let alone = changed(|run| {
        for case in run["cases"].as_array_mut().unwrap() {
            let samples = case["samples"].as_array_mut().unwrap();
            samples.retain(|s| s["arm"] == "single");
        }
    });
    let gate = ["--fail-on", "split.e2e_ms>5%"];
    let (_, stderr) = ends(&compare(alone.path(), alone.path(), &gate), 3);
    assert!(
        stderr.contains("neither run has e2e_ms of split"),
        "{stderr}"
    );
}
