//! Several connections in one session, and the transfer modes as arms of one run: whichever
//! connection brings a piece and whenever it leaves, the answers are those of one node.

mod tiny_model;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::quantized::gguf_file::Value;
use disagg_bench::metrics::clock::ClockOffset;
use disagg_bench::metrics::{Agreement, Arm, Event, EventName, Record, Sample, Status, Transfer};
use disagg_bench::wire::Kind;
use tiny_model::proxy::DamagingProxy;
use tiny_model::{LAYERS, TinyModel, Workplace};

/// Long enough that a layer of a long prompt does not fit a fresh socket's buffer.
const CONTEXT_TOKENS: u32 = 4096;

/// A prompt inside one chunk and one of many chunks, of which the last is not full.
const GRID: [&str; 8] = [
    "--prompt-tokens",
    "40,2500",
    "--output-tokens",
    "6",
    "--repeats",
    "2",
    "--warmup",
    "1",
];

/// Less than the long prompt's cache takes, and more than the short one's.
const LONG_BYTES: u64 = 500_000;

/// Samples of each arm and prompt.
const ROUNDS: usize = 3;

/// What happens to a piece, in this order.
const STATIONS: [EventName; 4] = [
    EventName::PieceOffered,
    EventName::PieceSent,
    EventName::PieceLanded,
    EventName::PieceAcknowledged,
];

fn workplace() -> Workplace {
    Workplace::with(&TinyModel {
        metadata: vec![("llama.context_length", Value::U32(CONTEXT_TOKENS))],
        ..TinyModel::default()
    })
}

fn all(sample: &Sample, name: EventName) -> impl Iterator<Item = &Event> {
    sample.events.iter().filter(move |e| e.name == name)
}

fn moment(sample: &Sample, name: EventName) -> u64 {
    all(sample, name).next().unwrap().t_ns
}

/// The pieces of a sample with the connection of each, after demanding that all its events name
/// that connection and that they are in order on each node's clock.
fn pieces(sample: &Sample) -> BTreeMap<(u32, u32), u32> {
    let mut connections = BTreeMap::new();
    for event in all(sample, EventName::PieceOffered) {
        let piece = (event.layer.unwrap(), event.token_start.unwrap());
        let twice = connections.insert(piece, event.stream.unwrap());
        assert_eq!(twice, None, "{piece:?} was offered twice");
    }
    for (piece, stream) in &connections {
        let mut times = BTreeMap::new();
        for station in STATIONS {
            let mut events = all(sample, station)
                .filter(|e| (e.layer, e.token_start) == (Some(piece.0), Some(piece.1)));
            let event = events.next();
            let event = event.unwrap_or_else(|| panic!("{piece:?} has no {station:?}"));
            assert!(events.next().is_none(), "{piece:?} has two {station:?}");
            assert_eq!(event.stream, Some(*stream), "{station:?} of {piece:?}");
            times.insert(station_number(station), event.t_ns);
        }
        assert!(
            times[&0] <= times[&1] && times[&0] <= times[&3],
            "{times:?}"
        );
    }
    for station in STATIONS {
        assert_eq!(all(sample, station).count(), connections.len());
    }
    connections
}

fn station_number(name: EventName) -> usize {
    STATIONS.iter().position(|s| *s == name).unwrap()
}

