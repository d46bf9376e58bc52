//! The flagship: a split over loopback gives the very answers of one node, and shows that it does.

mod tiny_model;

use std::collections::HashSet;

use candle_core::quantized::GgmlDType;
use disagg_bench::baseline::{BASELINE_FILE, BaselineFile};
use disagg_bench::metrics::{
    Agreement, Arm, EventName, Origin, Output, Record, SCHEMA_VERSION, Sample, Status,
};
use disagg_bench::model::engine::Engine;
use disagg_bench::model::kv_cache::{KvCache, KvDtype};
use disagg_bench::model::weights::WeightsFormat;
use disagg_bench::workload;
use tiny_model::{LAYERS, TinyModel, Workplace};

/// Prompts of exact length: one inside a chunk, one that spans several and ends amid one.
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

/// Measured and warm-up requests of each arm and prompt.
const ROUNDS: usize = 3;

fn answers(record: &Record, arm: Arm) -> Vec<&Output> {
    let samples = record.cases.iter().flat_map(|c| &c.samples);
    (samples.filter(|s| s.arm == arm))
        .map(|s| s.output.as_ref().unwrap())
        .collect()
}

fn times(sample: &Sample, name: EventName) -> usize {
    sample.events.iter().filter(|e| e.name == name).count()
}

/// Demands a complete record in which every answer is proved to be the same.
fn is_believable(record: &Record) {
    assert_eq!(record.schema_version, SCHEMA_VERSION);
    assert_eq!(record.run.status, Status::Complete);
    assert!(record.run.finished_at.is_some() && record.run.error.is_none());
    assert_eq!(record.cases.len(), 2);
    for case in &record.cases {
        let check = case.check.as_ref().unwrap();
        assert_eq!(check.landed, Some(true));
        assert_eq!(check.demanded, Agreement::Identical);
        assert_eq!(check.outputs, Some(Agreement::Identical));
        assert!(check.findings.is_empty(), "{:?}", check.findings);
        assert_eq!(case.samples.len(), 2 * ROUNDS);
        for sample in &case.samples {
            let output = sample.output.as_ref().unwrap();
            assert_eq!(output.tokens.len(), 24);
            assert_eq!(output.steps.len(), 24);
            assert_eq!(times(sample, EventName::Token), 24);
            assert_eq!(times(sample, EventName::StepEnd), 23);
            assert_eq!(times(sample, EventName::RequestEnd), 1);
            let is_split = sample.arm == Arm::Split;
            let pieces = if is_split { LAYERS } else { 0 };
            assert_eq!(times(sample, EventName::PieceSent), pieces);
            assert_eq!(times(sample, EventName::PieceLanded), pieces);
            assert_eq!(times(sample, EventName::PieceAcknowledged), pieces);
            let sent = if is_split { case.kv_bytes } else { 0 };
            assert_eq!(sample.wire_payload_bytes, sent);
            assert_eq!(output.sent_cache_digest.is_some(), is_split);
            assert_eq!(output.sent_cache_digest, output.landed_cache_digest);
        }
    }
}

#[test]
fn split_gives_the_answers_of_one_node_in_every_setting() {
    let place = Workplace::with(&TinyModel {
        format: GgmlDType::Q4_1,
        ..TinyModel::default()
    });
    let mut answers_seen = HashSet::new();
    for weights in ["as-is", "q8", "f32"] {
        for kv_dtype in ["f32", "f16", "bf16"] {
            for chunk in [None, Some("37")] {
                let name = format!("{weights}-{kv_dtype}-{}", chunk.unwrap_or("whole"));
                let mut settings = GRID.to_vec();
                settings.extend(["--weights", weights, "--kv-dtype", kv_dtype]);
                settings.extend(chunk.iter().flat_map(|n| ["--chunk-tokens", n]));
                let run = |command: &str| {
                    let out = format!("{command}-{name}");
                    let whole = [&[command, "--out", &out], &settings[..]].concat();
                    place.run(&whole).exits(0);
                    place.record(&out)
                };
                let split = run("split");
                is_believable(&split);
                let baseline = run("baseline");
                assert_eq!(baseline.run.status, Status::Complete);
                let file = BaselineFile::read(&place.path(BASELINE_FILE)).unwrap();
                let batch = file.batch_processing.unwrap();
                assert_eq!((batch.batch_size, batch.total_tokens), (8, 8 * 24));
                assert_eq!(batch.identical_to_single, Some(true), "{name}");
                let alone = answers(&baseline, Arm::Single);
                assert_eq!(alone.len(), 2 * ROUNDS);
                for (output, other) in alone.iter().zip(answers(&split, Arm::Split)) {
                    assert_eq!(output.tokens, other.tokens, "{name}");
                    let digests = |o: &Output| -> Vec<String> {
                        o.steps.iter().map(|s| s.digest.clone()).collect()
                    };
                    assert_eq!(digests(output), digests(other), "{name}");
                }
                let first = &alone[0].steps.last().unwrap().digest;
                answers_seen.insert(first.clone());
                let variety: HashSet<_> = alone.iter().flat_map(|o| &o.tokens).collect();
                assert!(variety.len() > 12, "a model that says little proves little");
            }
        }
    }
    // A prompt of 7 tokens is one chunk whatever the setting; all others are other computations.
    assert_eq!(answers_seen.len(), 9);
}

