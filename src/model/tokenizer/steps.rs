//! The steps around BPE that a `tokenizer.json` lists: normaliser, pre-tokenizer, decoder.
//!
//! The `tokenizers` crate builds them. It panics at some that are malformed, so only those kinds
//! that decoder-only language models use are let through to it.

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

/// Most steps of a section: published tokenizers have about five.
const MAX_STEPS: usize = 32;

/// Most bytes that all steps of a section may make of one. Unicode's compatibility form, a mark for
/// a space in front and one for each space make up to 132.
const MAX_GROWTH: usize = 256;

/// What makes one part of the way, and how its sequences name what they hold.
struct Section {
    name: &'static str,
    list: &'static str,
    kinds: &'static [Kind],
}

/// A kind of step, and the most bytes that it makes of one besides the text that it puts in.
type Kind = (&'static str, usize);

/// Unicode's FAQ on normalisation has the factors of its forms.
const NORMALIZER: Section = Section {
    name: "normalizer",
    list: "normalizers",
    kinds: &[
        ("Lowercase", 2),
        ("NFC", 3),
        ("NFD", 3),
        ("NFKC", 11),
        ("NFKD", 11),
        ("Prepend", 1),
        ("Replace", 1),
        ("Strip", 1),
    ],
};

/// A space in front of every part of the text, and up to two bytes for each, or up to four.
const PRE_TOKENIZER: Section = Section {
    name: "pre_tokenizer",
    list: "pretokenizers",
    kinds: &[
        ("ByteLevel", 4),
        ("Digits", 1),
        ("Metaspace", 8),
        ("Punctuation", 1),
        ("Split", 1),
    ],
};

/// Three bytes in the place of a letter of two that stands for no text.
const DECODER: Section = Section {
    name: "decoder",
    list: "decoders",
    kinds: &[
        ("ByteFallback", 1),
        ("ByteLevel", 2),
        ("Fuse", 1),
        ("Metaspace", 1),
        ("Replace", 1),
        ("Strip", 1),
    ],
};

/// The normaliser, where there is one.
pub fn normalizer(value: Option<Value>) -> Result<Option<NormalizerWrapper>, String> {
    NORMALIZER.build(value)
}

/// The pre-tokenizer, where there is one.
pub fn pre_tokenizer(value: Option<Value>) -> Result<Option<PreTokenizerWrapper>, String> {
    PRE_TOKENIZER.build(value)
}

/// The decoder, where there is one.
pub fn decoder(value: Option<Value>) -> Result<Option<DecoderWrapper>, String> {
    DECODER.build(value)
}

impl Section {
    fn build<T: DeserializeOwned>(&self, value: Option<Value>) -> Result<Option<T>, String> {
        let Some(value) = value else { return Ok(None) };
        let mut so_far = Work {
            steps: 0,
            growth: 1,
        };
        self.check(&value, &mut so_far)?;
        (serde_json::from_value(value).map(Some)).map_err(|e| format!("{}: {e}", self.name))
    }

    fn check(&self, step: &Value, so_far: &mut Work) -> Result<(), String> {
        let kind = step["type"].as_str().unwrap_or("");
        if kind == "Sequence" {
            let Value::Array(steps) = &step[self.list] else {
                return Err(format!("{}: a Sequence without {}", self.name, self.list));
            };
            return (steps.iter()).try_for_each(|step| self.check(step, so_far));
        }
        let Some((_, growth)) = self.kinds.iter().find(|(name, _)| *name == kind) else {
            let names: Vec<&str> = self.kinds.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "{} of type {kind:?} is not supported, these are: Sequence, {}",
                self.name,
                names.join(", ")
            ));
        };
        // The crate cuts from the end without looking whether there is as much.
        if self.name == DECODER.name && kind == "Strip" && step["stop"] != 0 {
            return Err("a decoder that strips the end of the text is not supported".into());
        }
        // It cannot put anything, or anything else, where there is nothing.
        if step["prepend"] == "" || step["pattern"]["String"] == "" {
            return Err(format!("{}: {kind} of an empty text", self.name));
        }
        if kind == "Replace" && !step["pattern"]["Regex"].is_null() {
            return Err(format!(
                "a {} with a regular expression is not supported",
                self.name
            ));
        }
        so_far.steps += 1;
        so_far.growth = (so_far.growth).saturating_mul(growth * growth_by_text(kind, step));
        if so_far.steps > MAX_STEPS {
            return Err(format!("the {} has more than {MAX_STEPS} steps", self.name));
        }
        if so_far.growth > MAX_GROWTH {
            return Err(format!(
                "the {} makes more than {MAX_GROWTH} bytes of one",
                self.name
            ));
        }
        Ok(())
    }
}

/// The steps of a section up to one of them.
struct Work {
    steps: usize,
    /// Most bytes that they make of one.
    growth: usize,
}

/// Most bytes that a step makes of one by the text that it puts in.
fn growth_by_text(kind: &str, step: &Value) -> usize {
    let bytes = |text: &Value| text.as_str().map_or(0, str::len);
    match kind {
        "Prepend" => 1 + bytes(&step["prepend"]),
        "Replace" => {
            let replaced = bytes(&step["pattern"]["String"]).max(1);
            bytes(&step["content"]).div_ceil(replaced).max(1)
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_crate_would_panic_at_is_refused() {
        let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": "AAA"});
        let error = normalizer(Some(precompiled.clone())).unwrap_err();
        assert!(
            error.starts_with("normalizer of type \"Precompiled\""),
            "{error}"
        );
        let inside = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, precompiled]});
        assert_eq!(normalizer(Some(inside)).unwrap_err(), error);
        let strip = json!({"type": "Strip", "content": " ", "start": 0, "stop": 1});
        assert!(decoder(Some(strip)).unwrap_err().contains("the end"));
        for (step, part) in [
            (
                json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
                "empty text",
            ),
            (json!({"type": "Prepend", "prepend": ""}), "empty text"),
            (
                json!({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y"}),
                "regular",
            ),
        ] {
            assert!(normalizer(Some(step)).unwrap_err().contains(part), "{part}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for broken in [
            json!(7),
            json!({}),
            json!({"type": "Sequence"}),
            json!({"type": "Split"}),
        ] {
            assert!(pre_tokenizer(Some(broken.clone())).is_err(), "{broken}");
        }
        let regex = json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
                           "invert": false});
        assert!(pre_tokenizer(Some(regex)).is_err());
        assert!(pre_tokenizer(None).unwrap().is_none());
    }
}
