//! Of the machines: builds, load, frequency, cores, and whether compute is as fast as it should be.

use crate::environment::{Activity, Environment};
use crate::metrics::summary::{SummaryArm, SummaryCase};
use crate::metrics::{Arm, Look, Node, OtherLoad, Record};
use crate::report::number::significant;

/// Share of a machine's cores that other programs may take.
const OTHER_LOAD_SHARE: f64 = 0.05;

/// Lowest over highest frequency of the fastest core below which the run changed speed.
const STEADY_FREQUENCY: f64 = 0.9;

/// Share of requests behind which both network threads may be on one core by chance.
const ONE_CORE_SHARE: f64 = 0.5;

/// Prompts below this length spend their time on other things than matrices.
const COMPUTE_MIN_TOKENS: u32 = 128;

/// Prefill faster than this is not slow, whatever it computes.
const COMPUTE_MIN_MS: f64 = 50.0;

/// Prefill rates, in GFLOP/s a thread, below which compute is far from what people deploy: a
/// quarter of llama.cpp's (33 with AVX-512 without AMX; METHODOLOGY.md), halved for every halving
/// of the vectors.
const COMPUTE_FLOORS: [(&str, f64); 5] = [
    ("avx512", 8.0),
    ("avx-vnni", 4.0),
    ("avx2", 4.0),
    ("neon-i8mm", 2.0),
    ("neon-dotprod", 2.0),
];

pub(super) fn debug_build(record: &Record) -> Option<String> {
    let decode = record.environment.decode.as_ref();
    let is_debug = |e: &Environment| !e.build.is_optimised();
    let node = if is_debug(&record.environment.prefill) || record.run.profile == "debug" {
        "prefill"
    } else if decode.is_some_and(is_debug) {
        "decode"
    } else {
        return None;
    };
    Some(format!(
        "the {node} node is a debug build, its times mean nothing: build with --release"
    ))
}

pub(super) fn random_weights(record: &Record) -> Option<String> {
    let model = &record.model;
    let of_layers = model.random_of_layers?;
    let part = match model.n_layers == of_layers {
        true => String::new(),
        false => format!(
            ", and bytes and times are those of {} of its {of_layers} layers",
            model.n_layers
        ),
    };
    Some(format!(
        "{} has random weights: its answers mean nothing{part}; measure with a model's own weights before you decide",
        model.name
    ))
}

pub(super) fn shared_cores(record: &Record) -> Option<String> {
    (record.environment.shared_machine()).then(|| {
        "both nodes share one machine, its cores and its memory bus: for your own link, start serve-decode on a second machine and give --peer HOST:PORT".to_owned()
    })
}

/// Both nodes' network threads on one core take turns, and so do sending and receiving.
pub(super) fn one_core(record: &Record) -> Option<String> {
    let share = record.observed.one_core_share()?;
    (record.environment.shared_machine() && share > ONE_CORE_SHARE).then(|| {
        format!(
            "both ends of the link ran on one core in {:.0}% of the requests, so that sending waited for receiving: keep them apart, as with taskset",
            100.0 * share
        )
    })
}

pub(super) fn other_load(record: &Record) -> Vec<String> {
    let shared = record.environment.shared_machine();
    let observed = &record.observed;
    let prefill = observed.other_load_of_prefill(shared);
    let decode = observed.other_load_of_decode().filter(|_| !shared);
    let nodes = [
        ("prefill", Some(&record.environment.prefill), prefill),
        ("decode", record.environment.decode.as_ref(), decode),
    ];
    let sentence = |(node, environment, load): (&str, Option<&Environment>, Option<OtherLoad>)| {
        let (cores, load) = (environment?.processor.logical_cores as f64, load?);
        let allowed = OTHER_LOAD_SHARE * cores;
        if load.programs_cores + load.stolen_cores <= allowed {
            return None;
        }
        let stolen = match load.stolen_cores > 0.1 * load.programs_cores {
            true => format!(
                ", and its hypervisor kept {} to others",
                significant(load.stolen_cores, 2)
            ),
            false => String::new(),
        };
        Some(format!(
            "other programs kept {} of the {cores} cores of the {node} node's machine busy{stolen}: stop them and run again",
            significant(load.programs_cores, 2),
        ))
    };
    nodes.into_iter().filter_map(sentence).collect()
}

/// One node of a look at both.
type OfNode = fn(&Look) -> Option<Activity>;

pub(super) fn frequency(record: &Record) -> Vec<String> {
    let nodes: [(&str, OfNode); 2] = [
        ("prefill", |look| Some(look.prefill)),
        ("decode", |look| look.decode),
    ];
    // On one machine both nodes see the same cores.
    let looked_at = if record.environment.shared_machine() {
        1
    } else {
        2
    };
    let sentence = |(node, of): (&str, OfNode)| {
        let (lowest, highest) = record.observed.mhz_range(of)?;
        (f64::from(lowest) < STEADY_FREQUENCY * f64::from(highest)).then(|| {
            format!(
                "the {node} node's fastest core ran at {lowest} to {highest} MHz: let it warm up with more --warmup, or fix its frequency"
            )
        })
    };
    (nodes.into_iter().take(looked_at))
        .filter_map(sentence)
        .collect()
}

/// Where prefill is so slow that the transfer looks cheaper than it is: each node by what it
/// prefilled itself.
pub(super) fn slow_compute(record: &Record, cases: &[SummaryCase]) -> Vec<String> {
    let nodes = [
        (Node::Prefill, Some(&record.environment.prefill)),
        (Node::Decode, record.environment.decode.as_ref()),
    ];
    let sentence = |(node, environment): (Node, Option<&Environment>)| {
        let layer_weights = record.model.layer_weights?;
        slow_compute_of(node, environment?, layer_weights, cases)
    };
    nodes.into_iter().filter_map(sentence).collect()
}

fn slow_compute_of(
    node: Node,
    environment: &Environment,
    layer_weights: u64,
    cases: &[SummaryCase],
) -> Option<String> {
    let processor = &environment.processor;
    let (_, floor) =
        (COMPUTE_FLOORS.iter()).find(|(set, _)| processor.instruction_set.contains(set))?;
    let operations_per_token = 2.0 * layer_weights as f64;
    let threads = environment.threads.max(1) as f64;
    let prefilled_here = |arm: &SummaryArm| node_that_prefilled(arm) == node;
    let rates =
        (super::arms(cases).filter(|(_, arm)| prefilled_here(arm))).filter_map(|(case, arm)| {
            let prefill_ms = arm.prefill_ms?.median;
            let operations = operations_per_token * f64::from(case.prompt_tokens);
            (case.prompt_tokens >= COMPUTE_MIN_TOKENS && prefill_ms >= COMPUTE_MIN_MS)
                .then(|| operations / (prefill_ms * 1e6) / threads)
        });
    // Of several lengths the fastest: long ones spend more on attention, which is not counted.
    let fastest = rates.max_by(f64::total_cmp)?;
    (fastest < *floor).then(|| {
        format!(
            "the {node} node prefills at {} GFLOP/s a thread where common engines reach more than {} on {}, so the transfer looks cheaper than it is: check its build, --threads and other load",
            significant(fastest, 3),
            significant(4.0 * floor, 2),
            processor.instruction_set,
        )
    })
}

/// A split prefills on the prefill node, a single node itself.
fn node_that_prefilled(arm: &SummaryArm) -> Node {
    match arm.arm {
        Arm::Single => arm.node,
        Arm::Split => Node::Prefill,
    }
}
