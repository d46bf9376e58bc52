//! One row a sample of `--interference`, for spreadsheets.

use serde::Serialize;

use crate::metrics::interference::{InterferenceSample, Suffered};
use crate::metrics::{Arm, Record};

/// A running sequence while another prompt was prefilled, once; what is undefined is empty.
#[derive(Debug, Serialize)]
struct Row<'a> {
    arm: Arm,
    chunk_tokens: Option<u32>,
    warmup: bool,
    repeat: u32,
    undisturbed_itl_ms: Option<f64>,
    worst_itl_ms: Option<f64>,
    gaps: Option<usize>,
    lost_ms: Option<f64>,
    newcomer_ttft_ms: Option<f64>,
    cut_short: Option<bool>,
    error: Option<&'a str>,
}

impl<'a> Row<'a> {
    fn of(sample: &'a InterferenceSample) -> Self {
        let suffered = sample.moments.as_ref().and_then(|m| m.suffered());
        let suffered = suffered.as_ref();
        Self {
            arm: sample.arm,
            chunk_tokens: sample.chunk_tokens,
            warmup: sample.warmup,
            repeat: sample.repeat,
            undisturbed_itl_ms: suffered.map(|s| s.undisturbed_ms),
            worst_itl_ms: suffered.map(Suffered::worst_ms),
            gaps: suffered.map(|s| s.gaps_ms.len()),
            lost_ms: suffered.map(Suffered::lost_ms),
            newcomer_ttft_ms: suffered.map(|s| s.newcomer_ttft_ms),
            cut_short: suffered.map(|s| !s.is_whole),
            error: sample.error.as_deref(),
        }
    }
}

/// Comma-separated values under a line of names, which docs/samples.md explains; empty where
/// nothing of the kind was measured.
pub(super) fn interference_csv(record: &Record) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for sample in record.interference.iter().flat_map(|all| &all.samples) {
        writer.serialize(Row::of(sample))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::summary::Summary;
    use crate::report::fixture::{interference, record, usual_case};
    use crate::report::rows::documented;
    use crate::stats::Figure;

    fn csv_of_all() -> (Record, String) {
        let mut record = record(vec![usual_case(512)]);
        record.interference = Some(interference());
        let csv = interference_csv(&record).unwrap();
        (record, csv)
    }

    #[test]
    fn the_rows_of_an_arm_give_its_figures() {
        let (record, csv) = csv_of_all();
        let samples = record.interference.as_ref().unwrap().samples.len();
        assert_eq!(csv.lines().count(), samples + 1);
        let mut reader = csv::Reader::from_reader(csv.as_bytes());
        let worst: Vec<f64> = (reader.records().map(Result::unwrap))
            .filter(|row| &row[0] == "split" && &row[2] == "false" && &row[9] == "false")
            .map(|row| row[5].parse().unwrap())
            .collect();
        let summary = Summary::of(&record).interference.unwrap();
        let split = summary.arms.last().unwrap();
        let median = Figure::of(&worst).unwrap().median;
        assert_eq!(median, split.worst_itl_ms.unwrap().median);
    }

    #[test]
    fn every_column_is_documented() {
        let (_, csv) = csv_of_all();
        let names = csv.lines().next().unwrap().split(',');
        let wanted = documented("# Columns of interference.csv");
        assert_eq!(wanted, names.collect::<Vec<_>>());
    }

    #[test]
    fn without_interference_there_is_no_file() {
        let record = record(vec![usual_case(512)]);
        assert_eq!(interference_csv(&record).unwrap(), "");
    }
}
