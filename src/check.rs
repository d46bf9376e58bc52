//! Whether the arms gave the same answer: landed, identical, equivalent (see METHODOLOGY.md).

use crate::environment::{Environment, same_bits_expected};
use crate::metrics::{
    Agreement, BaselineUse, Case, Check, Environments, Output, Record, Sample, StepProof,
};

/// How far apart logits and tokens of unlike machines may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Largest difference of a candidate's score.
    pub logits: f32,
    /// Tokens may differ where the best two scores are closer than this.
    pub tokens: f32,
}

impl Tolerance {
    /// For the weights that run (the label of the record).
    ///
    /// Quantised: what two builds of llama.cpp differ from the f32 reference by on the default
    /// model is 1.7 in a logit and 0.57 in the gap of a token that differs
    /// (tests/reference/smollm2-135m-q4_1.json). Single precision: ten times the 1e-4 seen there.
    pub fn for_weights(weights: &str) -> Self {
        match weights.starts_with("f32") {
            true => Self {
                logits: 1e-3,
                tokens: 1e-3,
            },
            false => Self {
                logits: 2.0,
                tokens: 0.7,
            },
        }
    }
}

/// What is demanded of a run: identical answers of like nodes, equivalent ones of unlike nodes or
/// against a baseline of another host or build.
pub fn demanded(record: &Record) -> Agreement {
    let Environments { prefill, decode } = &record.environment;
    let unlike = |decode: &Environment| !same_bits_expected(prefill, decode).is_empty();
    let foreign = |baseline: &BaselineUse| baseline.stands_in && !baseline.warnings.is_empty();
    // A decode node that describes itself in words of another version is not known to be like.
    let unlike = match decode {
        Some(decode) => unlike(decode),
        None => record.link.is_some(),
    };
    match unlike || record.baseline.as_ref().is_some_and(foreign) {
        true => Agreement::Equivalent,
        false => Agreement::Identical,
    }
}

/// Compares all answers of a case with the first one; `None` without answers. Agreement is told
/// only where at least two ways of running the case have answered; of a lossy one nothing but its
/// landing is looked at.
pub fn check(case: &Case, demanded: Agreement, tolerance: Tolerance) -> Option<Check> {
    let answered = || {
        case.samples
            .iter()
            .filter_map(|s| Some((s, s.output.as_ref()?)))
    };
    answered().next()?;
    let mut lossless = answered().filter(|(s, _)| !s.is_lossy());
    let first = lossless.next();
    let mut findings = Vec::new();
    let mut landed = None;
    let mut agreement = Agreement::Identical;
    for (sample, output) in answered() {
        if let Some(this) = self::landed(sample, output, &mut findings) {
            landed = Some(landed.unwrap_or(true) && this);
        }
        let Some((first, reference)) = first.filter(|_| !sample.is_lossy()) else {
            continue;
        };
        let (level, finding) = compare(reference, output, tolerance);
        if let Some(finding) = finding {
            let (this, first) = (name(sample), name(first));
            findings.push(format!("{this} against {first}: {finding}"));
        }
        agreement = agreement.min(level);
    }
    let way = |s: &Sample| (s.arm, s.node, s.transfer);
    let several_ways = lossless.any(|(s, _)| first.is_some_and(|(f, _)| way(s) != way(f)));
    Some(Check {
        landed,
        outputs: several_ways.then_some(agreement),
        demanded,
        findings,
    })
}

fn name(sample: &Sample) -> String {
    let kind = if sample.warmup { "warm-up" } else { "repeat" };
    format!("{} {kind} {}", sample.arm, sample.repeat)
}

/// Whether the cache that was decoded from is the one that was sent.
fn landed(sample: &Sample, output: &Output, findings: &mut Vec<String>) -> Option<bool> {
    let sent = output.sent_cache_digest.as_ref()?;
    let landed = output.landed_cache_digest.as_ref()?;
    if sent != landed {
        findings.push(format!(
            "{}: the cache that landed differs from the one that was sent",
            name(sample)
        ));
    }
    Some(sent == landed)
}

fn score_of(step: &StepProof, token: u32) -> Option<f32> {
    let found = step.top.iter().find(|(id, _)| *id == token);
    found.map(|(_, score)| *score)
}