/// Demands what holds of every split sample, and gives the connections that its pieces took.
fn is_sound(sample: &Sample, kv_bytes: u64, streams: u32) -> BTreeSet<u32> {
    assert_eq!(sample.error, None);
    assert_eq!(sample.streams, streams);
    assert_eq!(sample.wire_payload_bytes, kv_bytes);
    let output = sample.output.as_ref().unwrap();
    assert!(output.sent_cache_digest.is_some());
    assert_eq!(output.sent_cache_digest, output.landed_cache_digest);

    let pieces = pieces(sample);
    let layers: BTreeSet<u32> = pieces.keys().map(|(layer, _)| *layer).collect();
    assert_eq!(layers, (0..LAYERS as u32).collect());
    let ended = moment(sample, EventName::PrefillEnd);
    let offered: Vec<u64> = (all(sample, EventName::PieceOffered))
        .map(|e| e.t_ns)
        .collect();
    match sample.transfer.unwrap() {
        Transfer::Bulk => assert!(offered.iter().all(|t| *t >= ended), "bulk before the end"),
        // A short prompt is over before anybody has had the time to send.
        Transfer::Layered if kv_bytes < LONG_BYTES => {}
        _ => assert!(
            *offered.iter().min().unwrap() < ended,
            "the first layer waited for the last"
        ),
    }
    pieces
        .into_values()
        .inspect(|s| assert!(*s < streams))
        .collect()
}

fn splits(record: &Record) -> impl Iterator<Item = (u64, &Sample)> {
    (record.cases.iter())
        .flat_map(|c| c.samples.iter().map(|s| (c.kv_bytes, s)))
        .filter(|(_, s)| s.arm == Arm::Split)
}

#[test]
fn three_connections_and_both_transfers_give_the_answers_of_one_node() {
    let place = workplace();
    for kv_dtype in ["f16", "f32"] {
        for chunk in [None, Some("64")] {
            let out = format!("{kv_dtype}-{}", chunk.unwrap_or("whole"));
            let mut arguments = vec!["split", "--streams", "3", "--transfer", "bulk,layered"];
            arguments.extend(["--out", &out, "--kv-dtype", kv_dtype]);
            arguments.extend(chunk.iter().flat_map(|n| ["--chunk-tokens", n]));
            arguments.extend(GRID);
            place.run(&arguments).exits(0);

            let record = place.record(&out);
            assert_eq!(record.run.status, Status::Complete);
            assert_eq!(record.outputs(), Some(Agreement::Identical));
            let mut used = BTreeSet::new();
            for (kv_bytes, sample) in splits(&record) {
                used.extend(is_sound(sample, kv_bytes, 3));
            }
            assert!(used.len() > 1, "{out}: only connection {used:?} was used");
            for case in &record.cases {
                assert_eq!(case.check.as_ref().unwrap().landed, Some(true));
                for transfer in [None, Some(Transfer::Bulk), Some(Transfer::Layered)] {
                    let arm = case.samples.iter().filter(|s| s.transfer == transfer);
                    assert_eq!(arm.count(), ROUNDS, "{out}: {transfer:?}");
                }
            }
            // In chunks, layered sends each of them, and bulk does not care.
            let (_, layered) = splits(&record)
                .filter(|(_, s)| s.transfer == Some(Transfer::Layered))
                .last()
                .unwrap();
            let chunks = if chunk.is_some() {
                2500_usize.div_ceil(64)
            } else {
                1
            };
            assert!(pieces(layered).len() >= LAYERS * chunks);

            for case in &place.summary(&out).cases {
                let arms = case.arms.iter().filter(|a| a.arm == Arm::Split);
                let arms: Vec<_> = arms.map(|a| (a.transfer, a.streams)).collect();
                let wanted = [(Some(Transfer::Bulk), 3), (Some(Transfer::Layered), 3)];
                assert_eq!(arms, wanted);
            }
        }
    }
}

