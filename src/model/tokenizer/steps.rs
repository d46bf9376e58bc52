//! The steps around BPE that a `tokenizer.json` lists: normaliser, pre-tokenizer, decoder.
//!
//! The `tokenizers` crate builds them. It panics at some that are malformed, so only those kinds
//! that decoder-only language models use are let through to it.

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

/// What makes one part of the way, and how its sequences name what they hold.
struct Section {
    name: &'static str,
    list: &'static str,
    kinds: &'static [&'static str],
}

const NORMALIZER: Section = Section {
    name: "normalizer",
    list: "normalizers",
    kinds: &[
        "Lowercase",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Prepend",
        "Replace",
        "Strip",
    ],
};

const PRE_TOKENIZER: Section = Section {
    name: "pre_tokenizer",
    list: "pretokenizers",
    kinds: &["ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"],
};

const DECODER: Section = Section {
    name: "decoder",
    list: "decoders",
    kinds: &[
        "ByteFallback",
        "ByteLevel",
        "Fuse",
        "Metaspace",
        "Replace",
        "Strip",
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
        self.check(&value)?;
        (serde_json::from_value(value).map(Some)).map_err(|e| format!("{}: {e}", self.name))
    }

    fn check(&self, step: &Value) -> Result<(), String> {
        let kind = step["type"].as_str().unwrap_or("");
        if kind == "Sequence" {
            let Value::Array(steps) = &step[self.list] else {
                return Err(format!("{}: a Sequence without {}", self.name, self.list));
            };
            return steps.iter().try_for_each(|step| self.check(step));
        }
        if !self.kinds.contains(&kind) {
            return Err(format!(
                "{} of type {kind:?} is not supported, these are: Sequence, {}",
                self.name,
                self.kinds.join(", ")
            ));
        }
        // The crate cuts from the end without looking whether there is as much.
        if self.name == DECODER.name && kind == "Strip" && step["stop"] != 0 {
            return Err("a decoder that strips the end of the text is not supported".into());
        }
        // It cannot put anything, or anything else, where there is nothing.
        if step["prepend"] == "" || step["pattern"]["String"] == "" {
            return Err(format!("{}: {kind} of an empty text", self.name));
        }
        if self.name == NORMALIZER.name && step["pattern"]["Regex"].is_string() {
            return Err("a normalizer with a regular expression is not supported".into());
        }
        Ok(())
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
