use super::*;
use crate::environment::{Activity, MemoryCopy, NetworkInterface};
use crate::metrics::{Arm, EventName, Look, Node, Sample};
use crate::report::fixture::{Times, case, failed, interference, record, usual_case};

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
    assert!(only_alarm(&slow).contains("more than the node's network cards carry (1.00 Gbit/s)"));
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

#[test]
fn nothing_is_faster_than_memory() {
    // The usual case runs at 10 Gbps over one connection.
    let with_copy = |ns| {
        let mut record = record(vec![usual_case(512)]);
        record.environment.prefill.processor.usable_cores = 2;
        record.observed.memory_copy = Some(MemoryCopy { bytes: 1_000, ns });
        record
    };
    let slow = with_copy(1_700);
    assert!(
        only_alarm(&slow).contains("more than this machine's cores copy in memory (9.41 Gbps)")
    );
    assert!(alarms(&with_copy(1_500)).is_empty());
}

/// Two looks, ten seconds and the usual case's ten requests apart.
fn looked_at(change: impl Fn(&mut Activity, &mut Activity)) -> Record {
    let mut record = record(vec![usual_case(512)]);
    for (order, sample) in record.cases[0].samples.iter_mut().enumerate() {
        sample.order = order as u32;
    }
    record.environment.prefill.processor.logical_cores = 4;
    record
        .environment
        .decode
        .as_mut()
        .unwrap()
        .processor
        .logical_cores = 4;
    let second = 1_000_000_000;
    let before = Activity {
        machine_cpu_ns: Some(0),
        stolen_ns: Some(0),
        fastest_core_mhz: Some(3000),
        core: Some(0),
        requests: Some(7),
        ..Activity::default()
    };
    let after = Activity {
        wall_ns: 10 * second,
        process_cpu_ns: 15 * second,
        machine_cpu_ns: Some(16 * second),
        requests: Some(7 + 4),
        ..before
    };
    let look = |order, prefill, mut decode: Activity| {
        decode.core = Some(1);
        let decode = Some(decode);
        Look {
            order: Some(order),
            prefill,
            decode,
        }
    };
    let (mut here, mut there) = (after, after);
    change(&mut here, &mut there);
    record.observed.looks = vec![look(1, before, before), look(9, here, there)];
    record
}

/// The same on one machine; the sentence that says so is left out.
fn on_one_machine(mut record: Record) -> Vec<String> {
    let id = record.environment.prefill.host.machine_id.clone();
    record.environment.decode.as_mut().unwrap().host.machine_id = id;
    let mut alarms = alarms(&record);
    alarms.retain(|alarm| !alarm.starts_with("both nodes share one machine"));
    alarms
}

#[test]
fn other_load_is_what_is_neither_ours_nor_little() {
    assert_eq!(alarms(&looked_at(|_, _| {})), Vec::<String>::new());
    let loaded = looked_at(|here, _| here.machine_cpu_ns = Some(18_000_000_000));
    assert_eq!(
        only_alarm(&loaded),
        "other programs kept 0.3 of the 4 cores of the prefill node's machine busy: stop them and run again"
    );
    let there = looked_at(|_, there| there.stolen_ns = Some(3_000_000_000));
    assert_eq!(
        only_alarm(&there),
        "other programs kept 0.1 of the 4 cores of the decode node's machine busy, and its hypervisor kept 0.3 to others: stop them and run again"
    );
    // Too short to say: the kernel counts in ticks.
    let short = looked_at(|here, _| {
        here.machine_cpu_ns = Some(18_000_000_000);
        here.wall_ns = 400_000_000;
    });
    assert!(alarms(&short).is_empty());
}

#[test]
fn on_one_machine_the_other_node_is_no_other_load() {
    let both = |machine_ns| {
        looked_at(move |here, there| {
            here.machine_cpu_ns = Some(machine_ns);
            there.machine_cpu_ns = Some(machine_ns);
        })
    };
    assert_eq!(on_one_machine(both(31_000_000_000)), Vec::<String>::new());
    let loaded = on_one_machine(both(33_000_000_000));
    assert!(
        loaded[0].starts_with("other programs kept 0.3 of the 4 cores"),
        "{loaded:?}"
    );
    assert_eq!(loaded.len(), 1);
}

#[test]
fn a_frequency_that_changes_is_named() {
    assert!(alarms(&looked_at(|here, _| here.fastest_core_mhz = Some(2700))).is_empty());
    let slower = looked_at(|here, _| here.fastest_core_mhz = Some(2600));
    assert!(
        only_alarm(&slower).starts_with("the prefill node's fastest core ran at 2600 to 3000 MHz")
    );
    let there = looked_at(|_, there| there.fastest_core_mhz = Some(2600));
    assert!(only_alarm(&there).starts_with("the decode node's"));
    let unknown = looked_at(|here, there| {
        (here.fastest_core_mhz, there.fastest_core_mhz) = (None, None);
    });
    assert!(alarms(&unknown).is_empty());
}

#[test]
fn both_ends_on_one_core_are_named_where_they_share_a_machine() {
    let mut record = looked_at(|here, there| {
        here.machine_cpu_ns = Some(30_000_000_000);
        there.machine_cpu_ns = here.machine_cpu_ns;
    });
    assert!(on_one_machine(record.clone()).is_empty());
    for look in &mut record.observed.looks {
        look.decode.as_mut().unwrap().core = Some(0);
    }
    let found = on_one_machine(record.clone());
    assert!(
        found[0].starts_with("both ends of the link ran on one core in 100%"),
        "{found:?}"
    );
    // On two machines equal numbers mean nothing.
    record.observed.looks[1].prefill.machine_cpu_ns = Some(16_000_000_000);
    let look = &mut record.observed.looks[1];
    look.decode.as_mut().unwrap().machine_cpu_ns = Some(16_000_000_000);
    assert!(alarms(&record).is_empty());
}

