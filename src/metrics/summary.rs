//! `summary.json`: the stable interface for scripts, derived from a [`Record`].
//!
//! Keys are added, never renamed, within a schema version.

use serde::{Deserialize, Serialize};

use super::changes::{ArmKey, SummaryChange, changes};
use super::figures::{ConnectionState, Figures};
use super::interference::SummaryInterference;
use super::{
    Agreement, Arm, Case, Choice, Lossy, Node, Record, SCHEMA_VERSION, Sample, Status, Stopped,
    Transfer,
};
use crate::stats::Figure;
use crate::verdict::Answers;
use crate::wire::message::{KvDtype, WireDtype};

/// A run in figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Version of this file's schema.
    pub schema_version: u32,
    /// Subcommand that made it.
    pub command: String,
    /// Revision of the tool.
    pub git_revision: String,
    /// How the run ended.
    pub status: Status,
    /// The model.
    pub model: SummaryModel,
    /// The link; null where nothing was sent.
    pub link: Option<SummaryLink>,
    /// blake3 over all prompts and their settings; null in records from before it was taken.
    #[serde(default)]
    pub prompt_set_digest: Option<String>,
    /// Weakest agreement of the answers; null with one arm.
    pub outputs: Option<Agreement>,
    /// One line: what was found.
    pub verdict: Option<String>,
    /// What the split does to latency, interference and capacity, what limits it and what to do;
    /// null without both arms or where outputs differ.
    #[serde(default)]
    pub answers: Option<Answers>,
    /// What makes the figures doubtful.
    pub alarms: Vec<String>,
    /// One entry a prompt.
    pub cases: Vec<SummaryCase>,
    /// What a running sequence suffers from another prompt's prefill; null where it was not
    /// measured.
    #[serde(default)]
    pub interference: Option<SummaryInterference>,
}

/// The model of a summary.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SummaryModel {
    /// Built-in name, or that of the file.
    pub name: String,
    /// Weights that ran.
    pub weights: String,
    /// Digest over file and weights.
    pub fingerprint: String,
    /// Bytes of KV cache a token takes.
    pub kv_bytes_per_token: u64,
}

/// The link of a summary.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SummaryLink {
    /// What carried the bytes.
    pub transport: String,
    /// Whether they stayed on one machine.
    pub loopback: bool,
    /// Congestion control as read back.
    pub congestion_control: Option<String>,
    /// Smallest round trip.
    pub min_round_trip_us: Option<f64>,
}

/// One prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SummaryCase {
    /// Name of the prompt.
    pub prompt: String,
    /// Prompt length.
    pub prompt_tokens: u32,
    /// Tokens asked for.
    pub output_tokens: u32,
    /// Bytes of KV cache of the prompt.
    pub kv_bytes: u64,
    /// Agreement of the answers of lossless arms; null with one arm.
    pub outputs: Option<Agreement>,
    /// Requests that failed.
    pub errors: Vec<String>,
    /// One entry a way of running it.
    pub arms: Vec<SummaryArm>,
    /// How these differ: split arms against single ones, further split arms against the first.
    #[serde(default)]
    pub changes: Vec<SummaryChange>,
    /// What ended `--repeats auto`; null where a number was given.
    #[serde(default)]
    pub stopped: Option<Stopped>,
    /// What lossy wire formats cost the answer.
    #[serde(default)]
    pub lossy: Vec<Lossy>,
}