#[test]
fn the_record_says_what_ran_and_where_each_setting_came_from() {
    let place = Workplace::new();
    place.file("disagg-bench.toml", "seed = 9\nkv_dtype = \"f32\"\n");
    let mut arguments = vec!["split", "--out", "run", "--kv-dtype", "f16"];
    arguments.extend(GRID);
    let mut command = place.on_model(&arguments);
    command.env("DISAGG_CHUNK_TOKENS", "64");
    let ended = tiny_model::Ended::of(command).exits(0);
    assert!(
        ended
            .stdout
            .lines()
            .next()
            .unwrap()
            .contains("outputs identical"),
        "{ended}"
    );

    let record = place.record("run");
    is_believable(&record);
    let origin = |name: &str| record.configuration[name].origin.clone();
    assert_eq!(origin("kv_dtype"), Origin::Flag);
    assert_eq!(origin("chunk_tokens"), Origin::Environment);
    assert_eq!(origin("seed"), Origin::File("disagg-bench.toml".into()));
    assert_eq!(origin("transfer"), Origin::Default);
    assert_eq!(record.run.seed, 9);
    assert!(!record.run.git_revision.is_empty());
    assert_eq!(record.model.name, "tiny");
    assert_eq!(record.model.n_layers as usize, LAYERS);
    let link = record.link.as_ref().unwrap();
    assert!(link.loopback && link.transport == "tcp");
    assert!(link.tcp_info_before.is_some() && link.tcp_info_after.is_some());
    assert!(!link.round_trips_ns.is_empty());
    assert!(record.environment.decode.is_some() && record.environment.shared_machine());
    assert!(
        record
            .cases
            .iter()
            .flat_map(|c| &c.samples)
            .all(|s| s.chunk_tokens == Some(64))
    );

    let summary = place.summary("run");
    assert_eq!(summary.schema_version, SCHEMA_VERSION);
    assert_eq!(summary.status, Status::Complete);
    assert_eq!(summary.outputs, Some(Agreement::Identical));
    for case in &summary.cases {
        let split = case.arm(Arm::Split).unwrap();
        assert_eq!(split.wire_bytes, case.kv_bytes);
        for figure in [split.ttft_ms, split.wire_busy_ms, split.effective_gbps] {
            let figure = figure.unwrap();
            assert_eq!(figure.n, 2);
            assert!(0.0 < figure.min && figure.min <= figure.median && figure.median <= figure.max);
        }
        assert!(case.arm(Arm::Single).unwrap().wire_busy_ms.is_none());
    }
    let charts = std::fs::read_dir(place.path("run")).unwrap();
    let is_svg = |name: &std::path::Path| name.extension().is_some_and(|e| e == "svg");
    assert!(charts.map(|f| f.unwrap().path()).any(|path| is_svg(&path)));
}

#[test]
fn prompts_in_words_go_through_the_chat_template_and_an_answer_of_one_token_sends_nothing() {
    let place = Workplace::new();
    place.file(
        "prompts.jsonl",
        "{\"name\": \"one\", \"prompt\": \"Where is the other north?\", \"max_tokens\": 1}\n\
         {\"name\": \"more\", \"prompt\": \"Wo ist der Süden, 1234?\", \"max_tokens\": 9}\n",
    );
    let arguments = [
        "split",
        "--prompts",
        "prompts.jsonl",
        "--repeats",
        "2",
        "--out",
        "run",
    ];
    place.run(&arguments).exits(0);
    let record = place.record("run");
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    let one = &record.cases[0];
    assert_eq!((one.prompt.as_str(), one.output_tokens), ("one", 1));
    assert_eq!(one.check.as_ref().unwrap().landed, None);
    for sample in &one.samples {
        assert_eq!(sample.output.as_ref().unwrap().tokens.len(), 1);
        assert_eq!(
            (sample.wire_payload_bytes, sample.wire_framing_bytes),
            (0, 0)
        );
    }
    assert_eq!(record.cases[1].check.as_ref().unwrap().landed, Some(true));

    let summary = place.summary("run");
    let split = summary.cases[0].arm(Arm::Split).unwrap();
    assert_eq!(split.wire_bytes, 0);
    assert!(split.ttft_ms.is_some());
    let undefined = [
        split.ttst_ms,
        split.tpot_ms,
        split.wire_busy_ms,
        split.exposed_transfer_ms,
        split.handoff_ms,
        split.residual_ms,
        split.transfer_overhead_pct,
        split.effective_gbps,
    ];
    assert_eq!(undefined, [None; 8]);

    // Without the template the model is asked something else.
    let raw = [&arguments[..6], &["raw", "--raw"]].concat();
    place.run(&raw).exits(0);
    assert!(place.record("raw").cases[1].prompt_tokens < record.cases[1].prompt_tokens);
}

