//! `--repeats auto` through the binary: what ends the rounds, and that everything says so.

mod tiny_model;

use disagg_bench::metrics::StoppedBy;
use tiny_model::Workplace;

/// A request that takes no time, until `more` is reached.
fn split(place: &Workplace, more: &[&str]) -> String {
    let arguments = [
        "split",
        "--prompt",
        "hello",
        "--output-tokens",
        "3",
        "--out",
        "run",
    ];
    let arguments = [&arguments[..], &["--repeats", "auto"], more].concat();
    place.run(&arguments).exits(0);
    std::fs::read_to_string(place.path("run/report.md")).unwrap()
}

#[test]
fn rounds_end_when_the_time_is_over() {
    let place = Workplace::new();
    let report = split(&place, &["--ci-width", "0.000001", "--time-budget", "0"]);
    let case = &place.record("run").cases[0];
    let stopped = case.stopped.unwrap();
    assert_eq!((stopped.by, stopped.repeats), (StoppedBy::TimeBudget, 1));
    let measured = case.samples.iter().filter(|s| s.is_measured());
    assert_eq!(measured.count(), 2);
    assert_eq!(place.summary("run").cases[0].stopped, case.stopped);
    assert!(
        report.contains("--time-budget ended it before there was an interval"),
        "{report}"
    );
}

#[test]
fn rounds_end_when_the_interval_is_narrow() {
    let place = Workplace::new();
    // However noisy the machine, ten minutes are not needed for a width of 100%.
    let report = split(&place, &["--ci-width", "100", "--time-budget", "600"]);
    let stopped = place.record("run").cases[0].stopped.unwrap();
    assert_eq!(stopped.by, StoppedBy::Interval);
    assert!(
        stopped.repeats >= 5 && stopped.reached_pct.unwrap() <= 100.0,
        "{stopped:?}"
    );
    let change = place.summary("run").cases[0].changes[0].e2e_ms.unwrap();
    assert_eq!(change.difference.unwrap().n, stopped.repeats as usize);
    assert!(
        report.contains("is within the 100% of --ci-width"),
        "{report}"
    );
}

#[test]
fn what_is_no_number_of_repeats_is_refused() {
    let place = Workplace::new();
    let cases = [
        ("--repeats", "often", "write 1 to 100000 or auto"),
        ("--ci-width", "0", "write percent above 0"),
        ("--time-budget", "soon", "write seconds"),
    ];
    for (flag, value, part) in cases {
        place.run(&["split", flag, value]).fails(2, &[part]);
    }
}