#[test]
fn auto_picks_per_request_and_says_why() {
    let place = workplace();
    let mut arguments = vec!["split", "--transfer", "auto,bulk", "--out", "auto"];
    arguments.extend(GRID);
    let ended = place.run(&arguments).exits(0);
    let record = place.record("auto");
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    assert!(record.link.as_ref().unwrap().fit.is_some());
    for (_, sample) in splits(&record) {
        assert_eq!(
            sample.choice.is_some(),
            sample.transfer == Some(Transfer::Auto)
        );
        let Some(choice) = sample.choice else {
            continue;
        };
        let offered = all(sample, EventName::PieceOffered);
        let first = offered.map(|e| e.t_ns).min().unwrap();
        let after = first >= moment(sample, EventName::PrefillEnd);
        match choice.picked {
            Transfer::Bulk => assert!(after, "picked bulk and sent before the end"),
            other => assert_eq!(other, Transfer::Layered),
        }
        // Whatever ran first, a warm-up round has measured a prefill before any that counts.
        assert!(sample.warmup || choice.bulk_exposed_ns >= choice.layered_exposed_ns);
        assert!(sample.warmup || choice.measured_prompt_tokens.is_some());
    }
    for case in &place.summary("auto").cases {
        let arms = case.arms.iter().filter(|a| a.arm == Arm::Split);
        for arm in arms {
            let counted = arm.auto.map(|auto| auto.bulk + auto.layered);
            assert_eq!(counted, (arm.transfer == Some(Transfer::Auto)).then_some(2));
            assert_eq!(arm.connections.unwrap().cold, 0);
        }
    }
    assert!(ended.stdout.contains("auto at 2500 tokens"), "{ended}");
}

#[test]
fn the_nodes_clocks_are_bounded_by_their_messages() {
    let place = workplace();
    let mut arguments = vec!["split", "--transfer", "bulk,layered", "--out", "clocks"];
    arguments.extend(GRID);
    place.run(&arguments).exits(0);
    for (_, sample) in splits(&place.record("clocks")) {
        // On one machine both read the same clock, so the bounds cannot contradict each other,
        // and the decode node's zero is after the request's start.
        let offset = ClockOffset::of(sample).unwrap();
        assert!(offset.error_ns >= 0, "{offset:?}");
        assert!(offset.offset_ns + offset.error_ns >= 0, "{offset:?}");
        let e2e_ns = moment(sample, EventName::RequestEnd);
        assert!(offset.error_ns < e2e_ns as i64, "{offset:?}");
    }
}

#[test]
fn a_prefill_node_alone_uses_several_connections_too() {
    let place = workplace();
    let node = place.serve(&[]);
    for transfer in ["bulk", "layered"] {
        let mut arguments = vec!["run-prefill", "--peer", &node.address, "--streams", "2"];
        arguments.extend([
            "--transfer",
            transfer,
            "--out",
            transfer,
            "--kv-dtype",
            "f32",
        ]);
        arguments.extend(GRID);
        place.run(&arguments).exits(0);
        let record = place.record(transfer);
        assert_eq!(record.run.status, Status::Complete);
        assert_eq!(splits(&record).count(), 2 * ROUNDS);
        let mut used = BTreeSet::new();
        for (kv_bytes, sample) in splits(&record) {
            used.extend(is_sound(sample, kv_bytes, 2));
        }
        // Layered, a connection may be done with a layer before the next one is computed.
        assert!(transfer == "layered" || used == BTreeSet::from([0, 1]));
    }
    let stopped = node.stop();
    assert!(!stopped.stdout.contains("dropped"), "{stopped}");
}

#[test]
fn a_byte_damaged_on_any_of_several_connections_is_told_by_the_exit_code() {
    let place = workplace();
    let node = place.serve(&[]);
    // The proxy counts pieces as they pass, so which connection is hit is for chance to say.
    for number in 1..=4 {
        let proxy = DamagingProxy::start(&node.address, Kind::Piece, number);
        let out = format!("damaged-{number}");
        let mut arguments = vec!["split", "--peer", &proxy.address, "--out", &out];
        arguments.extend([
            "--streams",
            "3",
            "--kv-dtype",
            "f32",
            "--output-tokens",
            "4",
        ]);
        arguments.extend(["--prompt-tokens", "2500", "--warmup", "0", "--repeats", "2"]);
        place.run(&arguments).fails(5, &["checksum of PIECE"]);
        let record = place.record(&out);
        let samples = &record.cases[0].samples;
        let failed = samples.iter().filter(|s| s.error.is_some());
        assert_eq!(failed.count(), 1);
        assert_eq!(record.outputs(), Some(Agreement::Identical));
    }
    node.stop();
}
