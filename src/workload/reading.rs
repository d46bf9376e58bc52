//! Prompt files: JSON lines, or one JSON array. What an object may be is `item`'s.
//!
//! What begins with `[` is an array, anything else has an object a line, blank lines skipped; one
//! object over several lines is a file of one prompt. Where plain text is accepted (prompts typed
//! or piped into stdin), a line that does not start with `{` is itself a prompt, and an array is
//! one only of objects. Everything is read before anything runs, so a bad last line costs no
//! measuring time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::item::read_item;
use super::{Place, Problem, PromptText, Turn, WorkloadError};

/// Longest line or item, in bytes: far above any context, far below memory.
pub const MAX_ITEM_BYTES: usize = 1 << 20;
/// Most bytes read from one source, line ends and blank lines included.
pub const MAX_SOURCE_BYTES: usize = 64 << 20;
/// Most prompts in one source: each becomes a case with samples in the record.
pub const MAX_PROMPTS: usize = 10_000;

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
        Ok(open) => read_prompts(open, &file, plain),
        Err(reason) => Err(WorkloadError::Read { file, reason }),
    }
}

/// Reads prompts up to the end of `input`; `file` names it in errors. A prompt without a name is
/// called after its place, `line-3` or `item-3`.
pub fn read_prompts(
    input: impl Read,
    file: &str,
    plain: PlainText,
) -> Result<Vec<PromptText>, WorkloadError> {
    let mut bytes = Vec::new();
    // One byte more shows that there is more.
    (input
        .take(MAX_SOURCE_BYTES as u64 + 1)
        .read_to_end(&mut bytes))
    .map_err(|reason| WorkloadError::Read {
        file: file.into(),
        reason,
    })?;
    // Some editors begin a file with a byte order mark.
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let mut set = Set::default();
    let read = match Form::of(bytes, plain) {
        Form::Array => read_array(bytes, &mut set),
        Form::Object(object) => {
            let value = serde_json::from_str(object).map_err(not_json);
            (value.and_then(|value| set.add(Place::Item(1), &value)))
                .map_err(|p| (Place::Item(1), p))
        }
        Form::Lines => read_lines(bytes, plain, &mut set),
    };
    read.map_err(|(place, problem)| WorkloadError::Content {
        file: file.into(),
        place,
        problem,
    })?;
    match set.prompts.is_empty() {
        true => Err(WorkloadError::NoPrompts { file: file.into() }),
        false => Ok(set.prompts),
    }
}

/// How a source is put together.
enum Form<'a> {
    Lines,
    Array,
    /// One object over several lines.
    Object(&'a str),
}

impl<'a> Form<'a> {
    fn of(bytes: &'a [u8], plain: PlainText) -> Self {
        let content = bytes.trim_ascii();
        let first_line = content.split(|b| *b == b'\n').next().unwrap_or(content);
        match content {
            [b'[', rest @ ..] => {
                let holds_objects = rest.trim_ascii_start().starts_with(b"{");
                match holds_objects || plain == PlainText::Refused {
                    true => Self::Array,
                    false => Self::Lines,
                }
            }
            [b'{', ..] if first_line.len() < content.len().min(MAX_ITEM_BYTES) => {
                // Lines that are objects of their own are JSON lines, whatever comes behind.
                let is_whole = serde_json::from_slice::<IgnoredAny>(first_line).is_ok();
                let one = std::str::from_utf8(content).ok().filter(|text| {
                    text.len() <= MAX_ITEM_BYTES && serde_json::from_str::<IgnoredAny>(text).is_ok()
                });
                one.filter(|_| !is_whole).map_or(Self::Lines, Self::Object)
            }
            _ => Self::Lines,
        }
    }
}

/// Prompts read so far.
#[derive(Default)]
struct Set {
    prompts: Vec<PromptText>,
    place_of_name: HashMap<String, Place>,
}

impl Set {
    fn add(&mut self, place: Place, value: &Value) -> Result<(), Problem> {
        self.push(place, read_item(value, place)?)
    }

