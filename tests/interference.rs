//! Nodes on cores of their own, and what a running sequence suffers from another prompt's prefill.

mod tiny_model;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use disagg_bench::cores::{self, CoreList};
use disagg_bench::metrics::interference::{InterferenceSample, Moments};
use disagg_bench::metrics::{Arm, Origin, Record, Status};
use disagg_bench::wire::Kind;
use tiny_model::proxy::Proxy;
use tiny_model::{Ended, Workplace, skipped};

/// Requests that take no time.
const SHORT: [&str; 8] = [
    "--prompt-tokens",
    "9,300",
    "--output-tokens",
    "4",
    "--repeats",
    "2",
    "--warmup",
    "1",
];

/// Two cores that a process of this machine may be pinned to.
fn two_cores() -> Option<(String, String)> {
    let (ours, theirs) = cores::current()?.halves()?;
    let first = |list: &CoreList| {
        let text = list.to_string();
        text.split(['-', ',']).next().map(str::to_owned)
    };
    Some((first(&ours)?, first(&theirs)?))
}

fn cores_of(record: &Record) -> (Option<String>, Option<String>) {
    let decode = record.environment.decode.as_ref();
    let text = |list: &Option<CoreList>| list.as_ref().map(CoreList::to_string);
    (
        text(&record.environment.prefill.processor.cores),
        decode.and_then(|d| text(&d.processor.cores)),
    )
}

fn network_cores_of(record: &Record) -> (Option<String>, Option<String>) {
    let (prefill, decode) = (&record.environment.prefill, &record.environment.decode);
    let text = |list: &Option<CoreList>| list.as_ref().map(CoreList::to_string);
    (
        text(&prefill.network_cores),
        decode.as_ref().and_then(|d| text(&d.network_cores)),
    )
}

#[test]
fn a_node_stays_on_the_cores_it_is_given_and_computes_with_as_many_threads() {
    let Some((one, other)) = two_cores() else {
        return skipped("cores", "fewer than two");
    };
    let place = Workplace::new();
    let both = format!("{one},{other}");
    let baseline = [&["baseline", "--cores", &both, "--out", "b"], &SHORT[..]].concat();
    // It wins over RAYON_NUM_THREADS, which the tests set to 1.
    place.run(&baseline).exits(0);
    let record = place.record("b");
    assert_eq!(record.environment.prefill.threads, 2);
    assert_eq!(record.configuration["threads"].value, 2);
    assert_eq!(record.configuration["cores"].origin, Origin::Flag);
    let pinned: CoreList = both.parse().unwrap();
    assert_eq!(record.environment.prefill.processor.cores, Some(pinned));

    // A decode node of its own goes where this one is, unless it has cores of its own.
    let split = [&["split", "--cores", &one, "--out", "same"], &SHORT[..]].concat();
    place.run(&split).exits(0);
    let on_one = Some(one.clone());
    let record = place.record("same");
    assert_eq!(cores_of(&record), (on_one.clone(), on_one.clone()));
    assert_eq!(network_cores_of(&record), (None, None));
    let apart = [
        "split",
        "--cores",
        &one,
        "--decode-cores",
        &other,
        "--out",
        "apart",
    ];
    place.run(&[&apart, &SHORT[..]].concat()).exits(0);
    let record = place.record("apart");
    assert_eq!(cores_of(&record), (on_one.clone(), Some(other.clone())));
    assert_eq!(network_cores_of(&record), (on_one, Some(other.clone())));
    assert_eq!(record.configuration["decode_cores"].value, other);
    assert_eq!(record.configuration["network_cores"].value, one);

    // Left alone, both nodes have all cores for compute and one each for the network.
    let split = [&["split", "--cores", &both, "--out", "free"], &SHORT[..]].concat();
    place.run(&split).exits(0);
    let record = place.record("free");
    let of_each = (Some(one.clone()), Some(other.clone()));
    assert_eq!(network_cores_of(&record), of_each);
    assert_eq!(
        record.configuration["network_cores"].origin,
        Origin::Default
    );
    let swapped = [
        "split",
        "--cores",
        &both,
        "--network-cores",
        &other,
        "--out",
        "swapped",
    ];
    place.run(&[&swapped, &SHORT[..]].concat()).exits(0);
    let record = place.record("swapped");
    assert_eq!(network_cores_of(&record), (of_each.1, of_each.0));
}

