//! The requests of a run on other links and over other transports, as ranges.

use serde::Serialize;

use super::exposure::{Prefill, Sent, send};
use super::measured::{MODES, median};
use super::transport::Published;
use super::{Carrier, Measured, ModeFigures, Range, Transport, carrier, distrust, payload_share};
use crate::link::{Fit, Sweep};
use crate::metrics::{Record, Transfer};

/// Line rates that are looked at unless others are asked for, in decimal gigabits per second.
pub const LINE_RATES_GBPS: [f64; 7] = [1.0, 10.0, 25.0, 50.0, 100.0, 200.0, 400.0];

/// Share of E2E below which a saving is called nothing.
const NOTHING_SHARE: f64 = 0.01;

/// The link that TCP is projected from.
#[derive(Clone, Debug)]
pub struct Links {
    /// One a number of streams that was measured.
    fits: Vec<Fit>,
    /// Streams of the run.
    streams: u32,
    round_trip_ns: u64,
    /// What the run's own transfers took, in times of what the fit says of back-to-back ones: behind
    /// prefill, processor caches are cold and connections have idled.
    slowdown: f64,
    /// Payload of a segment, where the link is one between machines.
    segment_payload_bytes: Option<u32>,
}

impl Links {
    /// The run's own link as it was fitted before the first request; `None` where it was not.
    pub fn as_fitted(record: &Record) -> Option<Self> {
        let link = record.link.as_ref()?;
        let fit = link.fit.clone()?;
        Some(Self {
            streams: fit.streams,
            fits: vec![fit],
            round_trip_ns: link.min_round_trip_ns().unwrap_or(0),
            slowdown: 1.0,
            segment_payload_bytes: link.socket.mss_bytes.filter(|_| !link.loopback),
        })
    }

    /// The run's own link, as slow as its own transfers were; `None` where it was not fitted.
    pub fn of_run(record: &Record) -> Option<Self> {
        let mut links = Self::as_fitted(record)?;
        let ratios = record.cases.iter().filter_map(|case| {
            let (measured_ms, predicted_ms) = links.own_bulk_ms(&Measured::of(record, case)?)?;
            (predicted_ms > 0.0).then(|| measured_ms / predicted_ms)
        });
        links.slowdown = median(ratios).unwrap_or(1.0);
        Some(links)
    }

    /// The link of a sweep, over as many streams as the run had; `None` where it has no such fit.
    pub fn of_sweep(sweep: &Sweep, streams: u32) -> Option<Self> {
        let mut all: Vec<u32> = sweep.rows.iter().map(|row| row.streams).collect();
        all.sort_unstable();
        all.dedup();
        // From what was measured, not as the build that measured it fitted it.
        let fits: Vec<Fit> = (all.iter())
            .filter_map(|n| Fit::of_rows(&sweep.rows, *n))
            .collect();
        fits.iter().find(|fit| fit.streams == streams)?;
        Some(Self {
            fits,
            streams,
            round_trip_ns: (sweep.min_round_trip_us * 1e3) as u64,
            slowdown: 1.0,
            segment_payload_bytes: sweep.socket.mss_bytes.filter(|_| !sweep.socket.loopback),
        })
    }

    /// The fit of as many streams as the run had.
    pub fn fit(&self) -> &Fit {
        let own = self.fits.iter().find(|fit| fit.streams == self.streams);
        own.expect("a link is made with this fit")
    }

    /// What the run's own transfers took, in times of what the fit says.
    pub(super) fn slowdown(&self) -> f64 {
        self.slowdown
    }

    /// TCP as a run has it.
    pub(super) fn carrier<'a>(&'a self, fit: &'a Fit) -> Carrier<'a> {
        Carrier::fitted(fit, self.round_trip_ns).slower(self.slowdown)
    }

    /// The exposed transfer in bulk as a run over this link measured it, and as it is predicted.
    pub(super) fn own_bulk_ms(&self, measured: &Measured) -> Option<(f64, f64)> {
        let measured_ms = measured.mode(Transfer::Bulk)?.exposed_ms;
        let carrier = self.carrier(self.fit()).after_idle(measured.is_after_idle);
        Some((
            measured_ms,
            send(&carrier, &measured.prefill, false).exposed_ns / 1e6,
        ))
    }

    /// Fits of more streams.
    fn wider(&self) -> impl Iterator<Item = &Fit> {
        self.fits.iter().filter(|fit| fit.streams > self.streams)
    }

