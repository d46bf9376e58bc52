//! Numbers as text for people. Files for programs keep them as they are.

/// A value with `digits` significant digits, and never more than three decimals.
pub fn significant(value: f64, digits: usize) -> String {
    // What is infinite has no end of digits.
    let before_point = ((value.abs().max(1.0).log10() + 1e-9).floor() as usize).saturating_add(1);
    let decimals = digits.saturating_sub(before_point).min(3);
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        // What rounds to zero has no sign.
        Some(rest) if rest.bytes().all(|b| matches!(b, b'0' | b'.')) => rest.to_owned(),
        _ => text,
    }
}

/// A small quantity of any size with two significant digits: `1.5`, `0.034`, `0.0021`, `4.2e-5`.
pub fn small(value: f64) -> String {
    let magnitude = value.abs().log10().floor();
    match magnitude {
        _ if value == 0.0 => "0".to_owned(),
        m if m < -3.0 => format!("{value:.1e}"),
        m => format!("{value:.0$}", (1.0 - m).max(0.0) as usize),
    }
}

/// `1 prompt`, `2 prompts`.
pub fn count(n: usize, noun: &str) -> String {
    match n {
        1 => format!("1 {noun}"),
        _ => format!("{n} {noun}s"),
    }
}

/// The first line of a text, without control characters and with at most `chars` characters.
pub fn one_line(text: &str, chars: usize) -> String {
    let line = text.trim().lines().next().unwrap_or_default().trim_end();
    let clean: String = line
        .chars()
        .map(|c| if is_drawable(c) { c } else { ' ' })
        .collect();
    if clean.chars().count() <= chars {
        return clean;
    }
    let kept: String = clean.chars().take(chars.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// Control characters upset terminals, and XML does not allow them.
fn is_drawable(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_significant() {
        for (value, digits, text) in [
            (0.5, 4, "0.500"),
            (9.8125, 4, "9.812"),
            (10.0, 4, "10.00"),
            (812.34, 4, "812.3"),
            (1000.0, 4, "1000"),
            (300_000.4, 4, "300000"),
            (20.96, 3, "21.0"),
            (-0.0001, 4, "0.000"),
            (-1.5, 3, "-1.50"),
            (0.0, 3, "0.00"),
            (f64::INFINITY, 3, "inf"),
        ] {
            assert_eq!(significant(value, digits), text, "{value}");
        }
    }

    #[test]
    fn counts_agree_with_their_noun() {
        assert_eq!(count(1, "prompt"), "1 prompt");
        assert_eq!(count(0, "prompt"), "0 prompts");
    }

    #[test]
    fn long_and_wild_texts_are_cut_to_a_line() {
        assert_eq!(one_line(" a\u{1b}[31m\nb", 20), "a [31m");
        assert_eq!(one_line("äöüäöü", 4), "äöü…");
        assert_eq!(one_line("", 4), "");
    }

    #[test]
    fn small_quantities_keep_two_digits() {
        for (value, text) in [
            (0.0, "0"),
            (1.53, "1.5"),
            (23.4, "23"),
            (0.0341, "0.034"),
            (0.00214, "0.0021"),
            (0.000_042_4, "4.2e-5"),
        ] {
            assert_eq!(small(value), text);
        }
    }
}
