//! `--wire-dtype int8`: fewer bytes, a cache that lands as it was quantised, answers whose loss is
//! measured, and lossless arms of the same run that are as identical as without it.

mod tiny_model;

use std::collections::BTreeSet;

use disagg_bench::metrics::{
    Agreement, Arm, Case, EventName, Finish, Lossy, Record, Sample, Status, Transfer,
};
use disagg_bench::wire::message::WireDtype;
use tiny_model::{LAYERS, Workplace};

/// Two K/V heads of 16 elements: a scale and 16 bytes for K and V each.
const ROW_BYTES: u64 = 2 * 2 * (4 + 16);

/// Samples of each arm and prompt.
const ROUNDS: usize = 3;

const OUTPUT_TOKENS: u32 = 24;

const GRID: [&str; 8] = [
    "--prompt-tokens",
    "7,200",
    "--output-tokens",
    "24",
    "--repeats",
    "2",
    "--warmup",
    "1",
];

fn samples(case: &Case, is_lossy: bool) -> Vec<&Sample> {
    let split = case.samples.iter().filter(|s| s.arm == Arm::Split);
    split.filter(|s| s.is_lossy() == is_lossy).collect()
}

/// Demands what holds of every quantised sample of a case, and gives what is measured of its loss.
fn is_sound(case: &Case, kv_dtype: WireDtype) -> Lossy {
    let check = case.check.as_ref().unwrap();
    assert_eq!(check.landed, Some(true));
    assert!(check.findings.is_empty(), "{:?}", check.findings);
    let tokens = u64::from(case.prompt_tokens);
    let mut digests = BTreeSet::new();
    for sample in samples(case, true) {
        assert_eq!(sample.error, None);
        assert_eq!(sample.wire_dtype, Some(WireDtype::Int8));
        assert_eq!(
            sample.wire_payload_bytes,
            tokens * LAYERS as u64 * ROW_BYTES
        );
        let output = sample.output.as_ref().unwrap();
        assert!(output.sent_cache_digest.is_some());
        assert_eq!(output.sent_cache_digest, output.landed_cache_digest);
        digests.insert(output.sent_cache_digest.clone().unwrap());
        let times = |name| sample.events.iter().filter(|e| e.name == name).count();
        assert_eq!(times(EventName::PieceOffered), LAYERS);
        assert_eq!(times(EventName::PieceAcknowledged), LAYERS);
    }
    assert_eq!(digests.len(), 1, "one prompt has one quantised cache");
    for sample in samples(case, false) {
        assert_eq!(sample.wire_dtype, Some(kv_dtype));
        assert_eq!(sample.wire_payload_bytes, case.kv_bytes);
        let exact = sample.output.as_ref().unwrap().sent_cache_digest.clone();
        assert!(!digests.contains(&exact.unwrap()), "nothing was lost");
    }
    let [lossy] = case.lossy[..] else {
        panic!("{:?}", case.lossy);
    };
    assert_eq!(lossy.wire_dtype, WireDtype::Int8);
    assert_eq!(lossy.steps, OUTPUT_TOKENS - 1);
    let (mean, largest) = (lossy.kl_mean_nats.unwrap(), lossy.kl_max_nats.unwrap());
    assert!(0.0 < mean && mean <= largest && largest < 1.0, "{lossy:?}");
    assert!((0.0..=100.0).contains(&lossy.same_top_pct));
    // Both nodes are alike here, so the answer over the wire parts from the single arm's exactly
    // where teacher forcing says.
    if let Some(single) = case.samples.iter().find(|s| s.arm == Arm::Single) {
        let single = &single.output.as_ref().unwrap().tokens;
        for sample in samples(case, true) {
            let tokens = &sample.output.as_ref().unwrap().tokens;
            let same = single.iter().zip(tokens).take_while(|(a, b)| a == b);
            assert_eq!(same.count() as u32, lossy.same_tokens);
        }
    }
    lossy
}

#[test]
fn int8_arms_run_beside_lossless_ones_and_leave_them_alone() {
    let place = Workplace::new();
    for (kv_dtype, wire) in [("f32", WireDtype::F32), ("f16", WireDtype::F16)] {
        for streams in ["1", "3"] {
            let out = format!("{kv_dtype}-{streams}");
            let mut arguments = vec!["split", "--out", &out, "--kv-dtype", kv_dtype];
            arguments.extend(["--transfer", "layered,bulk", "--wire-dtype", "int8,same"]);
            arguments.extend(["--streams", streams]);
            arguments.extend(GRID);
            let ended = place.run(&arguments).exits(0);
            let record = place.record(&out);
            assert_eq!(record.run.status, Status::Complete);
            for case in &record.cases {
                assert_eq!(samples(case, true).len(), 2 * ROUNDS);
                assert_eq!(samples(case, false).len(), 2 * ROUNDS);
                is_sound(case, wire);
                let check = case.check.as_ref().unwrap();
                assert_eq!(check.demanded, Agreement::Identical);
                assert_eq!(check.outputs, Some(Agreement::Identical));
            }
            arms_are_apart(&place, &out);
            let verdict = ended.stdout.lines().next().unwrap();
            assert!(verdict.contains("outputs identical"), "{ended}");
            assert!(
                verdict.contains("int8 on the wire (lossy) sends 0.05 instead of"),
                "{ended}"
            );
            assert!(ended.stdout.contains("bulk x"), "{ended}");
            let report = std::fs::read_to_string(place.path(&out).join("report.md")).unwrap();
            assert!(report.contains("## Lossy on the wire"), "{report}");
        }
    }
}