#[test]
fn cores_that_are_not_there_or_make_no_sense_are_refused() {
    let place = Workplace::new();
    let fails = |arguments: &[&str], parts: &[&str]| {
        place.run(&[arguments, &SHORT[..]].concat()).fails(3, parts);
    };
    fails(
        &["baseline", "--cores", "1023"],
        &["--cores 1023", "choose from"],
    );
    fails(
        &["split", "--decode-cores", "1023"],
        &["--decode-cores 1023", "choose from"],
    );
    for command in [
        place.on_model(&["split", "--network-cores", "1023"]),
        place.on_model(&["serve-decode", "--network-cores", "1023"]),
        place.command(&["link", "--network-cores", "1023"]),
    ] {
        Ended::of(command).fails(3, &["--network-cores 1023", "choose from"]);
    }
    let uneven = [
        "split",
        "--interference",
        "--cores",
        "0",
        "--decode-cores",
        "1-2",
    ];
    fails(&uneven, &["1 core", "--decode-cores 2", "as many"]);
    let shared = [
        "split",
        "--interference",
        "--cores",
        "0-1",
        "--decode-cores",
        "1-2",
    ];
    fails(&shared, &["--cores and --decode-cores share 1"]);
    fails(
        &["split", "--interference", "--cores", "0"],
        &["or neither"],
    );
    let usage = |arguments: &[&str]| {
        place.run(&[arguments, &SHORT[..]].concat()).exits(2);
    };
    usage(&["baseline", "--cores", "0-"]);
    usage(&["split", "--peer", "127.0.0.1:1", "--decode-cores", "0"]);
}

#[test]
fn prompts_that_leave_no_room_for_a_scene_are_refused_before_anything_runs() {
    if two_cores().is_none() {
        return skipped("interference", "fewer than two cores");
    }
    let place = Workplace::new();
    let refused = |settings: &[&str], parts: &[&str]| {
        let arguments = [&["split", "--interference", "--out", "run"], settings].concat();
        let ended = place.run(&arguments).fails(3, parts);
        assert!(!ended.stderr.contains("measuring"), "{ended}");
    };
    let long = ["--prompt-tokens", "480", "--output-tokens", "4"];
    refused(
        &long,
        &["480-tokens", "32 tokens of the context", "shorter prompt"],
    );
    let full = ["--prompt-tokens", "9,511", "--output-tokens", "1"];
    refused(&full, &["511-tokens", "2 output tokens"]);
    let one = ["--prompt-tokens", "9,300", "--output-tokens", "1"];
    refused(&one, &["--output-tokens 2"]);
}

/// Demands that the other prompt came when it should, and that the tokens follow each other.
fn is_sound(moments: &Moments, comes_after_tokens: usize) {
    assert_eq!(moments.tokens.len(), moments.token_ns.len());
    assert!(moments.token_ns.is_sorted());
    let came = moments.newcomer_start_ns;
    assert!(
        came >= moments.token_ns[comes_after_tokens - 1],
        "too early: {moments:?}"
    );
    assert!(moments.newcomer_first_token_ns > came);
}