#[test]
fn requests_of_others_are_counted() {
    // Between the looks behind requests 1 and 9 four were split.
    let foreign = looked_at(|_, there| there.requests = Some(7 + 4 + 2));
    assert_eq!(
        only_alarm(&foreign),
        "the decode node admitted 2 requests of others during this run: measure while nobody else uses it"
    );
    let mut uncounted = record(vec![usual_case(512)]);
    assert!(alarms(&uncounted).is_empty());
    uncounted.cases[0].samples[1].others_in_flight = Some(1);
    assert!(
        only_alarm(&uncounted)
            .starts_with("the decode node had requests of others in flight beside 1 of ours")
    );
}

#[test]
fn each_sitting_of_a_resumed_run_is_counted_by_itself() {
    let mut resumed = looked_at(|_, _| {});
    let sittings = resumed.observed.looks.clone();
    // The second sitting's processes are new: their counters start below where the first ones ended.
    let mut again = sittings.clone();
    again[0].order = None;
    for look in &mut again {
        look.prefill.wall_ns += 1_000;
        look.decode.as_mut().unwrap().requests = Some(0);
    }
    resumed.observed.looks.extend(again);
    resumed.run.resumed_at.push("2026-01-01T00:00:00Z".into());
    let alarm = only_alarm(&resumed);
    assert!(
        alarm.contains("taken up again at 2026-01-01T00:00:00Z"),
        "{alarm}"
    );
}

#[test]
fn connections_that_took_several_attempts_are_counted() {
    let mut record = record(vec![usual_case(512)]);
    record.cases[0].samples[1].connect_attempts = Some(1);
    assert!(alarms(&record).is_empty());
    record.cases[0].samples[1].connect_attempts = Some(4);
    assert!(only_alarm(&record).starts_with("before 1 request the decode node was reached only"));
    let mut scene = interference();
    scene.samples.last_mut().unwrap().connect_attempts = Some(2);
    record.interference = Some(scene);
    let all = alarms(&record);
    let counted = |alarm: &String| alarm.starts_with("before 2 requests the decode node");
    assert!(all.iter().any(counted), "{all:?}");
}

#[test]
fn slow_compute_is_named_by_instruction_set() {
    // The usual case prefills 1,000 tokens a second on two threads.
    let with = |layer_weights, set: &str| {
        let mut record = record(vec![usual_case(512)]);
        record.environment.prefill.processor.instruction_set = set.into();
        record.model.layer_weights = Some(layer_weights);
        record
    };
    let slow = with(7_900_000, "x86-64 avx512-vnni");
    assert!(
        only_alarm(&slow).starts_with(
            "the prefill node prefills at 7.90 GFLOP/s a thread where common engines reach more than 32"
        ),
        "{}",
        only_alarm(&slow)
    );
    assert!(alarms(&with(8_100_000, "x86-64 avx512-vnni")).is_empty());
    assert!(alarms(&with(7_900_000, "x86-64 avx2")).is_empty());
    // Of others it is not known what is usual.
    assert!(alarms(&with(1, "riscv64")).is_empty());
    // A short prompt is no measure of matrices.
    let mut short = with(1, "x86-64 avx2");
    short.cases = vec![usual_case(64)];
    assert!(alarms(&short).is_empty());
}

/// Prefill of 512 tokens on two threads of AVX2: at the usual case's speed on the prefill node, and
/// so many times as fast on the decode node alone.
fn with_unlike_nodes(layer_weights: u64, decode_is_faster: u64) -> Record {
    let mut case = usual_case(512);
    let single = case.samples.iter().filter(|s| s.arm == Arm::Single);
    let mut on_decode: Vec<Sample> = single.cloned().collect();
    for sample in &mut on_decode {
        sample.node = Node::Decode;
        for event in &mut sample.events {
            event.t_ns /= decode_is_faster;
            if !matches!(event.name, EventName::RequestStart | EventName::Token) {
                event.clock = Node::Decode;
            }
        }
    }
    case.samples.extend(on_decode);
    let mut record = record(vec![case]);
    record.model.layer_weights = Some(layer_weights);
    record.environment.prefill.processor.instruction_set = "x86-64 avx2".into();
    let decode = record.environment.decode.as_mut().unwrap();
    decode.processor.instruction_set = "x86-64 avx2".into();
    record
}

#[test]
fn a_fast_decode_node_hides_no_slow_prefill_node() {
    // 3.9 GFLOP/s a thread here, five times that there.
    let record = with_unlike_nodes(3_900_000, 5);
    assert!(
        only_alarm(&record).starts_with("the prefill node prefills at 3.90 GFLOP/s a thread"),
        "{}",
        only_alarm(&record)
    );
}

#[test]
fn a_slow_decode_node_is_judged_by_its_own_processor_and_threads() {
    assert!(alarms(&with_unlike_nodes(4_100_000, 1)).is_empty());
    let mut slow = with_unlike_nodes(4_100_000, 1);
    slow.environment.decode.as_mut().unwrap().threads = 4;
    assert!(
        only_alarm(&slow).starts_with(
            "the decode node prefills at 2.05 GFLOP/s a thread where common engines reach more than 16"
        ),
        "{}",
        only_alarm(&slow)
    );
    let decode = slow.environment.decode.as_mut().unwrap();
    decode.processor.instruction_set = "riscv64".into();
    assert!(alarms(&slow).is_empty());
}
