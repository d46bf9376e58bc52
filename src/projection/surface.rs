//! What a split does to E2E over prompt length and rate of the link: where it breaks even.

use super::outlook::projection;
use super::{Links, Measured, Transport, distrust};
use crate::metrics::{Case, Record, Transfer};

/// Rates of payload that are looked at, in decimal gigabits per second, slowest first.
pub const SURFACE_RATES_GBPS: [f64; 12] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 400.0,
];

/// One mode over all measured prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct Surface {
    /// Bulk or layered.
    pub transfer: Transfer,
    /// One a prompt, shortest first.
    pub columns: Vec<Column>,
}

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its name, which tells it from others of its length.
    pub prompt: String,
    /// Prompt length.
    pub prompt_tokens: u32,
    /// Rate of payload at which the run's own link carries its cache, in decimal gigabits per
    /// second, as fitted and as slow as the run's own transfers.
    pub own_gbps: f64,
    /// Change of E2E against the better single node, in percent, one for each of
    /// [`SURFACE_RATES_GBPS`].
    pub changes_pct: Vec<f64>,
}

/// The modes that a run measured, with compute as it was and the link's fixed costs as fitted; only
/// the rate is another. Empty where nothing can be projected or no single arm was measured.
pub fn surface(record: &Record) -> Vec<Surface> {
    let Some(links) = Links::of_run(record) else {
        return Vec::new();
    };
    if distrust(record, Some(&links)).is_some() {
        return Vec::new();
    }
    let mut cases: Vec<_> = (record.cases.iter())
        .filter_map(|case| Some((case, Measured::of(record, case)?)))
        .collect();
    cases.sort_by_key(|(case, _)| case.prompt_tokens);
    let of_mode = |transfer| {
        let of_case = |(case, measured): &(&Case, Measured)| {
            measured.mode(transfer)?;
            column(measured, &links, transfer, case)
        };
        let columns: Vec<Column> = cases.iter().filter_map(of_case).collect();
        (!columns.is_empty()).then_some(Surface { transfer, columns })
    };
    [Transfer::Bulk, Transfer::Layered]
        .into_iter()
        .filter_map(of_mode)
        .collect()
}

fn column(measured: &Measured, links: &Links, transfer: Transfer, case: &Case) -> Option<Column> {
    let single_ms = measured.single_e2e_ms.filter(|ms| *ms > 0.0)?;
    let own = links.carrier(links.fit());
    let bytes = measured.kv_bytes as f64;
    let changes: Option<Vec<f64>> = (SURFACE_RATES_GBPS.iter())
        .map(|rate| {
            let ways = [[own.at_rate(*rate); 3]];
            let projected = projection(measured, links, Transport::Tcp, Some(*rate), &ways);
            let change_ms = projected.of(transfer).e2e_change_ms?.mid;
            Some(100.0 * change_ms / single_ms)
        })
        .collect();
    Some(Column {
        prompt: case.prompt.clone(),
        prompt_tokens: case.prompt_tokens,
        own_gbps: bytes * 8.0 / own.wire_ns(bytes).max(1.0),
        changes_pct: changes?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Arm;
    use crate::report::fixture::{record, usual_case};

    #[test]
    fn a_faster_link_costs_less_and_the_own_one_is_known() {
        let all = surface(&record(vec![usual_case(2048), usual_case(128)]));
        assert_eq!(all.len(), 1);
        let lengths: Vec<u32> = all[0].columns.iter().map(|c| c.prompt_tokens).collect();
        assert_eq!(lengths, [128, 2048]);
        for column in &all[0].columns {
            let changes = &column.changes_pct;
            assert!(
                changes.is_sorted_by(|slow, fast| slow >= fast),
                "{changes:?}"
            );
            assert!((column.own_gbps - 10.0).abs() < 0.1, "{column:?}");
        }
        // At the rate of the run's link it is what the run measured: 37.7 ms of 3048 ms, and 0.4 ms
        // of handoff and residual.
        let at_10 = SURFACE_RATES_GBPS
            .iter()
            .position(|rate| *rate == 10.0)
            .unwrap();
        let change = all[0].columns[1].changes_pct[at_10];
        let wanted = 100.0 * (2048.0 * 23_040.0 * 8.0 / 10e6 + 0.4) / 3028.0;
        assert!((change - wanted).abs() < 0.05, "{change} {wanted}");
    }

    #[test]
    fn prompts_of_one_length_have_a_column_each() {
        let named = |prompt: &str| Case {
            prompt: prompt.into(),
            ..usual_case(512)
        };
        let all = surface(&record(vec![named("poem"), named("code"), usual_case(128)]));
        let names: Vec<&str> = all[0].columns.iter().map(|c| c.prompt.as_str()).collect();
        assert_eq!(names, ["128 tokens", "poem", "code"]);
    }

    #[test]
    fn without_a_fit_or_a_single_arm_there_is_none() {
        let mut unfitted = record(vec![usual_case(512)]);
        unfitted.link.as_mut().unwrap().fit = None;
        assert!(surface(&unfitted).is_empty());
        let mut alone = usual_case(512);
        alone.samples.retain(|s| s.arm == Arm::Split);
        assert!(surface(&record(vec![alone])).is_empty());
    }
}
