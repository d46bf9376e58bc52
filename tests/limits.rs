//! What peers can make a decode node hold and wait for: every limit refuses with its reason, and
//! whoever is within them is served meanwhile.

mod tiny_model;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use disagg_bench::metrics::Agreement;
use disagg_bench::wire::frame::MAX_HELLO_BYTES;
use disagg_bench::wire::{Header, Kind};
use tiny_model::proxy::Proxy;
use tiny_model::running::Running;
use tiny_model::{DecodeNode, Ended, Workplace, wait_for};

/// A short run against a node.
fn split(place: &Workplace, node: &DecodeNode, out: &str) -> Ended {
    let short = [
        "--prompt-tokens",
        "100",
        "--output-tokens",
        "8",
        "--repeats",
        "1",
    ];
    let to = ["split", "--out", out, "--peer", &node.address];
    place.run(&[&to[..], &short[..]].concat())
}

/// A run whose request is held up in the middle of its answer.
fn held_up(place: &Workplace, node: &DecodeNode) -> (Running, Proxy) {
    let proxy = Proxy::start(&node.address, Kind::Piece, 2);
    let run = [
        "run-prefill",
        "--peer",
        &proxy.address,
        "--prompt-tokens",
        "100",
    ];
    let running = Running::start(place.on_model(&run));
    proxy.wait_until_stopped();
    (running, proxy)
}

#[test]
fn what_is_over_a_limit_is_refused_with_the_flag_that_raises_it() {
    let place = Workplace::new();
    for (limit, value, parts) in [
        (
            "--max-prompt-tokens",
            "99",
            &["the prompt has 100 tokens", "--max-prompt-tokens"][..],
        ),
        (
            "--max-output-tokens",
            "7",
            &["the answer has 8 tokens", "--max-output-tokens"],
        ),
        (
            "--max-cache",
            "64KB",
            &[
                "does not fit",
                "of 64000 bytes are in use: send a shorter prompt",
                "raise --max-cache of serve-decode",
            ],
        ),
        (
            "--max-message",
            "300B",
            &[
                "over the limit of 300 bytes",
                "refused (limit)",
                "raise --max-message of serve-decode",
            ],
        ),
    ] {
        let node = place.serve(&[limit, value]);
        split(&place, &node, &limit[2..]).fails(4, parts);
        node.stop();
    }
    // Small pieces are no refusal: the peer is told and cuts its caches accordingly.
    let node = place.serve(&["--max-piece", "4KiB"]);
    split(&place, &node, "small-pieces").exits(0);
    let record = place.record("small-pieces");
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    node.stop();
}

#[test]
fn no_more_connections_and_requests_than_the_limits_and_the_others_go_on() {
    let place = Workplace::new();
    let node = place.serve(&["--max-requests", "1"]);
    let (running, proxy) = held_up(&place, &node);
    let parts = [
        "refused (busy)",
        "1 requests are in flight",
        "--max-requests",
    ];
    split(&place, &node, "busy").fails(4, &parts);
    proxy.cut();
    drop(running);
    split(&place, &node, "free").exits(0);
    node.stop();

    let node = place.serve(&["--max-connections", "2"]);
    let silent: Vec<TcpStream> = (0..2)
        .map(|_| TcpStream::connect(&node.address).unwrap())
        .collect();
    // Until both are accepted a third could be taken in their place.
    wait_for("the node to be full", || {
        let ended = split(&place, &node, "full");
        ended.stderr.contains("refused (busy)").then_some(())
    });
    drop(silent);
    wait_for("room again", || {
        let ended = split(&place, &node, "room");
        ended.status.success().then_some(())
    });
    node.stop();
}

#[test]
fn a_busy_node_is_tried_again_and_the_sample_says_so() {
    let place = Workplace::new();
    let node = place.serve(&["--max-connections", "1"]);
    let (running, proxy) = held_up(&place, &node);
    let retrying = [
        "split",
        "--out",
        "run",
        "--peer",
        &node.address,
        "--retry-for",
        "30",
    ];
    let short = [
        "--prompt-tokens",
        "100",
        "--output-tokens",
        "8",
        "--repeats",
        "2",
        "--warmup",
        "0",
    ];
    let second = Running::start(place.on_model(&[&retrying[..], &short].concat()));
    wait_for("it to be turned away", || {
        let said = second.stderr();
        said.contains("; trying again for 30 s").then_some(())
    });
    proxy.cut();
    drop(running);
    second.wait().exits(0);
    let record = place.record("run");
    let samples = record.cases.iter().flat_map(|c| &c.samples);
    let attempts: Vec<u32> = samples.filter_map(|s| s.connect_attempts).collect();
    assert_eq!(attempts.len(), 1, "one connection for the whole run");
    assert!(attempts[0] > 1, "{attempts:?}");
    node.stop();
}