/// One way of running one prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SummaryArm {
    /// How it ran.
    pub arm: Arm,
    /// The node that produced the tokens after the first.
    pub node: Node,
    /// When the cache crossed the link.
    pub transfer: Option<Transfer>,
    /// Element type of the cache.
    pub kv_dtype: KvDtype,
    /// Element type on the wire.
    pub wire_dtype: Option<WireDtype>,
    /// Connections that carried pieces.
    pub streams: u32,
    /// KV bytes sent by one request.
    pub wire_bytes: u64,
    /// What `auto` picked; null in every other arm.
    #[serde(default)]
    pub auto: Option<SummaryAuto>,
    /// Requests by the state that their connections were in; null where no cache was sent.
    #[serde(default)]
    pub connections: Option<SummaryConnections>,
    /// Request start to first token.
    pub ttft_ms: Option<Figure>,
    /// Request start to second token.
    pub ttst_ms: Option<Figure>,
    /// Time per output token after the first.
    pub tpot_ms: Option<Figure>,
    /// Request start to last token.
    pub e2e_ms: Option<Figure>,
    /// Output tokens per second of the request.
    pub tokens_per_s: Option<Figure>,
    /// Prefill.
    pub prefill_ms: Option<Figure>,
    /// Of prefill: K and V copied out of a device's memory; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging_out_ms: Option<Figure>,
    /// Of the handoff: K and V copied into a device's memory; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging_in_ms: Option<Figure>,
    /// All decode steps.
    pub decode_ms: Option<Figure>,
    /// Time in which pieces were under way.
    pub wire_busy_ms: Option<Figure>,
    /// Transfer that the request waited for.
    pub exposed_transfer_ms: Option<Figure>,
    /// Transfer behind prefill.
    pub hidden_transfer_ms: Option<Figure>,
    /// Last piece verified to first step started.
    pub handoff_ms: Option<Figure>,
    /// What the other four do not explain of the gap to the second token.
    pub residual_ms: Option<Figure>,
    /// Exposed transfer / E2E.
    pub transfer_overhead_pct: Option<Figure>,
    /// Wire busy / E2E.
    pub wire_busy_pct: Option<Figure>,
    /// The notebook's share: wire busy / (prefill + wire busy).
    pub notebook_pipeline_pct: Option<Figure>,
    /// KV payload over wire busy.
    pub effective_gbps: Option<Figure>,
    /// Link rate at which prefill would never wait.
    pub kv_demand_gbps: Option<Figure>,
}

/// What `auto` picked over the requests of an arm.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SummaryAuto {
    /// Requests sent in bulk.
    pub bulk: usize,
    /// Requests sent layer by layer.
    pub layered: usize,
    /// Predicted exposed transfer in bulk; null where nothing could be predicted.
    pub bulk_exposed_ms: Option<Figure>,
    /// The same layer by layer.
    pub layered_exposed_ms: Option<Figure>,
}

/// Requests by the state that their connections were in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryConnections {
    /// They had carried no cache before.
    pub cold: usize,
    /// They had carried one less than 200 ms before.
    pub warm: usize,
    /// The one before was longer ago.
    pub after_idle: usize,
}

/// What deriving figures takes beside the samples.
#[derive(Clone, Copy, Debug)]
pub struct Derivation {
    /// The link's smallest round trip.
    pub round_trip_ns: Option<u64>,
    /// Seed of intervals.
    pub seed: u64,
    /// Whether the single arm is an earlier run's.
    pub single_stands_in: bool,
}

impl Derivation {
    /// Of a run.
    pub fn of(record: &Record) -> Self {
        let link = record.link.as_ref();
        Self {
            round_trip_ns: link.and_then(|l| l.min_round_trip_ns()),
            seed: record.run.seed,
            single_stands_in: record.baseline.as_ref().is_some_and(|b| b.stands_in),
        }
    }
}

impl SummaryAuto {
    fn of(samples: &[&Sample]) -> Option<Self> {
        let choices: Vec<Choice> = samples.iter().filter_map(|s| s.choice).collect();
        let picked = |transfer| choices.iter().filter(|c| c.picked == transfer).count();
        let predicted = |of: fn(&Choice) -> Option<u64>| {
            let ms = choices.iter().filter_map(of).map(|ns| ns as f64 / 1e6);
            Figure::of(&ms.collect::<Vec<f64>>())
        };
        (!choices.is_empty()).then(|| Self {
            bulk: picked(Transfer::Bulk),
            layered: picked(Transfer::Layered),
            bulk_exposed_ms: predicted(|c| c.bulk_exposed_ns),
            layered_exposed_ms: predicted(|c| c.layered_exposed_ns),
        })
    }
}

