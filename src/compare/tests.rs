use super::*;
use crate::metrics::{Arm, Event, EventName, Transfer};
use crate::report::fixture::{record, usual_case};
use crate::wire::message::KvDtype;

fn run() -> Record {
    record(vec![usual_case(128), usual_case(512)])
}

/// The same run with every time of an arm longer.
fn slower(mut record: Record, arm: Arm, factor: f64) -> Record {
    let samples = record.cases.iter_mut().flat_map(|c| &mut c.samples);
    for event in samples.filter(|s| s.arm == arm).flat_map(|s| &mut s.events) {
        event.t_ns = (event.t_ns as f64 * factor) as u64;
    }
    record
}

fn compared(old: &Record, new: &Record) -> Comparison {
    Comparison::between(old, new).unwrap()
}

fn refused(new: &Record) -> Vec<String> {
    Comparison::between(&run(), new).unwrap_err()
}

fn figure(comparison: &Comparison, case: usize, arm: Arm, name: &str) -> ComparedFigure {
    let mut arms = comparison.cases[case].arms.iter();
    let arm = arms.find(|a| a.key.arm == arm).unwrap();
    arm.figures
        .iter()
        .find(|f| f.figure == name)
        .unwrap()
        .clone()
}

#[test]
fn a_run_compared_with_itself_has_not_changed() {
    let comparison = compared(&run(), &run());
    assert_eq!(comparison.warnings, Vec::<String>::new());
    let figures = comparison
        .cases
        .iter()
        .flat_map(|c| &c.arms)
        .flat_map(|a| &a.figures);
    let mut seen = 0;
    for figure in figures {
        assert!(
            !figure.change.significant && figure.old == figure.new,
            "{figure:?}"
        );
        seen += 1;
    }
    // Of the single arm what is defined without a transfer.
    assert_eq!(seen, 2 * (7 + 12));
    let text = comparison.to_terminal();
    assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
    assert!(!text.contains('%') || text.contains(" ~ "), "{text}");
}

#[test]
fn a_change_is_found_in_its_arm_alone() {
    let comparison = compared(&run(), &slower(run(), Arm::Split, 1.1));
    let split = figure(&comparison, 1, Arm::Split, "e2e_ms");
    assert!(split.change.significant);
    assert!(
        (split.change.pct.unwrap().value - 10.0).abs() < 0.3,
        "{split:?}"
    );
    assert!(
        !figure(&comparison, 1, Arm::Single, "e2e_ms")
            .change
            .significant
    );
    let text = comparison.to_terminal();
    assert!(
        text.contains("512 prompt tokens, split bulk x1\n"),
        "{text}"
    );
    let line = text.lines().rfind(|l| l.contains("e2e_ms")).unwrap();
    assert!(
        line.contains("+10.00%") && line.contains("0.0079"),
        "{line}"
    );
    let markdown = comparison.to_markdown();
    assert!(
        markdown.contains("| 512 tokens | 512    | split bulk x1  | e2e_ms "),
        "{markdown}"
    );
}

#[test]
fn unlike_runs_are_refused_with_what_differs() {
    type Change = fn(&mut Record);
    let changes: [(&str, Change); 8] = [
        ("model: ", |r| r.model.fingerprint = "other".into()),
        (
            "prompts: 2 prompts of 128, 512 tokens in the old run, 1 prompt of 128",
            |r| {
                r.cases.pop();
            },
        ),
        ("prompts: other texts of the same lengths", |r| {
            r.cases[0].prompt_digest = "11".repeat(16);
        }),
        (
            "output tokens at 128 prompt tokens: 50, whatever they are in the old run, 9",
            |r| {
                r.cases[0].output_tokens = 9;
            },
        ),
        ("output tokens at 128", |r| r.cases[0].ignore_eos = false),
        (
            "KV dtype at 512 prompt tokens: f16 in the old run, f32 in the new one",
            |r| {
                r.cases[1]
                    .samples
                    .iter_mut()
                    .for_each(|s| s.kv_dtype = KvDtype::F32);
            },
        ),
        (
            "prefill chunk at 128 prompt tokens: whole in the old run, 64",
            |r| {
                r.cases[0]
                    .samples
                    .iter_mut()
                    .for_each(|s| s.chunk_tokens = Some(64));
            },
        ),
        (
            "arms at 128 prompt tokens: single@prefill, split bulk x1 in the old run, single@prefill, split layered x1",
            |r| {
                let splits = r.cases[0]
                    .samples
                    .iter_mut()
                    .filter(|s| s.arm == Arm::Split);
                splits.for_each(|s| s.transfer = Some(Transfer::Layered));
            },
        ),
    ];
    for (what, change) in changes {
        let mut other = run();
        change(&mut other);
        let differences = refused(&other);
        assert_eq!(differences.len(), 1, "{differences:?}");
        assert!(differences[0].starts_with(what), "{what}: {differences:?}");
    }
}

