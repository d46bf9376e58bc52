//! Faults of every day: nodes that are killed, Ctrl-C, closed pipes, full disks. What was measured
//! is kept, the other node goes on, and no process is left behind.

mod tiny_model;

use std::path::Path;
use std::process::{Command, Stdio};

use disagg_bench::metrics::{Agreement, Arm, Record, Status};
use disagg_bench::wire::Kind;
use tiny_model::proxy::{DamagingProxy, Proxy};
use tiny_model::running::Running;
use tiny_model::{DecodeNode, Ended, LAYERS, Workplace, wait_for};

/// A prompt whose cache crosses in [`LAYERS`] pieces, and an answer of 24 tokens.
const REQUEST: [&str; 6] = [
    "--prompt-tokens",
    "200",
    "--output-tokens",
    "24",
    "--warmup",
    "0",
];

/// Tokens of an answer that the decode node sends.
const STREAMED: usize = 23;

/// Far more than any test waits for.
const ENDLESS: [&str; 2] = ["--repeats", "100000"];

/// Starts `split` against a node or a proxy, its results in the folder `run`.
fn start_split(place: &Workplace, peer: &str, more: &[&str]) -> Running {
    let arguments = [
        &["split", "--out", "run", "--peer", peer],
        &REQUEST[..],
        more,
    ]
    .concat();
    Running::start(place.on_model(&arguments))
}

/// Demands that the node serves a new peer as if nothing had happened, and ends well.
fn serves_and_stops(place: &Workplace, node: DecodeNode) {
    let next = [
        &["split", "--out", "next", "--peer", &node.address],
        &REQUEST[..],
    ]
    .concat();
    place.run(&next).exits(0);
    assert_eq!(place.record("next").outputs(), Some(Agreement::Identical));
    node.stop();
}

/// Demands that a process is gone, and not merely orphaned.
fn is_gone(id: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{id}/stat")) {
        Err(_) => true,
        // Ended, and not yet collected by whoever inherited it.
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .trim_start()
            .starts_with('Z'),
    }
}

/// Waits until `split` has a decode node of its own and gives its process id.
fn own_decode_node(split: &Running) -> u32 {
    wait_for("the child of split", || split.children().first().copied())
}

/// Waits until a run has samples on disk.
fn wait_for_samples(place: &Workplace) {
    wait_for("the first samples", || {
        let record = Record::read(&place.path("run/run.json")).ok()?;
        (!record.cases.first()?.samples.is_empty()).then_some(())
    });
}

/// Kills the decode node when half of the `number`th frame of a kind has passed, in the third
/// split request of a run, and demands what has to come of it.
fn decode_node_dies_at(kind: Kind, number: usize) {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let proxy = Proxy::start(&node.address, kind, number);
    let split = start_split(&place, &proxy.address, &["--repeats", "6"]);
    proxy.wait_until_stopped();
    node.process.signal("KILL");
    node.process.wait();
    proxy.cut();

    let ended = split.wait().fails(4, &["cannot be reached any more"]);
    let first = ended.stdout.lines().next().unwrap();
    assert!(
        first.starts_with("RUN FAILED with 1 prompt measured"),
        "{ended}"
    );
    let record = place.record("run");
    assert_eq!(record.run.status, Status::Failed);
    assert!(record.run.finished_at.is_some() && record.run.error.is_some());
    assert_eq!(place.summary("run").status, Status::Failed);
    let [case] = &record.cases[..] else {
        panic!("{} cases", record.cases.len());
    };
    // Two whole rounds, then the round in which it happened.
    assert_eq!(case.samples.len(), 6);
    let failed: Vec<_> = case.samples.iter().filter(|s| s.error.is_some()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].arm, failed[0].repeat), (Arm::Split, 2));
    assert!(failed[0].output.is_none());
    assert_eq!(
        case.check.as_ref().unwrap().outputs,
        Some(Agreement::Identical)
    );
    assert_eq!(case.check.as_ref().unwrap().landed, Some(true));
}

