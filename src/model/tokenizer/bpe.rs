//! Byte-pair encoding from a vocabulary and its merges, checked before the `tokenizers` crate gets
//! them: it panics at a merge that gives more than the longest token.

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};

/// Builds the model; `options` holds all but vocabulary and merges.
pub fn build(vocabulary: Vocab, merges: Merges, options: BpeBuilder) -> Result<BPE, String> {
    let has = |token: &str| vocabulary.contains_key(token);
    for (a, b) in &merges {
        if !(has(a) && has(b) && has(&format!("{a}{b}"))) {
            return Err(format!(
                "tokenizer merge {:?} is of tokens, or gives one, that the vocabulary lacks",
                format!("{a} {b}")
            ));
        }
    }
    (options.vocab_and_merges(vocabulary, merges).build()).map_err(|e| format!("tokenizer: {e}"))
}

/// The two parts of a merge that is written as one text.
pub fn parts(merge: &str) -> Result<(String, String), String> {
    match merge.split_once(' ') {
        Some((a, b)) => Ok((a.to_string(), b.to_string())),
        None => Err(format!("tokenizer merge {merge:?} has no two parts")),
    }
}

/// A token that is never split and matches the text as it was written.
pub fn whole_token(text: &str, special: bool) -> AddedToken {
    AddedToken::from(text, special).normalized(false)
}
