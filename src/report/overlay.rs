//! Several runs in one report: a table of them, their figures under each other, and charts with a
//! series a run.

use std::path::Path;

use super::charts;
use super::definitions::DEFINITIONS;
use super::document::{Block, DOUBTS, Document, Item};
use super::number::{one_line, significant};
use super::table::{NONE, Table, numbers, words};
use super::tables::name;
use super::{provenance, scored};
use crate::compare::Comparison;
use crate::metrics::Record;
use crate::metrics::summary::{Summary, SummaryArm};
use crate::projection::{Links, ScoredRow, score};
use crate::stats::Figure;

/// Significant digits of the table's figures.
const DIGITS: usize = 4;

/// A run among others.
pub struct Named {
    /// What tells it from the others.
    pub label: String,
    /// The run.
    pub record: Record,
    /// Its figures.
    pub summary: Summary,
}

impl Named {
    /// Runs with the shortest names that tell their files apart.
    pub fn all(runs: Vec<(&Path, Record)>) -> Vec<Self> {
        let paths: Vec<&Path> = runs.iter().map(|(path, _)| *path).collect();
        let runs = labels(&paths).into_iter().zip(runs);
        runs.map(|(label, (_, record))| Self {
            label,
            summary: Summary::of(&record),
            record,
        })
        .collect()
    }
}

/// Of each path the parts between what all of them begin and end with; its number where that is
/// nothing, or another one's too.
fn labels(paths: &[&Path]) -> Vec<String> {
    let parts: Vec<Vec<String>> = (paths.iter())
        .map(|path| {
            let parts = path.components();
            parts
                .map(|c| c.as_os_str().to_string_lossy().into_owned())
                .collect()
        })
        .collect();
    let shortest = parts.iter().map(Vec::len).min().unwrap_or(0);
    let all_same = |of: &dyn Fn(&Vec<String>) -> String| {
        parts.windows(2).all(|pair| of(&pair[0]) == of(&pair[1]))
    };
    let front = (0..shortest)
        .take_while(|i| all_same(&|p| p[*i].clone()))
        .count();
    let back = (0..shortest - front)
        .take_while(|i| all_same(&|p| p[p.len() - 1 - i].clone()))
        .count();
    let own: Vec<String> = (parts.iter())
        .map(|p| one_line(&p[front..p.len() - back].join("/"), 32))
        .collect();
    let is_only = |label: &String| own.iter().filter(|other| *other == label).count() == 1;
    (own.iter().enumerate())
        .map(|(i, label)| match !label.is_empty() && is_only(label) {
            true => label.clone(),
            false => format!("run {}", i + 1),
        })
        .collect()
}

/// The report of several runs.
pub(super) fn document(runs: &[Named]) -> Document {
    let labels: Vec<&str> = runs.iter().map(|run| run.label.as_str()).collect();
    let mut document = Document {
        title: format!("{} runs: {}", runs.len(), labels.join(", ")),
        sections: Vec::new(),
        definitions: DEFINITIONS,
        stamp: (runs.iter())
            .flat_map(|run| {
                let label = Block::text(format!("{}:", run.label));
                [label].into_iter().chain(provenance::stamp(&run.record))
            })
            .collect(),
    };
    let findings = Block::List {
        items: runs.iter().map(finding).collect(),
    };
    let doubts = Block::List {
        items: doubts(runs),
    };
    let charts = charts::overlaid(runs).into_iter().map(Block::Chart);
    for (title, blocks) in [
        ("Findings", vec![findings]),
        (DOUBTS, vec![doubts]),
        ("Charts", charts.collect::<Vec<Block>>()),
        ("Figures", vec![Block::Table(figures(runs))]),
        ("Predicted against measured", predicted(runs)),
        ("Runs", vec![Block::Table(table(runs))]),
    ] {
        document.add(title, blocks);
    }
    document
}

/// The compute of a run over the link of another, as that one fitted it before its first request,
/// held against what the other measured. Nothing where they are unlike, which the doubts say.
pub(super) fn of_first(first: &Record, other: &Named) -> Vec<ScoredRow> {
    let links = Links::as_fitted(&other.record);
    let rows = links.map(|links| score(first, &links, None, &other.record, &other.label));
    rows.and_then(Result::ok).unwrap_or_default()
}

fn predicted(runs: &[Named]) -> Vec<Block> {
    let Some((first, others)) = runs.split_first() else {
        return Vec::new();
    };
    let rows: Vec<ScoredRow> = (others.iter())
        .flat_map(|other| of_first(&first.record, other))
        .collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let what = format!(
        "Exposed transfer, and what a split takes longer than one node until its second (TTST) and \
         its last token (E2E): the compute that {} measured, over the link as each other run fitted \
         it before its first request. Bar: exposed in bulk within 10%, a change within 10% or 1 ms; \
         scatter: beyond it, and the prediction lies within the 95% interval of paired differences.",
        first.label
    );
    vec![Block::text(what), Block::Table(scored::scores(&rows))]
}

fn finding(run: &Named) -> Item {
    let verdict = run.summary.verdict.clone();
    Item {
        lead: run.label.clone(),
        text: verdict.unwrap_or("nothing was measured".to_owned()),
    }
}