#[test]
fn a_decode_node_killed_in_mid_transfer_costs_only_what_was_not_measured() {
    decode_node_dies_at(Kind::Piece, 2 * LAYERS + 2);
}

#[test]
fn a_decode_node_killed_in_mid_decode_costs_only_what_was_not_measured() {
    decode_node_dies_at(Kind::Token, 2 * STREAMED + 7);
}

#[test]
fn a_decode_node_killed_at_any_other_step_of_a_request_costs_no_more() {
    for kind in [Kind::Open, Kind::Admit, Kind::Start, Kind::Done] {
        decode_node_dies_at(kind, 3);
    }
    decode_node_dies_at(Kind::Ack, 2 * LAYERS + 1);
}

#[test]
fn a_decode_node_killed_without_any_proxy_ends_the_run_too() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let split = start_split(&place, &node.address, &ENDLESS);
    wait_for("three requests", || {
        let served = node.process.stdout().matches(": 200 prompt tokens").count();
        (served >= 3).then_some(())
    });
    node.process.signal("KILL");
    node.process.wait();
    split.wait().fails(4, &["cannot be reached any more"]);
    let record = place.record("run");
    assert_eq!(record.run.status, Status::Failed);
    let good = record.cases[0].samples.iter().filter(|s| s.error.is_none());
    assert!(good.count() >= 4);
}

/// Kills the prefill node at a frame; the decode node must not care.
fn prefill_node_dies_at(kind: Kind, number: usize) {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let proxy = Proxy::start(&node.address, kind, number);
    let split = start_split(&place, &proxy.address, &["--repeats", "6"]);
    proxy.wait_until_stopped();
    split.signal("KILL");
    split.wait();
    proxy.cut();
    // It was killed, so its record still says that it runs; what it holds can be read.
    assert_eq!(place.record("run").run.status, Status::Running);
    assert_eq!(place.record("run").cases[0].samples.len(), 4);
    // It left in the node's eyes too if all of its answer was under way by then.
    wait_for("the node to notice", || {
        let said = node.process.stdout();
        (said.contains(" dropped: ") || said.contains(" left")).then_some(())
    });
    serves_and_stops(&place, node);
}

#[test]
fn a_prefill_node_killed_in_mid_transfer_leaves_the_decode_node_well() {
    prefill_node_dies_at(Kind::Piece, 2 * LAYERS + 2);
}

#[test]
fn a_prefill_node_killed_in_mid_decode_leaves_the_decode_node_well() {
    prefill_node_dies_at(Kind::Token, 2 * STREAMED + 7);
}

#[test]
fn a_prefill_node_killed_at_any_other_step_leaves_the_decode_node_well() {
    for kind in [Kind::Open, Kind::Admit, Kind::Start, Kind::Done] {
        prefill_node_dies_at(kind, 3);
    }
    prefill_node_dies_at(Kind::Ack, 2 * LAYERS + 1);
}

#[test]
fn ctrl_c_while_measuring_keeps_what_was_measured_and_leaves_no_process() {
    let place = Workplace::new();
    let arguments = [&["split", "--out", "run"], &REQUEST[..], &ENDLESS].concat();
    let split = Running::start(place.on_model(&arguments));
    let child = own_decode_node(&split);
    wait_for_samples(&place);
    split.signal("INT");
    let ended = split.wait().exits(130);
    assert!(is_gone(child));
    assert!(ended.stdout.starts_with("RUN INTERRUPTED"), "{ended}");
    let record = place.record("run");
    assert_eq!(record.run.status, Status::Interrupted);
    assert!(record.run.finished_at.is_some());
    let samples = &record.cases[0].samples;
    assert!(samples.len() >= 2 && samples.iter().all(|s| s.output.is_some()));
    assert_eq!(place.summary("run").status, Status::Interrupted);
}

