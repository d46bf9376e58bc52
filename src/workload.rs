//! Prompt sets: the built-in ones, texts of the user, and grids of exact length.
//!
//! Texts become token ids here, once, so that every arm and both nodes run the same ids. How text
//! becomes ids is the model's business and comes in as closures; whether a prompt fits the model's
//! context is the caller's to check.

mod error;
mod grid;
mod item;
mod reading;

use std::error::Error;

pub use error::{Place, Problem, WorkloadError};
pub use grid::{MAX_PROMPT_TOKENS, grid, parse_length};
pub use item::{MAX_NAME_CHARS, MAX_OUTPUT_TOKENS};
pub use reading::{
    MAX_ITEM_BYTES, MAX_PROMPTS, MAX_SOURCE_BYTES, PlainText, read_path, read_prompts,
};

/// English prose in the public domain (about 6,000 tokens, one paragraph a line): the Gettysburg
/// Address; the Declaration of Independence; the Constitution of the United States with its first
/// ten amendments, abridged; the beginnings of "Pride and Prejudice" and "On the Origin of
/// Species". Typed from memory: material to compute on, not an edition to quote.
const PUBLIC_DOMAIN: &str = include_str!("workload/public_domain.txt");

/// The prompt of the notebook that this tool started from.
const NOTEBOOK_PROMPT: &str = "Explain container orchestration systems like Kubernetes.";

/// Passages of [`PUBLIC_DOMAIN`] to summarise: name, how the first paragraph starts, and the bytes
/// after which no further paragraph is added (about 4.7 bytes a token).
const PASSAGES: [(&str, &str, usize); 3] = [
    ("gettysburg", "Four score and seven years ago", 1_400),
    ("constitution", "We the People", 3_000),
    ("declaration", "When in the Course of human events", 6_500),
];

/// One prompt, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Names its case in the record and in tables.
    pub name: String,
    /// Token ids; never empty.
    pub tokens: Vec<u32>,
    /// Tokens to generate, at most.
    pub output_tokens: u32,
    /// Whether generation goes on after an end-of-sequence token, so that lengths are exact.
    pub ignore_eos: bool,
}

impl Prompt {
    /// The first 32 hex digits of blake3 over the token ids as little-endian u32.
    pub fn digest(&self) -> String {
        let bytes: Vec<u8> = self.tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        blake3::hash(&bytes).to_hex()[..32].to_string()
    }
}

/// The first 32 hex digits of blake3 over all that makes a set of prompts what it is: of each its
/// number of tokens, their ids, the output tokens and whether it ignores the end of sequence.
pub fn set_digest(prompts: &[Prompt]) -> String {
    let mut hasher = blake3::Hasher::new();
    for prompt in prompts {
        hasher.update(&(prompt.tokens.len() as u64).to_le_bytes());
        for id in &prompt.tokens {
            hasher.update(&id.to_le_bytes());
        }
        hasher.update(&prompt.output_tokens.to_le_bytes());
        hasher.update(&[prompt.ignore_eos.into()]);
    }
    hasher.finalize().to_hex()[..32].to_string()
}

/// One prompt as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptText {
    /// Names its case.
    pub name: String,
    /// The conversation; the last turn is the user's and not blank.
    pub turns: Vec<Turn>,
    /// Tokens to generate, at most; `None` leaves it to the run's setting.
    pub output_tokens: Option<u32>,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Whose it is.
    pub role: Role,
    /// What was said.
    pub text: String,
}

impl Turn {
    /// A turn of the user.
    pub fn of_user(text: impl Into<String>) -> Self {
        Self {
            role: Role::User,
            text: text.into(),
        }
    }
}

/// Who speaks in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sets the scene.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
}

