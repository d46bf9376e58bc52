//! Settings as people write them: the flag, its value with its unit, where it came from.

use std::collections::BTreeMap;

use serde_json::Value;
use tabled::builder::Builder;
use tabled::settings::Style;

use super::document::Block;
use super::number::one_line;
use super::prose::unpadded;
use super::table::{NONE, Table, words};
use crate::metrics::{Origin, Setting};

/// Characters of one value that are shown.
const VALUE_CHARS: usize = 200;

/// Units of the settings that have one: of one, and of any other number.
const UNITS: [(&str, [&str; 2]); 10] = [
    ("chunk_tokens", [" token", " tokens"]),
    ("ci_width", ["% of E2E"; 2]),
    ("output_tokens", [" token", " tokens"]),
    ("prompt_tokens", [" token", " tokens"]),
    ("repeats", [" request an arm", " requests an arm"]),
    ("retry_for", [" s"; 2]),
    ("streams", [" TCP connection", " TCP connections"]),
    ("threads", [" thread", " threads"]),
    ("time_budget", [" s"; 2]),
    ("warmup", [" request an arm", " requests an arm"]),
];

/// What somebody said, then what was left at its default, then what has no value at all.
pub(super) fn section(settings: &BTreeMap<String, Setting>) -> Vec<Block> {
    let (unset, with_value): (Vec<_>, Vec<_>) =
        (settings.iter()).partition(|(_, setting)| is_unset(setting));
    let (default, said): (Vec<_>, Vec<_>) =
        (with_value.into_iter()).partition(|(_, setting)| setting.origin == Origin::Default);
    let mut set = Table::new(["set for this run", "value", "by"].map(words));
    for (name, setting) in said {
        let origin = setting.origin.to_string();
        set.push([flag(name), shown(name, &setting.value), origin]);
    }
    let mut left = Table::new(["left at its default", "value"].map(words));
    for (name, setting) in default {
        left.push([flag(name), shown(name, &setting.value)]);
    }
    let unset: Vec<String> = unset.into_iter().map(|(name, _)| flag(name)).collect();
    let unset = match unset.is_empty() {
        true => String::new(),
        false => format!("Neither set nor with a default: {}.", unset.join(", ")),
    };
    vec![Block::Table(set), Block::Table(left), Block::text(unset)]
}

/// Every setting with its value and origin, for a terminal. Names are those of configuration files.
pub fn settings(settings: &BTreeMap<String, Setting>) -> String {
    let mut table = Builder::new();
    table.push_record(["setting", "value", "origin"]);
    for (name, setting) in settings {
        let value = with_unit(name, &setting.value);
        table.push_record([name.clone(), value, setting.origin.to_string()]);
    }
    unpadded(&table.build().with(Style::blank()).to_string())
}

/// Off is what a switch is when nobody touches it.
fn is_unset(setting: &Setting) -> bool {
    setting.origin == Origin::Default && matches!(setting.value, Value::Null | Value::Bool(false))
}

fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

fn shown(name: &str, value: &Value) -> String {
    one_line(&with_unit(name, value), VALUE_CHARS)
}

fn with_unit(name: &str, value: &Value) -> String {
    let text = plain(value);
    let unit = UNITS.iter().find(|(setting, _)| *setting == name);
    match unit {
        // `auto` has none.
        Some((_, [one, many])) if text.ends_with(|c: char| c.is_ascii_digit()) => {
            let unit = if text == "1" { one } else { many };
            format!("{text}{unit}")
        }
        _ => text,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => NONE.to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_settings() -> BTreeMap<String, Setting> {
        let all = [
            (
                "prompt_tokens",
                serde_json::json!(["128", "512"]),
                Origin::Flag,
            ),
            ("repeats", "auto".into(), Origin::Environment),
            ("warmup", "1".into(), Origin::Default),
            ("interference", true.into(), Origin::Flag),
            ("raw", false.into(), Origin::Default),
            ("peer", Value::Null, Origin::Default),
        ];
        let all = all.map(|(name, value, origin)| (name.to_owned(), Setting { value, origin }));
        all.into_iter().collect()
    }

    #[test]
    fn what_was_set_stands_apart_and_values_have_units() {
        let blocks = section(&some_settings());
        let [Block::Table(set), Block::Table(left), Block::Text { text }] = &blocks[..] else {
            panic!("{blocks:?}");
        };
        let set = set.to_markdown();
        for row in [
            "| --interference | yes | flag |",
            "| --prompt-tokens | 128, 512 tokens | flag |",
            "| --repeats | auto | environment |",
        ] {
            assert!(set.contains(row), "{set}");
        }
        let left = left.to_markdown();
        assert!(left.contains("| --warmup | 1 request an arm |"), "{left}");
        assert_eq!(text, "Neither set nor with a default: --peer, --raw.");
        assert!(!set.contains("warmup") && !left.contains("repeats"));
    }

    #[test]
    fn a_terminal_shows_every_setting() {
        let text = settings(&some_settings());
        assert_eq!(text.lines().count(), 7, "{text}");
        assert!(text.contains("128, 512 tokens"), "{text}");
    }
}