#[test]
fn ctrl_c_while_a_peer_is_silent_keeps_what_was_measured() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    // In the third request the decode node is heard of no more.
    let proxy = Proxy::start(&node.address, Kind::Token, 2 * STREAMED + 7);
    let split = start_split(&place, &proxy.address, &ENDLESS);
    proxy.wait_until_stopped();
    split.signal("INT");
    split.wait().exits(130);
    proxy.cut();
    let record = place.record("run");
    assert_eq!(record.run.status, Status::Interrupted);
    assert!(record.cases[0].samples.len() >= 4);
    serves_and_stops(&place, node);
}

#[test]
fn ctrl_c_before_measuring_leaves_no_process() {
    let place = Workplace::new();
    // Opening a pipe that nobody writes to takes for ever: a stand-in for any long preparation.
    let pipe = Command::new("mkfifo").arg(place.path("prompts")).status();
    assert!(pipe.unwrap().success());
    let split = Running::start(place.on_model(&["split", "--prompts", "prompts"]));
    let child = own_decode_node(&split);
    wait_for("its threads to be started", || {
        let loaded = split.stderr().contains("loading");
        loaded.then_some(())
    });
    split.signal("INT");
    split.wait().was_interrupted();
    wait_for("the end of the orphan", || is_gone(child).then_some(()));
}

#[test]
fn ctrl_c_while_connecting_is_not_ignored() {
    let place = Workplace::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let split = start_split(&place, &address, &[]);
    let (_open, _) = silent.accept().unwrap();
    split.signal("INT");
    split.wait().was_interrupted();
}

#[test]
fn a_killed_split_takes_its_decode_node_along() {
    let place = Workplace::new();
    let arguments = [&["split", "--out", "run"], &REQUEST[..], &ENDLESS].concat();
    let split = Running::start(place.on_model(&arguments));
    let child = own_decode_node(&split);
    wait_for_samples(&place);
    split.signal("KILL");
    split.wait();
    wait_for("the end of the orphan", || is_gone(child).then_some(()));
}

#[test]
fn serve_decode_stops_at_ctrl_c_and_at_a_polite_kill_and_at_once_at_the_second() {
    let place = Workplace::new();
    for signal in ["INT", "TERM"] {
        // At once, with nobody there.
        let node = place.serve(&[]);
        node.process.signal(signal);
        node.process.wait().exits(0);
        // With a peer in the middle of a request.
        let node = place.serve(&[]);
        let proxy = Proxy::start(&node.address, Kind::Piece, 2);
        let split = Running::start(place.on_model(&[
            "run-prefill",
            "--peer",
            &proxy.address,
            "--prompt-tokens",
            "200",
            "--output-tokens",
            "24",
        ]));
        proxy.wait_until_stopped();
        node.process.signal(signal);
        wait_for("it to say so", || {
            node.process
                .stderr()
                .contains("a second signal stops at once")
                .then_some(())
        });
        node.process.signal(signal);
        let ended = node.process.wait().exits(130);
        assert!(ended.stderr.contains("stopped"), "{ended}");
        proxy.cut();
        drop(split);
    }
}

#[test]
fn a_node_that_is_being_stopped_finishes_what_it_has_and_takes_nothing_new() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    // The answer of the first request is held up until the signal is through.
    let proxy = Proxy::start(&node.address, Kind::Token, 3);
    let run = Running::start(
        place.on_model(
            &[
                &["run-prefill", "--peer", &proxy.address, "--out", "run"],
                &REQUEST[..],
                &["--repeats", "1"],
            ]
            .concat(),
        ),
    );
    proxy.wait_until_stopped();
    node.process.signal("TERM");
    wait_for("it to say so", || {
        node.process
            .stderr()
            .contains("finishing what is under way")
            .then_some(())
    });
    // Whatever comes now is refused with the reason.
    let late = [
        &["split", "--out", "late", "--peer", &node.address],
        &REQUEST[..],
    ]
    .concat();
    place
        .run(&late)
        .fails(4, &["refused (draining)", "is shutting down"]);
    // All of the answer lies in sockets by now, so the node is done with it and ends by itself.
    node.process.wait().exits(0);
    proxy.cut();
    drop(run);
}