/// Demands that no figure mixes samples of two formats.
fn arms_are_apart(place: &Workplace, out: &str) {
    let summary = place.summary(out);
    assert_eq!(summary.outputs, Some(Agreement::Identical));
    for case in &summary.cases {
        assert_eq!(case.arms.len(), 5);
        assert_eq!(case.lossy.len(), 1);
        let split = case.arms.iter().filter(|a| a.arm == Arm::Split);
        for arm in split {
            let bytes = match arm.is_lossy() {
                true => u64::from(case.prompt_tokens) * LAYERS as u64 * ROW_BYTES,
                false => case.kv_bytes,
            };
            assert_eq!(arm.wire_bytes, bytes);
            assert_eq!(arm.e2e_ms.unwrap().n, ROUNDS - 1);
            assert!(arm.transfer.is_some());
        }
        // The lossless one speaks for the arm.
        assert!(!case.arm(Arm::Split).unwrap().is_lossy());
    }
    let csv = place.run(&[
        "split",
        "--format",
        "csv",
        "--wire-dtype",
        "int8",
        "--prompt-tokens",
        "7",
        "--output-tokens",
        "2",
        "--repeats",
        "1",
    ]);
    assert!(csv.exits(0).stdout.contains(",bulk,,f16,int8,1,"));
}

#[test]
fn int8_alone_is_called_what_it_is() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let quantised = |out: &str, command: &str| {
        let mut arguments = vec![command, "--peer", &node.address, "--out", out];
        arguments.extend(["--wire-dtype", "int8", "--transfer", "layered"]);
        arguments.extend(GRID);
        let ended = place.run(&arguments).exits(0);
        let record = place.record(out);
        for case in &record.cases {
            is_sound(case, WireDtype::F16);
            let check = case.check.as_ref().unwrap();
            assert_eq!(check.outputs, None);
            let transfers = samples(case, true).into_iter().map(|s| s.transfer);
            assert!(transfers.into_iter().all(|t| t == Some(Transfer::Layered)));
        }
        let verdict = ended.stdout.lines().next().unwrap();
        let wanted = "split was measured with int8 on the wire alone, which is lossy";
        assert!(verdict.starts_with(wanted), "{ended}");
        assert!(ended.stdout.contains("split int8"), "{ended}");
        record
    };
    let both: Record = quantised("both", "split");
    let alone = quantised("alone", "run-prefill");
    assert!(both.cases[0].samples.iter().any(|s| s.arm == Arm::Single));
    // What it costs needs no single arm: the prefill node knows its own.
    for (a, b) in both.cases.iter().zip(&alone.cases) {
        assert_eq!(a.lossy, b.lossy);
    }
    let stopped = node.stop();
    let landed = format!("{}", 200 * LAYERS as u64 * ROW_BYTES);
    assert!(
        stopped.stdout.contains("KV") && !landed.is_empty(),
        "{stopped}"
    );
}

#[test]
fn a_quantised_cache_that_is_damaged_is_found_out() {
    let place = Workplace::new();
    let node = place.serve(&["--corrupt-layer", "1"]);
    let mut arguments = vec!["split", "--peer", &node.address, "--out", "run"];
    arguments.extend(["--wire-dtype", "int8"]);
    arguments.extend(GRID);
    let ended = place.run(&arguments).fails(5, &["differ"]);
    assert!(ended.stdout.contains("the cache that landed"), "{ended}");
    let record = place.record("run");
    let checks = record.cases.iter().map(|c| c.check.as_ref().unwrap());
    assert!(checks.into_iter().all(|c| c.landed == Some(false)));
    node.stop();
}

#[test]
fn an_answer_that_needs_no_cache_loses_nothing() {
    let place = Workplace::new();
    let mut arguments = vec!["split", "--out", "run", "--wire-dtype", "same,int8"];
    arguments.extend(["--prompt-tokens", "40", "--output-tokens", "1"]);
    arguments.extend(["--repeats", "1"]);
    place.run(&arguments).exits(0);
    let record = place.record("run");
    let case = &record.cases[0];
    assert!(case.lossy.is_empty());
    for sample in samples(case, true) {
        assert_eq!(sample.wire_payload_bytes, 0);
        assert_eq!(sample.output.as_ref().unwrap().finish, Finish::Length);
    }
}