fn sees_the_scene_in_every_arm(place: &Workplace, out: &str) {
    let record = place.record(out);
    assert_eq!(record.run.status, Status::Complete);
    let all = record.interference.as_ref().unwrap();
    assert_eq!(
        (all.running_prompt_tokens, all.newcomer_prompt_tokens),
        (9, 300)
    );
    assert_eq!(all.samples.len(), 3 * 3);
    let ways: BTreeSet<_> = all
        .samples
        .iter()
        .map(|s| (s.arm, s.chunk_tokens))
        .collect();
    let wanted = [
        (Arm::Single, None),
        (Arm::Single, Some(256)),
        (Arm::Split, None),
    ];
    assert_eq!(ways, BTreeSet::from(wanted));
    for sample in &all.samples {
        let moments = sample.moments.as_ref().unwrap();
        is_sound(moments, all.comes_after_tokens as usize);
        // Its cache goes over the link in the split alone, and the scene lasts until it is there.
        let is_sent = sample.arm == Arm::Split;
        let landed_ns = moments.newcomer_landed_ns;
        assert_eq!(landed_ns.is_some(), is_sent);
        assert!(landed_ns.is_none_or(|t_ns| t_ns > moments.newcomer_start_ns));
        let during = (moments.token_ns.iter())
            .filter(|t| (moments.newcomer_start_ns..moments.newcomer_first_token_ns).contains(t))
            .count();
        match (sample.arm, sample.chunk_tokens) {
            (Arm::Single, None) => assert_eq!(during, 0, "a whole prompt lets no token through"),
            (Arm::Single, Some(_)) => assert_eq!(during, 1, "300 tokens are two chunks"),
            (Arm::Split, _) => assert_eq!(moments.tokens.len() as u32, all.running_output_tokens),
        }
    }
    assert_eq!(all.same_tokens(), Some(true));
    // The newcomer's connection is opened for the first scene in which the nodes are apart.
    let (split, single): (Vec<_>, Vec<_>) = all.samples.iter().partition(|s| s.arm == Arm::Split);
    assert_eq!(split[0].connect_attempts, Some(1));
    assert!(single.iter().all(|s| s.connect_attempts.is_none()));

    let summary = place.summary(out);
    let shown = summary.interference.unwrap();
    assert_eq!(shown.same_tokens, Some(true));
    let cores =
        [Some(shown.prefill_node), shown.decode_node].map(|node| node.unwrap().cores.unwrap());
    assert!(cores[0].shared_with(&cores[1]).is_empty(), "{cores:?}");
    assert_eq!(cores[0].len(), cores[1].len());
    let [whole, chunked, split] = &shown.arms[..] else {
        panic!("{:?}", shown.arms)
    };
    assert_eq!(
        (whole.arm, whole.chunk_tokens, split.arm),
        (Arm::Single, None, Arm::Split)
    );
    for arm in [whole, chunked] {
        assert_eq!((arm.worst_itl_ms.unwrap().n, arm.cut_short), (2, 0));
        assert!(
            arm.lost_ms.unwrap().min > 0.0,
            "a prefill takes time: {arm:?}"
        );
    }
    let report = std::fs::read_to_string(place.path(out).join("report.md")).unwrap();
    assert!(report.contains("## Interference"), "{report}");
    assert!(report.contains("| single, chunks of 256 |"), "{report}");
}

#[test]
fn interference_is_measured_on_one_machine_with_half_of_the_cores_for_each_node() {
    if two_cores().is_none() {
        return skipped("interference", "fewer than two cores");
    }
    let place = Workplace::new();
    let arguments = [&["split", "--interference", "--out", "run"], &SHORT[..]].concat();
    let ended = place.run(&arguments).exits(0);
    assert!(
        ended
            .stdout
            .contains("while a prompt of 300 tokens is prefilled"),
        "{ended}"
    );
    sees_the_scene_in_every_arm(&place, "run");
    let record = place.record("run");
    let half = cores::current().unwrap().halves().unwrap().0;
    assert_eq!(
        record.environment.prefill.processor.cores.as_ref(),
        Some(&half)
    );
    assert_eq!(record.configuration["cores"].value, half.to_string());
    assert_eq!(record.configuration["cores"].origin, Origin::Default);
    // Without being asked for, nothing of it is there.
    let arguments = [&["split", "--out", "without"], &SHORT[..]].concat();
    place.run(&arguments).exits(0);
    assert!(place.record("without").interference.is_none());
    assert!(place.summary("without").interference.is_none());
}

#[test]
fn a_decode_node_on_this_machine_must_have_cores_of_its_own() {
    let Some((one, other)) = two_cores() else {
        return skipped("interference", "fewer than two cores");
    };
    let place = Workplace::new();
    let node = place.serve(&["--cores", &other]);
    let peer = ["split", "--interference", "--peer", &node.address];
    let apart = [&peer, &["--cores", &one, "--out", "apart"], &SHORT[..]].concat();
    place.run(&apart).exits(0);
    sees_the_scene_in_every_arm(&place, "apart");
    let shared = [&peer, &["--cores", &other, "--out", "shared"], &SHORT[..]].concat();
    let what = format!("both nodes run on cores {other}");
    place
        .run(&shared)
        .fails(3, &[&what, "serve-decode with --cores"]);
    node.stop();
}

