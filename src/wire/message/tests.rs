//! What control messages promise: fixed names, room for new keys, bits kept, text harmless.

use super::*;
use proptest::prelude::*;
use serde_json::json;

#[test]
fn bytes_per_token_counts_k_and_v() {
    let layer = LayerLayout {
        n_kv_heads: 3,
        head_dim: 64,
        window: None,
    };
    let huge = LayerLayout {
        n_kv_heads: u32::MAX,
        head_dim: u32::MAX,
        window: Some(1),
    };
    let layout = CacheLayout::new(vec![layer, huge]);
    assert_eq!(
        layout.bytes_per_token(0, KvDtype::F16.bytes()),
        Some(2 * 3 * 64 * 2)
    );
    assert_eq!(
        layout.bytes_per_token(0, KvDtype::F32.bytes()),
        Some(2 * 3 * 64 * 4)
    );
    assert_eq!(layout.bytes_per_token(1, 4), Some(u64::MAX));
    assert_eq!(layout.bytes_per_token(2, 4), None);
}

#[test]
fn names_on_the_wire_are_fixed() {
    assert_eq!(serde_json::to_value(KvDtype::Bf16).unwrap(), json!("bf16"));
    assert_eq!(
        serde_json::to_value(OpenRole::Whole).unwrap(),
        json!("whole")
    );
    for code in [
        RefuseCode::Version,
        RefuseCode::Model,
        RefuseCode::Layout,
        RefuseCode::Auth,
        RefuseCode::Busy,
        RefuseCode::Limit,
        RefuseCode::Draining,
        RefuseCode::BadRequest,
    ] {
        assert_eq!(
            serde_json::to_value(code).unwrap(),
            json!(code.to_string()),
            "shown and sent alike"
        );
    }
}

#[test]
fn unknown_keys_are_ignored_and_later_keys_may_be_missing() {
    let open: Open = serde_json::from_value(json!({
        "prompt_tokens": [1, 2], "output_tokens": 3, "kv_dtype": "f16",
        "ignore_eos": true, "role": "decode", "key_of_a_later_build": {}
    }))
    .unwrap();
    assert_eq!((open.chunk_tokens, open.kv_dtype), (None, KvDtype::F16));
}

#[test]
fn logits_that_are_not_finite_do_not_spoil_the_record() {
    let step = StepRecord {
        digest: "00".to_owned(),
        top: vec![(7, f32::NAN), (8, f32::INFINITY), (9, 1.5)],
        digest_ns: 2,
    };
    let text = serde_json::to_string(&step).unwrap();
    let back: StepRecord = serde_json::from_str(&text).unwrap();
    assert!(back.top[0].1.is_nan() && back.top[1].1.is_nan());
    assert_eq!(back.top[2], (9, 1.5));
}

#[test]
fn a_peers_text_is_made_harmless() {
    assert_eq!(printable("a\x1b[2Jb\n"), "a [2Jb ");
    assert_eq!(
        printable(&"x".repeat(10_000)).chars().count(),
        MAX_PEER_TEXT_CHARS + 1
    );
}

proptest! {
    #[test]
    fn hex_roundtrips(bytes: [u8; 32]) {
        let text = serde_json::to_string(&Hex32(bytes)).unwrap();
        prop_assert_eq!(text.len(), 66);
        prop_assert_eq!(serde_json::from_str::<Hex32>(&text).unwrap(), Hex32(bytes));
    }

    #[test]
    fn only_64_hex_digits_are_hex(text in ".{0,70}") {
        let sound = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        prop_assert_eq!(Hex32::try_from(text).is_ok(), sound);
    }

    #[test]
    fn finite_logits_keep_their_bits(logit in proptest::num::f32::NORMAL | proptest::num::f32::ZERO) {
        let text = serde_json::to_string(&logit).unwrap();
        prop_assert_eq!(serde_json::from_str::<f32>(&text).unwrap().to_bits(), logit.to_bits());
    }
}