    /// TCP as fitted, held to a line where one is given: low, middle and high by what the headers
    /// take of it, which the size of segments decides.
    pub(super) fn tcp<'a>(&'a self, fit: &'a Fit, line_rate_gbps: Option<f64>) -> [Carrier<'a>; 3] {
        let fitted = self.carrier(fit);
        let Some(line_rate_gbps) = line_rate_gbps else {
            return [fitted; 3];
        };
        let shares = match self.segment_payload_bytes {
            Some(bytes) => Range::of(&[payload_share(bytes)]),
            None => Range::of(&[
                payload_share(carrier::USUAL_SEGMENT_PAYLOAD),
                payload_share(carrier::JUMBO_SEGMENT_PAYLOAD),
            ]),
        };
        [shares.high, shares.mid, shares.low].map(|share| fitted.on_line(share * line_rate_gbps))
    }
}

/// One mode over one transport on one link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Transfer that the request waits for.
    pub exposed_ms: Range,
    /// What sending takes from prefill meanwhile.
    pub tax_ms: Range,
    /// Request start to second token.
    pub ttst_ms: Range,
    /// Request start to last token.
    pub e2e_ms: Range,
    /// What it saves against the run; negative where it takes longer.
    pub saving_ms: Range,
    /// TTST less that of one node; null where no single arm was measured.
    pub ttst_change_ms: Option<Range>,
    /// E2E less that of one node; null where no single arm was measured.
    pub e2e_change_ms: Option<Range>,
}

/// One transport on one link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Projection {
    /// Line rate of the link, in decimal gigabits per second; null for the fitted link as it is.
    pub line_rate_gbps: Option<f64>,
    /// What would carry the bytes.
    pub transport: Transport,
    /// The cache after prefill.
    pub bulk: Estimate,
    /// The cache layer by layer behind prefill.
    pub layered: Estimate,
}

impl Outlook {
    /// The mode of the run that waits most, which shows what can be saved: bulk where measured.
    pub fn mode(&self) -> &ModeFigures {
        reference(&self.measured, Transfer::Bulk)
    }
}

impl Projection {
    /// Of a mode.
    pub fn of(&self, transfer: Transfer) -> &Estimate {
        match transfer {
            Transfer::Layered => &self.layered,
            Transfer::Bulk | Transfer::Auto => &self.bulk,
        }
    }
}

/// What RDMA would buy a prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rdma {
    /// Whether that is as good as nothing.
    pub buys_nothing: bool,
    /// Most that any tier on any of the links saves, low to high.
    pub most_ms: Range,
    /// What TCP saves at most on the same links.
    pub most_by_tcp_ms: Range,
    /// Why, in numbers.
    pub reason: String,
}

/// One prompt of a run on other links.
#[derive(Clone, Debug, Serialize)]
pub struct Outlook {
    /// Name of the prompt.
    pub prompt: String,
    /// Prompt length.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// What the run measured.
    pub measured: Measured,
    /// Whether the payload is smaller than the published fits hold for.
    pub is_below_published_fits: bool,
    /// Every transport on every line rate, in the order asked for.
    pub projections: Vec<Projection>,
    /// What RDMA would buy.
    pub rdma: Rdma,
}

/// Projects every prompt of a run that sent a cache. An error says why nothing can be projected and
/// what to do about it.
pub fn outlooks(
    record: &Record,
    links: Option<&Links>,
    rates_gbps: &[f64],
) -> anyhow::Result<Vec<Outlook>> {
    if record.link.is_none() {
        return Ok(Vec::new());
    }
    let own = Links::of_run(record);
    let links = links.or(own.as_ref());
    if let Some(why) = distrust(record, links) {
        anyhow::bail!(why);
    }
    let Some(links) = links else {
        return Ok(Vec::new());
    };
    let (published, valid_from_bytes) = Published::all()?;
    let of_case = |case: &crate::metrics::Case| {
        let measured = Measured::of(record, case)?;
        let projections: Vec<Projection> = (rates_gbps.iter())
            .flat_map(|rate| on_line(&measured, links, &published, *rate))
            .collect();
        Some(Outlook {
            prompt: case.prompt.clone(),
            prompt_tokens: case.prompt_tokens,
            output_tokens: case.output_tokens,
            is_below_published_fits: measured.kv_bytes < valid_from_bytes,
            rdma: rdma(&measured, &projections),
            measured,
            projections,
        })
    };
    Ok(record.cases.iter().filter_map(of_case).collect())
}

