use super::*;
use crate::environment::NetworkInterface;
use crate::report::fixture::{Times, case, interference, record, usual_case};

fn answers(record: &Record) -> Answers {
    Answers::of(record, &SummaryCase::all(record)).unwrap()
}

fn advised(answers: &Answers) -> Vec<Advice> {
    answers.advice.iter().map(|a| a.what).collect()
}

/// A prompt of 1,000 tokens that takes a second, of it half prefill, and what a split adds over a
/// link whose fit says so.
fn one_second(exposed_ms: u64, handoff_ms: u64) -> Record {
    let mut record = record(vec![case(
        "long",
        1000,
        11,
        Times {
            prefill_ns: 500_000_000,
            step_ns: 50_000_000,
            exposed_ns: exposed_ms * 1_000_000,
            handoff_ns: handoff_ms * 1_000_000,
            ..Times::default()
        },
    )]);
    let fit = record.link.as_mut().and_then(|link| link.fit.as_mut());
    let gbps = record.cases[0].kv_bytes as f64 * 8.0 / exposed_ms as f64 / 1e6;
    let fit = fit.unwrap();
    fit.beta_gbps = Some(gbps);
    for size in &mut fit.sizes {
        size.wire_ms = size.bytes as f64 * 8.0 / gbps / 1e6;
    }
    record
}

#[test]
fn a_wire_that_costs_is_measured_and_named() {
    let all = answers(&one_second(80, 1));
    assert_eq!(
        (all.latency.basis, all.latency.effect),
        (Basis::Measured, Some(Effect::Worse))
    );
    let change = all.latency.change.unwrap();
    assert!((change.value - 8.1).abs() < 0.1, "{change:?}");
    assert!(
        all.latency.text.contains("slower: E2E +8.1"),
        "{}",
        all.latency.text
    );
    assert_eq!(all.limit, Limit::Wire);
    // It loses a millisecond more than it waits for bytes.
    assert_eq!(all.break_even_gbps, None);
    assert_eq!(advised(&all)[0], Advice::Layered);
    assert!(advised(&all).contains(&Advice::MeasureInterference));
}

#[test]
fn nothing_is_said_of_rdma_where_nothing_is_projected() {
    let mut record = one_second(80, 1);
    let projected = answers(&record);
    assert!(projected.rdma_saves_pct.is_some_and(|pct| pct > 1.0));
    assert!(advised(&projected).contains(&Advice::Rdma));
    let link = record.link.as_mut().unwrap();
    link.fit.as_mut().unwrap().worst_residual_pct = 99.0;
    let refused = answers(&record);
    assert_eq!(refused.rdma_saves_pct, None);
    assert!(!advised(&refused).contains(&Advice::Rdma));
    assert!(
        refused
            .limit_text
            .ends_with("what RDMA would buy is not projected"),
        "{}",
        refused.limit_text
    );
}

#[test]
fn what_transfer_and_handoff_hardly_take_no_link_can_save() {
    let all = answers(&one_second(3, 1));
    assert_eq!(
        (all.latency.effect, all.limit),
        (Some(Effect::Same), Limit::Compute)
    );
    assert!(
        all.limit_text.contains("RDMA would buy nothing here"),
        "{}",
        all.limit_text
    );
    assert_eq!(advised(&all), [Advice::MeasureInterference]);
    let handoff = answers(&one_second(1, 40));
    assert_eq!(handoff.limit, Limit::Handoff);
    assert!(
        handoff.limit_text.contains("RDMA would buy nothing"),
        "{}",
        handoff.limit_text
    );
    assert_eq!(advised(&handoff)[0], Advice::QuickerHandoff);
}

#[test]
fn too_few_samples_decide_nothing() {
    let mut record = one_second(80, 1);
    record.cases[0].samples.truncate(4);
    let all = answers(&record);
    assert_eq!(all.latency.effect, Some(Effect::Undecided));
    assert!(
        all.latency.text.contains("too few samples"),
        "{}",
        all.latency.text
    );
    assert!(advised(&all).contains(&Advice::MoreRepeats));
}

#[test]
fn two_whole_nodes_carry_what_a_split_does_only_where_both_stages_are_equal() {
    // Half prefill, half decode; the split arm's stages are as long.
    let equal = answers(&one_second(3, 0));
    assert_eq!(equal.capacity.basis, Basis::Projected);
    assert_eq!(
        equal.capacity.effect,
        Some(Effect::Same),
        "{}",
        equal.capacity.text
    );
    // 512 ms of prefill against 980 ms of decode.
    let uneven = answers(&record(vec![usual_case(512)]));
    assert_eq!(uneven.capacity.effect, Some(Effect::Worse));
    let lost = uneven.capacity.change.unwrap();
    let wanted_pct = 100.0 * (1.0 - (1.0 / 980.3) / (2.0 / (512.0 + 980.0)));
    assert!(
        (lost.value - wanted_pct).abs() < 0.2,
        "{lost:?} {wanted_pct}"
    );
    assert!(lost.ci_low.unwrap() < lost.value && lost.value < lost.ci_high.unwrap());
    assert!(
        uneven.capacity.text.contains("decode is the slowest stage"),
        "{}",
        uneven.capacity.text
    );
}

