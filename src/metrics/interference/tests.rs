//! What a running sequence suffered, from made-up moments.

use super::*;

/// Tokens every 10 ms, but for one gap, and a prompt that comes at 45 ms and takes 200 ms.
fn moments(stall_ms: u64) -> Moments {
    let mut moments = Moments {
        newcomer_start_ns: 45_000_000,
        newcomer_first_token_ns: 245_000_000,
        ..Moments::default()
    };
    let mut t_ms = 0;
    for i in 0..40 {
        t_ms += if i == 5 { stall_ms } else { 10 };
        moments.token(t_ms * 1_000_000, i);
    }
    moments
}

#[test]
fn a_stall_is_the_worst_gap_while_the_other_prompt_is_prefilled() {
    let suffered = moments(210).suffered().unwrap();
    assert_eq!(
        (suffered.undisturbed_ms, suffered.newcomer_ttft_ms),
        (10.0, 200.0)
    );
    assert_eq!((suffered.worst_ms(), suffered.lost_ms()), (210.0, 200.0));
    assert!(suffered.is_whole);
    let smooth = moments(10).suffered().unwrap();
    assert_eq!((smooth.worst_ms(), smooth.lost_ms()), (10.0, 0.0));
}

#[test]
fn a_stall_counts_until_the_cache_is_in_place_too() {
    // The gap of token 35 lies between the first token (245 ms) and the cache's arrival.
    let mut late = moments(10);
    for t_ns in &mut late.token_ns[35..] {
        *t_ns += 90_000_000;
    }
    assert_eq!(late.suffered().unwrap().worst_ms(), 10.0);
    late.newcomer_landed_ns = Some(360_000_000);
    let suffered = late.suffered().unwrap();
    assert_eq!((suffered.worst_ms(), suffered.lost_ms()), (100.0, 90.0));
    assert_eq!(suffered.newcomer_ttft_ms, 200.0);
    assert!(suffered.is_whole);
    // A sequence that ends in between has not seen all of it.
    late.token_ns.truncate(34);
    assert!(!late.suffered().unwrap().is_whole);
    // A cache that landed before the first token was known ends nothing early.
    late.newcomer_landed_ns = Some(100_000_000);
    let suffered = late.suffered();
    late.newcomer_landed_ns = None;
    assert_eq!(late.suffered(), suffered);
}

#[test]
fn a_sequence_that_ends_before_the_prefill_saw_only_part_of_it() {
    let mut short = moments(10);
    short.token_ns.truncate(12);
    assert!(!short.suffered().unwrap().is_whole);
    short.token_ns.truncate(1);
    assert_eq!(short.suffered(), None);
}

#[test]
fn what_was_cut_short_failed_or_came_before_is_in_no_figure_and_counted() {
    let sample = |moments| InterferenceSample {
        arm: Arm::Split,
        chunk_tokens: None,
        warmup: false,
        repeat: 0,
        connect_attempts: None,
        error: None,
        moments,
    };
    let mut short = moments(10);
    short.token_ns.truncate(12);
    let mut warmup = sample(Some(moments(90)));
    warmup.warmup = true;
    let mut failed = sample(None);
    failed.error = Some("peer closed".into());
    let all = Interference {
        running_prompt_tokens: 10,
        running_output_tokens: 40,
        comes_after_tokens: 5,
        newcomer_prompt_tokens: 100,
        demanded: Agreement::Identical,
        samples: vec![
            warmup,
            sample(Some(short)),
            sample(Some(moments(10))),
            failed,
        ],
    };
    let arms = all.arms();
    assert_eq!(arms.len(), 1);
    let worst = arms[0].worst_itl_ms.unwrap();
    assert_eq!((worst.n, worst.median), (1, 10.0));
    assert_eq!((arms[0].cut_short, arms[0].failed), (1, 1));
}

#[test]
fn arms_are_told_apart_and_answers_compared() {
    let sample = |arm, chunk_tokens, stall_ms| InterferenceSample {
        arm,
        chunk_tokens,
        warmup: false,
        repeat: 0,
        connect_attempts: None,
        moments: Some(moments(stall_ms)),
        error: None,
    };
    let mut all = Interference {
        running_prompt_tokens: 10,
        running_output_tokens: 40,
        comes_after_tokens: 5,
        newcomer_prompt_tokens: 100,
        demanded: Agreement::Identical,
        samples: vec![
            sample(Arm::Split, None, 10),
            sample(Arm::Single, Some(64), 60),
            sample(Arm::Single, None, 210),
        ],
    };
    let worst: Vec<f64> = all
        .arms()
        .iter()
        .map(|a| a.worst_itl_ms.unwrap().median)
        .collect();
    assert_eq!(worst, [210.0, 60.0, 10.0]);
    // One gap, 15 gaps, 20 gaps.
    let p95: Vec<Option<f64>> = all.arms().iter().map(|a| a.p95_itl_ms).collect();
    assert_eq!(p95, [None, None, Some(10.0)]);
    // What ended early agrees as far as it goes.
    all.samples[1].moments.as_mut().unwrap().tokens.truncate(20);
    assert_eq!((all.same_tokens(), all.passed()), (Some(true), true));
    all.samples[0].moments.as_mut().unwrap().tokens[3] = 99;
    assert_eq!((all.same_tokens(), all.passed()), (Some(false), false));
    all.demanded = Agreement::Equivalent;
    assert!(all.passed());
}