#[test]
fn an_interrupted_run_is_finished_by_resume_and_only_if_it_is_the_same() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let proxy = Proxy::start(&node.address, Kind::Token, 2 * STREAMED + 7);
    let split = start_split(&place, &proxy.address, &["--repeats", "5", "--seed", "7"]);
    proxy.wait_until_stopped();
    proxy.cut();
    split.wait().fails(4, &["cannot be reached any more"]);
    let before = place.record("run");
    assert_eq!(before.run.status, Status::Failed);
    let good = |record: &Record| {
        let samples = record.cases.iter().flat_map(|c| &c.samples);
        samples.filter(|s| s.error.is_none()).count()
    };
    assert!(good(&before) < 10);

    let resume = |more: &[&str]| {
        place.run(&[&["split", "--resume", "run", "--peer", &node.address], more].concat())
    };
    resume(&["--repeats", "6"]).fails(3, &["--repeats: \"5\" then, \"6\" now"]);
    resume(&["--seed", "8"]).fails(3, &["seed: 7 then, 8 now"]);
    resume(&["--prompt-tokens", "100"]).fails(3, &["other prompts"]);
    resume(&["--out", "elsewhere"]).fails(2, &["--resume"]);
    let untouched = place.record("run");
    assert_eq!(good(&untouched), good(&before));

    resume(&[]).exits(0);
    let record = place.record("run");
    assert_eq!(record.run.status, Status::Complete);
    assert_eq!(record.run.resumed_at.len(), 1);
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    let case = &record.cases[0];
    // Nothing that was measured is lost or measured twice, the failed request is still a row, and
    // each arm has its five answers.
    for (old, new) in before.cases[0].samples.iter().zip(&case.samples) {
        assert_eq!((old.order, &old.events), (new.order, &new.events));
    }
    assert_eq!(case.samples.iter().filter(|s| s.error.is_some()).count(), 1);
    for arm in [Arm::Single, Arm::Split] {
        let mut repeats: Vec<u32> = (case.samples.iter())
            .filter(|s| s.arm == arm && s.error.is_none() && !s.warmup)
            .map(|s| s.repeat)
            .collect();
        repeats.sort_unstable();
        assert_eq!(repeats, [0, 1, 2, 3, 4], "{arm}");
    }
    let orders = case.samples.iter().map(|s| s.order);
    assert!(
        orders.clone().is_sorted_by(|a, b| a < b),
        "{:?}",
        orders.collect::<Vec<_>>()
    );

    resume(&[]).fails(3, &["this run is complete"]);
    resume_of_nothing(&place, &node);
    node.stop();
}

fn resume_of_nothing(place: &Workplace, node: &DecodeNode) {
    let resume = ["split", "--resume", "nowhere", "--peer", &node.address];
    place.run(&resume).fails(3, &["nowhere"]);
}

#[test]
fn two_processes_do_not_measure_into_one_folder() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let split = start_split(&place, &node.address, &ENDLESS);
    wait_for_samples(&place);
    let resume = ["split", "--resume", "run", "--peer", &node.address];
    place
        .run(&resume)
        .fails(3, &["another process is measuring into it"]);
    split.signal("INT");
    split.wait().exits(130);
    // Its holder is gone, so it is free; killed ones hold nothing either.
    let resume = [&resume[..], &["--repeats", "3"]].concat();
    place.run(&resume).fails(3, &["--repeats"]);
    node.stop();
}

#[test]
fn a_decode_node_that_comes_back_between_requests_is_found_again() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let address = node.address.clone();
    let split = start_split(&place, &address, &["--repeats", "400", "--retry-for", "30"]);
    wait_for_samples(&place);
    node.process.signal("KILL");
    node.process.wait();
    // Time for the run to find nobody there: its requests take milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let mut again = place.on_model(&["serve-decode", "--listen", &address]);
    again.env("RAYON_NUM_THREADS", "1");
    let again = DecodeNode::start(again);
    let _ = split.wait();
    let record = place.record("run");
    assert_eq!(record.run.status, Status::Failed, "{:?}", record.run.error);
    let samples = &record.cases[0].samples;
    // At most the request that was under way is lost, the rest was measured on the new node.
    assert_eq!(samples.len(), 800);
    assert!(samples.iter().filter(|s| s.error.is_some()).count() <= 1);
    let retried = samples
        .iter()
        .filter(|s| s.connect_attempts.is_some_and(|n| n > 1));
    assert_eq!(retried.count(), 1);
    again.stop();
}