    fn push(&mut self, place: Place, prompt: PromptText) -> Result<(), Problem> {
        if self.prompts.len() == MAX_PROMPTS {
            return Err(Problem::TooManyPrompts);
        }
        if let Some(first) = self.place_of_name.insert(prompt.name.clone(), place) {
            return Err(Problem::DuplicateName {
                name: prompt.name,
                first,
            });
        }
        self.prompts.push(prompt);
        Ok(())
    }
}

fn not_json(error: serde_json::Error) -> Problem {
    Problem::NotJson(error.to_string())
}

fn read_lines(bytes: &[u8], plain: PlainText, set: &mut Set) -> Result<(), (Place, Problem)> {
    let mut end = 0;
    for (line, bytes) in (1..).zip(bytes.split_inclusive(|b| *b == b'\n')) {
        let place = Place::Line(line);
        end += bytes.len();
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let problem = if bytes.len() > MAX_ITEM_BYTES {
            Some(Problem::TooLong)
        } else if end > MAX_SOURCE_BYTES {
            Some(Problem::SourceTooLong)
        } else {
            read_line(bytes, place, plain, set).err()
        };
        if let Some(problem) = problem {
            return Err((place, problem));
        }
    }
    Ok(())
}

fn read_line(bytes: &[u8], place: Place, plain: PlainText, set: &mut Set) -> Result<(), Problem> {
    let text = std::str::from_utf8(bytes).map_err(|_| Problem::NotUtf8)?;
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Ok(());
    }
    if plain == PlainText::Accepted && !trimmed.starts_with('{') {
        return set.push(
            place,
            PromptText {
                name: place.name(),
                turns: vec![Turn::of_user(text)],
                output_tokens: None,
            },
        );
    }
    let value = serde_json::from_str(trimmed).map_err(not_json)?;
    set.add(place, &value)
}

fn read_array(bytes: &[u8], set: &mut Set) -> Result<(), (Place, Problem)> {
    let line_at = |end: usize| {
        let before = &bytes[..end.min(bytes.len())];
        Place::Line(1 + before.iter().filter(|b| **b == b'\n').count())
    };
    if bytes.len() > MAX_SOURCE_BYTES {
        return Err((line_at(MAX_SOURCE_BYTES), Problem::SourceTooLong));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| (line_at(error.valid_up_to()), Problem::NotUtf8))?;
    let items = items(text).map_err(|(end, problem)| (line_at(end), problem))?;
    for (number, item) in (1..).zip(items) {
        let place = Place::Item(number);
        let read = match item.len() > MAX_ITEM_BYTES {
            true => Err(Problem::TooLong),
            false => (serde_json::from_str(item).map_err(not_json))
                .and_then(|value| set.add(place, &value)),
        };
        read.map_err(|problem| (place, problem))?;
    }
    Ok(())
}

/// The items of an array as text, whatever is in them, and no more than one too many; an error
/// comes with where it is.
fn items(array: &str) -> Result<Vec<&str>, (usize, Problem)> {
    let first = array.find('[').map_or(array.len(), |open| open + 1);
    let (mut depth, mut in_string, mut is_escaped, mut start) = (1, false, false, first);
    let mut items = Vec::new();
    for (at, byte) in array.bytes().enumerate().skip(first) {
        if in_string {
            in_string = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        let is_end = depth == 0;
        if is_end || (depth == 1 && byte == b',') {
            let item = array[start..at].trim();
            let is_empty_array = is_end && items.is_empty() && item.is_empty();
            items.extend((!is_empty_array).then_some(item));
            start = at + 1;
        }
        if is_end || items.len() > MAX_PROMPTS {
            let is_followed = is_end && !array[start..].trim().is_empty();
            return match is_followed || (is_end && byte == b'}') {
                true => Err((at, Problem::ArrayEnds)),
                false => Ok(items),
            };
        }
    }
    Err((array.len(), Problem::ArrayOpen))
}

#[cfg(test)]
mod tests;