#[test]
fn another_host_or_build_is_a_warning() {
    let mut other = run();
    other.environment.prefill.host.machine_id = "elsewhere".into();
    other.environment.prefill.build.git_revision = "fedcba987654".into();
    other.run.status = Status::Interrupted;
    let warnings = compared(&run(), &other).warnings;
    assert!(
        warnings[0].starts_with("another prefill host: "),
        "{warnings:?}"
    );
    assert!(
        warnings[1].starts_with("another build of the prefill node: "),
        "{warnings:?}"
    );
    assert_eq!(warnings[2], "the new run is not complete");
    assert_eq!(warnings.len(), 3);
}

#[test]
fn another_decode_node_is_a_warning_and_what_both_have_alike_is_said_once() {
    let mut other = run();
    let decode = other.environment.decode.as_mut().unwrap();
    decode.threads = 7;
    decode.build.git_revision = "fedcba987654".into();
    decode.processor.model = Some("other processor".into());
    other.environment.prefill.build.git_revision = "fedcba987654".into();
    let warnings = compared(&run(), &other).warnings;
    let starts = [
        "another processor of the decode node: ",
        "another build: ",
        "another number of threads of the decode node: 2 then, 7 now",
    ];
    assert_eq!(warnings.len(), starts.len(), "{warnings:?}");
    for (warning, start) in warnings.iter().zip(starts) {
        assert!(warning.starts_with(start), "{warnings:?}");
    }
}

#[test]
fn another_link_is_a_warning_as_far_as_both_runs_know_theirs() {
    let over = |speed_mbps, mtu_bytes, beta_gbps| {
        let mut record = run();
        let link = record.link.as_mut().unwrap();
        link.interface = Some(NetworkInterface {
            name: "eth0".into(),
            speed_mbps,
            mtu_bytes: Some(mtu_bytes),
            is_up: true,
            driver: None,
            is_loopback: false,
        });
        link.fit.as_mut().unwrap().beta_gbps = beta_gbps;
        record
    };
    let old = over(Some(10_000), 1500, Some(9.0));
    let warnings = compared(&old, &over(Some(1_000), 9000, Some(0.9))).warnings;
    assert_eq!(
        warnings,
        [
            "another speed of the interface: 10000 Mbit/s then, 1000 Mbit/s now",
            "another MTU of the interface: 1500 bytes then, 9000 bytes now",
            "another fitted rate of the link: 9.00 Gbps then, 0.90 Gbps now",
        ]
    );
    // What repeats within a factor is one link, and what one run does not know is no difference.
    for same in [
        over(Some(10_000), 1500, Some(6.1)),
        over(None, 1500, None),
        run(),
    ] {
        assert_eq!(compared(&old, &same).warnings, Vec::<String>::new());
    }
}

fn gate(text: &str) -> Gate {
    text.parse().unwrap()
}