#[test]
fn readers_that_had_enough_are_no_failure() {
    let place = Workplace::new();
    // `split | head -1`, and `split 2>&1 | head -1`.
    for stderr_too in [false, true] {
        let out = format!("stderr-{stderr_too}");
        let mut command = place.on_model(&[&["split", "--out", &out], &REQUEST[..]].concat());
        let (reader, writer) = std::io::pipe().unwrap();
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().unwrap());
        match stderr_too {
            true => command.stderr(writer),
            false => command.stderr(Stdio::piped()),
        };
        drop(reader);
        let process = Running::of(command.spawn().unwrap());
        drop(command);
        process.wait().exits(0);
        assert_eq!(place.record(&out).run.status, Status::Complete);
    }
    // A server whose log is read by nobody serves on.
    let mut command = place.on_model(&["serve-decode", "--listen", "127.0.0.1:0"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    drop(stdout);
    let address = line
        .trim()
        .strip_prefix("listening on ")
        .unwrap()
        .to_owned();
    serves_and_stops(
        &place,
        DecodeNode {
            process: Running::of(child),
            address,
        },
    );
}

/// A small file system, unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// None, with the reason, where mounting is not permitted.
    fn mount(folder: &'a Path, size: &str) -> Result<Self, String> {
        std::fs::create_dir(folder).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder);
        match mount.output() {
            Ok(output) if output.status.success() => Ok(Self(folder)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_ends_the_run_and_keeps_the_last_record_that_fitted() {
    let place = Workplace::new();
    let folder = place.path("disk");
    let _disk = match SmallDisk::mount(&folder, "512k") {
        Ok(disk) => disk,
        Err(why) => return tiny_model::skipped("a full disk", &why),
    };
    let arguments = [&["split", "--out", "disk/run"], &REQUEST[..], &ENDLESS].concat();
    let split = Running::start(place.on_model(&arguments));
    let child = own_decode_node(&split);
    let ended = split.wait().fails(1, &["disk/run", "No space left"]);
    assert!(is_gone(child));
    let record = place.record("disk/run");
    assert!(!record.cases[0].samples.is_empty(), "{ended}");
    // Nothing half-written is left beside it.
    let names = std::fs::read_dir(place.path("disk/run")).unwrap();
    for name in names.map(|f| f.unwrap().file_name().into_string().unwrap()) {
        assert!(!name.starts_with('.'), "{name}");
    }
}

#[test]
fn a_disk_that_turns_read_only_ends_the_run_and_resume_finishes_it_once_it_is_well() {
    let place = Workplace::new();
    let folder = place.path("disk");
    let _disk = match SmallDisk::mount(&folder, "64m") {
        Ok(disk) => disk,
        Err(why) => return tiny_model::skipped("a read-only disk", &why),
    };
    let remount = |how: &str| {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{how}")]).arg(&folder);
        assert!(mount.status().unwrap().success());
    };
    let node = place.serve(&[]);
    let run = [
        "split",
        "--out",
        "disk/run",
        "--peer",
        &node.address,
        "--repeats",
        "300",
    ];
    let split = Running::start(place.on_model(&[&run[..], &REQUEST].concat()));
    wait_for("the first samples", || {
        let record = Record::read(&place.path("disk/run/run.json")).ok()?;
        (!record.cases.first()?.samples.is_empty()).then_some(())
    });
    remount("ro");
    split
        .wait()
        .fails(1, &["disk/run", "Read-only file system"]);
    let measured = place.record("disk/run").cases[0].samples.len();
    assert!(measured > 0 && measured < 600);
    let resume = ["split", "--resume", "disk/run", "--peer", &node.address];
    place
        .run(&resume)
        .fails(1, &["disk/run", "Read-only file system"]);
    remount("rw");
    place.run(&resume).exits(0);
    let record = place.record("disk/run");
    assert_eq!(record.cases[0].samples.len(), 600);
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    node.stop();
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn a_wall_clock_that_jumps_by_hours_under_both_nodes_changes_nothing() {
    let place = Workplace::new();
    let jumping = place.path("jumping_clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/jumping_clock.c");
    let compiler = (Command::new("cc").args(["-shared", "-fPIC", "-o"]))
        .arg(&jumping)
        .arg(source)
        .output();
    let compiled = match compiler {
        Ok(compiled) => compiled,
        Err(error) => {
            let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            assert!(
                !["CI", "DISAGG_REFERENCE_REQUIRED"].into_iter().any(is_set),
                "cc: {error}: install a C compiler"
            );
            return tiny_model::skipped("a clock that jumps", &format!("cc: {error}"));
        }
    };
    assert!(compiled.status.success(), "{compiled:?}");
    let arguments = [&["split", "--out", "run", "--repeats", "20"], &REQUEST[..]].concat();
    let mut split = place.on_model(&arguments);
    // The decode node that it starts inherits it.
    split.env("LD_PRELOAD", &jumping);
    let started = std::time::Instant::now();
    Ended::of(split).exits(0);
    let took = started.elapsed();

    let record = place.record("run");
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    let started_at: jiff::Timestamp = record.run.started_at.parse().unwrap();
    #[expect(clippy::disallowed_methods, reason = "the clock that was moved")]
    let off = jiff::Timestamp::now().duration_since(started_at);
    assert!(
        off.abs().as_secs() > 3000,
        "the clock was left alone: {off}"
    );
    for case in &record.cases {
        for sample in &case.samples {
            assert_eq!(sample.error, None);
            let last_ns = sample.events.iter().map(|e| e.t_ns).max().unwrap();
            assert!(u128::from(last_ns) < took.as_nanos(), "{sample:?}");
        }
    }
}

#[test]
fn a_failed_request_does_not_hide_in_the_figures() {
    let place = Workplace::new();
    // The node is well; the line to it breaks in the second split request and stays broken.
    let node = place.serve(&[]);
    let proxy = Proxy::start(&node.address, Kind::Token, STREAMED + 3);
    let split = start_split(&place, &proxy.address, &["--repeats", "3"]);
    proxy.wait_until_stopped();
    proxy.cut();
    let ended = split.wait().fails(4, &["cannot be reached any more"]);
    assert!(ended.stdout.contains("1 of 4 requests failed"), "{ended}");
    let summary = place.summary("run");
    assert_eq!(summary.cases[0].errors.len(), 1);
    let split = summary.cases[0].arm(Arm::Split).unwrap();
    assert_eq!(split.e2e_ms.unwrap().n, 1);
    node.stop();
}

#[test]
fn a_byte_damaged_on_the_wire_costs_one_request_and_is_told_by_the_exit_code() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let proxy = DamagingProxy::start(&node.address, Kind::Piece, 2 * LAYERS + 2);
    let split = start_split(&place, &proxy.address, &["--repeats", "4"]);
    split.wait().fails(5, &["checksum of PIECE"]);
    let record = place.record("run");
    let [case] = &record.cases[..] else {
        panic!("{} cases", record.cases.len());
    };
    let (failed, fine): (Vec<_>, Vec<_>) = case.samples.iter().partition(|s| s.error.is_some());
    assert_eq!((failed.len(), failed[0].arm), (1, Arm::Split));
    assert!(failed[0].error.as_ref().unwrap().contains("layer 1"));
    assert_eq!(fine.len() + 1, case.samples.len());
    assert!(case.samples.last().unwrap().order > failed[0].order);
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    serves_and_stops(&place, node);
}
