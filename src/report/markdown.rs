//! `report.md`: the run on one page, the finding first.

use super::charts::Chart;
use super::number::{one_line, significant};
use super::projected::{self, Projected};
use super::tables::{auto_notes, cell, markdown_table};
use crate::environment::Environment;
use crate::metrics::summary::Summary;
use crate::metrics::{Memory, Record};

/// Characters of one value that are shown.
const VALUE_CHARS: usize = 200;

/// The report of a run; the charts lie beside it.
pub(super) fn report(
    record: &Record,
    summary: &Summary,
    projected: &Projected,
    charts: &[Chart],
) -> String {
    let none = "nothing was measured".to_owned();
    let mut text = format!("# {}\n\n", summary.verdict.as_ref().unwrap_or(&none));
    text += &section("Answers", &super::answers::section(summary));
    if !summary.alarms.is_empty() {
        let alarms = summary.alarms.iter().map(|a| format!("- **{a}**\n"));
        text += &format!(
            "What makes the figures doubtful:\n\n{}\n",
            alarms.collect::<String>()
        );
    }
    let mut figures = markdown_table(summary);
    figures.extend(auto_notes(summary).iter().map(|note| format!("\n{note}\n")));
    text += &section("Figures", &figures);
    text += &section("Changes", &super::changes::section(summary));
    text += &section("Lossy on the wire", &super::lossy::section(summary));
    text += &section("Interference", &super::interference::section(summary));
    text += &section("Checks", &checks(record));
    text += &section("Failed requests", &failures(summary));
    for chart in charts {
        text += &format!(
            "![{}]({})\n\n{}\n\n",
            chart.title, chart.file, chart.caption
        );
    }
    text += &section("Projected", &projected::section(record, projected));
    text += &section("Run", &table(&["", ""], run(record)));
    text += &section("Configuration", &configuration(record));
    text += &section("Environment", &environment(record));
    text + &stamp(record)
}

/// A section, or nothing where it has no content.
fn section(title: &str, content: &str) -> String {
    match content.trim() {
        "" => String::new(),
        content => format!("## {title}\n\n{content}\n\n"),
    }
}

/// A Markdown table; empty without rows.
fn table<const N: usize>(heads: &[&str; N], rows: Vec<[String; N]>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let heads = heads.map(String::from).to_vec();
    let mut text = row(heads) + &row(vec!["---".to_owned(); N]);
    for cells in rows {
        text += &row(cells.iter().map(|c| cell(c)).collect());
    }
    text
}

fn checks(record: &Record) -> String {
    let landed = |landed| match landed {
        Some(true) => "every byte",
        Some(false) => "NOT what was sent",
        None => "nothing sent",
    };
    let rows = record.cases.iter().filter_map(|case| {
        let check = case.check.as_ref()?;
        Some([
            case.prompt.clone(),
            landed(check.landed).to_owned(),
            check
                .outputs
                .map_or("one arm alone".to_owned(), |o| o.to_string()),
            check.demanded.to_string(),
            check.findings.join("; "),
        ])
    });
    let heads = ["prompt", "cache landed", "outputs", "demanded", "findings"];
    table(&heads, rows.collect())
}

fn failures(summary: &Summary) -> String {
    let rows = summary.cases.iter().flat_map(|case| {
        (case.errors.iter()).map(|error| [case.prompt.clone(), one_line(error, VALUE_CHARS)])
    });
    table(&["prompt", "error"], rows.collect())
}

fn run(record: &Record) -> Vec<[String; 2]> {
    let (run, model) = (&record.run, &record.model);
    let status = serde_json::to_value(run.status).unwrap_or_default();
    let mut rows = vec![
        [
            "status".into(),
            status.as_str().unwrap_or_default().to_owned(),
        ],
        ["started".into(), run.started_at.clone()],
        ["finished".into(), or_unknown(run.finished_at.clone())],
        [
            "model".into(),
            format!("{} ({})", model.name, model.weights),
        ],
        ["model file SHA-256".into(), model.file_sha256.clone()],
        ["model fingerprint".into(), model.fingerprint.clone()],
        [
            "KV cache a token".into(),
            format!("{} bytes", model.kv_bytes_per_token),
        ],
    ];
    if let Some(digest) = &record.prompt_set_digest {
        rows.push(["prompt set".into(), digest.clone()]);
    }
    if let Some(error) = &run.error {
        rows.push(["error".into(), one_line(error, VALUE_CHARS)]);
    }
    if let Some(link) = &record.link {
        let on = if link.loopback { "loopback" } else { "network" };
        rows.push(["carried by".into(), format!("{} over {on}", link.transport)]);
        let control = link.socket.congestion_control.clone();
        rows.push(["congestion control".into(), or_unknown(control)]);
        let round_trip = link
            .min_round_trip_ns()
            .map(|ns| significant(ns as f64 / 1e3, 3));
        rows.push([
            "smallest round trip".into(),
            or_unknown(round_trip.map(|us| us + " µs")),
        ]);
    }
    let nodes = [
        ("prefill", Some(record.memory)),
        ("decode", record.decode_memory),
    ];
    for (node, memory) in nodes {
        rows.extend(
            memory
                .and_then(memory_text)
                .map(|text| [format!("memory, {node} node"), text]),
        );
    }
    rows
}

/// Resident memory against what has to be in it.
fn memory_text(memory: Memory) -> Option<String> {
    let (loaded, peak) = memory.loaded_bytes.zip(memory.peak_bytes)?;
    let mib = |bytes: u64| significant(bytes as f64 / f64::from(1 << 20), 4);
    let needed = loaded + memory.cache_bytes;
    Some(format!(
        "{} MiB loaded, {} MiB of KV caches, {} MiB at most ({:.2} of both)",
        mib(loaded),
        mib(memory.cache_bytes),
        mib(peak),
        peak as f64 / needed as f64,
    ))
}

