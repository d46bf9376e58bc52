//! One object of a prompt file, in one of three shapes:
//!
//! - `{"prompt": "..."}`;
//! - OpenAI's `{"messages": [{"role": "user", "content": "..."}]}`: the conversation up to the last
//!   turn of the user, content as text or as parts of text;
//! - ShareGPT's `{"conversations": [{"from": "human", "value": "..."}]}`: up to the first turn of
//!   the user, as other benchmarks take it.
//!
//! Beside any of them `max_tokens` (`max_completion_tokens`) and `name`, else a usable `id`; null
//! counts as absent, and unknown keys are ignored, answers in the file among them.

use serde_json::{Map, Value};

use super::{Place, Problem, PromptText, Role, Turn};

/// Largest `max_tokens`.
pub const MAX_OUTPUT_TOKENS: u32 = 1_000_000;
/// Longest `name`, so that tables stay readable.
pub const MAX_NAME_CHARS: usize = 64;

/// Characters of a role that are quoted.
const QUOTED_CHARS: usize = 40;

/// Reads an object; `place` names a prompt without a name.
pub(super) fn read_item(value: &Value, place: Place) -> Result<PromptText, Problem> {
    let Value::Object(object) = value else {
        return Err(Problem::NotAnObject(type_of(value)));
    };
    let present = |key| present(object, key);
    let turns = match (
        present("prompt"),
        present("messages"),
        present("conversations"),
    ) {
        (Some(prompt), ..) => vec![Turn::of_user(text("prompt", prompt)?)],
        (None, Some(messages), _) => {
            let mut turns = read_turns("messages", messages)?;
            let last = turns.iter().rposition(|turn| turn.role == Role::User);
            turns.truncate(last.map_or(0, |last| last + 1));
            turns
        }
        (None, None, Some(conversation)) => {
            let mut turns = read_turns("conversations", conversation)?;
            let first = turns.iter().position(|turn| turn.role == Role::User);
            turns.truncate(first.map_or(0, |first| first + 1));
            turns
        }
        (None, None, None) => return Err(Problem::NoPrompt),
    };
    let Some(last) = turns.last() else {
        return Err(Problem::NoUser);
    };
    if last.text.trim().is_empty() {
        return Err(Problem::BlankPrompt);
    }
    let id = present("id")
        .and_then(Value::as_str)
        .filter(|id| is_usable(id));
    let name = match present("name") {
        Some(name) => read_name(name)?,
        None => id.map_or_else(|| place.name(), str::to_owned),
    };
    let max_tokens = ["max_tokens", "max_completion_tokens"]
        .into_iter()
        .find_map(|key| Some((key, present(key)?)));
    Ok(PromptText {
        name,
        turns,
        output_tokens: max_tokens
            .map(|(key, value)| read_max_tokens(key, value))
            .transpose()?,
    })
}

fn present<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

fn text<'a>(key: &'static str, value: &'a Value) -> Result<&'a str, Problem> {
    (value.as_str()).ok_or_else(|| wrong_type(key, value, "a string"))
}

fn read_turns(key: &'static str, value: &Value) -> Result<Vec<Turn>, Problem> {
    let Value::Array(turns) = value else {
        return Err(wrong_type(key, value, "an array of turns"));
    };
    let read = |(number, turn)| {
        read_turn(turn).map_err(|problem| Problem::Turn {
            number,
            problem: Box::new(problem),
        })
    };
    (1..).zip(turns).map(read).collect()
}

/// A turn in OpenAI's words or in ShareGPT's.
fn read_turn(value: &Value) -> Result<Turn, Problem> {
    let Value::Object(turn) = value else {
        return Err(wrong_type("turn", value, "an object"));
    };
    let either = |keys: [&'static str; 2]| {
        let found = keys
            .into_iter()
            .find_map(|key| Some((key, present(turn, key)?)));
        found.ok_or(Problem::NoKey(keys))
    };
    let (key, role) = either(["role", "from"])?;
    let role = match text(key, role)? {
        "system" | "developer" => Role::System,
        "user" | "human" => Role::User,
        "assistant" | "gpt" | "chatgpt" | "bing" | "bard" => Role::Assistant,
        other => return Err(Problem::BadRole(other.chars().take(QUOTED_CHARS).collect())),
    };
    let (key, content) = either(["content", "value"])?;
    let text = match content {
        Value::Array(parts) => parts.iter().map(read_part).collect::<Result<String, _>>()?,
        content => text(key, content)?.to_owned(),
    };
    Ok(Turn { role, text })
}

/// A part of a content.
fn read_part(part: &Value) -> Result<&str, Problem> {
    let kind = part.get("type").and_then(Value::as_str);
    match (kind, part.get("text")) {
        (Some("text" | "input_text"), Some(Value::String(text))) => Ok(text),
        _ => Err(Problem::NotText),
    }
}

fn is_usable(name: &str) -> bool {
    !name.trim().is_empty()
        && name.chars().count() <= MAX_NAME_CHARS
        && !name.contains(char::is_control)
}

fn read_name(value: &Value) -> Result<String, Problem> {
    let name = text("name", value)?;
    (is_usable(name).then(|| name.to_owned())).ok_or(Problem::BadName)
}

fn read_max_tokens(key: &'static str, value: &Value) -> Result<u32, Problem> {
    let Value::Number(number) = value else {
        return Err(wrong_type(key, value, "a number"));
    };
    (number.as_u64().and_then(|n| u32::try_from(n).ok()))
        .filter(|n| (1..=MAX_OUTPUT_TOKENS).contains(n))
        .ok_or_else(|| Problem::BadMaxTokens(number.to_string()))
}

fn wrong_type(key: &'static str, value: &Value, wanted: &'static str) -> Problem {
    Problem::WrongType {
        key,
        got: type_of(value),
        wanted,
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
