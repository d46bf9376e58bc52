//! `link`: a sweep over a link, without a model.

mod tiny_model;

use disagg_bench::link::{Cause, FitOrigin, Sweep};
use tiny_model::{Ended, Workplace};

/// A request that takes no time.
const SHORT: [&str; 6] = [
    "--prompt",
    "hello",
    "--output-tokens",
    "3",
    "--repeats",
    "1",
];

/// A sweep that takes no time.
const SMALL: [&str; 8] = [
    "link",
    "--sizes",
    "64KiB,256KiB,1MiB",
    "--piece-sizes",
    "16KiB,1MiB",
    "--repeats",
    "3",
    "--quiet",
];

fn with(more: &[&'static str]) -> Vec<&'static str> {
    let idle: &[&str] = match more.contains(&"--idle-seconds") {
        true => &[],
        false => &["--idle-seconds", "0"],
    };
    [&SMALL[..], idle, more].concat()
}

#[test]
fn a_sweep_over_loopback_has_a_row_a_combination() {
    let place = Workplace::new();
    let ended = Ended::of(place.command(&with(&["--streams", "1,3", "--format", "json"]))).exits(0);
    let sweep: Sweep = serde_json::from_str(&ended.stdout).unwrap();
    assert!(sweep.socket.loopback && sweep.limit.contains("loopback: no network"));
    // By chance both ends may have been on one core as well.
    assert!(matches!(sweep.causes.last(), Some(Cause::Loopback { .. })));
    let seen = &sweep.observed;
    assert!(seen.cpu_share > 0.0 && seen.peer_cpu_share.is_some_and(|share| share > 0.0));
    assert!(seen.same_core_share.is_some() && seen.totals.is_some());
    // A layer of the smaller two fits the smaller piece, so the limits give the same pieces.
    assert_eq!(sweep.rows.len(), 2 * (1 + 1 + 2));
    assert_eq!((sweep.fits.len(), sweep.left_out.len()), (2, 0));
    assert_eq!(sweep.idle_gap_ms, None);
    for row in &sweep.rows {
        assert_eq!(row.bytes % sweep.kv_bytes_per_token, 0);
        assert_eq!((row.gbps.n, row.times.warm_ns.len()), (3, 3));
        assert!(row.pieces >= 30 && row.gbps.median > 0.0 && row.cold_gbps > 0.0);
        assert_eq!(row.after_idle_gbps, None);
        assert!(row.gbps.median <= sweep.ceiling_gbps);
    }
}

#[test]
fn after_idle_is_measured_once_a_size_and_kept_apart() {
    let place = Workplace::new();
    let arguments = ["--streams", "1", "--format", "json"];
    let arguments = with(&[&arguments[..], &["--idle-seconds", "0.02"]].concat());
    let ended = Ended::of(place.command(&arguments)).exits(0);
    let sweep: Sweep = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(sweep.idle_gap_ms, Some(20));
    let idle: Vec<(u64, u64)> = (sweep.rows.iter())
        .filter(|row| row.after_idle_gbps.is_some())
        .map(|row| (row.bytes, row.pieces))
        .collect();
    // The largest pieces of each size.
    assert_eq!(idle, [(69_120, 30), (253_440, 30), (1_059_840, 30)]);
    assert!(sweep.rows.iter().all(|row| row.gbps.n == 3));
}

#[test]
fn sizes_for_which_there_is_no_time_or_no_memory_are_left_out_with_the_reason() {
    let place = Workplace::new();
    let sweep = |more: &[&'static str]| -> Sweep {
        let arguments = ["link", "--streams", "1", "--quiet", "--format", "json"];
        let ended = Ended::of(place.command(&[&arguments[..], more].concat())).exits(0);
        serde_json::from_str(&ended.stdout).unwrap()
    };
    let no_time = ["--seconds-per-row", "0", "--idle-seconds", "0"];
    let hasty = sweep(&[&no_time[..], &["--sizes", "64KiB,1MiB,1GiB"]].concat());
    assert_eq!(hasty.rows.len(), 1);
    assert_eq!(hasty.rows[0].gbps.n, 1);
    let left_out: Vec<(u64, u64)> = hasty.left_out.iter().map(|l| (l.bytes, l.pieces)).collect();
    let wanted = [
        (1_059_840, 30),
        (1_073_733_120, 16_470),
        (1_073_733_120, 1_050),
    ];
    assert_eq!(left_out, wanted);
    assert!(
        hasty
            .left_out
            .iter()
            .all(|l| l.reason.contains("--seconds-per-row 0"))
    );

    let small = ["--repeats", "1", "--idle-seconds", "0", "--sizes"];
    let large = sweep(&[&small[..], &["64KiB,90000GiB"]].concat());
    assert_eq!(large.rows.len(), 1);
    assert!(large.left_out[0].reason.contains("takes caches of up to"));
    let arguments = ["link", "--sizes", "90000GiB", "--streams", "1"];
    let parts = ["nothing was measured", "takes caches of up to"];
    Ended::of(place.command(&arguments)).fails(3, &parts);
}

#[test]
fn a_sweep_against_another_process_is_a_table() {
    let place = Workplace::new();
    let node = place.serve(&["--link-only"]);
    let peer: &'static str = node.address.clone().leak();
    let ended = Ended::of(place.command(&with(&["--peer", peer, "--streams", "2"]))).exits(0);
    assert!(ended.stdout.contains("loopback: no network"), "{ended}");
    let table = ended.stdout.lines().take_while(|line| !line.is_empty());
    let widths: Vec<usize> = table.map(|line| line.chars().count()).collect();
    assert_eq!(widths.len(), 1 + 4);
    assert!(widths.iter().all(|n| *n <= 80), "{ended}");
}

#[test]
fn connections_leave_by_the_interface_that_is_named() {
    let place = Workplace::new();
    let node = place.serve(&["--link-only"]);
    let sweep = |bind: &'static str| {
        let arguments = [
            "--streams",
            "2",
            "--format",
            "json",
            "--bind",
            bind,
            "--peer",
        ];
        let mut command = place.command(&with(&arguments));
        command.arg(&node.address);
        Ended::of(command)
    };
    for (bind, local) in [("lo", "127.0.0.1"), ("127.0.0.2", "127.0.0.2")] {
        let ended = sweep(bind).exits(0);
        let sweep: Sweep = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(sweep.socket.local.ip().to_string(), local);
        let interface = sweep.interface.unwrap();
        assert_eq!(
            (interface.name.as_str(), interface.is_loopback),
            ("lo", true)
        );
        assert!(interface.mtu_bytes.unwrap() >= 1500);
    }
    // An address of the documentation's own network, which nobody has.
    for bind in ["no-such-interface", "198.51.100.7"] {
        sweep(bind).fails(3, &["--bind", bind, "lo (127.0.0.1"]);
    }
    sweep("::1").fails(4, &["::1 has no IPv4 address"]);
    let alone = place.command(&["link", "--bind", "lo"]);
    Ended::of(alone).fails(2, &["--peer"]);
}

#[test]
fn what_cannot_be_swept_is_refused() {
    let place = Workplace::new();
    let cases: [(&[&str], i32, &str); 7] = [
        (&["--shape", "no-such"], 3, "Llama-3.1-8B"),
        (&["--sizes", "0"], 2, "is not a size"),
        (&["--sizes", "64KB,1XB"], 2, "is not a size"),
        (&["--piece-sizes", "2MiB"], 3, "1048576"),
        (&["--idle-seconds", "3601"], 2, "is no time"),
        (&["--seconds-per-row", "nan"], 2, "is no time"),
        (&["--format", "csv"], 3, "table or json"),
    ];
    for (more, code, part) in cases {
        let arguments: Vec<&str> = ["link", "--repeats", "1", "--streams", "1"].to_vec();
        let sizes: &[&str] = if more.contains(&"--sizes") {
            &[]
        } else {
            &["--sizes", "64KiB"]
        };
        let arguments = [&arguments[..], sizes, more].concat();
        Ended::of(place.command(&arguments)).fails(code, &[part]);
    }
}

#[test]
fn a_node_with_a_model_is_not_for_link_and_one_without_not_for_requests() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let peer: &'static str = node.address.clone().leak();
    Ended::of(place.command(&with(&["--peer", peer]))).fails(4, &["no model (link only)"]);
    let bare = place.serve(&["--link-only"]);
    let split = place.on_model(&["split", "--prompt", "x", "--peer", &bare.address]);
    Ended::of(split).fails(4, &["no model (link only)"]);
}