/// TCP with the run's streams on a link: as it was fitted, or held to a line.
pub(super) fn tcp(measured: &Measured, links: &Links, line_rate_gbps: Option<f64>) -> Projection {
    let ways = [links.tcp(links.fit(), line_rate_gbps)];
    projection(measured, links, Transport::Tcp, line_rate_gbps, &ways)
}

/// All transports on a line.
fn on_line(
    measured: &Measured,
    links: &Links,
    published: &[Published],
    rate_gbps: f64,
) -> Vec<Projection> {
    let all = Transport::ALL.map(|transport| {
        let ways = ways(Some(links), published, transport, rate_gbps);
        projection(measured, links, transport, Some(rate_gbps), &ways)
    });
    all.to_vec()
}

/// The ways over a transport on a line, low, middle and high, of which the best is taken; none of
/// TCP as fitted without a link.
pub(super) fn ways<'a>(
    links: Option<&'a Links>,
    published: &[Published],
    transport: Transport,
    rate_gbps: f64,
) -> Vec<[Carrier<'a>; 3]> {
    let of_published = || {
        let these = published.iter().filter(|p| p.transport == transport);
        these.map(|p| p.carriers(rate_gbps))
    };
    let tcp = |links: &'a Links, fit: &'a Fit| links.tcp(fit, Some(rate_gbps));
    let fitted = links.map(|links| tcp(links, links.fit()));
    match transport {
        Transport::Tcp => fitted.into_iter().collect(),
        Transport::BetterTcp => {
            let wider = links.into_iter().flat_map(|links| {
                let fits = links.wider();
                fits.map(move |fit| tcp(links, fit))
            });
            let mut ways: Vec<[Carrier; 3]> = wider.collect();
            if ways.is_empty() {
                ways.extend(of_published());
            }
            // Nobody has to use more streams.
            ways.extend(fitted);
            ways
        }
        _ => of_published().collect(),
    }
}

/// What a request of a case waits for on a link, in one mode; `None` where nothing was sent.
pub fn predict(
    record: &Record,
    case: &crate::metrics::Case,
    links: &Links,
    transfer: Transfer,
) -> Option<f64> {
    let measured = Measured::of(record, case)?;
    let projection = tcp(&measured, links, None);
    Some(projection.of(transfer).exposed_ms.mid)
}

/// The best of several ways over one transport, end by end of the range.
pub(super) fn projection(
    measured: &Measured,
    links: &Links,
    transport: Transport,
    line_rate_gbps: Option<f64>,
    ways: &[[Carrier; 3]],
) -> Projection {
    let estimate = |transfer| {
        // A network card that reads memory itself takes nothing from prefill.
        let tax_ns_per_byte = match transport.is_rdma() {
            true => 0.0,
            false => measured.tax_ns_per_byte.unwrap_or(0.0),
        };
        let waits = |i: usize| {
            let of = |way: &[Carrier; 3]| waits(measured, way[i], transfer, tax_ns_per_byte);
            let all = ways.iter().map(of);
            all.min_by(|a, b| a.total_ms().total_cmp(&b.total_ms()))
        };
        let [low, mid, high] = [0, 1, 2].map(|i| waits(i).expect("there is at least one way"));
        let range = |of: fn(&Waits) -> f64| Range {
            low: of(&low),
            mid: of(&mid),
            high: of(&high),
        };
        // The second token's way back to the prefill node.
        let way_back_ms = (links.round_trip_ns as f64 / 1e6 - measured.round_trip_ms) / 2.0;
        estimate(
            measured,
            transfer,
            range(|w| w.exposed_ms),
            range(|w| w.tax_ms),
            way_back_ms,
        )
    };
    Projection {
        line_rate_gbps,
        transport,
        bulk: estimate(Transfer::Bulk),
        layered: estimate(Transfer::Layered),
    }
}

/// What a request waits for because of its transfer.
struct Waits {
    exposed_ms: f64,
    tax_ms: f64,
}

impl Waits {
    fn total_ms(&self) -> f64 {
        self.exposed_ms + self.tax_ms
    }
}

