use super::*;
use crate::metrics::Node;
use crate::report::fixture::{failed, record, usual_case};

fn summary(tokens: &[u32]) -> Summary {
    Summary::of(&record(tokens.iter().map(|&t| usual_case(t)).collect()))
}

fn widest(text: &str) -> usize {
    text.lines().map(|l| l.chars().count()).max().unwrap()
}

#[test]
fn the_table_of_a_usual_run() {
    let table = comparison_table(&summary(&[128, 2048]), 80);
    println!("{table}");
    assert!(widest(&table) <= 80, "{table}");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        [
            "prompt", "TTFT", "TTST", "TPOT", "E2E", "exposed", "overhead", "rate", "±", "%"
        ]
    );
    assert_eq!(
        rows[1],
        [
            "tokens", "arm", "ms", "ms", "ms", "ms", "ms", "%", "of", "E2E", "Gbps", "E2E"
        ]
    );
    assert_eq!(
        rows[3],
        [
            "128", "single", "128.0", "148.0", "20.00", "1108", "-", "-", "-", "0.2"
        ]
    );
    assert_eq!(
        rows[4],
        [
            "split", "128.0", "150.8", "20.06", "1111", "2.359", "0.212", "10.00", "0.2"
        ]
    );
    // Only the second token is later by more than the samples are apart.
    assert_eq!(rows[5], ["ratio", "~", "1.02x", "~", "~"]);
    assert!(table.contains("medians of 5 samples an arm"), "{table}");
    assert!(
        table.contains("check: outputs identical (2 of 2 prompts compared)"),
        "{table}"
    );
}

#[test]
fn columns_go_when_the_terminal_is_narrow() {
    let narrow = comparison_table(&summary(&[128]), 50);
    assert!(widest(&narrow) <= 50, "{narrow}");
    assert!(
        narrow.contains("E2E") && narrow.contains("overhead"),
        "{narrow}"
    );
    assert!(!narrow.contains("TPOT"), "{narrow}");
    let wide = comparison_table(&summary(&[128]), 80).replace('\n', " ");
    assert!(wide.contains("TPOT of a split holds exposed"), "{wide}");
}

#[test]
fn extreme_values_fit() {
    let mut long = usual_case(131_072);
    for event in long.samples.iter_mut().flat_map(|s| &mut s.events) {
        event.t_ns *= 7;
    }
    let table = comparison_table(&Summary::of(&record(vec![usual_case(1), long])), 80);
    println!("{table}");
    assert!(widest(&table) <= 80, "{table}");
    assert!(table.contains("924364"), "{table}");
}

#[test]
fn failed_cases_are_rows() {
    let mut case = usual_case(512);
    case.samples = vec![
        failed(Arm::Split, "peer closed\nmore"),
        failed(Arm::Split, "x"),
    ];
    case.check = None;
    let summary = Summary::of(&record(vec![case]));
    let table = comparison_table(&summary, 80);
    println!("{table}");
    assert!(table.contains("512  failed"), "{table}");
    assert!(table.contains("failed: 2 requests of prompt 512 tokens (512 tokens): peer closed\n"));
    assert!(table.contains("no request was measured"));
    assert!(!table.contains("check:"));
    assert!(
        figures_table(&summary)
            .to_markdown()
            .contains("| failed | 0 |")
    );
}

#[test]
fn two_ways_of_an_arm_are_told_apart() {
    let mut case = usual_case(512);
    let mut elsewhere = case.samples.clone();
    elsewhere.retain(|s| s.arm == Arm::Single);
    for sample in &mut elsewhere {
        sample.node = Node::Decode;
    }
    case.samples.extend(elsewhere);
    let summary = Summary::of(&record(vec![case]));
    let table = comparison_table(&summary, 80);
    assert!(
        table.contains("@prefill") && table.contains("@decode"),
        "{table}"
    );
    assert!(!table.contains("ratio"), "{table}");
    assert!(widest(&table) <= 80, "{table}");
    assert!(
        figures_table(&summary)
            .to_markdown()
            .contains("single @<!-- -->decode")
    );
}

#[test]
fn markdown_keeps_its_columns() {
    let mut case = usual_case(512);
    case.prompt = "a | b\\".into();
    let table = figures_table(&Summary::of(&record(vec![case]))).to_markdown();
    println!("{table}");
    assert!(table.contains(r"| a \| b\\ "), "{table}");
    let bars = |l: &str| l.replace(r"\|", "").matches('|').count();
    let rows: Vec<usize> = table.lines().take(4).map(bars).collect();
    assert_eq!(rows, [15; 4], "{table}");
    assert!(table.contains("| identical |"), "{table}");
}

#[test]
fn the_pipeline_summary_names_every_denominator() {
    let summary = summary(&[1000]);
    let arm = summary.cases[0].arm(Arm::Split).unwrap();
    let text = pipeline_summary(&summary.cases[0], arm);
    println!("{text}");
    assert!(widest(&text) <= 80, "{text}");
    let value = |label: &str| {
        let line = text.lines().find(|l| l.starts_with(label)).unwrap();
        line[label.len()..]
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(value("KV cache"), "23.04");
    assert_eq!(value("Transfer time (wire busy)"), "18.43");
    // 23.04 MB in 18.43 ms; the notebook would have printed 10,000.
    assert_eq!(value("Effective bandwidth"), "10.00");
    for denominator in ["0.92 % of E2E", "1.81 % of prefill + wire busy"] {
        assert!(text.contains(denominator), "{text}");
    }
}