#[test]
fn a_gate_breaks_beyond_its_bound_alone() {
    let comparison = compared(&run(), &slower(run(), Arm::Split, 1.1));
    let broken = |text: &str| gate(text).broken_by(&comparison).unwrap().len();
    assert_eq!(broken("split.e2e_ms>5%"), 2);
    assert_eq!(broken(" split.e2e_ms > 15 % "), 0);
    assert_eq!(broken("single.e2e_ms>0%"), 0);
    assert_eq!(broken("split.tokens_per_s<-5%"), 2);
    assert_eq!(broken("split.tokens_per_s<5%"), 2);
    // 111 ms at 128 tokens, 150 ms at 512.
    assert_eq!(broken("split.e2e_ms>130"), 1);
    let sentences = gate("split.e2e_ms>130").broken_by(&comparison).unwrap();
    assert!(sentences[0].starts_with("e2e_ms of split bulk x1 at 512 prompt tokens changed by +"));
    assert!(
        sentences[0].ends_with("(split.e2e_ms>130)"),
        "{sentences:?}"
    );
}

#[test]
fn a_gate_in_percent_breaks_where_the_old_median_is_zero() {
    // A cache that goes layer by layer behind prefill may be waited for not at all.
    let mut hidden = run();
    let samples = hidden.cases.iter_mut().flat_map(|c| &mut c.samples);
    for sample in samples.filter(|s| s.arm == Arm::Split) {
        let of = |name| {
            (sample.events.iter())
                .find(|e| e.name == name)
                .map(|e| e.t_ns)
        };
        let end_ns = of(EventName::PrefillEnd).unwrap();
        let acknowledged = |e: &&mut Event| e.name == EventName::PieceAcknowledged;
        (sample.events.iter_mut().filter(acknowledged)).for_each(|e| e.t_ns = end_ns);
    }
    let comparison = compared(&hidden, &run());
    let exposed = figure(&comparison, 1, Arm::Split, "exposed_transfer_ms");
    assert_eq!((exposed.old, exposed.change.pct), (0.0, None));
    let broken = |text: &str, comparison| gate(text).broken_by(comparison).unwrap();
    let sentences = broken("split.exposed_transfer_ms>5%", &comparison);
    assert_eq!(sentences.len(), 2, "{sentences:?}");
    assert!(sentences[1].contains("changed by -, +9.4"), "{sentences:?}");
    assert!(broken("split.exposed_transfer_ms<-5%", &comparison).is_empty());
    let unchanged = compared(&hidden, &hidden);
    assert!(broken("split.exposed_transfer_ms>0%", &unchanged).is_empty());
}

#[test]
fn chance_breaks_no_gate() {
    // Samples are 0.1% apart: half a step is within them.
    let comparison = compared(&run(), &slower(run(), Arm::Split, 1.0005));
    let e2e = figure(&comparison, 1, Arm::Split, "e2e_ms");
    assert!(
        e2e.change.pct.unwrap().value > 0.0 && !e2e.change.significant,
        "{e2e:?}"
    );
    assert!(
        gate("split.e2e_ms>0%")
            .broken_by(&comparison)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_gate_that_cannot_break_says_so() {
    let mut few = run();
    few.cases[1].samples.retain(|s| s.repeat < 2);
    let comparison = compared(&few, &run());
    let spots = gate("split.e2e_ms>5%").blind_spots(&comparison);
    assert_eq!(spots.len(), 1, "{spots:?}");
    assert!(spots[0].contains("at 512 prompt tokens (split bulk x1): of 2 and 5 samples"));
    let mut alone = run();
    alone
        .cases
        .iter_mut()
        .for_each(|c| c.samples.retain(|s| s.arm == Arm::Single));
    let error = gate("split.e2e_ms>5%")
        .broken_by(&compared(&alone, &alone))
        .unwrap_err();
    assert_eq!(
        error,
        "--fail-on split.e2e_ms>5%: neither run has e2e_ms of split"
    );
}

#[test]
fn gates_that_say_nothing_are_refused() {
    for (text, part) in [
        ("split.e2e_ms", "neither > nor <"),
        ("e2e_ms>5%", "no arm and figure"),
        ("other.e2e_ms>5%", "no arm (single, split)"),
        ("split.latency>5%", "no figure (ttft_ms, "),
        ("split.e2e_ms>five", "no change"),
        ("split.e2e_ms>inf", "no change"),
    ] {
        let error = text.parse::<Gate>().unwrap_err();
        assert!(
            error.contains(part) && error.contains("such as split.e2e_ms>5%"),
            "{error}"
        );
    }
}
