//! `--fail-on`: changes that must not be.

use std::str::FromStr;

use super::{ComparedArm, ComparedCase, ComparedFigure, Comparison, FIGURES, table};
use crate::metrics::Arm;
use crate::report::changes::{percent, signed};

/// A bound on the change of a figure, such as `split.e2e_ms>5%`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    text: String,
    arm: Arm,
    figure: &'static str,
    above: bool,
    bound: f64,
    in_percent: bool,
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |why: String| format!("{why}: write ARM.FIGURE>CHANGE, such as split.e2e_ms>5%");
        let (left, above, bound) = if let Some((left, bound)) = text.split_once('>') {
            (left, true, bound)
        } else if let Some((left, bound)) = text.split_once('<') {
            (left, false, bound)
        } else {
            return Err(wrong(format!("{text:?} has neither > nor <")));
        };
        let (arm, figure) = (left.trim().split_once('.'))
            .ok_or_else(|| wrong(format!("{left:?} is no arm and figure")))?;
        let arm = match arm {
            "single" => Arm::Single,
            "split" => Arm::Split,
            other => return Err(wrong(format!("{other:?} is no arm (single, split)"))),
        };
        let names = || FIGURES.iter().map(|(name, _)| *name);
        let figure = names().find(|name| *name == figure).ok_or_else(|| {
            let names: Vec<&str> = names().collect();
            wrong(format!("{figure:?} is no figure ({})", names.join(", ")))
        })?;
        let (number, in_percent) = match bound.trim().strip_suffix('%') {
            Some(number) => (number, true),
            None => (bound.trim(), false),
        };
        let number: Option<f64> = number.trim().parse().ok();
        let bound = number.filter(|bound| bound.is_finite()).ok_or_else(|| {
            wrong(format!(
                "{bound:?} is no change, in percent or the figure's unit"
            ))
        })?;
        Ok(Self {
            text: text.to_owned(),
            arm,
            figure,
            above,
            bound,
            in_percent,
        })
    }
}

impl Gate {
    /// What breaks it, one sentence each; an error where it speaks of nothing in the comparison.
    ///
    /// A change breaks it that is significant and whose value lies beyond the bound; from an old
    /// median of zero, any significant one in its direction is beyond a bound in percent.
    pub fn broken_by(&self, comparison: &Comparison) -> Result<Vec<String>, String> {
        let judged: Vec<_> = self.judged(comparison).collect();
        if judged.is_empty() {
            return Err(format!(
                "--fail-on {}: neither run has {} of {}",
                self.text, self.figure, self.arm
            ));
        }
        let broken = judged
            .into_iter()
            .filter(|(.., figure)| self.breaks(figure));
        let sentence = |(case, arm, figure): (&ComparedCase, &ComparedArm, &ComparedFigure)| {
            let change = figure.change;
            format!(
                "{} of {} at {} prompt tokens changed by {}, {} in its unit ({})",
                self.figure,
                table::name(&arm.key),
                case.prompt_tokens,
                percent(change.pct),
                signed(change.absolute().value),
                self.text,
            )
        };
        Ok(broken.map(sentence).collect())
    }

    /// Where so few samples were compared that it can never break.
    pub fn blind_spots(&self, comparison: &Comparison) -> Vec<String> {
        let blind =
            (self.judged(comparison)).filter(|(.., f)| f.change.absolute().interval().is_none());
        blind
            .map(|(case, arm, figure)| {
                format!(
                    "--fail-on {} cannot break at {} prompt tokens ({}): of {} and {} samples no change is significant, use --repeats 5 or more",
                    self.text,
                    case.prompt_tokens,
                    table::name(&arm.key),
                    figure.old_n,
                    figure.new_n,
                )
            })
            .collect()
    }

    fn judged<'a>(
        &self,
        comparison: &'a Comparison,
    ) -> impl Iterator<Item = (&'a ComparedCase, &'a ComparedArm, &'a ComparedFigure)> {
        let (arm_wanted, figure_wanted) = (self.arm, self.figure);
        comparison.cases.iter().flat_map(move |case| {
            let arms = case
                .arms
                .iter()
                .filter(move |arm| arm.key.arm == arm_wanted);
            arms.flat_map(move |arm| {
                let figures = arm
                    .figures
                    .iter()
                    .filter(move |f| f.figure == figure_wanted);
                figures.map(move |figure| (case, arm, figure))
            })
        })
    }

    fn breaks(&self, figure: &ComparedFigure) -> bool {
        let change = figure.change;
        let absolute = change.absolute().value;
        let value = match (self.in_percent, change.pct) {
            (true, Some(pct)) => pct.value,
            // Of an old median of zero any change is more than any share.
            (true, None) => f64::INFINITY.copysign(absolute),
            (false, _) => absolute,
        };
        let is_beyond = match self.above {
            true => value > self.bound,
            false => value < self.bound,
        };
        change.significant && is_beyond
    }
}