impl SummaryConnections {
    fn of(samples: &[&Sample]) -> Option<Self> {
        let states = samples.iter().filter_map(|s| ConnectionState::of(s));
        let mut counted = Self::default();
        for state in states {
            *match state {
                ConnectionState::Cold => &mut counted.cold,
                ConnectionState::Warm => &mut counted.warm,
                ConnectionState::AfterIdle => &mut counted.after_idle,
            } += 1;
        }
        (counted != Self::default()).then_some(counted)
    }
}

impl Summary {
    /// Derives the summary of a record.
    pub fn of(record: &Record) -> Self {
        let round_trip = record.link.as_ref().and_then(|l| l.min_round_trip_ns());
        let cases = SummaryCase::all(record);
        Self {
            schema_version: SCHEMA_VERSION,
            command: record.run.command.clone(),
            git_revision: record.run.git_revision.clone(),
            status: record.run.status,
            model: SummaryModel {
                name: record.model.name.clone(),
                weights: record.model.weights.clone(),
                fingerprint: record.model.fingerprint.clone(),
                kv_bytes_per_token: record.model.kv_bytes_per_token,
            },
            link: record.link.as_ref().map(|link| SummaryLink {
                transport: link.transport.clone(),
                loopback: link.loopback,
                congestion_control: link.socket.congestion_control.clone(),
                min_round_trip_us: round_trip.map(|ns| ns as f64 / 1e3),
            }),
            prompt_set_digest: record.prompt_set_digest.clone(),
            outputs: record.outputs(),
            verdict: crate::verdict::finding(record),
            answers: Answers::of(record, &cases),
            alarms: crate::alarms::alarms(record, &cases),
            cases,
            interference: SummaryInterference::of(record),
        }
    }
}

impl SummaryCase {
    /// The cases of a record.
    pub fn all(record: &Record) -> Vec<Self> {
        let derivation = Derivation::of(record);
        let of = |case| Self::of(case, &derivation);
        record.cases.iter().map(of).collect()
    }

    /// Derives the figures of one case.
    pub fn of(case: &Case, derivation: &Derivation) -> Self {
        Self {
            prompt: case.prompt.clone(),
            prompt_tokens: case.prompt_tokens,
            output_tokens: case.output_tokens,
            kv_bytes: case.kv_bytes,
            outputs: case.check.as_ref().and_then(|c| c.outputs),
            errors: case
                .samples
                .iter()
                .filter_map(|s| s.error.clone())
                .collect(),
            arms: SummaryArm::all(case, derivation),
            changes: changes(case, derivation),
            stopped: case.stopped,
            lossy: case.lossy.clone(),
        }
    }

    /// The first arm of a kind.
    pub fn arm(&self, arm: Arm) -> Option<&SummaryArm> {
        self.arms.iter().find(|a| a.arm == arm)
    }

    /// How `to` differs from `from`, where these are compared.
    pub fn change(&self, from: &SummaryArm, to: &SummaryArm) -> Option<&SummaryChange> {
        let is_it = |c: &&SummaryChange| (c.from, c.to) == (from.key(), to.key());
        self.changes.iter().find(is_it)
    }

    /// The arm of a key.
    pub fn arm_of(&self, key: ArmKey) -> Option<&SummaryArm> {
        self.arms.iter().find(|arm| arm.key() == key)
    }

    /// The arm that differs from a lossy one in nothing but the wire format.
    pub fn lossless_twin(&self, lossy: &SummaryArm) -> Option<&SummaryArm> {
        let way = |a: &SummaryArm| (a.arm, a.node, a.transfer, a.streams);
        let mut lossless = self.arms.iter().filter(|a| !a.is_lossy());
        lossless.find(|a| way(a) == way(lossy))
    }

