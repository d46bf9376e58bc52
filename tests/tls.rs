//! Mutual TLS between the nodes: the answers stay the same, everyone but the pinned peer is refused
//! with the reason, and the key stays where it is.

mod tiny_model;

use std::fs::Permissions;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use disagg_bench::link::Sweep;
use disagg_bench::metrics::Agreement;
use tiny_model::running::Running;
use tiny_model::{DecodeNode, Ended, Workplace, wait_for};

/// A request that takes no time.
const SHORT: [&str; 6] = [
    "--prompt",
    "hello",
    "--output-tokens",
    "3",
    "--repeats",
    "1",
];

/// Makes an identity in a folder of this name and gives its fingerprint.
fn identity(place: &Workplace, name: &str) -> String {
    let made = Ended::of(place.command(&["certificate", "--out", name])).exits(0);
    made.stdout.trim().to_owned()
}

/// A workplace with the identities `prefill` and `decode`, and their fingerprints.
fn with_identities() -> (Workplace, String, String) {
    let place = Workplace::new();
    let (prefill, decode) = (identity(&place, "prefill"), identity(&place, "decode"));
    assert_ne!(prefill, decode);
    (place, prefill, decode)
}

/// A decode node with its identity, that takes the peer of this fingerprint.
fn serve(place: &Workplace, peer: &str, more: &[&str]) -> DecodeNode {
    let tls = ["--tls-identity", "decode", "--tls-peer", peer];
    place.serve(&[&tls[..], more].concat())
}

/// A `serve-decode` that is not to come up.
fn start(place: &Workplace, peer: &str) -> Ended {
    let serve = ["serve-decode", "--link-only", "--listen", "127.0.0.1:0"];
    let tls = ["--tls-identity", "decode", "--tls-peer", peer];
    Ended::of(place.command(&[serve, tls].concat()))
}

/// `split` with an identity against a decode node of this fingerprint.
fn split(place: &Workplace, node: &DecodeNode, us: &str, peer: &str, more: &[&str]) -> Ended {
    let to = ["split", "--peer", &node.address];
    let tls = ["--tls-identity", us, "--tls-peer", peer];
    place.run(&[&to[..], &tls, &SHORT, more].concat())
}

/// The lines of a key file that are the key.
fn key_lines(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let secret = text.lines().filter(|line| !line.starts_with("-----"));
    let lines: Vec<String> = secret.map(str::to_owned).collect();
    assert!(!lines.is_empty(), "{} holds no key", file.display());
    lines
}

fn command_line(process: u32) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}

/// Every file in a folder and the folders in it, but for those of the nodes' identities.
fn written(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => texts.extend(written(&path)),
            false => texts.push(String::from_utf8_lossy(&std::fs::read(path).unwrap()).into()),
        }
    }
    texts
}

#[test]
fn outputs_are_identical_the_record_says_tls_and_the_key_is_nowhere() {
    let (place, prefill, decode) = with_identities();
    let node = serve(&place, &prefill, &["-v", "-v"]);
    let more = ["--streams", "2", "--out", "run", "-v", "-v"];
    let ended = split(&place, &node, "prefill", &decode, &more).exits(0);

    let record = place.record("run");
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    let link = record.link.as_ref().unwrap();
    assert_eq!(link.transport, "tls over tcp");
    assert!(link.socket.nodelay && link.socket.loopback);
    let sent_bytes = |info: Option<disagg_bench::wire::socket::TcpInfo>| info.unwrap().bytes_sent;
    assert!(sent_bytes(link.tcp_info_after) > sent_bytes(link.tcp_info_before));

    let mut shown = written(&place.path("run"));
    assert!(shown.len() > 3, "a run writes its record and reports");
    shown.extend(command_line(node.process.id()));
    let nodes = node.stop();
    shown.extend([ended.stdout, ended.stderr, nodes.stdout, nodes.stderr]);
    let paths = ["--tls-identity decode", "run.json"];
    assert!(shown.iter().any(|text| text.contains(paths[0])));
    for name in ["prefill", "decode"] {
        for line in key_lines(&place.path(name).join("key.pem")) {
            assert!(
                !shown.iter().any(|text| text.contains(&line)),
                "key of {name}"
            );
        }
    }
}

#[test]
fn another_certificate_is_refused_on_either_side_and_the_node_serves_on() {
    let (place, prefill, decode) = with_identities();
    let stranger = identity(&place, "stranger");
    let node = serve(&place, &prefill, &[]);

    // Not the peer that the decode node was told of.
    let refused = split(&place, &node, "stranger", &decode, &[]);
    refused.fails(4, &["refused this node's certificate", &stranger]);
    node.prints(&format!(
        "the peer's certificate has the fingerprint {stranger}"
    ));
    node.prints(&format!("--tls-peer is {prefill}"));

    // Not the one that the prefill node was told of.
    let refused = split(&place, &node, "prefill", &stranger, &[]);
    refused.fails(
        4,
        &[
            &format!("has the fingerprint {decode}"),
            &format!("is {stranger}"),
        ],
    );
    node.prints(&format!("whose fingerprint is {decode}"));

    split(&place, &node, "prefill", &decode, &[]).exits(0);
    node.stop();
}

