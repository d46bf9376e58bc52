use super::*;
use crate::metrics::{Agreement, Check};
use crate::report::fixture::{Times, case, failed, record, usual_case};

fn line(record: &Record) -> String {
    finding(record).unwrap()
}

/// One case whose single arm takes 1 s, and whose split arm takes `exposed_ns` more.
fn one_second(exposed_ns: u64) -> Record {
    let times = Times {
        prefill_ns: 500_000_000,
        step_ns: 50_000_000,
        exposed_ns,
        ..Times::default()
    };
    record(vec![case("long", 1000, 11, times)])
}

fn keep_arm(record: &mut Record, arm: Arm) {
    for case in &mut record.cases {
        case.samples.retain(|s| s.arm == arm);
        case.check = None;
    }
}

#[test]
fn a_slower_split_is_called_slower() {
    assert_eq!(
        line(&one_second(40_000_000)),
        "split is 1.04x slower end to end than one node (1040 against 1000 ms at 1000 prompt tokens); \
         transfer exposes 3.8% of E2E at 4.61 Gbps effective; outputs identical"
    );
}

#[test]
fn equal_means_within_half_a_percent() {
    let equal = line(&one_second(4_900_000));
    assert!(
        equal.starts_with("split is as fast end to end as one node ("),
        "{equal}"
    );
    let slower = line(&one_second(5_100_000));
    assert!(slower.starts_with("split is 1.01x slower"), "{slower}");
}

#[test]
fn a_change_that_may_be_chance_is_not_told_as_a_fact() {
    let mut record = one_second(40_000_000);
    assert!(!line(&record).contains("chance"));
    let split = record.cases[0]
        .samples
        .iter_mut()
        .filter(|s| s.arm == Arm::Split);
    for sample in split.step_by(2) {
        for event in &mut sample.events {
            event.t_ns = event.t_ns * 9 / 10;
        }
    }
    let line = line(&record);
    assert!(
        line.contains(" at 1000 prompt tokens, which may be chance); "),
        "{line}"
    );
}

#[test]
fn a_faster_split_is_called_faster() {
    let mut record = one_second(0);
    for sample in record.cases[0]
        .samples
        .iter_mut()
        .filter(|s| s.arm == Arm::Single)
    {
        for event in &mut sample.events {
            event.t_ns *= 2;
        }
    }
    let line = line(&record);
    assert!(
        line.starts_with("split is 2.00x faster end to end than one node"),
        "{line}"
    );
}

#[test]
fn the_longest_prompt_speaks_and_all_are_ranged() {
    let line = line(&record(vec![
        usual_case(128),
        usual_case(2048),
        usual_case(512),
    ]));
    assert!(
        line.contains("at 2048 prompt tokens; 1.00x to 1.01x its time over 3 prompts)"),
        "{line}"
    );
}

#[test]
fn a_failed_check_comes_first_and_hides_the_times() {
    let mut record = record(vec![usual_case(128), usual_case(512)]);
    record.run.status = Status::Failed;
    record.cases[1].check = Some(Check {
        landed: Some(true),
        outputs: Some(Agreement::Differ),
        demanded: Agreement::Identical,
        findings: vec!["logits of step 3 differ\nmore".into()],
    });
    assert_eq!(
        line(&record),
        "OUTPUTS DIFFER: prompt 512 tokens: logits of step 3 differ (1 of 2 prompts); \
         the times of this run answer nothing until that is cured"
    );
    let check = record.cases[1].check.as_mut().unwrap();
    check.findings.clear();
    check.outputs = Some(Agreement::Equivalent);
    assert!(line(&record).contains("equivalent where identical is demanded"));
    let check = record.cases[1].check.as_mut().unwrap();
    check.outputs = Some(Agreement::Identical);
    check.landed = Some(false);
    assert!(line(&record).contains("landed is not the one that was sent"));
}

#[test]
fn what_ended_badly_says_so() {
    let mut record = record(vec![usual_case(128)]);
    record.run.status = Status::Interrupted;
    assert!(line(&record).starts_with("RUN INTERRUPTED with 1 prompt measured: split is "));
    record.run.status = Status::Failed;
    record.run.error = Some("peer closed".into());
    record.cases[0].samples = vec![failed(Arm::Split, "peer closed")];
    record.cases[0].check = None;
    assert_eq!(
        line(&record),
        "RUN FAILED with 0 prompts measured (peer closed): nothing was measured"
    );
    record.cases.clear();
    record.run.status = Status::Complete;
    assert_eq!(finding(&record), None);
}

#[test]
fn one_arm_alone_is_not_compared() {
    let mut single = one_second(0);
    keep_arm(&mut single, Arm::Single);
    assert_eq!(
        line(&single),
        "one node gives 11.0 tok/s (TTFT 500 ms, TPOT 50.0 ms, E2E 1000 ms at 1000 prompt tokens)"
    );
    let mut split = one_second(1_000_000);
    keep_arm(&mut split, Arm::Split);
    assert_eq!(
        line(&split),
        "split takes 1001 ms end to end at 1000 prompt tokens; \
         transfer exposes 0.1% of E2E at 184 Gbps effective; no single arm to compare it with"
    );
}

#[test]
fn unchecked_prompts_are_counted() {
    let mut record = record(vec![usual_case(128), usual_case(512)]);
    record.cases[1].check = None;
    assert!(line(&record).ends_with("outputs identical where compared (1 of 2 prompts)"));
    record.cases[0].check = None;
    assert!(line(&record).ends_with("outputs not compared"));
}

#[test]
fn one_token_answers_send_no_cache() {
    let times = Times {
        prefill_ns: 1_000_000,
        ..Times::default()
    };
    let line = line(&record(vec![case("one", 10, 1, times)]));
    assert!(line.contains("; no cache was sent; "), "{line}");
}

#[test]
fn shared_machines_are_named() {
    let mut record = record(vec![usual_case(512)]);
    let id = record.environment.prefill.host.machine_id.clone();
    record.environment.decode.as_mut().unwrap().host.machine_id = id;
    assert!(line(&record).ends_with("; both nodes share one machine"));
}
