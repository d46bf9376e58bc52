//! Why a prompt set could not be made.

use std::error::Error;
use std::fmt;
use std::io;

use super::item::{MAX_NAME_CHARS, MAX_OUTPUT_TOKENS};
use super::reading::{MAX_ITEM_BYTES, MAX_PROMPTS, MAX_SOURCE_BYTES};

/// Why a prompt set could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The file could not be opened or read.
    #[error(
        "cannot read prompts from {file}: {reason}: wanted JSON lines like {{\"prompt\": \"...\"}}, \
         or a JSON array of such objects, of OpenAI messages or of ShareGPT conversations; - is stdin"
    )]
    Read {
        /// Path, or `stdin`.
        file: String,
        /// What the system said.
        reason: io::Error,
    },
    /// A line or item is not a prompt.
    #[error("{file}: {place}: {problem}")]
    Content {
        /// Path, or `stdin`.
        file: String,
        /// Where in it.
        place: Place,
        /// What is wrong there, and what was wanted.
        problem: Problem,
    },
    /// Nothing but blank lines, or an empty array.
    #[error("{file} holds no prompts: wanted at least one object like {{\"prompt\": \"...\"}}")]
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

/// Where in a prompt file; counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line.
    Line(usize),
    /// An item of a JSON array.
    Item(usize),
}

impl Place {
    /// Names a prompt that has no name.
    pub(super) fn name(self) -> String {
        self.to_string().replace(' ', "-")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Item(number) => write!(f, "item {number}"),
        }
    }
}

/// What is wrong with a line or an item of a prompt file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Bytes that are no text.
    #[error("not UTF-8: save the file as UTF-8")]
    NotUtf8,
    /// More than [`MAX_ITEM_BYTES`].
    #[error(
        "longer than {MAX_ITEM_BYTES} bytes: wanted one prompt a line or item, shorten or split it"
    )]
    TooLong,
    /// The source as a whole holds more than [`MAX_SOURCE_BYTES`].
    #[error("more than {MAX_SOURCE_BYTES} bytes up to here: split the file over several runs")]
    SourceTooLong,
    /// More than [`MAX_PROMPTS`].
    #[error("more than {MAX_PROMPTS} prompts: split the file over several runs")]
    TooManyPrompts,
    /// Broken JSON; the parser's words.
    #[error("not valid JSON ({0}): wanted one object a line, like {{\"prompt\": \"...\"}}")]
    NotJson(String),
    /// An array without an end.
    #[error("the array that the file begins with has no end: wanted ] behind its last item")]
    ArrayOpen,
    /// An array with something behind it.
    #[error("the array that the file begins with ends here: wanted nothing behind its ]")]
    ArrayEnds,
    /// JSON, but not an object.
    #[error("got {0}: wanted an object like {{\"prompt\": \"...\", \"max_tokens\": 50}}")]
    NotAnObject(&'static str),
    /// No key of any of the shapes.
    #[error(
        "no \"prompt\", \"messages\" or \"conversations\": wanted an object like \
         {{\"prompt\": \"...\", \"max_tokens\": 50}}"
    )]
    NoPrompt,
    /// A conversation without a user.
    #[error("no turn of the user: wanted at least one, remove the item")]
    NoUser,
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
    /// A turn of a conversation is wrong.
    #[error("turn {number}: {problem}")]
    Turn {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        problem: Box<Problem>,
    },
    /// A turn lacks one of two keys.
    #[error("no \"{}\": wanted it, or \"{}\"", .0[0], .0[1])]
    NoKey([&'static str; 2]),
    /// A role that no chat template knows.
    #[error("role {0:?}: wanted system, user or assistant (ShareGPT: system, human or gpt)")]
    BadRole(String),
    /// A part of a content that is no text.
    #[error("a part of its content is no text: wanted {{\"type\": \"text\", \"text\": \"...\"}}")]
    NotText,
    /// White space alone.
    #[error("the prompt is blank: give it a text or remove it")]
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
    #[error("the name {name:?} is taken by {first}: give each prompt a name of its own")]
    DuplicateName {
        /// The name.
        name: String,
        /// What has it first.
        first: Place,
    },
}
