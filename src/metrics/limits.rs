//! What a record from outside may say: no number so large that figures derived from it overflow,
//! and none that no run can have measured.

use super::interference::Moments;
use super::{Case, Record, Sample};
use crate::stats::Figure;

/// Longest time in ns and largest size in bytes: 104 days, 9 PB. Up to here a float holds every
/// integer, and a difference of any two fits every integer type in use.
const MAX_COUNT: u64 = 1 << 53;

/// Longest prompt or answer, in tokens: more than `project` takes.
const MAX_TOKENS: u64 = 1 << 27;

/// Most bytes of cache of a token: times the longest prompt, it is [`MAX_COUNT`].
const MAX_TOKEN_BYTES: u64 = MAX_COUNT / MAX_TOKENS;

/// Most layers, K/V heads and widths.
const MAX_SIZE: u64 = 1 << 20;

/// Largest number that was derived and written, such as milliseconds, rates or percent.
const MAX_AMOUNT: f64 = MAX_COUNT as f64;

/// Says which number of a record is beyond its limit.
pub(super) fn check(record: &Record) -> Result<(), String> {
    let model = &record.model;
    for (what, size) in [
        ("model.n_layers", model.n_layers),
        ("model.n_kv_heads", model.n_kv_heads),
        ("model.head_dim", model.head_dim),
    ] {
        at_most(what, size.into(), MAX_SIZE)?;
    }
    at_most(
        "model.kv_bytes_per_token",
        model.kv_bytes_per_token,
        MAX_TOKEN_BYTES,
    )?;
    at_most("model.load_ns", model.load_ns, MAX_COUNT)?;
    if let Some(link) = &record.link {
        all_at_most("link.round_trips_ns", link.round_trips_ns.iter().copied())?;
        link.fit.as_ref().map_or(Ok(()), |fit| fit.check())?;
    }
    let baseline = record.baseline.iter().flat_map(|b| b.e2e_ms.values());
    baseline.into_iter().try_for_each(figure)?;
    check_cases(&record.cases)?;
    let samples = record.interference.iter().flat_map(|i| &i.samples);
    for moments in samples.filter_map(|sample| sample.moments.as_ref()) {
        all_at_most("a moment of the interference in ns", times(moments))?;
    }
    Ok(())
}

/// Says which number of a record's cases is beyond its limit.
pub(crate) fn check_cases(cases: &[Case]) -> Result<(), String> {
    for case in cases {
        let of_case = || -> Result<(), String> {
            at_most("prompt_tokens", case.prompt_tokens.into(), MAX_TOKENS)?;
            at_most("output_tokens", case.output_tokens.into(), MAX_TOKENS)?;
            at_most("kv_bytes", case.kv_bytes, MAX_COUNT)?;
            case.samples.iter().try_for_each(check_sample)
        };
        of_case().map_err(|why| format!("prompt {:?}: {why}", case.prompt))?;
    }
    Ok(())
}

fn check_sample(sample: &Sample) -> Result<(), String> {
    all_at_most("an event's t_ns", sample.events.iter().map(|e| e.t_ns))?;
    all_at_most("idle_before_ns", sample.idle_before_ns)?;
    at_most("wire_payload_bytes", sample.wire_payload_bytes, MAX_COUNT)?;
    at_most("wire_framing_bytes", sample.wire_framing_bytes, MAX_COUNT)?;
    let steps = sample.output.iter().flat_map(|output| &output.steps);
    all_at_most("proof_ns", steps.map(|step| step.proof_ns))?;
    let choice = sample.choice.iter();
    let exposed = choice.flat_map(|c| [c.bulk_exposed_ns, c.layered_exposed_ns]);
    all_at_most("a predicted exposed_ns", exposed.flatten())
}

fn times(moments: &Moments) -> impl Iterator<Item = u64> {
    let newcomer = [moments.newcomer_start_ns, moments.newcomer_first_token_ns];
    let landed = moments.newcomer_landed_ns;
    (moments.token_ns.iter().copied().chain(newcomer)).chain(landed)
}

/// Refuses a figure with such a number in it.
pub(crate) fn figure(figure: &Figure) -> Result<(), String> {
    let all = [Some(figure.median), Some(figure.min), Some(figure.max)];
    let more = [figure.p95, figure.p99, figure.ci_low, figure.ci_high];
    (all.into_iter().chain(more).flatten()).try_for_each(|value| is_amount("a figure", value))
}

/// Refuses a time, size or rate below 0 or beyond all measure.
pub(crate) fn is_amount(what: &str, value: f64) -> Result<(), String> {
    match value {
        0.0..=MAX_AMOUNT => Ok(()),
        _ => Err(format!(
            "{what} is {value}, wanted 0 to {MAX_AMOUNT}: the file is damaged, or not of this tool"
        )),
    }
}

/// Refuses times and sizes that are too large.
pub(crate) fn all_at_most(what: &str, all: impl IntoIterator<Item = u64>) -> Result<(), String> {
    all.into_iter()
        .try_for_each(|got| at_most(what, got, MAX_COUNT))
}

fn at_most(what: &str, got: u64, most: u64) -> Result<(), String> {
    match got <= most {
        true => Ok(()),
        false => Err(format!(
            "{what} is {got}, wanted at most {most}: the file is damaged, or not of this tool"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Fit;
    use crate::report::fixture::{record, usual_case};

    type Damage = fn(&mut Record);

    fn fit(record: &mut Record) -> &mut Fit {
        record.link.as_mut().unwrap().fit.as_mut().unwrap()
    }

    #[test]
    fn a_number_beyond_its_limit_is_named() {
        check(&record(vec![usual_case(128)])).unwrap();
        let cases: [(&str, Damage); 8] = [
            ("n_layers", |r| r.model.n_layers = u32::MAX),
            ("kv_bytes_per_token", |r| {
                r.model.kv_bytes_per_token = MAX_TOKEN_BYTES + 1
            }),
            ("round_trips_ns", |r| {
                r.link.as_mut().unwrap().round_trips_ns.push(u64::MAX)
            }),
            ("output_tokens", |r| r.cases[0].output_tokens = u32::MAX),
            ("t_ns", |r| {
                r.cases[0].samples[0].events[0].t_ns = MAX_COUNT + 1
            }),
            ("wire_payload_bytes", |r| {
                r.cases[0].samples[0].wire_payload_bytes = u64::MAX
            }),
            ("alpha_us", |r| fit(r).alpha_us = 1e300),
            ("beta_gbps", |r| fit(r).beta_gbps = Some(f64::INFINITY)),
        ];
        for (part, change) in cases {
            let mut bad = record(vec![usual_case(128)]);
            change(&mut bad);
            let error = check(&bad).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
