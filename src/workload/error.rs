//! Why a prompt set could not be made.

use std::error::Error;
use std::io;

use super::jsonl::{
    MAX_LINE_BYTES, MAX_NAME_CHARS, MAX_OUTPUT_TOKENS, MAX_PROMPTS, MAX_SOURCE_BYTES,
};

/// Why a prompt set could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The file could not be opened or read.
    #[error(
        "cannot read prompts from {file}: {reason}: \
         wanted a JSONL file with lines like {{\"prompt\": \"...\"}}, or - for stdin"
    )]
    Read {
        /// Path, or `stdin`.
        file: String,
        /// What the system said.
        reason: io::Error,
    },
    /// A line is not a prompt.
    #[error("{file}: line {line}: {problem}")]
    Line {
        /// Path, or `stdin`.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it, and what was wanted.
        problem: LineProblem,
    },
    /// Nothing but blank lines.
    #[error("{file} holds no prompts: wanted at least one line like {{\"prompt\": \"...\"}}")]
    NoPrompts {
        /// Path, or `stdin`.
        file: String,
    },
    /// A `--prompt` without text.
    #[error("--prompt number {position} is blank: give it a text or leave it out")]
    BlankFlag {
        /// Counted from 1.
        position: usize,
    },
    /// The chat template refused the text of the named prompt.
    #[error("the chat template failed on prompt {0}")]
    ChatTemplate(String, #[source] Box<dyn Error + Send + Sync>),
    /// The tokenizer refused the named prompt.
    #[error("the tokenizer failed on prompt {0}")]
    Encode(String, #[source] Box<dyn Error + Send + Sync>),
    /// The tokenizer made nothing of the named prompt.
    #[error(
        "the tokenizer gives no tokens for prompt {0}: wanted at least one, check the model file"
    )]
    NoTokens(String),
}

/// What is wrong with a line of a prompt file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// Bytes that are no text.
    #[error("not UTF-8: save the file as UTF-8")]
    NotUtf8,
    /// More than [`MAX_LINE_BYTES`].
    #[error("longer than {MAX_LINE_BYTES} bytes: wanted one prompt a line, shorten or split it")]
    LineTooLong,
    /// The source as a whole holds more than [`MAX_SOURCE_BYTES`].
    #[error("more than {MAX_SOURCE_BYTES} bytes up to here: split the file over several runs")]
    SourceTooLong,
    /// More than [`MAX_PROMPTS`].
    #[error("more than {MAX_PROMPTS} prompts: split the file over several runs")]
    TooManyPrompts,
    /// Broken JSON; the parser's words.
    #[error("not valid JSON ({0}): wanted one object a line, like {{\"prompt\": \"...\"}}")]
    NotJson(String),
    /// JSON, but not an object.
    #[error("got {0}: wanted an object like {{\"prompt\": \"...\", \"max_tokens\": 50}}")]
    NotAnObject(&'static str),
    /// No key `prompt`.
    #[error("no \"prompt\": wanted an object like {{\"prompt\": \"...\", \"max_tokens\": 50}}")]
    NoPrompt,
    /// A key whose value is of another type.
    #[error("\"{key}\" is {got}: wanted {wanted}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// Type of its value.
        got: &'static str,
        /// Type it should have.
        wanted: &'static str,
    },
    /// White space alone.
    #[error("\"prompt\" is blank: give it a text or remove the line")]
    BlankPrompt,
    /// Zero, negative, fractional or too large.
    #[error("\"max_tokens\" is {0}: wanted a whole number from 1 to {MAX_OUTPUT_TOKENS}")]
    BadMaxTokens(String),
    /// Blank, too long or with control characters.
    #[error(
        "\"name\" is not usable: wanted 1 to {MAX_NAME_CHARS} characters, none of them a control"
    )]
    BadName,
    /// The name of another prompt of the set.
    #[error("the name {name:?} is taken by line {first_line}: give each prompt a name of its own")]
    DuplicateName {
        /// The name.
        name: String,
        /// Line that has it first.
        first_line: usize,
    },
}
