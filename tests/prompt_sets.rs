//! Prompt files of every shape, and lengths up to 4,096 tokens, on the tiny model.

mod tiny_model;

use candle_core::quantized::gguf_file::Value;
use disagg_bench::metrics::Agreement;
use tiny_model::{TinyModel, Workplace};

/// Requests that take no time.
const SHORT: [&str; 6] = ["--output-tokens", "3", "--repeats", "1", "--warmup", "0"];

#[test]
fn the_same_prompts_in_any_shape_are_the_same_set() {
    let place = Workplace::new();
    place.file(
        "lines.jsonl",
        "{\"prompt\": \"Where is north?\"}\n{\"prompt\": \"And the other one?\"}\n",
    );
    place.file(
        "messages.json",
        r#"[{"messages": [{"role": "user", "content": "Where is north?"},
                          {"role": "assistant", "content": "Up."}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "And the other one?"}]}]}]"#,
    );
    place.file(
        "sharegpt.json",
        r#"[{"id": "a", "conversations": [{"from": "human", "value": "Where is north?"},
                                          {"from": "gpt", "value": "Up."},
                                          {"from": "human", "value": "Sure?"}]},
            {"id": "b", "conversations": [{"from": "human", "value": "And the other one?"}]}]"#,
    );
    place.file("other.jsonl", "{\"prompt\": \"Where is north?\"}\n");
    let digest = |file: &str| {
        let arguments = [
            &[
                "baseline",
                "--prompts",
                file,
                "--out",
                &format!("{file}-out"),
            ],
            &SHORT[..],
        ]
        .concat();
        place.run(&arguments).exits(0);
        let out = format!("{file}-out");
        let digest = place.record(&out).prompt_set_digest.unwrap();
        assert_eq!(
            place.summary(&out).prompt_set_digest.as_ref(),
            Some(&digest)
        );
        digest
    };
    let lines = digest("lines.jsonl");
    assert_eq!(lines.len(), 32);
    assert_eq!(digest("messages.json"), lines);
    assert_eq!(digest("sharegpt.json"), lines);
    assert_ne!(digest("other.jsonl"), lines);
    assert_eq!(place.record("sharegpt.json-out").cases[1].prompt, "b");
    assert_eq!(place.record("messages.json-out").cases[1].prompt, "item-2");
}

#[test]
fn a_bad_item_is_named_before_anything_runs() {
    let place = Workplace::new();
    place.file(
        "role.json",
        r#"[{"prompt": "ok"}, {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}]"#,
    );
    place.file("open.json", "[{\"prompt\": \"ok\"},\n");
    place.file(
        "system.json",
        r#"[{"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]}]"#,
    );
    let fails = |arguments: &[&str], parts: &[&str]| {
        let ended = place
            .run(&[&["baseline"], arguments, &SHORT[..]].concat())
            .fails(3, parts);
        assert!(!ended.stderr.contains("measuring"), "{ended}");
    };
    fails(
        &["--prompts", "role.json"],
        &["role.json: item 2: turn 2", "\"tool\"", "assistant"],
    );
    fails(
        &["--prompts", "open.json"],
        &["open.json: line 2", "no end"],
    );
    fails(
        &["--prompts", "system.json", "--raw"],
        &["item-1", "leave out --raw"],
    );
    fails(
        &["--prompt-tokens", "32,1024,4096"],
        &["1024-tokens", "1 of 3 too", "context of 512"],
    );
}

#[test]
fn lengths_from_32_to_4096_tokens_run_where_the_context_has_room() {
    let place = Workplace::with(&TinyModel {
        metadata: vec![("llama.context_length", Value::U32(4100))],
        ..TinyModel::default()
    });
    let arguments = [
        &["split", "--prompt-tokens", "32,4096", "--out", "run"],
        &SHORT[..],
    ]
    .concat();
    place.run(&arguments).exits(0);
    let record = place.record("run");
    let lengths: Vec<u32> = record.cases.iter().map(|c| c.prompt_tokens).collect();
    assert_eq!(lengths, [32, 4096]);
    assert_eq!(record.outputs(), Some(Agreement::Identical));
}