#[test]
fn one_decode_node_serves_peers_one_after_another() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    for (out, kv_dtype) in [("a", "f16"), ("b", "f32")] {
        let mut arguments = vec!["split", "--peer", &node.address, "--out", out];
        arguments.extend(["--kv-dtype", kv_dtype]);
        arguments.extend(GRID);
        place.run(&arguments).exits(0);
        is_believable(&place.record(out));
    }
    let mut arguments = vec!["run-prefill", "--peer", &node.address, "--out", "c"];
    arguments.extend(["--kv-dtype", "f32"]);
    arguments.extend(GRID);
    place.run(&arguments).exits(0);
    let (alone, both) = (place.record("c"), place.record("b"));
    let (alone, both) = (answers(&alone, Arm::Split), answers(&both, Arm::Single));
    assert_eq!(alone.len(), both.len());
    assert!(alone.iter().zip(both).all(|(a, b)| a.tokens == b.tokens));
    let stopped = node.stop();
    assert_eq!(stopped.stdout.matches("connected").count(), 3, "{stopped}");
    assert_eq!(
        stopped.stdout.matches("23 tokens decoded").count(),
        6 * ROUNDS,
        "{stopped}"
    );
}

#[test]
fn a_layer_damaged_behind_its_checksum_turns_the_check_red() {
    let place = Workplace::new();
    let node = place.serve(&["--corrupt-layer", "1"]);
    let mut arguments = vec!["split", "--peer", &node.address, "--out", "run"];
    arguments.extend(GRID);
    let ended = place.run(&arguments).fails(5, &["differ"]);
    let first = ended.stdout.lines().next().unwrap();
    assert!(first.to_lowercase().contains("outputs differ"), "{ended}");
    let record = place.record("run");
    // The run itself went well; it is its answers that cannot be believed.
    assert_eq!(record.run.status, Status::Complete);
    for case in &record.cases {
        let check = case.check.as_ref().unwrap();
        assert_eq!(check.landed, Some(false));
        assert!(check.outputs < Some(Agreement::Identical), "{check:?}");
        assert!(!check.findings.is_empty());
    }
    assert_eq!(place.summary("run").outputs, Some(Agreement::Differ));
    node.stop();
}

/// Prompt and answer as the library gives them: token ids and the bits of every step's logits.
fn go_on(engine: &Engine, first: u32, cache: &KvCache) -> Vec<(u32, String)> {
    let mut token = first;
    (0..12)
        .map(|_| {
            let logits = engine.step(token, cache).unwrap();
            token = logits.argmax();
            (token, logits.digest())
        })
        .collect()
}

#[test]
fn a_cache_moved_as_bytes_goes_on_bit_by_bit_in_another_engine() {
    let place = Workplace::with(&TinyModel {
        format: GgmlDType::Q8_0,
        ..TinyModel::default()
    });
    let path = place.path("tiny.gguf");
    let load = |weights| Engine::load(&path, "tiny", "-", Some(weights), &|_, _| {}).unwrap();
    for weights in [WeightsFormat::AsIs, WeightsFormat::Q8, WeightsFormat::F32] {
        let (here, there) = (load(weights), load(weights));
        let prompt = workload::grid(&[150], 1, |text| here.tokenizer.encode(text)).unwrap();
        let prompt = &prompt[0].tokens;
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            let layout = here.shape().kv_layout(dtype);
            let cache = KvCache::new(layout, 256);
            let first = here
                .prefill(prompt, Some(64), &cache, |_| {})
                .unwrap()
                .argmax();
            // Last layer first, the end of each layer before its start.
            let moved = |flipped_bit: u8| {
                let copy = KvCache::new(layout, 512);
                for layer in (0..LAYERS).rev() {
                    for tokens in [100..150, 0..100] {
                        let mut claim = copy.claim(layer, tokens.start, tokens.len()).unwrap();
                        claim.copy_from_slice(cache.read(layer, tokens).unwrap());
                        if layer == 1 {
                            claim[11] ^= flipped_bit;
                        }
                        claim.land();
                    }
                }
                copy
            };
            let (intact, damaged) = (moved(0), moved(0x10));
            assert_eq!(intact.len_tokens(), 150);
            assert_eq!(intact.digest(150).unwrap(), cache.digest(150).unwrap());
            assert_ne!(damaged.digest(150).unwrap(), cache.digest(150).unwrap());
            let wanted = go_on(&here, first, &cache);
            assert_eq!(go_on(&there, first, &intact), wanted, "{weights:?} {dtype}");
            let bits = |answer: &[(u32, String)]| -> Vec<String> {
                answer.iter().map(|(_, digest)| digest.clone()).collect()
            };
            let other = go_on(&there, first, &damaged);
            assert_ne!(bits(&other), bits(&wanted), "{weights:?} {dtype}");
        }
    }
}
