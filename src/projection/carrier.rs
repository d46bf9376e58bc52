//! What carrying a cache costs: a fixed time, a time a piece, and the time of the bytes; fitted on a
//! link, fitted and held to the rate of another line, or published.

use crate::link::Fit;

/// Bytes around the payload of a TCP segment on Ethernet: preamble, header, checksum and gap (38),
/// IP and TCP with time stamps (52).
const SEGMENT_BYTES: f64 = 90.0;

/// Payload of a segment at an MTU of 1,500, with time stamps.
pub(super) const USUAL_SEGMENT_PAYLOAD: u32 = 1_448;

/// The same at an MTU of 9,000.
pub(super) const JUMBO_SEGMENT_PAYLOAD: u32 = 8_948;

/// Share of a line's rate that is left to payload in segments of this size.
pub fn payload_share(segment_payload_bytes: u32) -> f64 {
    let payload = f64::from(segment_payload_bytes);
    payload / (payload + SEGMENT_BYTES)
}

/// The cost of carrying a cache.
#[derive(Clone, Copy, Debug)]
pub struct Carrier<'a> {
    fixed_ns: f64,
    ns_per_piece: f64,
    /// No byte takes less.
    least_ns_per_byte: f64,
    fit: Option<&'a Fit>,
    /// Times that its time is taken.
    times: f64,
    /// Whether the connections had idled before.
    is_after_idle: bool,
}

impl<'a> Carrier<'a> {
    /// As fitted; `round_trip_ns` is the smallest of that link, of which half is no part of what a
    /// request waits for: the last acknowledgement's way back.
    pub fn fitted(fit: &'a Fit, round_trip_ns: u64) -> Self {
        Self {
            fixed_ns: (fit.alpha_us * 1e3 - round_trip_ns as f64 / 2.0).max(0.0),
            ns_per_piece: fit.overhead_us_per_piece * 1e3,
            least_ns_per_byte: 0.0,
            fit: Some(fit),
            times: 1.0,
            is_after_idle: false,
        }
    }

    /// As published: a fixed time, then a rate.
    pub fn published(alpha_us: f64, gbps: f64) -> Self {
        Self {
            fixed_ns: alpha_us.max(0.0) * 1e3,
            ns_per_piece: 0.0,
            least_ns_per_byte: 8.0 / gbps,
            fit: None,
            times: 1.0,
            is_after_idle: false,
        }
    }

    /// The same where every transfer takes so many times what was fitted.
    pub fn slower(self, times: f64) -> Self {
        Self {
            fixed_ns: self.fixed_ns * times,
            ns_per_piece: self.ns_per_piece * times,
            times: self.times * times,
            ..self
        }
    }

    /// The same on a line that carries no more than this much payload.
    pub fn on_line(self, payload_gbps: f64) -> Self {
        Self {
            least_ns_per_byte: self.least_ns_per_byte.max(8.0 / payload_gbps),
            ..self
        }
    }

    /// The same with the bytes at this rate, faster or slower than was fitted.
    pub fn at_rate(self, payload_gbps: f64) -> Self {
        Self {
            fit: None,
            least_ns_per_byte: 8.0 / payload_gbps,
            ..self
        }
    }

    /// The same over connections that had idled, as far as the fit knows what that changes.
    pub fn after_idle(self, is_after_idle: bool) -> Self {
        Self {
            is_after_idle,
            ..self
        }
    }

    /// What is waited for whatever the size.
    pub(super) fn fixed_ns(&self) -> f64 {
        self.fixed_ns
    }

    /// What a piece costs.
    pub(super) fn ns_per_piece(&self) -> f64 {
        self.ns_per_piece
    }

    /// Time of the bytes alone, when they go in one run.
    pub(super) fn wire_ns(&self, bytes: f64) -> f64 {
        let fitted = self.fit.map_or(0.0, |fit| {
            let whole = bytes.round() as u64;
            match self.is_after_idle {
                true => fit.wire_after_idle_ns(whole),
                false => fit.wire_ns(whole),
            }
        });
        (fitted * self.times).max(bytes * self.least_ns_per_byte)
    }
}