#[test]
fn a_resumed_run_keeps_what_was_seen_of_the_scene_and_sees_the_rest() {
    let Some((one, other)) = two_cores() else {
        return skipped("interference", "fewer than two cores");
    };
    let place = Workplace::new();
    let node = place.serve(&["--cores", &other]);
    // It takes one connection, so the newcomer of the first split scene finds nobody.
    let proxy = Proxy::start(&node.address, Kind::Done, usize::MAX);
    let split = |more: &[&str]| {
        let scene = ["split", "--interference", "--cores", &one, "--warmup", "0"];
        place.run(&[&scene, more, &SHORT[..6]].concat())
    };
    split(&["--out", "run", "--peer", &proxy.address]).fails(4, &["cannot be reached any more"]);
    let before = place.record("run").interference.unwrap();
    let failed = |sample: &InterferenceSample| sample.error.is_some();
    assert_eq!(before.samples.len(), 3, "one round");
    assert_eq!(before.samples.iter().filter(|s| failed(s)).count(), 1);

    split(&["--resume", "run", "--peer", &node.address]).exits(0);
    let record = place.record("run");
    assert_eq!(record.run.status, Status::Complete);
    let after = record.interference.unwrap();
    assert_eq!(after.running_output_tokens, before.running_output_tokens);
    for (old, new) in before.samples.iter().zip(&after.samples) {
        assert_eq!((&old.moments, &old.error), (&new.moments, &new.error));
    }
    let seen: Vec<_> = (after.samples.iter().filter(|s| !failed(s)))
        .map(|s| (s.arm, s.chunk_tokens, s.repeat))
        .collect();
    assert_eq!(seen.len(), 3 * 2, "each arm once a round: {seen:?}");
    assert_eq!(BTreeSet::from_iter(seen).len(), 3 * 2);
    node.stop();
}

/// Passes the bytes of any number of connections on, those to the decode node at a rate.
struct SlowLink {
    address: String,
}

impl SlowLink {
    fn start(decode_node: &str, bytes_per_s: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let upstream = decode_node.to_owned();
        // It ends with the process, and each connection with its ends.
        std::thread::spawn(move || {
            for prefill in listener.incoming() {
                let (prefill, decode) = (prefill.unwrap(), TcpStream::connect(&upstream).unwrap());
                let back = [decode.try_clone().unwrap(), prefill.try_clone().unwrap()];
                std::thread::spawn(move || pass([prefill, decode], Some(bytes_per_s)));
                std::thread::spawn(move || pass(back, None));
            }
        });
        Self { address }
    }
}

fn pass([mut from, mut to]: [TcpStream; 2], bytes_per_s: Option<u32>) {
    to.set_nodelay(true).unwrap();
    let mut bytes = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        let takes = bytes_per_s.map(|per_s| Duration::from_secs(n as u64) / per_s);
        std::thread::sleep(takes.unwrap_or_default());
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    // An error means that it is closed already.
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn over_a_slow_link_the_scene_lasts_until_the_cache_is_there() {
    let Some((one, other)) = two_cores() else {
        return skipped("interference", "fewer than two cores");
    };
    let place = Workplace::new();
    let node = place.serve(&["--cores", &other]);
    // 115 KB of cache take 29 ms.
    let link = SlowLink::start(&node.address, 4_000_000);
    let split = ["split", "--interference", "--cores", &one, "--out", "run"];
    let arguments = [&split[..], &["--peer", &link.address], &SHORT].concat();
    place.run(&arguments).exits(0);
    let all = place.record("run").interference.unwrap();
    let split = all.samples.iter().filter(|s| s.arm == Arm::Split);
    let moments: Vec<&Moments> = split.filter_map(|s| s.moments.as_ref()).collect();
    for moments in &moments {
        let landed_ns = moments.newcomer_landed_ns.unwrap();
        let took_ns = landed_ns - moments.newcomer_start_ns;
        assert!(took_ns > 28_000_000, "{moments:?}");
    }
    // The running sequence is long enough to see it, unless something else slows a scene down.
    let sees_it = |m: &&Moments| m.token_ns.last().copied() > m.newcomer_landed_ns;
    assert!(moments.into_iter().any(|m| sees_it(&m)), "{all:?}");
    node.stop();
}
