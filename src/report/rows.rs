//! One row a request, for spreadsheets and scripts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::metrics::changes::ArmKey;
use crate::metrics::clock::ClockOffset;
use crate::metrics::figures::{ConnectionState, Figures};
use crate::metrics::{Arm, Case, Node, Record, Sample, Transfer};
use crate::stats::outliers;
use crate::wire::message::{KvDtype, WireDtype};

/// One request, flat; what is undefined is null or empty.
#[derive(Debug, Serialize)]
struct Row<'a> {
    prompt: &'a str,
    prompt_tokens: u32,
    output_tokens: usize,
    arm: Arm,
    node: Node,
    transfer: Option<Transfer>,
    picked: Option<Transfer>,
    kv_dtype: KvDtype,
    wire_dtype: Option<WireDtype>,
    streams: u32,
    warmup: bool,
    repeat: u32,
    order: u32,
    wire_payload_bytes: u64,
    wire_framing_bytes: u64,
    ttft_ms: Option<f64>,
    ttst_ms: Option<f64>,
    tpot_ms: Option<f64>,
    e2e_ms: Option<f64>,
    tokens_per_s: Option<f64>,
    prefill_ms: Option<f64>,
    decode_ms: Option<f64>,
    wire_busy_ms: Option<f64>,
    exposed_transfer_ms: Option<f64>,
    hidden_transfer_ms: Option<f64>,
    handoff_ms: Option<f64>,
    residual_ms: Option<f64>,
    predicted_bulk_exposed_ms: Option<f64>,
    predicted_layered_exposed_ms: Option<f64>,
    connection: Option<ConnectionState>,
    decode_clock_offset_ms: Option<f64>,
    decode_clock_error_ms: Option<f64>,
    transfer_overhead_pct: Option<f64>,
    effective_gbps: Option<f64>,
    /// Whether E2E lies far outside the other samples of its arm; null where it enters no figure.
    e2e_outlier: Option<bool>,
    error: Option<&'a str>,
}

impl<'a> Row<'a> {
    fn of(case: &'a Case, sample: &'a Sample, round_trip_ns: Option<u64>) -> Self {
        let figures = Figures::of(sample, round_trip_ns);
        let ms = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e6);
        let clock = ClockOffset::of(sample);
        Self {
            prompt: &case.prompt,
            prompt_tokens: case.prompt_tokens,
            output_tokens: sample.output.as_ref().map_or(0, |o| o.tokens.len()),
            arm: sample.arm,
            node: sample.node,
            transfer: sample.transfer,
            picked: sample.choice.map(|c| c.picked),
            kv_dtype: sample.kv_dtype,
            wire_dtype: sample.wire_dtype,
            streams: sample.streams,
            warmup: sample.warmup,
            repeat: sample.repeat,
            order: sample.order,
            wire_payload_bytes: sample.wire_payload_bytes,
            wire_framing_bytes: sample.wire_framing_bytes,
            ttft_ms: ms(figures.ttft_ns),
            ttst_ms: ms(figures.ttst_ns),
            tpot_ms: figures.tpot_ns.map(|ns| ns / 1e6),
            e2e_ms: ms(figures.e2e_ns),
            tokens_per_s: figures.tokens_per_s,
            prefill_ms: ms(figures.prefill_ns),
            decode_ms: ms(figures.decode_ns),
            wire_busy_ms: ms(figures.wire_busy_ns),
            exposed_transfer_ms: ms(figures.exposed_transfer_ns),
            hidden_transfer_ms: ms(figures.hidden_transfer_ns),
            handoff_ms: ms(figures.handoff_ns),
            residual_ms: figures.residual_ns.map(|ns| ns as f64 / 1e6),
            predicted_bulk_exposed_ms: ms(sample.choice.and_then(|c| c.bulk_exposed_ns)),
            predicted_layered_exposed_ms: ms(sample.choice.and_then(|c| c.layered_exposed_ns)),
            connection: ConnectionState::of(sample),
            decode_clock_offset_ms: clock.map(|c| c.offset_ns as f64 / 1e6),
            decode_clock_error_ms: clock.map(|c| c.error_ns as f64 / 1e6),
            transfer_overhead_pct: figures.transfer_overhead_pct,
            effective_gbps: figures.effective_gbps,
            e2e_outlier: None,
            error: sample.error.as_deref(),
        }
    }
}