/// What keeps the runs from being held against the first one, and each run's own alarms.
fn doubts(runs: &[Named]) -> Vec<Item> {
    let Some((first, others)) = runs.split_first() else {
        return Vec::new();
    };
    let unlike = others.iter().flat_map(|other| {
        let said = match Comparison::between(&first.record, &other.record) {
            Ok(comparison) => comparison.warnings,
            Err(differences) => differences,
        };
        let lead = format!("{} against {}", other.label, first.label);
        said.into_iter().map(move |text| Item {
            lead: lead.clone(),
            text,
        })
    });
    let alarms = runs.iter().flat_map(|run| {
        run.summary.alarms.iter().map(|alarm| Item {
            lead: run.label.clone(),
            text: alarm.clone(),
        })
    });
    unlike.chain(alarms).collect()
}

fn table(runs: &[Named]) -> Table {
    let mut table = Table::new(
        [
            "run",
            "started",
            "command",
            "model",
            "prefill host",
            "decode host",
            "link",
            "revision",
            "outputs",
        ]
        .map(words),
    );
    for run in runs {
        let (record, environment) = (&run.record, &run.record.environment);
        let decode = environment.decode.as_ref();
        table.push([
            run.label.clone(),
            record.run.started_at.clone(),
            record.run.command.clone(),
            format!("{} ({})", record.model.name, record.model.weights),
            environment.prefill.host.hostname.clone(),
            decode.map_or(NONE.to_owned(), |d| d.host.hostname.clone()),
            link(record),
            record.run.git_revision.clone(),
            run.summary
                .outputs
                .map_or(NONE.to_owned(), |o| o.to_string()),
        ]);
    }
    table
}

fn link(record: &Record) -> String {
    let Some(link) = &record.link else {
        return NONE.to_owned();
    };
    let on = if link.loopback { "loopback" } else { "network" };
    let beta = link.fit.as_ref().and_then(|fit| fit.beta_gbps);
    let fitted = beta.map_or(String::new(), |gbps| {
        format!(", fitted {} Gbps", significant(gbps, 3))
    });
    format!("{} over {on}{fitted}", link.transport)
}

/// A row a run, prompt and arm; the same prompt of all runs together.
fn figures(runs: &[Named]) -> Table {
    let columns = [
        words("prompt"),
        numbers("tokens"),
        words("arm"),
        words("run"),
        numbers("n"),
        numbers("TTFT\nms"),
        numbers("TTST\nms"),
        numbers("E2E\nms"),
        numbers("E2E 95% interval\nms"),
        numbers("exposed\nms"),
        numbers("overhead\n% of E2E"),
        numbers("rate\nGbps"),
    ];
    let mut rows: Vec<(u32, String, String, usize, Vec<String>)> = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        for case in &run.summary.cases {
            for arm in &case.arms {
                let arm_name = name(case, arm, " ");
                let lead = [
                    case.prompt.clone(),
                    case.prompt_tokens.to_string(),
                    arm_name.clone(),
                    run.label.clone(),
                ];
                let row = lead.into_iter().chain(cells(arm)).collect();
                rows.push((case.prompt_tokens, case.prompt.clone(), arm_name, i, row));
            }
        }
    }
    rows.sort();
    let mut table = Table::new(columns);
    for (.., row) in rows {
        table.push(row);
    }
    table
}

fn cells(arm: &SummaryArm) -> [String; 8] {
    let number = |value: f64| significant(value, DIGITS);
    let median = |figure: Option<Figure>| figure.map_or(NONE.to_owned(), |f| number(f.median));
    let interval = arm.e2e_ms.and_then(|f| f.interval());
    [
        arm.e2e_ms.map_or(0, |f| f.n).to_string(),
        median(arm.ttft_ms),
        median(arm.ttst_ms),
        median(arm.e2e_ms),
        interval.map_or(NONE.to_owned(), |(low, high)| {
            format!("{} to {}", number(low), number(high))
        }),
        median(arm.exposed_transfer_ms),
        median(arm.transfer_overhead_pct),
        median(arm.effective_gbps),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{record, usual_case};

    #[test]
    fn runs_are_called_by_what_tells_them_apart() {
        let of = |paths: &[&str]| {
            let paths: Vec<&Path> = paths.iter().map(Path::new).collect();
            labels(&paths)
        };
        assert_eq!(of(&["b/1gbps/run", "b/10gbps/run"]), ["1gbps", "10gbps"]);
        assert_eq!(of(&["old.json", "new.json"]), ["old.json", "new.json"]);
        assert_eq!(of(&["a", "a"]), ["run 1", "run 2"]);
        assert_eq!(of(&["a/b/c", "a/c"]), ["b", "run 2"]);
    }

    #[test]
    fn all_runs_are_in_every_part() {
        let (one, mut other) = (record(vec![usual_case(128)]), record(vec![usual_case(128)]));
        other.run.git_revision = "ba9876543210".into();
        other.environment.prefill.build.git_revision = "ba9876543210".into();
        let runs = Named::all(vec![(Path::new("one"), one), (Path::new("other"), other)]);
        let document = document(&runs);
        assert_eq!(document.title, "2 runs: one, other");
        let text = super::super::markdown::written(&document);
        assert!(text.contains("- **one**: split is "), "{text}");
        assert!(
            text.contains("- **other against one**: another build"),
            "{text}"
        );
        let rows: Vec<&str> = text
            .lines()
            .filter(|l| l.starts_with("| 128 tokens | 128 |"))
            .collect();
        assert_eq!(rows.len(), 4, "{text}");
        assert!(rows[0].contains("| single | one |") && rows[1].contains("| single | other |"));
    }
}
