//! Many requests and many peers on one decode node over loopback. Bounded, and not part of the usual
//! tests: `cargo test --release --test soak -- --ignored --nocapture`.

mod tiny_model;

use std::time::{Duration, Instant};

use disagg_bench::metrics::{Agreement, Arm};
use tiny_model::running::Running;
use tiny_model::{DecodeNode, Workplace, wait_for};

/// Peers at once, and what each of them asks: 10,000 requests in all.
const PEERS: usize = 50;
const REQUESTS_EACH: usize = 200;

/// How much more memory the node may have at the end than after a tenth of the requests: what an
/// allocator keeps, and far less than a cache (384 KiB) that is forgotten now and then.
const GROWTH_BYTES: u64 = 16 << 20;

/// Threads that the runtime may start beside its own for work that blocks.
const BLOCKING_THREADS: usize = 8;

/// Longest that all of it may take.
const LIMIT: Duration = Duration::from_secs(1_800);

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    resident_bytes: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(node: &DecodeNode) -> Self {
        let process = format!("/proc/{}", node.process.id());
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            resident_bytes: field("VmRSS:") << 10,
            descriptors: std::fs::read_dir(format!("{process}/fd")).unwrap().count(),
            threads: field("Threads:") as usize,
        }
    }
}

fn served(node: &DecodeNode) -> usize {
    node.process.stdout().matches(" tokens decoded in ").count()
}

#[test]
#[ignore = "takes minutes: see the module's comment"]
fn ten_thousand_requests_of_fifty_peers_leave_nothing_behind() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let at_first = Held::by(&node);
    let started = Instant::now();
    let repeats = REQUESTS_EACH.to_string();
    let peers: Vec<Running> = (0..PEERS)
        .map(|peer| {
            let out = format!("peer-{peer}");
            let run = [
                "run-prefill",
                "--quiet",
                "--out",
                &out,
                "--peer",
                &node.address,
            ];
            let short = [
                "--prompt-tokens",
                "20",
                "--output-tokens",
                "4",
                "--warmup",
                "0",
            ];
            let repeats = ["--repeats", &repeats];
            Running::start(place.on_model(&[&run[..], &short, &repeats].concat()))
        })
        .collect();
    let wait_until = |requests: usize| {
        while served(&node) < requests {
            assert!(
                started.elapsed() < LIMIT,
                "{} requests by then",
                served(&node)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    wait_until(PEERS * REQUESTS_EACH / 10);
    let early = Held::by(&node);
    wait_until(PEERS * REQUESTS_EACH);
    for peer in peers {
        peer.wait().exits(0);
    }
    let took = started.elapsed();
    // Connections end a moment after their peers.
    let late = wait_for("all connections to end", || {
        let held = Held::by(&node);
        (held.descriptors <= at_first.descriptors).then_some(held)
    });
    println!(
        "{} requests of {PEERS} peers in {:.1} s; the node held {at_first:?} before, {early:?} after \
         a tenth, {late:?} at the end",
        PEERS * REQUESTS_EACH,
        took.as_secs_f64()
    );
    assert!(late.resident_bytes <= early.resident_bytes + GROWTH_BYTES);
    assert!(late.threads <= at_first.threads + BLOCKING_THREADS);
    for peer in 0..PEERS {
        let record = place.record(&format!("peer-{peer}"));
        let samples = || record.cases.iter().flat_map(|c| &c.samples);
        assert_eq!(samples().count(), REQUESTS_EACH);
        let failed: Vec<_> = samples().filter_map(|s| s.error.as_deref()).collect();
        assert!(failed.is_empty(), "{failed:?}");
        assert!(samples().all(|s| s.arm == Arm::Split));
        // Every answer is the same, whoever asked and whoever else did meanwhile.
        let mut answers: Vec<_> = samples()
            .filter_map(|s| Some(&s.output.as_ref()?.tokens))
            .collect();
        answers.dedup();
        assert_eq!(answers.len(), 1);
    }
    // And the node is as good as new.
    place
        .run(&[
            "split",
            "--out",
            "next",
            "--peer",
            &node.address,
            "--prompt-tokens",
            "20",
        ])
        .exits(0);
    assert_eq!(place.record("next").outputs(), Some(Agreement::Identical));
    node.stop();
}