fn waits(measured: &Measured, carrier: Carrier, transfer: Transfer, tax_ns_per_byte: f64) -> Waits {
    let prefill: &Prefill = &measured.prefill;
    if transfer != Transfer::Layered {
        let carrier = carrier.after_idle(measured.is_after_idle);
        return Waits {
            exposed_ms: send(&carrier, prefill, false).exposed_ns / 1e6,
            tax_ms: 0.0,
        };
    }
    // Sending makes prefill longer, which hides more of the sending.
    let Sent { hidden_bytes, .. } = send(&carrier, prefill, true);
    let tax_ns = tax_ns_per_byte * hidden_bytes;
    let taxed = prefill.taking(measured.prefill_ms * 1e6 + tax_ns);
    Waits {
        exposed_ms: send(&carrier, &taxed, true).exposed_ns / 1e6,
        tax_ms: tax_ns / 1e6,
    }
}

fn estimate(
    measured: &Measured,
    transfer: Transfer,
    exposed_ms: Range,
    tax_ms: Range,
    way_back_ms: f64,
) -> Estimate {
    let waits_ms = Range {
        low: exposed_ms.low + tax_ms.low,
        mid: exposed_ms.mid + tax_ms.mid,
        high: exposed_ms.high + tax_ms.high,
    };
    let waits_ms = waits_ms.map(|ms| ms + way_back_ms);
    let as_run = reference(measured, transfer);
    let saving_ms = waits_ms.less_than(as_run.waits_ms());
    let change = |rest_ms: Option<f64>| rest_ms.map(|rest_ms| waits_ms.map(|ms| ms + rest_ms));
    Estimate {
        exposed_ms,
        tax_ms,
        ttst_ms: saving_ms.less_than(as_run.ttst_ms),
        e2e_ms: saving_ms.less_than(as_run.e2e_ms),
        saving_ms,
        ttst_change_ms: change(measured.ttst_rest_change_ms),
        e2e_change_ms: change(measured.e2e_rest_change_ms),
    }
}

/// What a mode is compared with: itself as measured, or the mode that was.
fn reference(measured: &Measured, transfer: Transfer) -> &ModeFigures {
    let own = measured.mode(transfer).or(measured.modes.first());
    own.expect("a request that sent a cache did so in some mode")
}

/// What RDMA would buy, against the mode of the run that waits least.
fn rdma(measured: &Measured, projections: &[Projection]) -> Rdma {
    let best = (MODES.iter().filter_map(|t| measured.mode(*t)))
        .min_by(|a, b| a.waits_ms().total_cmp(&b.waits_ms()));
    let best = best.expect("a request that sent a cache did so in some mode");
    let most = |rdma: bool| {
        let these = projections.iter().filter(|p| p.transport.is_rdma() == rdma);
        let savings = these.map(|p| p.of(best.transfer).saving_ms);
        savings.max_by(|a, b| a.high.total_cmp(&b.high))
    };
    let nothing = Range::of(&[0.0]);
    let not_less = |range: Option<Range>| range.unwrap_or(nothing).map(|ms| ms.max(0.0));
    let (most_ms, most_by_tcp_ms) = (not_less(most(true)), not_less(most(false)));
    let is_small = most_ms.high < NOTHING_SHARE * best.e2e_ms;
    let is_handoff = measured.handoff_ms > best.waits_ms();
    let digits = |ms: f64| crate::report::number::significant(ms, 3);
    let facts = format!(
        "{} exposes {} ms of an E2E of {} ms{}, the handoff takes {} ms; any tier on any of these \
         links saves at most {} ms, TCP on them {} ms",
        best.transfer,
        digits(best.exposed_ms),
        digits(best.e2e_ms),
        match best.tax_ms > 0.0 {
            true => format!(" and makes prefill {} ms longer", digits(best.tax_ms)),
            false => String::new(),
        },
        digits(measured.handoff_ms),
        digits(most_ms.high),
        digits(most_by_tcp_ms.high),
    );
    let buys_nothing = is_small || is_handoff;
    let reason = match (is_small, is_handoff) {
        (true, _) => format!(
            "RDMA would buy nothing here: {facts}, below {:.0}% of E2E",
            100.0 * NOTHING_SHARE
        ),
        (false, true) => format!(
            "RDMA would buy nothing here: {facts}, and the handoff stays whatever carries the bytes"
        ),
        (false, false) => facts,
    };
    Rdma {
        buys_nothing,
        most_ms,
        most_by_tcp_ms,
        reason,
    }
}
