//! Records with chosen times, for the tests of what reads records.

use std::collections::BTreeMap;

use crate::environment::Environment;
use crate::link::{Fit, FitOrigin, SizeTime};
use crate::metrics::interference::{Interference, InterferenceSample, Moments};
use crate::metrics::{
    Agreement, Arm, Case, Check, Environments, Event, EventName, LinkRecord, Lossy, ModelRecord,
    Node, Observed, Origin, Record, RunInfo, SCHEMA_VERSION, Sample, Setting, Status, Transfer,
};
use crate::wire::message::{KvDtype, WireDtype};
use crate::wire::socket::SocketFacts;

/// KV bytes a token takes in these records: SmolLM2-135M in f16.
const KV_BYTES_PER_TOKEN: u64 = 23_040;

/// Its layers.
const N_LAYERS: u32 = 30;

/// Where the time of a request goes; all in ns.
#[derive(Clone, Copy, Default)]
pub struct Times {
    pub prefill_ns: u64,
    pub exposed_ns: u64,
    pub handoff_ns: u64,
    pub step_ns: u64,
    pub residual_ns: u64,
}

/// A request of a prompt that takes these times and gives `output_tokens` tokens.
pub fn sample(arm: Arm, repeat: u32, kv_bytes: u64, output_tokens: u32, times: Times) -> Sample {
    let split = arm == Arm::Split;
    let decode_clock = if split { Node::Decode } else { Node::Prefill };
    let mut events = layers(times.prefill_ns);
    let mut push = |clock, name, chunk, t_ns| {
        events.push(Event {
            clock,
            name,
            layer: None,
            chunk,
            token_start: None,
            stream: None,
            t_ns,
        });
    };
    push(Node::Prefill, EventName::RequestStart, None, 0);
    push(Node::Prefill, EventName::PrefillStart, None, 0);
    push(Node::Prefill, EventName::PrefillEnd, None, times.prefill_ns);
    push(Node::Prefill, EventName::Token, Some(0), times.prefill_ns);
    let mut user_ns = times.prefill_ns;
    let mut decode_ns = if split { 1_000 } else { user_ns };
    if split && output_tokens > 1 {
        let acknowledged = times.prefill_ns + times.exposed_ns;
        push(
            Node::Prefill,
            EventName::PieceOffered,
            Some(0),
            times.prefill_ns,
        );
        push(
            Node::Prefill,
            EventName::PieceAcknowledged,
            Some(0),
            acknowledged,
        );
        push(Node::Decode, EventName::CacheComplete, None, decode_ns);
        decode_ns += times.handoff_ns;
        user_ns = acknowledged + times.handoff_ns + times.residual_ns;
    }
    for token in 1..output_tokens {
        push(decode_clock, EventName::StepStart, Some(token), decode_ns);
        decode_ns += times.step_ns;
        user_ns += times.step_ns;
        push(decode_clock, EventName::StepEnd, Some(token), decode_ns);
        push(Node::Prefill, EventName::Token, Some(token), user_ns);
    }
    Sample {
        arm,
        node: decode_clock,
        transfer: split.then_some(Transfer::Bulk),
        choice: None,
        idle_before_ns: split.then_some(1_000_000_000),
        others_in_flight: None,
        waiting_ahead: None,
        connect_attempts: None,
        kv_dtype: KvDtype::F16,
        wire_dtype: split.then_some(WireDtype::F16),
        streams: split.into(),
        chunk_tokens: None,
        warmup: false,
        repeat,
        order: repeat,
        wire_payload_bytes: if split { kv_bytes } else { 0 },
        wire_framing_bytes: 0,
        output: None,
        events,
        error: None,
    }
}

/// Every layer done, evenly over prefill.
fn layers(prefill_ns: u64) -> Vec<Event> {
    let done = (0..N_LAYERS).map(|layer| Event {
        clock: Node::Prefill,
        name: EventName::LayerDone,
        layer: Some(layer),
        chunk: None,
        token_start: Some(0),
        stream: None,
        t_ns: prefill_ns * u64::from(layer + 1) / u64::from(N_LAYERS),
    });
    done.collect()
}

/// A failed request.
pub fn failed(arm: Arm, error: &str) -> Sample {
    let mut sample = sample(arm, 0, 0, 1, Times::default());
    sample.error = Some(error.to_owned());
    sample
}

