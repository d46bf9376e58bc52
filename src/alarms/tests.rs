use super::*;
use crate::metrics::Arm;
use crate::report::fixture::{Times, case, failed, record, usual_case};

fn alarms(record: &Record) -> Vec<String> {
    super::alarms(record, &SummaryCase::all(record))
}

#[test]
fn a_sound_run_has_no_alarms() {
    assert_eq!(alarms(&record(vec![usual_case(512)])), Vec::<String>::new());
    assert_eq!(alarms(&record(vec![])), Vec::<String>::new());
}

fn only_alarm(record: &Record) -> String {
    let mut alarms = alarms(record);
    assert_eq!(alarms.len(), 1, "{alarms:?}");
    alarms.remove(0)
}

#[test]
fn debug_builds_are_named() {
    let mut record = record(vec![usual_case(512)]);
    record.environment.decode.as_mut().unwrap().build.profile = "debug".into();
    assert!(only_alarm(&record).starts_with("the decode node is a debug build"));
    record.run.profile = "debug".into();
    assert!(only_alarm(&record).starts_with("the prefill node is a debug build"));
}

#[test]
fn shared_machines_are_named() {
    let mut record = record(vec![usual_case(512)]);
    let id = record.environment.prefill.host.machine_id.clone();
    record.environment.decode.as_mut().unwrap().host.machine_id = id;
    assert!(only_alarm(&record).starts_with("both nodes share one machine"));
}

#[test]
fn five_samples_are_enough() {
    let mut record = record(vec![usual_case(512)]);
    record.cases[0].samples.pop();
    assert_eq!(
        only_alarm(&record),
        "only 4 measured samples of split at 512 prompt tokens, so its median may be chance: \
         use --repeats 5 or more"
    );
}

#[test]
fn failed_requests_are_counted() {
    let mut record = record(vec![usual_case(512)]);
    record.cases[0]
        .samples
        .push(failed(Arm::Split, "peer closed"));
    assert!(only_alarm(&record).starts_with("1 of 11 requests failed"));
}

/// A split with a gap of 100 ms from first to second token, of which some is unexplained.
fn with_residual(residual_ns: u64, gap_ns: u64) -> Record {
    let times = Times {
        prefill_ns: 1_000_000_000,
        step_ns: 1_000,
        exposed_ns: gap_ns - 1_000 - residual_ns,
        residual_ns,
        ..Times::default()
    };
    record(vec![case("x", 512, 5, times)])
}

#[test]
fn a_residual_counts_above_one_millisecond_and_a_twentieth() {
    assert!(alarms(&with_residual(5_000_000, 100_000_000)).is_empty());
    let alarm = only_alarm(&with_residual(5_100_000, 100_000_000));
    assert!(
        alarm.starts_with("5.10 ms of the 100 ms from first to second token"),
        "{alarm}"
    );
    assert!(alarms(&with_residual(1_000_000, 2_000_000)).is_empty());
    assert!(!alarms(&with_residual(1_010_000, 2_000_000)).is_empty());
}

fn card(speed_mbps: Option<u64>, driver: Option<&str>) -> NetworkInterface {
    NetworkInterface {
        name: "x".into(),
        speed_mbps,
        mtu_bytes: None,
        is_up: true,
        driver: driver.map(String::from),
        is_loopback: false,
    }
}

#[test]
fn nothing_is_faster_than_its_network_cards() {
    // The usual case runs at 10 Gbps.
    let with = |interfaces: Vec<NetworkInterface>| {
        let mut record = record(vec![usual_case(512)]);
        record.environment.prefill.network_interfaces = interfaces;
        record
    };
    let slow = with(vec![card(Some(1_000), Some("igb"))]);
    assert!(only_alarm(&slow).contains("more than the node's network cards carry (1.00 Gbps)"));
    let fast = with(vec![
        card(Some(10_000), Some("ixgbe")),
        card(Some(1_000), Some("igb")),
    ]);
    assert!(alarms(&fast).is_empty());
    let unknown = with(vec![
        card(Some(1_000), Some("igb")),
        card(None, Some("virtio_net")),
    ]);
    assert!(alarms(&unknown).is_empty());
    let virtual_only = with(vec![card(Some(1_000), None)]);
    assert!(alarms(&virtual_only).is_empty());
    let mut loopback = slow;
    loopback.link.as_mut().unwrap().loopback = true;
    assert!(alarms(&loopback).is_empty());
}
