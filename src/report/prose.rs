//! Prose in lines that a terminal holds.

/// Columns that tables keep to, and prose is broken to.
pub const WIDTH: usize = 80;

/// A table's lines without the blanks that fill its last column, which a terminal would wrap.
pub fn unpadded(table: &str) -> String {
    let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// Breaks a text between words into lines of at most `width` characters; longer words stay whole.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Breaks long lines of prose between words. Rows of tables and indented lines, such as a command to
/// be copied, stay as they are.
pub fn folded(text: &str) -> String {
    let is_prose = |line: &str| !line.starts_with(' ') && !line.contains("  ");
    let lines =
        text.lines().flat_map(
            |line| match line.chars().count() > WIDTH && is_prose(line) {
                true => wrapped(line, WIDTH),
                false => vec![line.to_owned()],
            },
        );
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_folded_and_tables_and_commands_are_not() {
        let prose = "word ".repeat(40);
        let row = format!("{}  1.0", "cell".repeat(25));
        let command = format!("  unzip {}", "x y ".repeat(30));
        let text = folded(&[prose.trim(), "", &row, &command].join("\n"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(lines[..3].iter().all(|line| line.len() <= WIDTH), "{text}");
        assert_eq!(lines[..3].join(" "), prose.trim());
        assert_eq!(lines[3..], ["", &row, command.as_str()]);
    }
}
