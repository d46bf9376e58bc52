//! How the arms of a case differ, derived from its samples.

use serde::{Deserialize, Serialize};

use super::figures::Figures;
use super::summary::Derivation;
use super::{Arm, Case, Node, Sample, Transfer};
use crate::stats::Change;
use crate::wire::message::WireDtype;

/// What tells ways of running a case apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ArmKey {
    /// How it ran.
    pub arm: Arm,
    /// The node that produced the tokens after the first.
    pub node: Node,
    /// When the cache crossed the link.
    pub transfer: Option<Transfer>,
    /// Element type on the wire.
    pub wire_dtype: Option<WireDtype>,
    /// Connections that carried pieces.
    pub streams: u32,
}

impl ArmKey {
    /// The way in which a sample ran.
    pub fn of(sample: &Sample) -> Self {
        Self {
            arm: sample.arm,
            node: sample.node,
            transfer: sample.transfer,
            wire_dtype: sample.wire_dtype,
            streams: sample.streams,
        }
    }
}

/// How one arm of a case differs from another one, `to` less `from`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SummaryChange {
    /// The arm that is compared with.
    pub from: ArmKey,
    /// The arm that is compared.
    pub to: ArmKey,
    /// Of the request start to first token.
    pub ttft_ms: Option<Change>,
    /// Of the request start to second token.
    pub ttst_ms: Option<Change>,
    /// Of the time per output token after the first.
    pub tpot_ms: Option<Change>,
    /// Of the request start to last token.
    pub e2e_ms: Option<Change>,
}

/// The samples of one arm that enter figures.
struct Measured {
    key: ArmKey,
    figures: Vec<(u32, Figures)>,
}

impl Measured {
    fn values(&self, figure: fn(&Figures) -> Option<f64>) -> Vec<(u32, f64)> {
        let values = self.figures.iter();
        values
            .filter_map(|(repeat, figures)| Some((*repeat, figure(figures)?)))
            .collect()
    }
}

/// Every split arm against every single arm, and further split arms against the first one.
pub fn changes(case: &Case, derivation: &Derivation) -> Vec<SummaryChange> {
    let mut arms: Vec<Measured> = Vec::new();
    for sample in case.samples.iter().filter(|s| s.is_measured()) {
        let key = ArmKey::of(sample);
        let figures = Figures::of(sample, derivation.round_trip_ns);
        match arms.iter_mut().find(|arm| arm.key == key) {
            Some(arm) => arm.figures.push((sample.repeat, figures)),
            None => arms.push(Measured {
                key,
                figures: vec![(sample.repeat, figures)],
            }),
        }
    }
    arms.sort_by_key(|arm| arm.key);
    let (singles, splits) = arms.split_at(arms.partition_point(|a| a.key.arm == Arm::Single));
    let against_single = singles
        .iter()
        .flat_map(|from| splits.iter().map(move |to| (from, to)));
    let first = splits.iter().take(1);
    let further = first.flat_map(|from| splits.iter().skip(1).map(move |to| (from, to)));
    against_single
        .chain(further)
        .map(|(from, to)| change(from, to, derivation))
        .collect()
}

fn change(from: &Measured, to: &Measured, derivation: &Derivation) -> SummaryChange {
    // An earlier run's samples took no turns with this one's.
    let in_turns = from.key.arm == Arm::Split || !derivation.single_stands_in;
    let of = |figure: fn(&Figures) -> Option<f64>| {
        let (from, to) = (from.values(figure), to.values(figure));
        let plain = |samples: &[(u32, f64)]| samples.iter().map(|(_, x)| *x).collect::<Vec<_>>();
        match in_turns {
            true => Change::paired(&from, &to, derivation.seed),
            false => Change::unpaired(&plain(&from), &plain(&to)),
        }
    };
    SummaryChange {
        from: from.key,
        to: to.key,
        ttft_ms: of(|f| Some(f.ttft_ns? as f64 / 1e6)),
        ttst_ms: of(|f| Some(f.ttst_ns? as f64 / 1e6)),
        tpot_ms: of(|f| Some(f.tpot_ns? / 1e6)),
        e2e_ms: of(|f| Some(f.e2e_ns? as f64 / 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{usual_case, with_int8};

    const DERIVATION: Derivation = Derivation {
        round_trip_ns: None,
        seed: 1,
        single_stands_in: false,
    };

    #[test]
    fn a_split_is_compared_pair_by_pair() {
        let changes = changes(&usual_case(512), &DERIVATION);
        assert_eq!(changes.len(), 1);
        assert_eq!(
            (changes[0].from.arm, changes[0].to.arm),
            (Arm::Single, Arm::Split)
        );
        // Exposed transfer, handoff and residual, the same in every repeat.
        let e2e = changes[0].e2e_ms.unwrap().difference.unwrap();
        let wanted_ms = 512.0 * 23_040.0 * 8.0 / 10.0 / 1e6 + 0.3 + 0.1;
        assert!((e2e.median - wanted_ms).abs() < 1e-6, "{e2e:?}");
        assert!((e2e.ci_high.unwrap() - e2e.ci_low.unwrap()).abs() < 1e-6);
        assert_eq!(changes[0].ttft_ms.unwrap().difference.unwrap().median, 0.0);
    }

    #[test]
    fn a_stand_in_has_no_pairs() {
        let derivation = Derivation {
            single_stands_in: true,
            ..DERIVATION
        };
        let change = changes(&usual_case(512), &derivation)[0].e2e_ms.unwrap();
        assert_eq!(change.difference, None);
        assert!(change.pct.is_some());
    }

    #[test]
    fn further_split_arms_are_held_against_the_first() {
        let changes = changes(&with_int8(usual_case(512)), &DERIVATION);
        let arms: Vec<_> = changes.iter().map(|c| (c.from.arm, c.to.arm)).collect();
        let (single, split) = (Arm::Single, Arm::Split);
        assert_eq!(arms, [(single, split), (single, split), (split, split)]);
        assert_eq!(changes[2].to.wire_dtype, Some(WireDtype::Int8));
        assert!(changes[2].e2e_ms.unwrap().absolute().value < 0.0);
    }
}