#[test]
fn interference_is_held_against_the_better_of_one_nodes_ways() {
    let mut record = one_second(3, 1);
    let without = answers(&record).interference;
    assert_eq!((without.basis, without.effect), (Basis::NotMeasured, None));
    assert!(without.text.contains("--interference"));
    record.interference = Some(interference());
    let all = answers(&record);
    let with = &all.interference;
    assert_eq!(
        (with.basis, with.effect),
        (Basis::Measured, Some(Effect::Better))
    );
    assert_eq!(with.change.unwrap().value, 12.0 - 266.0);
    assert!(
        with.text
            .contains("12.0 ms split, 266 ms on one node (single, chunks of 256)"),
        "{}",
        with.text
    );
    assert_eq!(advised(&all), [Advice::SplitForStalls]);
    // Stalls on the decode node as on one node.
    let scene = record.interference.as_mut().unwrap();
    let chunked: Vec<_> = (scene.samples.iter())
        .filter(|s| s.chunk_tokens.is_some())
        .cloned()
        .collect();
    let split = scene.samples.iter_mut().filter(|s| s.arm == Arm::Split);
    for (split, chunked) in split.zip(chunked) {
        split.moments = chunked.moments;
    }
    let same = answers(&record);
    assert_eq!(same.interference.effect, Some(Effect::Same));
    assert_eq!(advised(&same), [Advice::DoNotSplit]);
    record
        .interference
        .as_mut()
        .unwrap()
        .samples
        .retain(|s| s.arm == Arm::Split);
    assert_eq!(answers(&record).interference.basis, Basis::NotMeasured);
}

#[test]
fn lengths_and_rates_break_even_where_they_exist() {
    // The short prompt loses 40 ms, the long one gains 120 in spite of 80 ms of bytes.
    let times = Times {
        prefill_ns: 50_000_000,
        step_ns: 50_000_000,
        exposed_ns: 40_000_000,
        ..Times::default()
    };
    let mut record = one_second(80, 0);
    record.cases.insert(0, case("short", 100, 11, times));
    for sample in (record.cases[1].samples.iter_mut()).filter(|s| s.arm == Arm::Single) {
        sample
            .events
            .iter_mut()
            .for_each(|event| event.t_ns += event.t_ns / 5);
    }
    let all = answers(&record);
    let tokens = all.break_even_prompt_tokens.unwrap();
    assert!((tokens - 325.0).abs() < 5.0, "{tokens}");
    // 23.04 MB may take 200 ms.
    let gbps = all.break_even_gbps.unwrap();
    assert!((gbps - 0.92).abs() < 0.01, "{gbps}");
    assert_eq!(advised(&all)[0], Advice::Split);
    // What may be chance breaks even nowhere.
    let noise = answers(&one_second(1, 0));
    assert_eq!(
        (noise.break_even_gbps, noise.break_even_prompt_tokens),
        (None, None)
    );
}

#[test]
fn streams_are_advised_where_a_known_line_is_less_than_half_full() {
    let with_line = |mbps, driver: Option<&str>| {
        let mut record = one_second(80, 1);
        record.link.as_mut().unwrap().interface = Some(NetworkInterface {
            name: "x".into(),
            speed_mbps: Some(mbps),
            mtu_bytes: None,
            is_up: true,
            driver: driver.map(str::to_owned),
            is_loopback: false,
        });
        advised(&answers(&record)).contains(&Advice::MoreStreams)
    };
    // 23 MB in 80 ms are 2.3 Gbit/s.
    assert!(with_line(10_000, Some("ixgbe")));
    assert!(!with_line(2_500, Some("igb")));
    assert!(!with_line(10_000, None));
}

#[test]
fn answers_need_both_arms_and_outputs_that_agree() {
    let mut one_arm = one_second(3, 1);
    one_arm.cases[0].samples.retain(|s| s.arm == Arm::Split);
    assert!(Answers::of(&one_arm, &SummaryCase::all(&one_arm)).is_none());
    let mut differ = one_second(3, 1);
    differ.cases[0].check.as_mut().unwrap().landed = Some(false);
    assert!(Answers::of(&differ, &SummaryCase::all(&differ)).is_none());
    let mut other_tokens = one_second(3, 1);
    let mut scene = interference();
    scene.samples[0].moments.as_mut().unwrap().tokens[0] = 99;
    other_tokens.interference = Some(scene);
    assert!(Answers::of(&other_tokens, &SummaryCase::all(&other_tokens)).is_none());
    let line = super::super::finding(&other_tokens).unwrap();
    assert!(
        line.starts_with("OUTPUTS DIFFER: a running sequence"),
        "{line}"
    );
}
