//! The verdict's answers, in front of all tables.

use super::document::{Block, Item};
use super::number::significant;
use super::prose::wrapped;
use crate::metrics::summary::Summary;
use crate::verdict::{Answer, Answers, Basis};

/// Columns of the names in front of the answers.
const NAME_WIDTH: usize = 14;

/// Names and sentences.
fn lines(answers: &Answers) -> Vec<(&'static str, String)> {
    let answer = |name, answer: &Answer| {
        let basis = match answer.basis {
            Basis::Measured => " (measured)",
            Basis::Projected => " (projected)",
            Basis::NotMeasured => "",
        };
        (name, format!("{}{basis}", answer.text))
    };
    let mut lines = vec![
        answer("latency", &answers.latency),
        answer("interference", &answers.interference),
        answer("capacity", &answers.capacity),
        ("limited by", answers.limit_text.clone()),
    ];
    let length = answers.break_even_prompt_tokens.map(|tokens| {
        format!(
            "at about {} prompt tokens (between measured lengths)",
            significant(tokens, 2)
        )
    });
    let rate = answers.break_even_gbps.map(|gbps| {
        format!(
            "from {} Gbps of payload on in bulk at the longest prompt (projected)",
            significant(gbps, 2)
        )
    });
    let both: Vec<String> = length.into_iter().chain(rate).collect();
    if !both.is_empty() {
        lines.push(("breaks even", both.join("; ")));
    }
    let advice: Vec<&str> = answers.advice.iter().map(|a| a.text.as_str()).collect();
    if !advice.is_empty() {
        lines.push(("what to do", advice.join("; then ")));
    }
    lines
}

/// One answer a paragraph, its name in front; `None` where nothing was compared.
pub(super) fn to_terminal(summary: &Summary, width: usize) -> Option<String> {
    let lines = lines(summary.answers.as_ref()?);
    let rows = lines.iter().flat_map(|(name, text)| {
        let parts = wrapped(text, width - NAME_WIDTH);
        let rows = parts.into_iter().enumerate().map(|(i, part)| {
            let name = if i == 0 { name } else { "" };
            format!("{name:NAME_WIDTH$}{part}")
        });
        rows.collect::<Vec<_>>()
    });
    Some(rows.collect::<Vec<_>>().join("\n"))
}

/// The same as a list; empty where nothing was compared.
pub(super) fn block(summary: &Summary) -> Block {
    let lines = summary.answers.as_ref().map(lines).unwrap_or_default();
    let items = lines.into_iter().map(|(name, text)| Item {
        lead: name.to_owned(),
        text,
    });
    Block::List {
        items: items.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{interference, record, usual_case};

    #[test]
    fn answers_stand_in_front_with_their_basis() {
        let mut record = record(vec![usual_case(128), usual_case(512)]);
        record.interference = Some(interference());
        let summary = Summary::of(&record);
        let text = to_terminal(&summary, 80).unwrap();
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        let names: Vec<&str> = (text.lines())
            .filter(|line| !line.starts_with(' '))
            .map(|line| line[..NAME_WIDTH].trim())
            .collect();
        let wanted = [
            "latency",
            "interference",
            "capacity",
            "limited by",
            "what to do",
        ];
        assert_eq!(names, wanted, "{text}");
        let Block::List { items } = block(&summary) else {
            unreachable!("answers are a list");
        };
        let leads: Vec<&str> = items.iter().map(|item| item.lead.as_str()).collect();
        assert_eq!(leads, wanted);
    }

    #[test]
    fn without_both_arms_there_is_nothing_to_answer() {
        let summary = Summary::of(&record(vec![]));
        assert!(to_terminal(&summary, 80).is_none());
        assert!(matches!(block(&summary), Block::List { items } if items.is_empty()));
    }
}
