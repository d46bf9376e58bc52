//! What a run would be on other links and faster engines, as tables and lines. Everything here is
//! projected and says so.

use tabled::builder::Builder;
use tabled::settings::object::Columns;
use tabled::settings::{Alignment, Modify, Padding, Style};

use super::charts::savings::{of_longest, range};
use super::document::Block;
use super::number::significant;
use super::scored;
use super::table::{Table, numbers, words};
use crate::link::Fit;
use crate::metrics::{Record, Transfer};
use crate::model::published::PublishedShape;
use crate::projection::{
    EngineSpeed, FASTER_ENGINES, LINE_RATES_GBPS, Links, Outlook, Range, Restated, Transport,
    WithoutModel, outlooks, restate, sources,
};

/// The outlook of a run as its report shows it, or why there is none.
pub(super) struct Projected {
    /// One a prompt that sent a cache.
    pub outlooks: Vec<Outlook>,
    /// Why nothing is projected, and what to do.
    pub refused: Option<String>,
    links: Option<Links>,
}

impl Projected {
    /// From the run's own fit, on the usual line rates.
    pub(super) fn of(record: &Record) -> Self {
        let (outlooks, refused) = match outlooks(record, None, &LINE_RATES_GBPS) {
            Ok(outlooks) => (outlooks, None),
            Err(why) => (Vec::new(), Some(format!("nothing is projected: {why:#}"))),
        };
        Self {
            outlooks,
            refused,
            links: Links::of_run(record),
        }
    }

    /// What RDMA would buy and what a faster engine would change, for the longest prompt; or why
    /// nothing is projected.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.refused.iter().cloned().collect();
        if let Some(outlook) = self.outlooks.iter().max_by_key(|o| o.measured.kv_bytes) {
            notes.push(format!("projected: {}", outlook.rdma.reason));
            notes.extend(self.faster_engines(outlook));
        }
        notes
    }

    /// The share of the transfer, were compute faster.
    fn faster_engines(&self, outlook: &Outlook) -> Option<String> {
        let links = self.links.as_ref()?;
        let transfer = outlook.mode().transfer;
        let (prompt_tokens, output_tokens) = (outlook.prompt_tokens, outlook.output_tokens);
        let share = |times: f64| {
            let speed = EngineSpeed::Times(times);
            let measured = &outlook.measured;
            restate(
                measured,
                links,
                transfer,
                prompt_tokens,
                output_tokens,
                speed,
            )
        };
        let faster: Vec<String> = (FASTER_ENGINES.iter())
            .map(|times| {
                let restated = share(*times);
                format!(
                    "{times}x as fast {}% ({} tokens/s prefill)",
                    significant(restated.transfer_overhead_pct, 2),
                    restated.prefill_tokens_per_s.round(),
                )
            })
            .collect();
        Some(format!(
            "projected: on this engine the transfer ({transfer}) is {}% of E2E at {prompt_tokens} \
             prompt tokens; on one {}: `disagg-bench project RUN --prefill-tokens-per-s N` has yours",
            significant(share(1.0).transfer_overhead_pct, 2),
            faster.join(", "),
        ))
    }
}

/// The fit of a link and its score in a line.
pub fn fit_note(fit: &Fit) -> String {
    let beta = (fit.beta_gbps).map_or("-".into(), |beta| format!("{} Gbps", significant(beta, 3)));
    let score = match fit.held_out_error_pct {
        Some(error) => format!("fitted on every second size, the others within {error:.0}%"),
        None => "too few sizes to be scored".to_owned(),
    };
    format!(
        "fit of the link: t = {:.0} us + pieces x {:.1} us + bytes / beta(size), {beta} beyond the \
         largest; within {:.0}% of its own transfers; {score}",
        fit.alpha_us, fit.overhead_us_per_piece, fit.worst_residual_pct,
    )
}

/// What every transport on every line saves a prompt in one mode.
fn savings_table(outlook: &Outlook, transfer: Transfer) -> Table {
    let first = words(format!("{transfer}, ms saved"));
    let heads = Transport::ALL.map(|t| numbers(t.to_string()));
    let mut table = Table::new([first].into_iter().chain(heads));
    let rows = (outlook.projections).chunk_by(|a, b| a.line_rate_gbps == b.line_rate_gbps);
    for row in rows {
        let rate = row.first().and_then(|p| p.line_rate_gbps).unwrap_or(0.0);
        let ranges = row.iter().map(|p| range(p.of(transfer).saving_ms));
        table.push([format!("{rate} Gbit/s")].into_iter().chain(ranges));
    }
    table
}

/// The section of a report.
pub(super) fn section(record: &Record, projected: &Projected) -> Vec<Block> {
    let fit = record.link.as_ref().and_then(|l| l.fit.as_ref());
    let notes = fit.map(fit_note).into_iter().chain(projected.notes());
    let mut blocks: Vec<Block> = notes.map(Block::text).collect();
    blocks.extend(scored::own_score(record).map(Block::Table));
    let (Some(outlook), Ok(sources)) = (of_longest(&projected.outlooks), sources()) else {
        return blocks;
    };
    for mode in &outlook.measured.modes {
        blocks.push(Block::Table(savings_table(outlook, mode.transfer)));
    }
    blocks.push(Block::text(format!(
        "Projected, low to high, against the same mode as measured, at {} prompt tokens. TCP is the \
         fit of the run's link held to the line; the others are from:",
        outlook.prompt_tokens
    )));
    blocks.push(Block::list(sources));
    blocks
}