impl Role {
    /// As chat templates call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// The prompts of a run that names none, shortest first: about 40, 360, 730 and 1,470 tokens with
/// SmolLM2's tokenizer and chat template.
pub fn built_in() -> Vec<PromptText> {
    let text = |name: &str, text: String| PromptText {
        name: name.into(),
        turns: vec![Turn::of_user(text)],
        output_tokens: None,
    };
    let passages = PASSAGES.iter().map(|(name, start, bytes)| {
        let passage = passage(start, *bytes);
        text(
            name,
            format!("Summarise the following text in three sentences:\n\n{passage}"),
        )
    });
    std::iter::once(text("kubernetes", NOTEBOOK_PROMPT.into()))
        .chain(passages)
        .collect()
}

/// The prompts given as flags, named `prompt-1`, `prompt-2` and so on.
pub fn from_flags(texts: &[String]) -> Result<Vec<PromptText>, WorkloadError> {
    (texts.iter().zip(1..))
        .map(|(text, position)| match text.trim().is_empty() {
            true => Err(WorkloadError::BlankFlag { position }),
            false => Ok(PromptText {
                name: format!("prompt-{position}"),
                turns: vec![Turn::of_user(text)],
                output_tokens: None,
            }),
        })
        .collect()
}

/// Renders each conversation with the chat template and encodes it; one without a length of its own
/// gets `output_tokens`. The first failure is returned with the name of its prompt.
pub fn tokenize<T, R, E>(
    texts: Vec<PromptText>,
    output_tokens: u32,
    render: impl Fn(&[Turn]) -> Result<T, R>,
    encode: impl Fn(&T) -> Result<Vec<u32>, E>,
) -> Result<Vec<Prompt>, WorkloadError>
where
    R: Into<Box<dyn Error + Send + Sync>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    (texts.into_iter())
        .map(
            |PromptText {
                 name,
                 turns,
                 output_tokens: own,
             }| {
                let rendered = render(&turns)
                    .map_err(|e| WorkloadError::ChatTemplate(name.clone(), e.into()))?;
                let tokens =
                    encode(&rendered).map_err(|e| WorkloadError::Encode(name.clone(), e.into()))?;
                if tokens.is_empty() {
                    return Err(WorkloadError::NoTokens(name));
                }
                Ok(Prompt {
                    name,
                    tokens,
                    output_tokens: own.unwrap_or(output_tokens),
                    ignore_eos: false,
                })
            },
        )
        .collect()
}

