//! Whether a fit is good enough to project from.

use super::exposure::send;
use super::{Carrier, Links, Measured};
use crate::link::Fit;
use crate::metrics::{Record, Transfer};

/// Largest error of a fit over the transfers that it was made of.
const MAX_RESIDUAL_PCT: f64 = 25.0;

/// Largest error over the sizes that a fit of every second one has not seen.
const MAX_HELD_OUT_PCT: f64 = 25.0;

/// Largest error of the run's fit over the run's own caches, of the whole transfer.
const MAX_OWN_ERROR_PCT: f64 = 35.0;

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
    of_fit(fit).or_else(|| match record.link.as_ref()?.fit.as_ref()? == fit {
        true => of_run(record, links),
        // The run's caches went over another link than the one that was fitted.
        false => None,
    })
}

fn of_fit(fit: &Fit) -> Option<String> {
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

/// The fit against the caches that the run sent in bulk, the longest prompt's.
fn of_run(record: &Record, links: &Links) -> Option<String> {
    let measured = record
        .cases
        .iter()
        .filter_map(|case| Measured::of(record, case));
    let longest = measured.max_by_key(|m| m.kv_bytes)?;
    let measured_ms = longest.mode(Transfer::Bulk)?.exposed_ms;
    let carrier = Carrier::fitted(links.fit(), links.round_trip_ns());
    let carrier = carrier.after_idle(longest.is_after_idle);
    let predicted_ms = send(&carrier, &longest.prefill, false).exposed_ns / 1e6;
    let error_pct = 100.0 * (predicted_ms / measured_ms - 1.0).abs();
    let is_off = error_pct > MAX_OWN_ERROR_PCT && (predicted_ms - measured_ms).abs() > NO_ERROR_MS;
    is_off.then(|| {
        format!(
            "the fit of the link says {predicted_ms:.2} ms where the run's own transfer of {} \
             bytes took {measured_ms:.2} ms, at most {MAX_OWN_ERROR_PCT:.0}% off is trusted: stop \
             other load and run again, or {ADVICE}",
            longest.kv_bytes,
        )
    })
}