#[test]
fn tls_and_plain_tcp_do_not_mix_and_both_sides_say_so() {
    let (place, prefill, decode) = with_identities();
    let node = serve(&place, &prefill, &[]);
    let refused = place.run(&[&["split", "--peer", &node.address], &SHORT[..]].concat());
    refused.fails(4, &["the decode node demands TLS", "--tls-identity"]);
    node.prints("the prefill node speaks plain TCP");
    split(&place, &node, "prefill", &decode, &[]).exits(0);
    node.stop();

    let plain = place.serve(&[]);
    let refused = split(&place, &plain, "prefill", &decode, &[]);
    refused.fails(4, &["the peer answers without TLS", "--tls-identity"]);
    plain.prints("the peer began a TLS handshake and this node speaks plain TCP");
    let served = place.run(&[&["split", "--peer", &plain.address], &SHORT[..]].concat());
    served.exits(0);
    plain.stop();
}

#[test]
fn a_full_node_says_so_over_tls_and_a_silent_peer_does_not_keep_its_place() {
    let (place, prefill, decode) = with_identities();
    let node = serve(&place, &prefill, &["--max-connections", "1"]);
    let silent = TcpStream::connect(&node.address).unwrap();
    let refused = split(&place, &node, "prefill", &decode, &[]);
    refused.fails(4, &["refused (busy)", "--max-connections"]);
    drop(silent);
    node.prints(" left");
    split(&place, &node, "prefill", &decode, &[]).exits(0);
    node.stop();

    let hurried = serve(&place, &prefill, &["--handshake-timeout", "0.2"]);
    let silent = TcpStream::connect(&hurried.address).unwrap();
    hurried.prints("the TLS handshake did not finish within 0.2 s");
    drop(silent);
    hurried.stop();
}

#[test]
fn off_loopback_pinned_certificates_stand_in_for_the_token() {
    let (place, prefill, _) = with_identities();
    let anywhere = ["serve-decode", "--link-only", "--listen", "0.0.0.0:0"];
    let refused = Ended::of(place.command(&anywhere));
    refused.fails(3, &["no token is set", "--tls-identity"]);
    let tls = ["--tls-identity", "decode", "--tls-peer", &prefill];
    DecodeNode::start(place.command(&[&anywhere[..], &tls].concat())).stop();
}

#[test]
fn a_key_is_for_its_owner_alone_and_what_a_broken_one_holds_is_not_said() {
    let (place, prefill, decode) = with_identities();
    let mode = |name: &str| place.path(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("decode"), mode("decode/key.pem")), (0o700, 0o600));
    let again = Ended::of(place.command(&["certificate", "--out", "decode"]));
    again.fails(3, &["nothing is overwritten"]);

    // As openssl prints it.
    let pairs: Vec<String> = (prefill.to_uppercase().as_bytes().chunks(2))
        .map(|pair| String::from_utf8(pair.to_vec()).unwrap())
        .collect();
    let node = serve(&place, &pairs.join(":"), &[]);
    split(&place, &node, "prefill", &decode, &[]).exits(0);
    node.stop();

    let key = place.path("decode/key.pem");
    std::fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    start(&place, &prefill).fails(3, &["decode/key.pem", "mode 640", "chmod 600"]);
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&key, "-----BEGIN PRIVATE KEY hunter2\nhunter2\n").unwrap();
    let refused = start(&place, &prefill).fails(3, &["it holds no key in PEM"]);
    assert!(!refused.stderr.contains("hunter2"), "{refused}");
    // The key of another certificate.
    std::fs::copy(place.path("prefill/key.pem"), &key).unwrap();
    start(&place, &prefill).fails(3, &["cannot be used together"]);
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    let (place, prefill, _) = with_identities();
    let lonely = ["serve-decode", "--link-only", "--tls-identity", "decode"];
    Ended::of(place.command(&lonely)).fails(2, &["--tls-peer"]);
    start(&place, "abc").fails(3, &["--tls-peer", "64 hexadecimal digits"]);
    std::fs::remove_file(place.path("decode/certificate.pem")).unwrap();
    start(&place, &prefill).fails(3, &["--tls-identity", "disagg-bench certificate"]);
    let here = ["split", "--tls-identity", "prefill", "--tls-peer", &prefill];
    place.run(&here).fails(3, &["--peer HOST:PORT"]);
}

#[test]
fn link_measures_tls_over_loopback_with_identities_that_it_throws_away() {
    let place = Workplace::new();
    let sweep = [
        "link",
        "--sizes",
        "1MiB",
        "--streams",
        "2",
        "--repeats",
        "3",
        "--idle-seconds",
        "1",
        "--format",
        "json",
        "-o",
        "link.json",
        "--tls",
    ];
    let process = Running::start(place.command(&sweep));
    // The decode node, whose command line names its identity.
    let node = wait_for("the decode node of link", || {
        let children = process.children().into_iter().filter_map(command_line);
        children
            .into_iter()
            .find(|line| line.contains("--tls-identity"))
    });
    let mut words = node.split(' ').skip_while(|word| *word != "--tls-identity");
    let folder = Path::new(words.nth(1).unwrap()).to_owned();
    let key = key_lines(&folder.join("key.pem"));
    assert!(key.iter().all(|line| !node.contains(line)));

    process.wait().exits(0);
    assert!(!folder.exists(), "{} was left", folder.display());
    let sweep = Sweep::read(&place.path("link.json")).unwrap();
    assert_eq!(sweep.transport, "tls over tcp");
    assert!(!sweep.rows.is_empty() && sweep.left_out.is_empty());
}
