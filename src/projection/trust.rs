//! Whether a fit is good enough to project from.

use super::{Links, Measured};
use crate::link::Fit;
use crate::metrics::Record;

/// Largest error of a fit over the transfers that it was made of.
const MAX_RESIDUAL_PCT: f64 = 30.0;

/// Largest error over the sizes that a fit of every second one has not seen.
const MAX_HELD_OUT_PCT: f64 = 30.0;

/// Most that a run's own transfers may take, in times of what its fit says, or the fit of them.
const MAX_SLOWDOWN: f64 = 4.0;

/// Largest error over the run's own caches once all of them are taken so many times as slow.
const MAX_OWN_ERROR_PCT: f64 = 30.0;

/// Errors below this are none, whatever their share.
const NO_ERROR_MS: f64 = 1.0;

/// What to do about any of it.
const ADVICE: &str = "measure the link on idle machines with `disagg-bench link --format json -o \
                      FILE` and give --link-fit FILE";

/// Why nothing is projected from a run over `links`, and what to do; none where it can be.
pub fn distrust(record: &Record, links: Option<&Links>) -> Option<String> {
    let Some(links) = links else {
        return Some(format!("the run has no fit of its link: {ADVICE}"));
    };
    let fit = links.fit();
    distrust_of_fit(fit).or_else(|| match record.link.as_ref()?.fit.as_ref()? == fit {
        true => of_run(record, links),
        // The run's caches went over another link than the one that was fitted.
        false => None,
    })
}

/// Why nothing is projected from a fit, whatever is sent, and what to do; none where it can be.
pub fn distrust_of_fit(fit: &Fit) -> Option<String> {
    let (residual, held_out) = (fit.worst_residual_pct, fit.held_out_error_pct);
    if residual > MAX_RESIDUAL_PCT {
        return Some(format!(
            "the fit of the link is off by {residual:.0}% of a transfer that it was made of, at \
             most {MAX_RESIDUAL_PCT:.0}% is trusted: {ADVICE}"
        ));
    }
    match held_out {
        None => Some(format!(
            "the fit of the link has too few sizes to be scored: {ADVICE}"
        )),
        Some(error) if error > MAX_HELD_OUT_PCT => Some(format!(
            "fitted on every second size, the link's other sizes are predicted {error:.0}% off, at \
             most {MAX_HELD_OUT_PCT:.0}% is trusted: {ADVICE}"
        )),
        Some(_) => None,
    }
}

/// The fit against the caches that the run sent in bulk.
fn of_run(record: &Record, links: &Links) -> Option<String> {
    let slowdown = links.slowdown();
    if !(1.0 / MAX_SLOWDOWN..=MAX_SLOWDOWN).contains(&slowdown) {
        return Some(format!(
            "the run's own transfers took {slowdown:.1} times what the fit of its link says, at most \
             {MAX_SLOWDOWN} times is trusted: stop other load and run again, or {ADVICE}"
        ));
    }
    let of_case = |case| links.own_bulk_ms(&Measured::of(record, case)?);
    let mut own = record.cases.iter().filter_map(of_case);
    let (measured_ms, predicted_ms) = own.find(|(measured_ms, predicted_ms)| {
        let error_ms = (predicted_ms - measured_ms).abs();
        error_ms > NO_ERROR_MS.max(MAX_OWN_ERROR_PCT / 100.0 * measured_ms)
    })?;
    Some(format!(
        "the fit of the link says {predicted_ms:.2} ms where a transfer of the run took \
         {measured_ms:.2} ms, at most {MAX_OWN_ERROR_PCT:.0}% off is trusted: stop other load and run \
         again, or {ADVICE}"
    ))
}