/// A prompt with five requests in each arm, the answers identical. The split arm takes `times`,
/// the single arm the same without what only a split pays.
pub fn case(prompt: &str, prompt_tokens: u32, output_tokens: u32, times: Times) -> Case {
    let kv_bytes = KV_BYTES_PER_TOKEN * u64::from(prompt_tokens);
    let samples = (0..5).flat_map(|repeat| {
        // Samples spread by up to 1 %, their median is exact.
        let spread = |ns: u64| (ns * (998 + u64::from(repeat))).div_ceil(1000);
        let times = Times {
            prefill_ns: spread(times.prefill_ns),
            step_ns: spread(times.step_ns),
            ..times
        };
        [Arm::Single, Arm::Split].map(|arm| sample(arm, repeat, kv_bytes, output_tokens, times))
    });
    Case {
        prompt: prompt.to_owned(),
        prompt_digest: "00".repeat(16),
        prompt_tokens,
        output_tokens,
        ignore_eos: true,
        kv_bytes,
        samples: samples.collect(),
        check: Some(Check {
            landed: Some(true),
            outputs: Some(Agreement::Identical),
            demanded: Agreement::Identical,
            findings: Vec::new(),
        }),
        lossy: Vec::new(),
        stopped: None,
    }
}

/// A case of usual proportions: 1 ms of prefill a token, 20 ms a step, 10 Gbps.
pub fn usual_case(prompt_tokens: u32) -> Case {
    let kv_bytes = KV_BYTES_PER_TOKEN * u64::from(prompt_tokens);
    let times = Times {
        prefill_ns: u64::from(prompt_tokens) * 1_000_000,
        exposed_ns: kv_bytes * 8 / 10,
        handoff_ns: 300_000,
        step_ns: 20_000_000,
        residual_ns: 100_000,
    };
    case(&format!("{prompt_tokens} tokens"), prompt_tokens, 50, times)
}

/// A case with a second split arm beside the first: int8 on the wire, half of the bytes in half of
/// the time, and what that cost.
pub fn with_int8(mut case: Case) -> Case {
    let plain = case.samples.iter().filter(|s| s.arm == Arm::Split);
    let mut lossy: Vec<Sample> = plain.cloned().collect();
    for sample in &mut lossy {
        sample.wire_dtype = Some(WireDtype::Int8);
        sample.wire_payload_bytes /= 2;
        let at = |name| (sample.events.iter().find(|e| e.name == name)).map(|e| e.t_ns);
        let offered = at(EventName::PieceOffered).unwrap_or(0);
        let saved_ns = (at(EventName::PieceAcknowledged).unwrap_or(offered) - offered) / 2;
        let waited = |e: &&mut Event| e.clock == Node::Prefill && e.t_ns > offered;
        for event in sample.events.iter_mut().filter(waited) {
            event.t_ns -= saved_ns;
        }
    }
    case.samples.extend(lossy);
    case.lossy.push(Lossy {
        wire_dtype: WireDtype::Int8,
        steps: case.output_tokens - 1,
        kl_mean_nats: Some(0.002),
        kl_max_nats: Some(0.03),
        same_top_pct: 98.0,
        same_tokens: 7,
    });
    case
}

/// What fits [`usual_case`].
fn fit_of_10_gbps() -> Fit {
    let size = |bytes: u64| SizeTime {
        bytes,
        wire_ms: bytes as f64 * 8.0 / 10e6,
    };
    Fit {
        streams: 1,
        alpha_us: 0.0,
        overhead_us_per_piece: 0.0,
        beta_gbps: Some(10.0),
        sizes: [1 << 16, 1 << 20, 1 << 24].map(size).to_vec(),
        after_idle: Vec::new(),
        worst_residual_pct: 1.0,
        held_out_error_pct: Some(5.0),
    }
}