/// How equal two answers are, and the first difference in words.
fn compare(a: &Output, b: &Output, tolerance: Tolerance) -> (Agreement, Option<String>) {
    let same_bits = a.steps.len() == b.steps.len()
        && (a.steps.iter().zip(&b.steps)).all(|(x, y)| x.digest == y.digest);
    if a.tokens == b.tokens && same_bits {
        return (Agreement::Identical, None);
    }
    let mut largest = 0f32;
    for (i, (x, y)) in a.steps.iter().zip(&b.steps).enumerate() {
        for (id, score) in &x.top {
            // A candidate that the other does not name scores at most as its last one there.
            let difference = match score_of(y, *id) {
                Some(other) => (score - other).abs(),
                None => y.top.last().map_or(0.0, |(_, last)| score - last),
            };
            if difference.is_nan() || difference > tolerance.logits {
                let finding = format!("logits of token {i} differ by {difference}");
                return (Agreement::Differ, Some(finding));
            }
            largest = largest.max(difference);
        }
        let (Some(t), Some(u)) = (a.tokens.get(i), b.tokens.get(i)) else {
            break;
        };
        if t != u {
            // How far each token is from being the other's choice too.
            let gap = |step: &StepProof, other: u32| {
                let best = step.top.first().map(|(_, best)| *best);
                (best.zip(score_of(step, other))).map_or(f32::INFINITY, |(best, s)| best - s)
            };
            let gap = gap(x, *u).max(gap(y, *t));
            let finding = format!("token {i} is {u} instead of {t}, their scores are {gap} apart");
            return match gap < tolerance.tokens {
                // Behind a near-tie the answers go ways of their own.
                true => (Agreement::Equivalent, Some(finding)),
                false => (Agreement::Differ, Some(finding)),
            };
        }
    }
    if a.tokens.len() != b.tokens.len() || a.steps.len() != b.steps.len() {
        let finding = format!("{} tokens instead of {}", b.tokens.len(), a.tokens.len());
        return (Agreement::Differ, Some(finding));
    }
    let finding = format!("the same tokens from other logit bits, at most {largest} apart");
    (Agreement::Equivalent, Some(finding))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Finish;

    const TOLERANCE: Tolerance = Tolerance {
        logits: 0.5,
        tokens: 0.1,
    };

    fn step(digest: &str, top: &[(u32, f32)]) -> StepProof {
        StepProof {
            digest: digest.into(),
            top: top.to_vec(),
            proof_ns: 0,
        }
    }

    fn output(tokens: &[u32], steps: Vec<StepProof>) -> Output {
        Output {
            tokens: tokens.to_vec(),
            text: String::new(),
            finish: Finish::Length,
            steps,
            sent_cache_digest: None,
            landed_cache_digest: None,
        }
    }

    fn reference() -> Output {
        let steps = vec![
            step("a", &[(1, 5.0), (2, 4.0)]),
            step("b", &[(3, 5.0), (4, 4.95)]),
        ];
        output(&[1, 3], steps)
    }

    fn level(other: &Output) -> Agreement {
        compare(&reference(), other, TOLERANCE).0
    }

    #[test]
    fn equal_tokens_from_other_bits_are_not_identical() {
        assert_eq!(level(&reference()), Agreement::Identical);
        let mut other = reference();
        other.steps[1].digest = "c".into();
        assert_eq!(level(&other), Agreement::Equivalent);
    }

    #[test]
    fn a_token_may_differ_only_at_a_near_tie() {
        let mut near = reference();
        near.tokens[1] = 4;
        near.steps[1] = step("c", &[(4, 5.0), (3, 4.96)]);
        assert_eq!(level(&near), Agreement::Equivalent);
        let mut far = reference();
        far.tokens[0] = 2;
        far.steps[0] = step("c", &[(2, 4.9), (1, 4.8)]);
        assert_eq!(level(&far), Agreement::Differ);
    }

    #[test]
    fn far_logits_nan_and_missing_tokens_differ() {
        let mut far = reference();
        far.steps[0] = step("c", &[(1, 5.6), (2, 4.0)]);
        assert_eq!(level(&far), Agreement::Differ);
        let mut nan = reference();
        nan.steps[0] = step("c", &[(1, f32::NAN), (2, 4.0)]);
        assert_eq!(level(&nan), Agreement::Differ);
        let short = output(&[1], vec![step("a", &[(1, 5.0), (2, 4.0)])]);
        assert_eq!(level(&short), Agreement::Differ);
    }
}