fn configuration(record: &Record) -> String {
    let rows = record.configuration.iter().map(|(name, setting)| {
        let value = one_line(&setting.value.to_string(), VALUE_CHARS);
        [name.clone(), value, setting.origin.to_string()]
    });
    table(&["setting", "value", "origin"], rows.collect())
}

fn environment(record: &Record) -> String {
    let prefill = node(&record.environment.prefill);
    match &record.environment.decode {
        None => table(
            &["", "node"],
            prefill.into_iter().map(|(k, v)| [k.into(), v]).collect(),
        ),
        Some(decode) => {
            let both = prefill.into_iter().zip(node(decode));
            let rows = both.map(|((name, a), (_, b))| [name.to_owned(), a, b]);
            let shared = match record.environment.shared_machine() {
                true => "\nBoth nodes share one machine.\n",
                false => "",
            };
            table(&["", "prefill node", "decode node"], rows.collect()) + shared
        }
    }
}

fn node(environment: &Environment) -> Vec<(&'static str, String)> {
    let (host, processor, build) = (
        &environment.host,
        &environment.processor,
        &environment.build,
    );
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let interfaces = (environment.network_interfaces.iter()).filter(|i| i.is_up && !i.is_loopback);
    let interfaces = interfaces.map(|i| match i.speed_mbps {
        Some(mbps) => format!("{} {} Gbps", i.name, mbps as f64 / 1e3),
        None => format!("{} of unknown speed", i.name),
    });
    let cores = match &processor.cores {
        Some(cores) => format!("{} ({cores})", processor.usable_cores),
        None => processor.usable_cores.to_string(),
    };
    let variables = environment.compute_variables.iter();
    let variables = variables.map(|(name, value)| format!("{name}={value}"));
    vec![
        ("host", host.hostname.clone()),
        ("system", or_unknown(host.os.clone())),
        ("kernel", or_unknown(host.kernel.clone())),
        ("memory", or_unknown(host.memory_bytes.map(gib))),
        ("processor", or_unknown(processor.model.clone())),
        ("instruction set", processor.instruction_set.clone()),
        ("cores usable", cores),
        ("compute threads", environment.threads.to_string()),
        (
            "network's cores",
            (environment.network_cores.as_ref()).map_or_else(|| "any".into(), ToString::to_string),
        ),
        ("compute variables", variables.collect::<Vec<_>>().join(" ")),
        ("network", interfaces.collect::<Vec<_>>().join(", ")),
        (
            "build",
            format!(
                "{} {} {}",
                build.tool_version, build.git_revision, build.profile
            ),
        ),
        ("compiler", build.rustc.clone()),
    ]
}

fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| "unknown".to_owned())
}

/// The command and the revision that made the run.
fn stamp(record: &Record) -> String {
    let run = &record.run;
    let argv: Vec<String> = run.argv.iter().map(|a| one_line(a, VALUE_CHARS)).collect();
    format!(
        "Made by disagg-bench {} (revision {}, {} build) with:\n\n```\n{}\n```\n",
        run.tool_version,
        run.git_revision,
        run.profile,
        argv.join(" ").replace('`', "'"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Arm;
    use crate::report::fixture::{failed, record, usual_case};

    fn text(record: &Record) -> String {
        report(record, &Summary::of(record), &Projected::of(record), &[])
    }

    #[test]
    fn the_finding_is_the_first_line_and_the_command_the_last() {
        let text = text(&record(vec![usual_case(512)]));
        assert!(text.starts_with("# split is "), "{text}");
        assert!(
            text.contains("| 512 tokens | every byte | identical | identical |  |"),
            "{text}"
        );
        assert!(text.contains("| seed | 7 | default |"), "{text}");
        assert!(text.contains("| build | 0.1.0 "), "{text}");
        let heads = [
            "TCP as fitted",
            "better TCP",
            "RDMA wire",
            "RDMA library",
            "RDMA engine",
        ];
        let head = text
            .lines()
            .find(|l| l.starts_with("| bulk, ms saved"))
            .unwrap();
        assert!(heads.iter().all(|name| head.contains(name)), "{text}");
        assert!(
            text.contains("| 100 Gbit/s") && text.contains("- NDR 400 InfiniBand"),
            "{text}"
        );
        assert!(
            text.contains("the others within 5%") && text.contains("on one 10x as fast"),
            "{text}"
        );
        assert!(
            text.contains("revision 0123456789ab, release build"),
            "{text}"
        );
        assert!(
            text.ends_with("```\ndisagg-bench split --peer 10.0.0.2:7600\n```\n"),
            "{text}"
        );
        assert!(
            !text.contains("doubtful") && !text.contains("Failed requests"),
            "{text}"
        );
    }

    #[test]
    fn failures_and_alarms_are_shown() {
        let mut record = record(vec![usual_case(512)]);
        record.run.profile = "debug".into();
        record.cases[0]
            .samples
            .push(failed(Arm::Split, "peer | closed"));
        let text = text(&record);
        assert!(
            text.contains("- **the prefill node is a debug build"),
            "{text}"
        );
        assert!(text.contains(r"| 512 tokens | peer \| closed |"), "{text}");
    }

    #[test]
    fn a_single_node_run_has_one_column() {
        let mut record = record(vec![]);
        record.environment.decode = None;
        record.link = None;
        let text = text(&record);
        assert!(text.starts_with("# nothing was measured\n"), "{text}");
        assert!(text.contains("|  | node |"), "{text}");
        assert!(!text.contains("carried by"), "{text}");
    }
}