fn rows(record: &Record) -> impl Iterator<Item = Row<'_>> {
    let round_trip_ns = record.link.as_ref().and_then(|l| l.min_round_trip_ns());
    (record.cases.iter()).flat_map(move |case| {
        let samples = case.samples.iter();
        let mut rows: Vec<Row> = samples.map(|s| Row::of(case, s, round_trip_ns)).collect();
        flag_outliers(case, &mut rows);
        rows
    })
}

/// Judges every measured sample among those of its arm.
fn flag_outliers(case: &Case, rows: &mut [Row]) {
    let mut arms: BTreeMap<ArmKey, Vec<usize>> = BTreeMap::new();
    for (at, sample) in case.samples.iter().enumerate() {
        if sample.is_measured() && rows[at].e2e_ms.is_some() {
            arms.entry(ArmKey::of(sample)).or_default().push(at);
        }
    }
    for members in arms.values() {
        let e2e_ms: Vec<f64> = members.iter().filter_map(|at| rows[*at].e2e_ms).collect();
        for (at, is_outlier) in members.iter().zip(outliers(&e2e_ms)) {
            rows[*at].e2e_outlier = Some(is_outlier);
        }
    }
}

/// Every request as one JSON object a line.
pub fn samples_jsonl(record: &Record) -> anyhow::Result<String> {
    let lines: Result<Vec<String>, _> = rows(record).map(|r| serde_json::to_string(&r)).collect();
    Ok(lines?.join("\n"))
}

/// Every request as one line of comma-separated values under a line of names, which
/// docs/samples.md explains; empty without a request.
pub fn samples_csv(record: &Record) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows(record) {
        writer.serialize(row)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// Columns that docs/samples.md explains under a heading, in its order.
#[cfg(test)]
pub(super) fn documented(heading: &str) -> Vec<&'static str> {
    let lines = include_str!("../../docs/samples.md").lines();
    let section = lines.skip_while(|line| *line != heading).skip(1);
    let section = section.take_while(|line| !line.starts_with("# "));
    let name = |line: &'static str| line.strip_prefix("| `")?.split('`').next();
    section.filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{record, usual_case};

    #[test]
    fn both_forms_have_a_row_a_request() {
        let record = record(vec![usual_case(128), usual_case(512)]);
        let requests: usize = record.cases.iter().map(|c| c.samples.len()).sum();
        let jsonl = samples_jsonl(&record).unwrap();
        assert_eq!(jsonl.lines().count(), requests);
        let first: serde_json::Value = serde_json::from_str(jsonl.lines().next().unwrap()).unwrap();
        assert_eq!(first["prompt_tokens"], 128);
        let csv = samples_csv(&record).unwrap();
        assert_eq!(csv.lines().count(), requests + 1);
        assert!(csv.starts_with("prompt,prompt_tokens,output_tokens,arm,node"));
    }

    #[test]
    fn every_column_is_documented() {
        let csv = samples_csv(&record(vec![usual_case(128)])).unwrap();
        let names = csv.lines().next().unwrap().split(',');
        let wanted = documented("# Columns of samples.csv");
        assert_eq!(wanted, names.collect::<Vec<_>>());
    }

    #[test]
    fn a_sample_far_outside_its_arm_is_flagged() {
        let mut record = record(vec![usual_case(512)]);
        let samples = &mut record.cases[0].samples;
        samples[4].events.iter_mut().for_each(|e| e.t_ns *= 2);
        samples[5].warmup = true;
        let flagged: Vec<Option<bool>> = rows(&record).map(|row| row.e2e_outlier).collect();
        let mut wanted = vec![Some(false); 10];
        (wanted[4], wanted[5]) = (Some(true), None);
        assert_eq!(flagged, wanted);
    }
}
