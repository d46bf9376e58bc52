//! A table as data, and how it is written down for a terminal and in Markdown; `page.html` writes
//! it for a browser.

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::formatting::AlignmentStrategy;
use tabled::settings::object::{Columns, Rows};
use tabled::settings::style::HorizontalLine;
use tabled::settings::{Alignment, Modify, Padding, Style};

use super::number::one_line;
use super::prose::unpadded;

/// Stands for what is not defined, such as the transfer of the single arm.
pub(super) const NONE: &str = "-";

/// Characters of a cell that are shown.
const CELL_CHARS: usize = 200;

/// Rows under named columns. Cells are plain text; who writes them down escapes them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// A column of a table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Column {
    /// Name, and behind a line break its unit.
    head: String,
    /// Numbers stand to the right.
    is_number: bool,
}

/// A column of words.
pub(super) fn words(head: impl Into<String>) -> Column {
    Column {
        head: head.into(),
        is_number: false,
    }
}

/// A column of numbers.
pub(super) fn numbers(head: impl Into<String>) -> Column {
    Column {
        head: head.into(),
        is_number: true,
    }
}

impl Table {
    /// Without rows.
    pub(super) fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self {
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has a cell a column.
    pub(super) fn push<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let cells = cells.into_iter().map(Into::into).collect();
        self.rows.push(cells);
    }

    /// Whether it has no row.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// As Markdown, one line a row.
    pub(super) fn to_markdown(&self) -> String {
        let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let heads = self.columns.iter().map(|c| cell(&c.head));
        let rule = self.columns.iter().map(|c| match c.is_number {
            true => "---:",
            false => "---",
        });
        let mut text = row(heads.collect());
        text += &row(rule.map(String::from).collect());
        for cells in &self.rows {
            text += &row(cells.iter().map(|c| cell(c)).collect());
        }
        text
    }

    /// For a terminal: aligned, without lines but one under the heads.
    pub(super) fn to_terminal(&self) -> String {
        let mut builder = Builder::default();
        builder.push_record(self.columns.iter().map(|c| c.head.clone()));
        for cells in &self.rows {
            builder.push_record(cells.iter().cloned());
        }
        let mut table = builder.build();
        table
            .with(Style::empty().horizontals([(1, HorizontalLine::new('─'))]))
            .with(Padding::new(0, 2, 0, 0))
            .with(AlignmentStrategy::PerLine)
            .with(Modify::new(Rows::first()).with(Alignment::bottom()));
        for (i, column) in self.columns.iter().enumerate() {
            let alignment = match column.is_number {
                true => Alignment::right(),
                false => Alignment::left(),
            };
            table.with(Modify::new(Columns::one(i)).with(alignment));
        }
        unpadded(&table.to_string())
    }
}

/// Text that may stand in a cell of a Markdown table.
pub(crate) fn cell(text: &str) -> String {
    let text = text.replace('\n', " ");
    escaped(&one_line(&text, CELL_CHARS)).replace('|', "\\|")
}

/// Stands between two characters that would mean something together, and is not seen.
const APART: &str = "<!-- -->";

/// Text on one line that Markdown takes for no HTML, emphasis, link or picture, and that mentions
/// nobody and nothing on GitHub. What stands between backticks is code and stays as it is.
pub(crate) fn escaped(text: &str) -> String {
    let text = text.replace(['\n', '\r'], " ");
    let parts: Vec<&str> = text.split('`').collect();
    if parts.len().is_multiple_of(2) {
        // A lone backtick begins no code.
        return escaped_prose(&text).replace('`', "\\`");
    }
    let written = parts.iter().enumerate().map(|(i, part)| match i % 2 {
        0 => escaped_prose(part),
        _ => format!("`{part}`"),
    });
    written.collect()
}

fn escaped_prose(text: &str) -> String {
    let mut written = String::new();
    for (i, c) in text.char_indices() {
        let rest = &text[i..];
        match c {
            '\\' | '<' | '*' => written.extend(['\\', c]),
            '_' | '~' if is_at_edge(text, i) => written.extend(['\\', c]),
            ']' if rest.starts_with("](") => written.extend(['\\', c]),
            // GitHub looks for these behind what Markdown made of the text, so a backslash is too
            // early.
            '@' | '#' => {
                written.push(c);
                written += APART;
            }
            ':' if rest.starts_with("://") => {
                written.push(c);
                written += APART;
            }
            '.' if text[..i].to_ascii_lowercase().ends_with("www") => {
                written += APART;
                written.push(c);
            }
            _ => written.push(c),
        }
    }
    written
}

/// Whether a character may begin or end emphasis: neither inside a word nor alone.
fn is_at_edge(text: &str, at: usize) -> bool {
    let before = text[..at].chars().next_back().unwrap_or(' ');
    let after = text[at..].chars().nth(1).unwrap_or(' ');
    let both = |is: fn(char) -> bool| is(before) && is(after);
    !both(char::is_alphanumeric) && !both(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([words("arm"), numbers("E2E\nms"), words("check")]);
        table.push(["a | b\\ <c>", "9.8", "identical"]);
        table.push(["single", "1024", NONE]);
        table
    }

    #[test]
    fn markdown_escapes_what_would_be_markup() {
        let wanted = "| arm | E2E ms | check |\n| --- | ---: | --- |\n\
                      | a \\| b\\\\ \\<c> | 9.8 | identical |\n| single | 1024 | - |\n";
        assert_eq!(table().to_markdown(), wanted);
        for (text, wanted) in [
            (
                "![i](http://x)\n# y",
                r"![i\](http:<!-- -->//x) #<!-- --> y",
            ),
            (
                "thanks @octocat for #12",
                "thanks @<!-- -->octocat for #<!-- -->12",
            ),
            ("see www.example.org", "see www<!-- -->.example.org"),
            ("a *b* _c_ run_id <b>", r"a \*b\* \_c\_ run_id \<b>"),
            ("`split @x <b>` and @y", "`split @x <b>` and @<!-- -->y"),
            ("a lone ` and <", r"a lone \` and \<"),
            ("~ +0.4% [+0.1, +0.8]", "~ +0.4% [+0.1, +0.8]"),
        ] {
            assert_eq!(escaped(text), wanted);
        }
    }

    #[test]
    fn numbers_stand_to_the_right_and_units_under_names() {
        let text = table().to_terminal();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].trim(), "E2E");
        assert_eq!(lines[1], "arm           ms  check");
        assert_eq!(lines[3], "a | b\\ <c>   9.8  identical");
        assert_eq!(lines[4], "single      1024  -");
    }
}