/// What `project` shows of a prompt on a terminal: every transport on every line.
pub fn outlook_table(outlook: &Outlook) -> String {
    let measured = &outlook.measured;
    let mut lines = vec![format!(
        "{} prompt tokens, {} MB of KV cache, prefill {} ms, handoff {} ms",
        outlook.prompt_tokens,
        significant(measured.kv_bytes as f64 / 1e6, 3),
        significant(measured.prefill_ms, 4),
        significant(measured.handoff_ms, 3),
    )];
    for mode in &measured.modes {
        lines.push(format!(
            "measured {}: exposed {} ms, TTST {} ms, E2E {} ms",
            mode.transfer,
            significant(mode.exposed_ms, 3),
            significant(mode.ttst_ms, 4),
            significant(mode.e2e_ms, 4),
        ));
    }
    for transfer in [Transfer::Bulk, Transfer::Layered] {
        lines.push(format!("\nprojected {transfer}:"));
        lines.push(carried_table(outlook, transfer).to_terminal());
    }
    lines.push(format!("\n{}", outlook.rdma.reason));
    lines.join("\n")
}

/// What a prompt's request would take over every transport on every line in one mode.
fn carried_table(outlook: &Outlook, transfer: Transfer) -> Table {
    let columns = [
        words("Gbit/s"),
        words("carried by"),
        numbers("exposed ms"),
        numbers("E2E ms"),
        numbers("saves ms"),
    ];
    let mut table = Table::new(columns);
    for projection in &outlook.projections {
        let rate = projection.line_rate_gbps.map(|rate| rate.to_string());
        let estimate = projection.of(transfer);
        table.push([
            rate.unwrap_or("as it is".into()),
            projection.transport.to_string(),
            ends(estimate.exposed_ms),
            significant(estimate.e2e_ms.mid, 4),
            ends(estimate.saving_ms),
        ]);
    }
    table
}

/// Low to high, or the one value where they do not differ.
pub(crate) fn ends(range: Range) -> String {
    let (low, high) = (significant(range.low, 3), significant(range.high, 3));
    match low == high {
        true => low,
        false => format!("{low} to {high}"),
    }
}

/// A run on an engine of another speed.
pub fn restated_table(all: &[Restated]) -> String {
    let mut table = Table::new([
        numbers("prompt\ntokens"),
        words("mode"),
        numbers("prefill\nms"),
        numbers("exposed\nms"),
        numbers("E2E\nms"),
        numbers("overhead\n% of E2E"),
        numbers("KV demand\nGbps"),
    ]);
    for r in all {
        table.push([
            r.prompt_tokens.to_string(),
            r.transfer.to_string(),
            significant(r.prefill_ms, 4),
            significant(r.exposed_ms, 3),
            significant(r.e2e_ms, 4),
            significant(r.transfer_overhead_pct, 3),
            significant(r.kv_demand_gbps, 3),
        ]);
    }
    table.to_terminal()
}

/// Columns without lines, all but the first two to the right.
pub(crate) fn plain_table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut builder = Builder::default();
    builder.push_record(heads.iter().map(|head| (*head).to_owned()));
    for row in rows {
        builder.push_record(row);
    }
    let mut table = builder.build();
    table
        .with(Style::empty())
        .with(Padding::new(0, 2, 0, 0))
        .with(Modify::new(Columns::new(2..)).with(Alignment::right()));
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// Stands below what `project` shows.
pub const NOTE: &str = "projected, low to high; E2E from the middle. TCP: the fit held to the line; better TCP: more \
     streams of the same sweep, else published ranges; RDMA: published ranges of raw verbs (wire), \
     transfer libraries, and whole requests inside engines. Saves: against the same mode as measured";

/// A request that nobody ran.
pub fn shape_table(shape: &PublishedShape, answer: &WithoutModel) -> String {
    let kept = match (shape.is_latent(), shape.sliding()) {
        (true, _) => "MLA's latent".to_owned(),
        (false, (0, _)) => "K and V of every token".to_owned(),
        (false, (layers, window)) => {
            format!("K and V; {layers} layers keep the last {window} tokens alone")
        }
    };
    let mut lines = vec![
        format!(
            "{}: {} layers, {kept}; {} prompt tokens are {} MB of cache ({} bytes a token)",
            answer.model,
            shape.n_layers(),
            answer.prompt_tokens,
            significant(answer.kv_bytes as f64 / 1e6, 4),
            answer.kv_bytes_per_token.round(),
        ),
        format!(
            "prefill takes {} ms at the stated speed: a link with {} Gbps of payload never makes it \
             wait",
            significant(answer.prefill_ms, 4),
            significant(answer.kv_demand_gbps, 3),
        ),
    ];
    if let Some(step_ms) = answer.step_ms {
        lines.push(format!(
            "a decode step takes {} ms",
            significant(step_ms, 3)
        ));
    }
    let share = |exposed: Range| {
        let rest_ms = answer.prefill_ms + answer.step_ms.unwrap_or(0.0);
        format!("{:.1}", 100.0 * exposed.mid / (rest_ms + exposed.mid))
    };
    let mut table = Table::new([
        words("Gbit/s"),
        words("carried by"),
        numbers("bulk:\nexposed ms"),
        numbers("of TTST\n%"),
        numbers("layered:\nexposed ms"),
        numbers("of TTST\n%"),
    ]);
    for c in &answer.carried {
        table.push([
            c.line_rate_gbps.to_string(),
            c.transport.to_string(),
            ends(c.bulk_exposed_ms),
            share(c.bulk_exposed_ms),
            ends(c.layered_exposed_ms),
            share(c.layered_exposed_ms),
        ]);
    }
    lines.push(String::new());
    lines.push(table.to_terminal());
    lines.push(String::new());
    lines.push(
        "projected, nothing was run: low to high from published measurements of each transport; \
         TTST: prefill, exposed transfer and a step, without a handoff"
            .to_owned(),
    );
    lines.join("\n")
}