/// Whole paragraphs from the one that begins with `start`, until there are at least `bytes`.
fn passage(start: &str, bytes: usize) -> String {
    let mut passage = String::new();
    let paragraphs = PUBLIC_DOMAIN.lines().filter(|line| !line.is_empty());
    for paragraph in paragraphs.skip_while(|line| !line.starts_with(start)) {
        if !passage.is_empty() {
            passage.push_str("\n\n");
        }
        passage.push_str(paragraph);
        if passage.len() >= bytes {
            break;
        }
    }
    passage
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn prompt(tokens: &[u32]) -> Prompt {
        Prompt {
            name: "p".into(),
            tokens: tokens.to_vec(),
            output_tokens: 1,
            ignore_eos: false,
        }
    }

    fn bytes_of(text: &str) -> Result<Vec<u32>, Infallible> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn chat(turns: &[Turn]) -> Result<String, Infallible> {
        let turns = turns
            .iter()
            .map(|t| format!("<{}>{}", t.role.name(), t.text));
        Ok(turns.collect::<String>() + "<assistant>")
    }

    #[test]
    fn digest_is_blake3_of_little_endian_ids() {
        let whole = blake3::hash(&[1, 0, 0, 0, 0, 1, 0, 0]).to_hex().to_string();
        assert_eq!(prompt(&[1, 256]).digest(), whole[..32]);
    }

    #[test]
    fn digest_depends_on_the_ids_and_their_order_alone() {
        let base = prompt(&[1, 2, 3]);
        for other in [
            &[1, 2, 4][..],
            &[3, 2, 1],
            &[1, 2],
            &[1, 2, 3, 0],
            &[1, 2, 3 << 24],
        ] {
            assert_ne!(base.digest(), prompt(other).digest(), "{other:?}");
        }
        let renamed = Prompt {
            name: "q".into(),
            output_tokens: 9,
            ..base.clone()
        };
        assert_eq!(base.digest(), renamed.digest());
    }

    #[test]
    fn the_digest_of_a_set_depends_on_all_that_runs_and_on_no_name() {
        let base = [prompt(&[1, 2]), prompt(&[3])];
        let digest = set_digest(&base);
        assert_eq!(digest.len(), 32);
        let changed = |change: fn(&mut Vec<Prompt>)| {
            let mut set = base.to_vec();
            change(&mut set);
            set_digest(&set)
        };
        assert_eq!(changed(|set| set[0].name = "q".into()), digest);
        let changes: [fn(&mut Vec<Prompt>); 6] = [
            |set| set.swap(0, 1),
            |set| set.truncate(1),
            |set| set[1].tokens[0] = 4,
            |set| {
                // The same ids in a row, cut elsewhere.
                set[0].tokens.truncate(1);
                set[1].tokens.insert(0, 2);
            },
            |set| set[1].output_tokens = 2,
            |set| set[1].ignore_eos = true,
        ];
        let digests: std::collections::HashSet<String> = changes.map(changed).into_iter().collect();
        assert_eq!(digests.len(), 6);
        assert!(!digests.contains(&digest));
    }

    #[test]
    fn shipped_text_is_ascii_prose_of_the_promised_size() {
        assert!(PUBLIC_DOMAIN.is_ascii());
        assert!(
            (24_000..=32_000).contains(&PUBLIC_DOMAIN.len()),
            "{}",
            PUBLIC_DOMAIN.len()
        );
        assert!(!PUBLIC_DOMAIN.contains(['\r', '\t']) && !PUBLIC_DOMAIN.contains("  "));
    }

    #[test]
    fn built_in_prompts_grow_and_hold_their_passages() {
        let prompts = built_in();
        let names: Vec<&str> = prompts.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            ["kubernetes", "gettysburg", "constitution", "declaration"]
        );
        let text = |prompt: &PromptText| prompt.turns[0].text.clone();
        assert_eq!(text(&prompts[0]), NOTEBOOK_PROMPT);
        for (prompt, (_, start, bytes)) in prompts[1..].iter().zip(PASSAGES) {
            let prompt = text(prompt);
            let (question, passage) = prompt.split_once("\n\n").unwrap();
            assert_eq!(question, "Summarise the following text in three sentences:");
            assert!(
                passage.starts_with(start) && passage.ends_with('.'),
                "{passage}"
            );
            assert!(
                (bytes..bytes + 600).contains(&passage.len()),
                "{}",
                passage.len()
            );
        }
        assert!(
            prompts
                .iter()
                .is_sorted_by(|a, b| text(a).len() < text(b).len())
        );
    }

    #[test]
    fn flags_are_numbered_and_a_blank_one_is_refused() {
        let texts = from_flags(&["one".into(), " two ".into()]).unwrap();
        assert_eq!(
            (texts[0].name.as_str(), &texts[0].turns[..]),
            ("prompt-1", &[Turn::of_user("one")][..])
        );
        assert_eq!(
            (texts[1].name.as_str(), &texts[1].turns[..]),
            ("prompt-2", &[Turn::of_user(" two ")][..])
        );
        let error = from_flags(&["one".into(), " \n".into()]).unwrap_err();
        assert!(
            matches!(error, WorkloadError::BlankFlag { position: 2 }),
            "{error}"
        );
        assert!(error.to_string().contains("--prompt"), "{error}");
    }

    #[test]
    fn tokenize_renders_then_encodes_and_fills_in_the_length() {
        let own = PromptText {
            name: "a".into(),
            turns: vec![Turn::of_user("hi")],
            output_tokens: Some(7),
        };
        let default = PromptText {
            name: "b".into(),
            output_tokens: None,
            ..own.clone()
        };
        let prompts =
            tokenize(vec![own, default], 50, chat, |text: &String| bytes_of(text)).unwrap();
        assert_eq!(prompts[0].tokens, bytes_of("<user>hi<assistant>").unwrap());
        assert!(!prompts[0].ignore_eos);
        assert_eq!(
            [prompts[0].output_tokens, prompts[1].output_tokens],
            [7, 50]
        );
    }

    #[test]
    fn tokenize_names_the_prompt_that_failed() {
        let bare = |turns: &[Turn]| Ok::<_, Infallible>(turns[0].text.clone());
        let fail = |_: &[Turn]| Err::<String, _>("no such role");
        let error = tokenize(built_in(), 1, fail, |text: &String| bytes_of(text)).unwrap_err();
        assert!(matches!(&error, WorkloadError::ChatTemplate(name, _) if name == "kubernetes"));
        assert_eq!(error.source().unwrap().to_string(), "no such role");
        let fail = |_: &String| Err::<Vec<u32>, _>("no such byte");
        let error = tokenize(built_in(), 1, bare, fail).unwrap_err();
        assert!(matches!(&error, WorkloadError::Encode(name, _) if name == "kubernetes"));
        let nothing = |_: &String| Ok::<Vec<u32>, Infallible>(vec![]);
        let error = tokenize(built_in(), 1, bare, nothing).unwrap_err();
        assert!(matches!(&error, WorkloadError::NoTokens(name) if name == "kubernetes"));
    }
}
