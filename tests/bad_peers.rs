//! Peers that are absent, strangers, silent, of another version or model, or without the token:
//! each side says why, the exit code is that of the network, and a decode node survives them all.

mod tiny_model;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use disagg_bench::metrics::Status;
use disagg_bench::wire::frame::{HEADER_BYTES, MAGIC};
use disagg_bench::wire::{Kind, WIRE_VERSION};
use tiny_model::{DecodeNode, Ended, TinyModel, Workplace};

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
    DecodeNode::start(command).stop();
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
    let node = DecodeNode::start(command);
    let parts = [
        "the models differ",
        "node has tiny",
        "node has other",
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
