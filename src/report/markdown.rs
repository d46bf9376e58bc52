//! `report.md`: a report in Markdown, the finding first.

use super::document::{Block, Document, Item};
use super::strip;
use super::table::escaped;

/// Writes a report down; its charts lie beside it.
pub(super) fn written(document: &Document) -> String {
    let mut text = format!("# {}\n\n", escaped(&document.title));
    for section in &document.sections {
        text += &format!("## {}\n\n{}", section.title, blocks(&section.blocks));
    }
    let text = text + &blocks(&document.stamp);
    text.trim_end().to_owned() + "\n"
}

fn blocks(blocks: &[Block]) -> String {
    let texts = blocks.iter().map(|block| block_text(block) + "\n");
    texts.collect()
}

fn block_text(block: &Block) -> String {
    match block {
        Block::Text { text } => escaped(text) + "\n",
        Block::List { items } => items.iter().map(item_text).collect(),
        Block::Strip { figures } => strip::table(figures).to_markdown(),
        Block::Table(table) => table.to_markdown(),
        Block::Chart(chart) => format!(
            "![{}]({})\n\n{}\n",
            escaped(&chart.title),
            chart.file,
            escaped(&chart.caption)
        ),
        Block::Code { text } => {
            // A fence is longer than any that the text has.
            let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
            let fence = "`".repeat(longest.max(2) + 1);
            format!("{fence}\n{text}\n{fence}\n")
        }
    }
}

fn item_text(item: &Item) -> String {
    let (lead, text) = (escaped(&item.lead), escaped(&item.text));
    match (lead.is_empty(), text.is_empty()) {
        (true, _) => format!("- {text}\n"),
        (false, true) => format!("- **{lead}**\n"),
        (false, false) => format!("- **{lead}**: {text}\n"),
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::{Arm, Record};
    use crate::report::fixture::{failed, record, usual_case};

    fn text(record: &Record) -> String {
        crate::report::to_markdown(record)
    }

    #[test]
    fn the_finding_is_the_first_line_and_the_command_the_last() {
        let text = text(&record(vec![usual_case(512)]));
        assert!(text.starts_with("# split is "), "{text}");
        assert!(
            text.contains("| 512 tokens | every byte | identical | identical |  |"),
            "{text}"
        );
        assert!(text.contains("| --seed | 7 |"), "{text}");
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
            !text.contains("figures doubtful") && !text.contains("Failed requests"),
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