#[test]
fn a_run_fits_its_link_or_takes_the_fit_that_it_is_given() {
    let place = Workplace::new();
    let split = |more: &[&'static str]| place.run(&[&["split"], &SHORT[..], more].concat());
    split(&["--out", "own", "--streams", "2"]).exits(0);
    let own = place.record("own").link.unwrap();
    assert_eq!(own.fit_origin, Some(FitOrigin::Measured));
    let fit = own.fit.unwrap();
    assert_eq!(fit.streams, 2);
    assert!(fit.held_out_error_pct.is_some() && fit.beta_gbps.is_some());

    let sweep = with(&["--streams", "1,3", "--format", "json", "-o", "sweep.json"]);
    Ended::of(place.command(&sweep)).exits(0);
    split(&[
        "--out",
        "kept",
        "--streams",
        "3",
        "--link-fit",
        "sweep.json",
    ])
    .exits(0);
    let kept = place.record("kept").link.unwrap();
    assert_eq!(kept.fit_origin, Some(FitOrigin::File("sweep.json".into())));
    let text = std::fs::read_to_string(place.path("sweep.json")).unwrap();
    let sweep: Sweep = serde_json::from_str(&text).unwrap();
    assert_eq!(kept.fit, sweep.fits.into_iter().find(|f| f.streams == 3));

    let refused = |file: &'static str, streams: &'static str, parts: &[&str]| {
        split(&["--streams", streams, "--link-fit", file]).fails(3, parts);
    };
    refused("sweep.json", "2", &["--streams 2", "1, 3"]);
    refused("none.json", "1", &["none.json", "link --format json"]);
    place.file("prose.json", "{}");
    refused("prose.json", "1", &["not what `link` writes"]);
    place.file(
        "old.json",
        text.replacen("\"schema_version\": 1", "\"schema_version\": 0", 1),
    );
    refused("old.json", "1", &["schema_version is 0", "reads 1"]);
    place.file("bbr.json", text.replace("\"reno\"", "\"bbr\""));
    refused("bbr.json", "1", &["with bbr", "with reno"]);
}
