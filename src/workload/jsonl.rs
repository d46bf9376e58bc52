//! Prompt files: one JSON object a line, `{"prompt": "...", "max_tokens": 50, "name": "..."}`.
//!
//! `max_tokens` and `name` are optional, null counts as absent, unknown keys are ignored, blank
//! lines are skipped. Where plain text is accepted (prompts typed or piped into stdin), a line
//! that does not start with `{` is itself a prompt. Everything is read before anything runs, so a
//! bad last line costs no measuring time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use super::{LineProblem, PromptText, WorkloadError};

/// Longest line, in bytes without its end: far above any context, far below memory.
pub const MAX_LINE_BYTES: usize = 1 << 20;
/// Most bytes read from one source, line ends and blank lines included.
pub const MAX_SOURCE_BYTES: usize = 64 << 20;
/// Most prompts in one source: each becomes a case with samples in the record.
pub const MAX_PROMPTS: usize = 10_000;
/// Largest `max_tokens`.
pub const MAX_OUTPUT_TOKENS: u32 = 1_000_000;
/// Longest `name`, so that tables stay readable.
pub const MAX_NAME_CHARS: usize = 64;

/// Whether a line that does not start with `{` is a prompt or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainText {
    /// It is a prompt.
    Accepted,
    /// It is an error.
    Refused,
}

/// Reads the prompts of the file at `path`, or of stdin where `path` is `-`.
pub fn read_path(path: &Path, plain: PlainText) -> Result<Vec<PromptText>, WorkloadError> {
    if path == Path::new("-") {
        return read_prompts(io::stdin().lock(), "stdin", plain);
    }
    let file = path.display().to_string();
    match File::open(path) {
        Ok(open) => read_prompts(BufReader::new(open), &file, plain),
        Err(reason) => Err(WorkloadError::Read { file, reason }),
    }
}

/// Reads prompts up to the end of `input`; `file` names it in errors. A prompt without a name is
/// called after its line, `line-3`.
pub fn read_prompts(
    mut input: impl BufRead,
    file: &str,
    plain: PlainText,
) -> Result<Vec<PromptText>, WorkloadError> {
    let mut prompts = Vec::new();
    let mut line_of_name = HashMap::new();
    let mut read_bytes = 0;
    let mut bytes = Vec::new();
    for line in 1.. {
        let at = |problem| WorkloadError::Line {
            file: file.into(),
            line,
            problem,
        };
        bytes.clear();
        // Room for a line end of two bytes; a longer line shows as one byte above the limit.
        let n = (&mut input)
            .take(MAX_LINE_BYTES as u64 + 2)
            .read_until(b'\n', &mut bytes)
            .map_err(|reason| WorkloadError::Read {
                file: file.into(),
                reason,
            })?;
        if n == 0 {
            break;
        }
        read_bytes += n;
        if read_bytes > MAX_SOURCE_BYTES {
            return Err(at(LineProblem::SourceTooLong));
        }
        let Some(prompt) = parse_line(&bytes, line, plain).map_err(at)? else {
            continue;
        };
        if prompts.len() == MAX_PROMPTS {
            return Err(at(LineProblem::TooManyPrompts));
        }
        if let Some(first_line) = line_of_name.insert(prompt.name.clone(), line) {
            return Err(at(LineProblem::DuplicateName {
                name: prompt.name,
                first_line,
            }));
        }
        prompts.push(prompt);
    }
    match prompts.is_empty() {
        true => Err(WorkloadError::NoPrompts { file: file.into() }),
        false => Ok(prompts),
    }
}

/// The prompt on a line; `None` for a blank one.
fn parse_line(
    bytes: &[u8],
    line: usize,
    plain: PlainText,
) -> Result<Option<PromptText>, LineProblem> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    if bytes.len() > MAX_LINE_BYTES {
        return Err(LineProblem::LineTooLong);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| LineProblem::NotUtf8)?;
    // Some editors begin a file with a byte order mark.
    let text = if line == 1 {
        text.trim_start_matches('\u{feff}')
    } else {
        text
    };
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Ok(None);
    }
    let name = format!("line-{line}");
    if plain == PlainText::Accepted && !trimmed.starts_with('{') {
        return Ok(Some(PromptText {
            name,
            text: text.into(),
            output_tokens: None,
        }));
    }
    let value = serde_json::from_str(trimmed).map_err(|e| LineProblem::NotJson(e.to_string()))?;
    let Value::Object(object) = value else {
        return Err(LineProblem::NotAnObject(type_of(&value)));
    };
    let present = |key| object.get(key).filter(|value| !value.is_null());
    let text = match present("prompt") {
        Some(Value::String(text)) if text.trim().is_empty() => Err(LineProblem::BlankPrompt),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(wrong_type("prompt", other, "a string")),
        None => Err(LineProblem::NoPrompt),
    }?;
    Ok(Some(PromptText {
        name: present("name").map_or(Ok(name), read_name)?,
        text,
        output_tokens: present("max_tokens").map(read_max_tokens).transpose()?,
    }))
}

fn read_name(value: &Value) -> Result<String, LineProblem> {
    let Value::String(name) = value else {
        return Err(wrong_type("name", value, "a string"));
    };
    let usable = !name.trim().is_empty()
        && name.chars().count() <= MAX_NAME_CHARS
        && !name.contains(char::is_control);
    usable.then(|| name.clone()).ok_or(LineProblem::BadName)
}

fn read_max_tokens(value: &Value) -> Result<u32, LineProblem> {
    let Value::Number(number) = value else {
        return Err(wrong_type("max_tokens", value, "a number"));
    };
    (number.as_u64().and_then(|n| u32::try_from(n).ok()))
        .filter(|n| (1..=MAX_OUTPUT_TOKENS).contains(n))
        .ok_or_else(|| LineProblem::BadMaxTokens(number.to_string()))
}

fn wrong_type(key: &'static str, value: &Value, wanted: &'static str) -> LineProblem {
    LineProblem::WrongType {
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

#[cfg(test)]
mod tests;
