//! Prompts of exact lengths, cut from the shipped text.
//!
//! Raw text without a chat template: the ids are cut, not the text, so a length is exact whatever
//! the tokenizer.

use std::error::Error;

use super::{PUBLIC_DOMAIN, Prompt, WorkloadError};

/// Longest prompt of a grid, in tokens: bounds memory; contexts of models are shorter.
pub const MAX_PROMPT_TOKENS: usize = 1_000_000;

/// Scatters the starting points: a prime, so that two lengths less than the text apart start at
/// different places.
const OFFSET_STRIDE: usize = 7_919;

/// One prompt for each length in `prompt_tokens` (1 to [`MAX_PROMPT_TOKENS`]), each with exactly
/// `output_tokens` to generate.
///
/// A prompt depends on its own length and the tokenizer alone, not on the rest of the grid, so
/// that runs over different grids can be compared. Longer prompts repeat the text. What `encode`
/// puts before every text (a beginning-of-sequence token) begins every prompt and is counted.
pub fn grid<E: Into<Box<dyn Error + Send + Sync>>>(
    prompt_tokens: &[usize],
    output_tokens: u32,
    encode: impl Fn(&str) -> Result<Vec<u32>, E>,
) -> Result<Vec<Prompt>, WorkloadError> {
    let encode = |text| encode(text).map_err(|e| WorkloadError::Encode("grid".into(), e.into()));
    let prefix = encode("")?;
    let ids = encode(PUBLIC_DOMAIN)?;
    let body = ids.strip_prefix(prefix.as_slice()).unwrap_or(&ids);
    if body.is_empty() {
        return Err(WorkloadError::NoTokens("grid".into()));
    }
    let prompt = |&length: &usize| {
        assert!(
            (1..=MAX_PROMPT_TOKENS).contains(&length),
            "a length of {length} tokens"
        );
        let start = length * OFFSET_STRIDE % body.len();
        let text = body.iter().cycle().skip(start);
        Prompt {
            name: format!("{length}-tokens"),
            tokens: prefix.iter().chain(text).copied().take(length).collect(),
            output_tokens,
            ignore_eos: true,
        }
    };
    Ok(prompt_tokens.iter().map(prompt).collect())
}

/// Reads one prompt length: 1 to [`MAX_PROMPT_TOKENS`] tokens.
pub fn parse_length(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(length) if (1..=MAX_PROMPT_TOKENS).contains(&length) => Ok(length),
        _ => Err(format!(
            "prompt length {text:?} is not a whole number from 1 to {MAX_PROMPT_TOKENS}: \
             give lengths in tokens, separated by commas, as in 128,512,1024"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::convert::Infallible;

    use super::*;

    /// One id a word, the same for the same word.
    fn words(text: &str) -> Result<Vec<u32>, Infallible> {
        let id = |word: &str| {
            word.bytes()
                .fold(7u32, |h, b| h.wrapping_mul(31) + u32::from(b) % 97)
        };
        Ok(text.split_whitespace().map(id).collect())
    }

    fn bytes_of(text: &str) -> Result<Vec<u32>, Infallible> {
        Ok(text.bytes().map(u32::from).collect())
    }

    #[test]
    fn lengths_are_exact_below_at_and_above_the_text() {
        let whole = words(PUBLIC_DOMAIN).unwrap().len();
        let lengths = [1, 2, 127, 128, whole - 1, whole, whole + 1, 3 * whole + 5];
        let prompts = grid(&lengths, 50, words).unwrap();
        for (prompt, length) in prompts.iter().zip(lengths) {
            assert_eq!(prompt.tokens.len(), length);
            assert_eq!(prompt.name, format!("{length}-tokens"));
            assert_eq!((prompt.output_tokens, prompt.ignore_eos), (50, true));
        }
    }

    #[test]
    fn prompts_are_runs_of_the_text_that_repeat_at_its_end() {
        let text = bytes_of(PUBLIC_DOMAIN).unwrap();
        let length = 2 * text.len() + 10;
        let prompt = grid(&[length], 1, bytes_of).unwrap().remove(0);
        let start = length * OFFSET_STRIDE % text.len();
        assert_eq!(prompt.tokens[..text.len() - start], text[start..]);
        assert_eq!(
            prompt.tokens[text.len() - start..2 * text.len() - start],
            text
        );
    }

    #[test]
    fn prompts_differ_from_each_other_and_not_by_grid() {
        let lengths: Vec<usize> = (1..=64).map(|n| n * 64).collect();
        let prompts = grid(&lengths, 1, bytes_of).unwrap();
        let starts: HashSet<&[u32]> = prompts.iter().map(|p| &p.tokens[..32]).collect();
        assert_eq!(starts.len(), lengths.len());
        let digests: HashSet<String> = prompts.iter().map(Prompt::digest).collect();
        assert_eq!(digests.len(), lengths.len());
        assert_eq!(grid(&[512], 1, bytes_of).unwrap()[0], prompts[7]);
    }

    #[test]
    fn a_beginning_of_sequence_token_stays_at_the_beginning() {
        let bos = 100_000;
        let with_bos =
            |text: &str| Ok::<_, Infallible>(std::iter::once(bos).chain(bytes_of(text)?).collect());
        for prompt in grid(&[1, 2, 100, 2 * PUBLIC_DOMAIN.len()], 1, with_bos).unwrap() {
            assert_eq!(prompt.tokens[0], bos);
            assert!(!prompt.tokens[1..].contains(&bos), "{}", prompt.name);
        }
    }

    #[test]
    fn a_tokenizer_that_fails_or_gives_nothing_is_an_error() {
        let error = grid(&[1], 1, |_| Err("no such byte")).unwrap_err();
        assert!(matches!(error, WorkloadError::Encode(..)), "{error}");
        let error = grid(&[1], 1, |_| Ok::<_, Infallible>(vec![])).unwrap_err();
        assert!(matches!(error, WorkloadError::NoTokens(_)), "{error}");
    }

    #[test]
    fn lengths_are_read() {
        assert_eq!(parse_length("128"), Ok(128));
        assert_eq!(parse_length("1000000"), Ok(1_000_000));
    }

    #[test]
    fn bad_lengths_are_refused_with_what_is_wanted() {
        for bad in [
            "",
            "0",
            "1000001",
            "-1",
            "1.5",
            "1k",
            "x",
            "128;512",
            "99999999999999999999999",
        ] {
            let error = parse_length(bad).unwrap_err();
            assert!(error.contains("from 1 to 1000000"), "{bad:?}: {error}");
        }
    }
}