/// A complete release run between two machines over a link of unknown speed.
pub fn record(cases: Vec<Case>) -> Record {
    let mut prefill = Environment::capture(2);
    prefill.build.profile = "release".into();
    prefill.host.machine_id = "machine a".into();
    prefill.network_interfaces.clear();
    let mut decode = prefill.clone();
    decode.host.machine_id = "machine b".into();
    let argv = ["disagg-bench", "split", "--peer", "10.0.0.2:7600"];
    let seed = Setting {
        value: 7.into(),
        origin: Origin::Default,
    };
    Record {
        schema_version: SCHEMA_VERSION,
        run: RunInfo {
            command: "split".into(),
            argv: argv.map(String::from).to_vec(),
            tool_version: "0.1.0".into(),
            git_revision: "0123456789ab".into(),
            profile: "release".into(),
            started_at: "2026-01-02T03:04:05Z".into(),
            resumed_at: Vec::new(),
            finished_at: Some("2026-01-02T03:05:05Z".into()),
            status: Status::Complete,
            seed: 7,
            error: None,
        },
        configuration: BTreeMap::from([("seed".to_owned(), seed)]),
        environment: Environments {
            prefill,
            decode: Some(decode),
        },
        model: ModelRecord {
            name: "smollm2-135m".into(),
            file_sha256: "b1".repeat(32),
            weights: "q8_0 from q4_1".into(),
            kernels: None,
            fingerprint: "f1".repeat(16),
            weight_bytes: 150_000_000,
            n_layers: N_LAYERS,
            n_kv_heads: 3,
            head_dim: 64,
            kv_bytes_per_token: KV_BYTES_PER_TOKEN,
            layer_weights: None,
            random_of_layers: None,
            load_ns: 1_000_000_000,
        },
        memory: crate::metrics::Memory::default(),
        decode_memory: None,
        prompt_set_digest: Some("ab".repeat(16)),
        baseline: None,
        link: Some(LinkRecord {
            transport: "tcp".into(),
            loopback: false,
            socket: SocketFacts {
                local: ([10, 0, 0, 1], 40_000).into(),
                peer: ([10, 0, 0, 2], 7_600).into(),
                loopback: false,
                congestion_control: Some("cubic".into()),
                nodelay: true,
                send_buffer_bytes: 87_380,
                recv_buffer_bytes: 131_072,
                mss_bytes: Some(1_448),
            },
            tcp_info_before: None,
            tcp_info_after: None,
            round_trips_ns: Vec::new(),
            fit: Some(fit_of_10_gbps()),
            fit_origin: Some(FitOrigin::Measured),
            interface: None,
        }),
        cases,
        interference: None,
        observed: Observed::default(),
    }
}

/// Five scenes an arm: 40 prompt tokens run at 10 ms a token, 512 come and take 1 ms a token; on
/// one node they stall it whole or by chunks of 256, and split they slow it to 12 ms.
pub fn interference() -> Interference {
    const MS: u64 = 1_000_000;
    let scene = |arm, chunk_tokens: Option<u32>| {
        let mut moments = Moments::default();
        let mut t_ns = 0;
        for index in 0..100 {
            let came = index > 16;
            t_ns += match (arm, chunk_tokens, index) {
                (Arm::Single, None, 17) => 512 * MS,
                (Arm::Single, Some(_), 17 | 18) => 266 * MS,
                (Arm::Split, ..) if came && index <= 67 => 12 * MS,
                _ => 10 * MS,
            };
            moments.token(t_ns, index);
        }
        let came_ns = moments.token_ns[16];
        moments.newcomer_start_ns = came_ns;
        let sent = arm == Arm::Split;
        moments.newcomer_landed_ns = sent.then_some(came_ns + 511 * MS);
        moments.newcomer_first_token_ns = came_ns
            + match (arm, chunk_tokens) {
                (Arm::Split, _) => 510 * MS,
                (Arm::Single, None) => 512 * MS,
                (Arm::Single, Some(_)) => 532 * MS,
            };
        (0..5).map(move |repeat| InterferenceSample {
            arm,
            chunk_tokens,
            warmup: false,
            repeat,
            connect_attempts: None,
            moments: Some(moments.clone()),
            error: None,
        })
    };
    Interference {
        running_prompt_tokens: 40,
        running_output_tokens: 100,
        comes_after_tokens: 17,
        newcomer_prompt_tokens: 512,
        demanded: Agreement::Identical,
        samples: scene(Arm::Single, None)
            .chain(scene(Arm::Single, Some(256)))
            .chain(scene(Arm::Split, None))
            .collect(),
    }
}
