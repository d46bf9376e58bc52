//! What a running sequence suffers while another prompt is prefilled: a table under those of the
//! cases, and a section of the report.

use super::document::Block;
use super::number::{count, significant};
use super::prose::wrapped;
use super::table::{NONE, Table, numbers, words};
use crate::metrics::interference::{NodeCores, SummaryInterference};
use crate::metrics::summary::Summary;
use crate::stats::Figure;

/// Significant digits of times.
const DIGITS: usize = 4;

/// Title, table and notes, at most `width` columns wide; `None` where it was not measured.
pub(super) fn to_terminal(summary: &Summary, width: usize) -> Option<String> {
    let measured = summary.interference.as_ref()?;
    let table = table(measured).to_terminal();
    let lines = table.lines().map(String::from);
    let notes = notes(measured);
    let notes = notes.iter().flat_map(|note| wrapped(note, width));
    let title = wrapped(&title(measured), width);
    let all: Vec<String> = title.into_iter().chain(lines).chain(notes).collect();
    Some(all.join("\n"))
}

/// The same as a section; empty where it was not measured.
pub(super) fn section(summary: &Summary) -> Vec<Block> {
    let Some(measured) = &summary.interference else {
        return Vec::new();
    };
    let title = Block::text(format!("{}:", title(measured)));
    let blocks = [title, Block::Table(table(measured))].into_iter();
    let notes = notes(measured).into_iter().map(Block::text);
    blocks.chain(notes).collect()
}

fn title(measured: &SummaryInterference) -> String {
    let node = |name: &str, node: &NodeCores| {
        let cores = match &node.cores {
            Some(cores) => format!("cores {cores}"),
            None => "cores unknown".to_owned(),
        };
        format!(
            "{name} node on {cores} with {}",
            count(node.threads, "thread")
        )
    };
    let mut nodes = node("prefill", &measured.prefill_node);
    if let Some(decode) = &measured.decode_node {
        nodes += &format!(", {}", node("decode", decode));
    }
    format!(
        "A running sequence ({} prompt tokens) while a prompt of {} tokens is prefilled; {nodes}",
        measured.running_prompt_tokens, measured.newcomer_prompt_tokens,
    )
}

fn table(measured: &SummaryInterference) -> Table {
    let mut table = Table::new([
        words("arm"),
        numbers("undisturbed\nITL ms"),
        numbers("worst\nITL ms"),
        numbers("p95\nITL ms"),
        numbers("lost\nms"),
        numbers("newcomer's\nTTFT ms"),
    ]);
    for arm in &measured.arms {
        let median = |figure: Option<Figure>| or_none(figure.map(|f| f.median));
        table.push([
            arm.way(),
            median(arm.undisturbed_itl_ms),
            median(arm.worst_itl_ms),
            or_none(arm.p95_itl_ms),
            median(arm.lost_ms),
            median(arm.newcomer_ttft_ms),
        ]);
    }
    table
}

fn notes(measured: &SummaryInterference) -> Vec<String> {
    let samples = measured
        .arms
        .iter()
        .filter_map(|arm| Some(arm.worst_itl_ms?.n));
    let least = samples.min().unwrap_or(0);
    let mut notes = vec![format!(
        "medians of {} an arm; worst, p95 (over all samples; - below 20 gaps): gaps until the prompt has its first token and, split, its cache is in place; lost: by how much those tokens came later than undisturbed",
        count(least, "sample"),
    )];
    for arm in &measured.arms {
        if arm.cut_short > 0 {
            notes.push(format!(
                "{}: the running sequence ended before that in {}, which are in no figure: give a shorter prompt beside it",
                arm.way(),
                count(arm.cut_short, "sample"),
            ));
        }
        if arm.failed > 0 {
            notes.push(format!(
                "{}: {} failed",
                arm.way(),
                count(arm.failed, "sample")
            ));
        }
    }
    notes.extend(measured.same_tokens.map(|same| match same {
        true => "the running sequence has the same tokens in all of them".to_owned(),
        false => "THE RUNNING SEQUENCE HAS OTHER TOKENS in some of them".to_owned(),
    }));
    notes
}

fn or_none(value: Option<f64>) -> String {
    value.map_or(NONE.to_owned(), |value| significant(value, DIGITS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Arm;
    use crate::report::fixture::{interference, record, usual_case};

    #[test]
    fn the_arms_stand_under_each_other_with_the_cores_of_both_nodes() {
        let mut record = record(vec![usual_case(512)]);
        record.interference = Some(interference());
        record.environment.prefill.processor.cores = Some([0, 1].into_iter().collect());
        record.environment.decode.as_mut().unwrap().processor.cores = None;
        let summary = Summary::of(&record);
        let text = to_terminal(&summary, 80).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines.iter().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert_eq!(
            lines[..3].join(" "),
            "A running sequence (40 prompt tokens) while a prompt of 512 tokens is prefilled; \
             prefill node on cores 0-1 with 2 threads, decode node on cores unknown with 2 threads"
        );
        let rows: Vec<Vec<&str>> = lines[6..9]
            .iter()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|c| !c.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            rows[0],
            [
                "single, whole prompt",
                "10.00",
                "512.0",
                "-",
                "502.0",
                "512.0"
            ]
        );
        assert_eq!(rows[1][..3], ["single, chunks of 256", "10.00", "266.0"]);
        assert_eq!(
            rows[2],
            ["split", "10.00", "12.00", "12.00", "86.00", "510.0"]
        );
        assert!(text.contains("the same tokens in all"), "{text}");
        assert!(matches!(
            section(&summary).as_slice(),
            [Block::Text { .. }, Block::Table(_), Block::Text { .. }, ..]
        ));
    }

    #[test]
    fn what_was_not_measured_is_not_shown() {
        let summary = Summary::of(&record(vec![usual_case(512)]));
        assert!(to_terminal(&summary, 80).is_none() && section(&summary).is_empty());
    }

    #[test]
    fn what_went_wrong_is_said() {
        let mut record = record(vec![usual_case(512)]);
        let mut all = interference();
        let split = all.samples.iter_mut().filter(|s| s.arm == Arm::Split);
        for (i, sample) in split.enumerate() {
            match i {
                0 => (sample.moments, sample.error) = (None, Some("peer closed".into())),
                _ => sample.moments.as_mut().unwrap().token_ns.truncate(20),
            }
        }
        all.samples[1].moments.as_mut().unwrap().tokens[0] = 77;
        record.interference = Some(all);
        let text = to_terminal(&Summary::of(&record), 80)
            .unwrap()
            .replace('\n', " ");
        assert!(
            text.contains("split: the running sequence ended before"),
            "{text}"
        );
        assert!(text.contains("split: 1 sample failed"), "{text}");
        assert!(text.contains("OTHER TOKENS"), "{text}");
    }
}
