//! The summary that the prefill role prints for each prompt.

use super::name;
use crate::metrics::summary::{SummaryArm, SummaryCase};
use crate::report::number::one_line;
use crate::report::table::NONE;
use crate::stats::Figure;

/// The notebook's "Pipeline Summary (Prefill + Transfer)" of one case's split arm, its figures
/// put right: transfer ends with the peer's acknowledgement, gigabits are decimal gigabits, and
/// every share names its denominator.
pub fn pipeline_summary(case: &SummaryCase, arm: &SummaryArm) -> String {
    let n = arm.e2e_ms.map_or(0, |f| f.n);
    let of = match n {
        1 => String::new(),
        n => format!(", medians of {n} requests"),
    };
    let title = format!("Pipeline Summary (Prefill + Transfer){of}");
    let way = name(case, arm, " ");
    let mut lines = vec![title, "=".repeat(60)];
    let mut line = |label: &str, value: String, unit: &str| {
        lines.push(
            format!("{label:<32}{value:>12} {unit}")
                .trim_end()
                .to_owned(),
        );
    };
    let plain = |value: f64| format!("{value:.2}");
    line("Prompt", one_line(&case.prompt, 40), "");
    line("Arm", way, "");
    line("Input tokens", case.prompt_tokens.to_string(), "");
    line(
        "Output tokens asked for",
        case.output_tokens.to_string(),
        "",
    );
    line("KV cache", plain(arm.wire_bytes as f64 / 1e6), "MB sent");
    let mut figure = |label: &str, figure: Option<Figure>, unit: &str| {
        let value = figure.map_or(NONE.to_owned(), |f| plain(f.median));
        line(label, value, unit);
    };
    figure("Prefill time", arm.prefill_ms, "ms");
    if arm.staging_out_ms.is_some() {
        figure(
            "  of it staging",
            arm.staging_out_ms,
            "ms, K and V from device to host",
        );
    }
    figure(
        "Transfer time (wire busy)",
        arm.wire_busy_ms,
        "ms, offered to acknowledged",
    );
    figure(
        "  of it exposed",
        arm.exposed_transfer_ms,
        "ms, the request waited for it",
    );
    figure(
        "  of it hidden",
        arm.hidden_transfer_ms,
        "ms, behind prefill",
    );
    figure("Effective bandwidth", arm.effective_gbps, "Gbps (decimal)");
    figure(
        "Handoff",
        arm.handoff_ms,
        "ms, cache complete to first step",
    );
    if arm.staging_in_ms.is_some() {
        figure(
            "  of it staging",
            arm.staging_in_ms,
            "ms, K and V from host to device",
        );
    }
    figure("Residual", arm.residual_ms, "ms, unexplained; near 0");
    figure("TTFT", arm.ttft_ms, "ms, on the prefill node");
    figure("TTST", arm.ttst_ms, "ms, the handoff shows here");
    figure("TPOT", arm.tpot_ms, "ms");
    figure("E2E", arm.e2e_ms, "ms");
    figure("Throughput", arm.tokens_per_s, "output tok/s");
    figure(
        "Transfer overhead, exposed",
        arm.transfer_overhead_pct,
        "% of E2E",
    );
    figure(
        "Transfer overhead, wire busy",
        arm.wire_busy_pct,
        "% of E2E",
    );
    figure(
        "  as the notebook had it",
        arm.notebook_pipeline_pct,
        "% of prefill + wire busy",
    );
    lines.join("\n") + "\n"
}