#[test]
fn strangers_that_stay_silent_are_let_go() {
    let place = Workplace::new();
    let node = place.serve(&["--handshake-timeout", "0.3"]);
    let mut silent = TcpStream::connect(&node.address).unwrap();
    let started = Instant::now();
    let mut said = Vec::new();
    let _ = silent.read_to_end(&mut said);
    assert!(started.elapsed() >= Duration::from_millis(300));
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("the handshake did not finish"), "{said}");
    assert!(
        said.contains("raise --handshake-timeout of serve-decode"),
        "{said}"
    );
    // Nor do they get more time by saying something now and then.
    let mut slow = TcpStream::connect(&node.address).unwrap();
    let started = Instant::now();
    for byte in b"\xd1SAGGKV\n\x01\x00" {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = slow.read_to_end(&mut Vec::new());
    assert!(started.elapsed() < Duration::from_secs(5));
    node.stop();
}

#[test]
fn a_session_without_requests_is_ended_with_the_flag_that_makes_it_longer() {
    let place = Workplace::new();
    let node = place.serve(&["--idle-timeout", "0.01"]);
    // While the prefill node answers by itself it says nothing for longer than that.
    let alone = [
        "--prompt-tokens",
        "100",
        "--output-tokens",
        "400",
        "--repeats",
        "2",
    ];
    let to = ["split", "--peer", &node.address];
    let running = Running::start(place.on_model(&[&to[..], &alone].concat()));
    node.prints("raise --idle-timeout of serve-decode");
    drop(running);
    node.stop();
}

#[test]
fn a_request_that_stops_coming_loses_its_cache_to_others() {
    let place = Workplace::new();
    // Room for one cache, and half a second for a frame.
    let node = place.serve(&["--max-requests", "1", "--frame-timeout", "0.5"]);
    let (running, proxy) = held_up(&place, &node);
    node.prints("dropped: ");
    split(&place, &node, "next").exits(0);
    proxy.cut();
    drop(running);
    let stopped = node.stop();
    assert!(
        stopped.stdout.contains("they were not there after"),
        "{stopped}"
    );
}

#[test]
fn lengths_that_are_announced_take_no_memory() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let resident_bytes = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.id()));
        let status = status.unwrap();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            << 10
    };
    split(&place, &node, "before").exits(0);
    let before = resident_bytes();
    // A HELLO of the largest length, of which nothing comes: 50 MiB if each were believed.
    let header = Header::new(Kind::Hello, 0, 0, MAX_HELLO_BYTES).encode();
    let announced: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(&node.address).unwrap();
            stream.write_all(&header).unwrap();
            stream
        })
        .collect();
    // The node reads what it is sent in the order of arrival, so this one comes behind them.
    split(&place, &node, "meanwhile").exits(0);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 200 * MAX_HELLO_BYTES / 4, "{grown} bytes more");
    drop(announced);
    node.stop();
}

#[test]
fn several_peers_take_turns_and_know_of_each_other() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    // A long answer first, then short ones: they need not wait for its end.
    let long = ["run-prefill", "--out", "long", "--peer", &node.address];
    let endless = [
        "--prompt-tokens",
        "40",
        "--output-tokens",
        "400",
        "--repeats",
        "50",
    ];
    let long = Running::start(place.on_model(&[&long[..], &endless].concat()));
    wait_for("its first answers", || {
        let served = node.process.stdout().matches(": 40 prompt tokens").count();
        (served >= 2).then_some(())
    });
    split(&place, &node, "short").exits(0);
    long.wait().exits(0);
    for out in ["short", "long"] {
        let record = place.record(out);
        let samples = record.cases.iter().flat_map(|c| &c.samples);
        let met = samples.filter(|s| s.others_in_flight.is_some_and(|others| others > 0));
        assert!(met.count() > 0, "{out}");
    }
    let record = place.record("short");
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    let alarms = place.summary("short").alarms;
    assert!(
        alarms
            .iter()
            .any(|alarm| alarm.contains("requests of others")),
        "{alarms:?}"
    );
    node.stop();
}
