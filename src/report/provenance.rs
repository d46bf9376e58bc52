//! What a run was: its checks and failures, model, link and machines, and what made it.

use super::document::Block;
use super::number::{one_line, significant};
use super::table::{Table, words};
use crate::environment::Environment;
use crate::metrics::summary::Summary;
use crate::metrics::{Memory, Record};

/// Characters of one value that are shown.
const VALUE_CHARS: usize = 200;

/// A table of words.
pub(super) fn table<const N: usize>(
    heads: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Table {
    let mut table = Table::new(heads.map(words));
    for row in rows {
        table.push(row);
    }
    table
}

/// How equal the answers of every prompt are.
pub(super) fn checks(record: &Record) -> Table {
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
    table(heads, rows)
}

/// Every request that failed.
pub(super) fn failures(summary: &Summary) -> Table {
    let rows = summary.cases.iter().flat_map(|case| {
        (case.errors.iter()).map(|error| [case.prompt.clone(), one_line(error, VALUE_CHARS)])
    });
    table(["prompt", "error"], rows)
}

/// How the run ended, its model, its link, its memory.
pub(super) fn run(record: &Record) -> Table {
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
    table(["", ""], rows)
}

/// Resident memory against what has to be in it.
fn memory_text(memory: Memory) -> Option<String> {
    let (loaded, peak) = memory.loaded_bytes.zip(memory.peak_bytes)?;
    let mib = |bytes: u64| significant(bytes as f64 / f64::from(1 << 20), 4);
    let needed = loaded.saturating_add(memory.cache_bytes).max(1);
    Some(format!(
        "{} MiB loaded, {} MiB of KV caches, {} MiB at most ({:.2} of both)",
        mib(loaded),
        mib(memory.cache_bytes),
        mib(peak),
        peak as f64 / needed as f64,
    ))
}

/// Both nodes' machines and builds.
pub(super) fn environment(record: &Record) -> Vec<Block> {
    let prefill = node(&record.environment.prefill);
    let Some(decode) = &record.environment.decode else {
        let rows = prefill.into_iter().map(|(name, a)| [name.to_owned(), a]);
        return vec![Block::Table(table(["", "node"], rows))];
    };
    let both = prefill.into_iter().zip(node(decode));
    let rows = both.map(|((name, a), (_, b))| [name.to_owned(), a, b]);
    let mut blocks = vec![Block::Table(table(
        ["", "prefill node", "decode node"],
        rows,
    ))];
    if record.environment.shared_machine() {
        blocks.push(Block::text("Both nodes share one machine."));
    }
    blocks
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
        Some(mbps) => format!("{} {} Gbit/s", i.name, mbps as f64 / 1e3),
        None => format!("{} of unknown speed", i.name),
    });
    let cores = match &processor.cores {
        Some(cores) => format!("{} ({cores})", processor.usable_cores),
        None => processor.usable_cores.to_string(),
    };
    let variables = environment.compute_variables.iter();
    let variables = variables.map(|(name, value)| format!("{name}={value}"));
    let mut computes = or_unknown(processor.model.clone());
    if let Some(device) = &environment.device {
        computes = format!("{computes}; computes on {device}");
    }
    vec![
        ("host", host.hostname.clone()),
        ("system", or_unknown(host.os.clone())),
        ("kernel", or_unknown(host.kernel.clone())),
        ("memory", or_unknown(host.memory_bytes.map(gib))),
        ("processor", computes),
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

pub(super) fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| "unknown".to_owned())
}

/// An argument as a shell takes it for one.
fn shell_word(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,=@%+".contains(c);
    match !argument.is_empty() && argument.chars().all(is_plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', "'\\''")),
    }
}

/// The command and the revision that made the run.
pub(super) fn stamp(record: &Record) -> Vec<Block> {
    let run = &record.run;
    let build = format!(
        "{} (revision {}, {} build)",
        run.tool_version, run.git_revision, run.profile
    );
    made_by(&build, &run.argv)
}

/// The command and the build that made a file.
pub(super) fn made_by(build: &str, argv: &[String]) -> Vec<Block> {
    let argv: Vec<String> = argv.iter().map(|a| shell_word(a)).collect();
    vec![
        Block::text(format!("Made by disagg-bench {build} with:")),
        Block::Code {
            text: argv.join(" "),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        for (argument, word) in [
            ("--out=a/b_1.json", "--out=a/b_1.json"),
            ("two words", "'two words'"),
            ("it's `x`", "'it'\\''s `x`'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(argument), word);
        }
    }
}