    /// What the wire format of a lossy arm costs the answer, where that was measured.
    pub fn cost_of(&self, lossy: &SummaryArm) -> Option<&Lossy> {
        (self.lossy.iter()).find(|cost| Some(cost.wire_dtype) == lossy.wire_dtype)
    }
}

/// A figure of the single arm's E2E by prompt, for a baseline.
pub fn single_e2e_ms(record: &Record) -> std::collections::BTreeMap<String, Figure> {
    let summary = Summary::of(record);
    let of = |case: &SummaryCase| Some((case.prompt.clone(), case.arm(Arm::Single)?.e2e_ms?));
    summary.cases.iter().filter_map(of).collect()
}

impl SummaryArm {
    /// Whether decode started from another cache than prefill left.
    pub fn is_lossy(&self) -> bool {
        self.wire_dtype.is_some_and(WireDtype::is_lossy)
    }

    /// What tells it from the other arms of its case.
    pub fn key(&self) -> ArmKey {
        ArmKey {
            arm: self.arm,
            node: self.node,
            transfer: self.transfer,
            wire_dtype: self.wire_dtype,
            streams: self.streams,
        }
    }

    /// The arms of a case that have a sample which enters figures.
    pub fn all(case: &Case, derivation: &Derivation) -> Vec<Self> {
        let measured = || case.samples.iter().filter(|s| s.is_measured());
        let mut keys: Vec<_> = measured().map(ArmKey::of).collect();
        keys.sort();
        keys.dedup();
        let arms = keys.into_iter().map(|key| {
            let samples: Vec<&Sample> = measured().filter(|s| ArmKey::of(s) == key).collect();
            Self::of(&samples, derivation)
        });
        arms.collect()
    }

    /// Of samples of one way; there is at least one.
    fn of(samples: &[&Sample], derivation: &Derivation) -> Self {
        let first = samples[0];
        let figures: Vec<Figures> = (samples.iter())
            .map(|s| Figures::of(s, derivation.round_trip_ns))
            .collect();
        let of = |f: &dyn Fn(&Figures) -> Option<f64>| {
            let values: Vec<f64> = figures.iter().filter_map(f).collect();
            Figure::seeded(&values, derivation.seed)
        };
        let ms = |f: &dyn Fn(&Figures) -> Option<u64>| of(&|x| f(x).map(|ns| ns as f64 / 1e6));
        Self {
            arm: first.arm,
            node: first.node,
            transfer: first.transfer,
            kv_dtype: first.kv_dtype,
            wire_dtype: first.wire_dtype,
            streams: first.streams,
            wire_bytes: first.wire_payload_bytes,
            auto: SummaryAuto::of(samples),
            connections: SummaryConnections::of(samples),
            ttft_ms: ms(&|f| f.ttft_ns),
            ttst_ms: ms(&|f| f.ttst_ns),
            tpot_ms: of(&|f| f.tpot_ns.map(|ns| ns / 1e6)),
            e2e_ms: ms(&|f| f.e2e_ns),
            tokens_per_s: of(&|f| f.tokens_per_s),
            prefill_ms: ms(&|f| f.prefill_ns),
            staging_out_ms: ms(&|f| f.staging_out_ns),
            staging_in_ms: ms(&|f| f.staging_in_ns),
            decode_ms: ms(&|f| f.decode_ns),
            wire_busy_ms: ms(&|f| f.wire_busy_ns),
            exposed_transfer_ms: ms(&|f| f.exposed_transfer_ns),
            hidden_transfer_ms: ms(&|f| f.hidden_transfer_ns),
            handoff_ms: ms(&|f| f.handoff_ns),
            residual_ms: of(&|f| f.residual_ns.map(|ns| ns as f64 / 1e6)),
            transfer_overhead_pct: of(&|f| f.transfer_overhead_pct),
            wire_busy_pct: of(&|f| f.wire_busy_pct),
            notebook_pipeline_pct: of(&|f| f.notebook_pipeline_pct),
            effective_gbps: of(&|f| f.effective_gbps),
            kv_demand_gbps: of(&|f| f.kv_demand_gbps),
        }
    }
}
