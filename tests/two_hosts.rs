//! Two network namespaces with addresses of their own and a cable between them: two hosts, as far
//! as the network can tell. Needs the right to make namespaces; without it, it says so.

mod tiny_model;

use std::process::Command;

use candle_core::quantized::gguf_file::Value;
use disagg_bench::metrics::summary::{SummaryArm, SummaryCase};
use disagg_bench::metrics::{Agreement, Record, Status, Transfer};
use tiny_model::running::Running;
use tiny_model::{DecodeNode, Ended, TinyModel, Workplace, skipped, wait_for};

const PREFILL_ADDRESS: &str = "10.99.0.1";
const DECODE_ADDRESS: &str = "10.99.0.2";

/// Bytes that a shaped link sends at once before its rate counts: two of the 64 KiB segments that
/// a socket hands over whole.
const BURST_BYTES: u64 = 131_072;

/// Two namespaces joined by a veth pair, deleted when dropped. Names are this process's own, and
/// addresses are seen only inside, so several of these can be up at once.
struct TwoHosts {
    prefill: String,
    decode: String,
}

impl TwoHosts {
    /// Tests that run at once in this process tell their hosts apart by the suffix.
    fn named(suffix: &str) -> Self {
        let id = std::process::id();
        Self {
            prefill: format!("disagg-p{id}{suffix}"),
            decode: format!("disagg-d{id}{suffix}"),
        }
    }

    /// None, with the reason, where namespaces cannot be made.
    fn join(suffix: &str) -> Result<Self, String> {
        let hosts = Self::named(suffix);
        let id = std::process::id();
        let Self { prefill, decode } = &hosts;
        let (p, d) = (format!("vp{id}"), format!("vd{id}"));
        ip(&["netns", "add", prefill])?;
        ip(&["netns", "add", decode])?;
        let pair = [
            "link", "add", &p, "netns", prefill, "type", "veth", "peer", "name", &d,
        ];
        ip(&[&pair[..], &["netns", decode]].concat())?;
        for (host, end, address) in [(prefill, &p, PREFILL_ADDRESS), (decode, &d, DECODE_ADDRESS)] {
            ip(&[
                "-n",
                host,
                "address",
                "add",
                &format!("{address}/24"),
                "dev",
                end,
            ])?;
            ip(&["-n", host, "link", "set", end, "mtu", "9000", "up"])?;
            ip(&["-n", host, "link", "set", "lo", "up"])?;
        }
        Ok(hosts)
    }

    /// Two hosts with a cable that carries no more than a rate in either direction.
    fn join_at(suffix: &str, gbps: f64) -> Result<Self, String> {
        let hosts = Self::join(suffix)?;
        let id = std::process::id();
        for (host, end) in [(&hosts.prefill, "vp"), (&hosts.decode, "vd")] {
            let end = format!("{end}{id}");
            let rate = format!("{}mbit", gbps * 1e3);
            let burst = BURST_BYTES.to_string();
            let shape = [
                "root", "tbf", "rate", &rate, "burst", &burst, "latency", "20ms",
            ];
            let inside = ["netns", "exec", host, "tc", "qdisc", "replace", "dev", &end];
            ip(&[&inside[..], &shape].concat())?;
        }
        Ok(hosts)
    }

    /// Two hosts with a cable that silently drops packets above a size on their way to the decode
    /// node, which promised to take larger ones: a smaller MTU on the way of which nobody tells.
    fn join_dropping_above(mtu_bytes: u64) -> Result<Self, String> {
        // Without a queue of packets in between, the sender itself learns of every loss.
        let hosts = Self::join_at("m", 1.0)?;
        let id = std::process::id();
        let (near, far) = (format!("vp{id}"), format!("vd{id}"));
        let mtu = mtu_bytes.to_string();
        ip(&["-n", &hosts.decode, "link", "set", &far, "mtu", &mtu])?;
        let route = ["route", "replace", "10.99.0.0/24", "dev", &far];
        let in_decode = ["-n", &hosts.decode];
        ip(&[&in_decode[..], &route, &["advmss", "8960"]].concat())?;
        // The pair hands whole bundles of segments over, however large.
        let in_prefill = ["-n", &hosts.prefill, "link", "set", &near];
        ip(&[&in_prefill[..], &["gso_max_segs", "1"]].concat())?;
        Ok(hosts)
    }

    /// Two hosts without a cable, for the TUN bridge to join.
    fn apart() -> Result<Self, String> {
        let hosts = Self::named("a");
        for host in [&hosts.prefill, &hosts.decode] {
            ip(&["netns", "add", host])?;
            ip(&["-n", host, "link", "set", "lo", "up"])?;
        }
        Ok(hosts)
    }
}

/// The bridge of tests/two_hosts, ended and waited for when dropped.
struct Bridge(Running);

impl Bridge {
    /// Joins two hosts by a link with a delay; none, with the reason, where that cannot be done.
    fn between(hosts: &TwoHosts, gbps: f64, one_way_ms: f64) -> Result<Self, String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/two_hosts/tun_bridge.py");
        let mut command = Command::new("python3");
        command
            .args([script, "--netns", &hosts.prefill, &hosts.decode])
            .arg("--addresses")
            .args([PREFILL_ADDRESS, DECODE_ADDRESS].map(|address| format!("{address}/24")))
            .args(["--rate-gbps", &gbps.to_string()])
            .args(["--one-way-ms", &one_way_ms.to_string()]);
        let mut bridge = Running::start(command);
        let ready = wait_for("the bridge", || {
            let ready = bridge.stdout().contains("ready");
            (ready || bridge.has_ended()).then_some(ready)
        });
        match ready {
            true => Ok(Self(bridge)),
            false => Err(format!("no TUN bridge here: {}", bridge.stderr().trim())),
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.0.signal("TERM");
        wait_for("the end of the bridge", || self.0.has_ended().then_some(()));
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        for host in [&self.prefill, &self.decode] {
            // The pair goes with its namespaces; what was never made cannot be deleted.
            let _ = ip(&["netns", "delete", host]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    match Command::new("ip").args(arguments).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "`ip {}` said {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("`ip` (package iproute2) cannot be run: {error}")),
    }
}

/// The program on the tiny model, inside one of the namespaces.
fn inside(host: &str, place: &Workplace, arguments: &[&str]) -> Command {
    moved_inside(host, place.on_model(arguments))
}

fn moved_inside(host: &str, outside: Command) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", host])
        .arg(outside.get_program());
    command.args(outside.get_args());
    for (name, value) in outside.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if let Some(folder) = outside.get_current_dir() {
        command.current_dir(folder);
    }
    command
}

#[test]
fn two_hosts_give_the_answers_of_one_and_only_with_the_token() {
    let hosts = match TwoHosts::join("t") {
        Ok(hosts) => hosts,
        Err(why) => return skipped("two hosts", &why),
    };
    let place = Workplace::new();
    place.file("token.txt", "a secret of at least 16 bytes\n");
    place.file("other.txt", "another secret of 16 bytes\n");

    let listen = format!("{DECODE_ADDRESS}:5556");
    let serve = ["serve-decode", "--listen", &listen];
    let parts = ["not on loopback", "--token-file"];
    Ended::of(inside(&hosts.decode, &place, &serve)).fails(3, &parts);
    let serve = [&serve[..], &["--token-file", "token.txt"]].concat();
    let node = DecodeNode::start(inside(&hosts.decode, &place, &serve));
    assert_eq!(node.address, listen);

    let split = |out: &str, more: &[&str]| {
        let mut arguments = vec!["split", "--peer", &listen, "--out", out];
        arguments.extend([
            "--prompt-tokens",
            "9,300",
            "--output-tokens",
            "20",
            "--repeats",
            "3",
        ]);
        arguments.extend(more);
        Ended::of(inside(&hosts.prefill, &place, &arguments))
    };
    split("none", &[]).fails(3, &parts);
    let refused = split("insecure", &["--insecure"]);
    refused.fails(4, &["the prefill node has none"]);
    let refused = split("other", &["--token-file", "other.txt"]);
    refused.fails(4, &["did not prove that it holds the shared token"]);

    let ended = split("run", &["--token-file", "token.txt"]).exits(0);
    assert!(
        ended
            .stdout
            .lines()
            .next()
            .unwrap()
            .contains("outputs identical"),
        "{ended}"
    );
    let record = place.record("run");
    assert_eq!(record.run.status, Status::Complete);
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    assert!(
        record
            .cases
            .iter()
            .all(|c| c.check.as_ref().unwrap().landed == Some(true))
    );
    assert!(record.environment.decode.is_some());
    let link = record.link.as_ref().unwrap();
    assert!(!link.loopback);
    // Nobody asked for another, so it is what the system gives.
    let system = Command::new("ip")
        .args(["netns", "exec", &hosts.prefill, "sysctl", "-n"])
        .arg("net.ipv4.tcp_congestion_control")
        .output();
    if let Some(system) = system.ok().filter(|o| o.status.success()) {
        let system = String::from_utf8_lossy(&system.stdout).trim().to_owned();
        assert_eq!(link.socket.congestion_control, Some(system));
    }
    let summary = place.summary("run");
    assert!(!summary.link.unwrap().loopback);
    assert_eq!(summary.outputs, Some(Agreement::Identical));
    let stopped = node.stop();
    assert!(stopped.stdout.contains(PREFILL_ADDRESS), "{stopped}");
}

/// A model whose long prompts have caches that a slow link takes a while for.
fn long_context() -> Workplace {
    let place = Workplace::with(&TinyModel {
        metadata: vec![("llama.context_length", Value::U32(4096))],
        ..TinyModel::default()
    });
    place.file("token.txt", "a secret of at least 16 bytes\n");
    place
}

/// `split` between the hosts in every mode, with the answers of one node; its record and case.
fn split_in_every_mode(hosts: &TwoHosts, place: &Workplace, out: &str) -> (Record, SummaryCase) {
    let listen = format!("{DECODE_ADDRESS}:5556");
    let serve = [
        "serve-decode",
        "--listen",
        &listen,
        "--token-file",
        "token.txt",
    ];
    let node = DecodeNode::start(inside(&hosts.decode, place, &serve));
    let mut arguments = vec!["split", "--peer", &listen, "--token-file", "token.txt"];
    arguments.extend(["--transfer", "bulk,layered,auto", "--out", out]);
    arguments.extend(["--kv-dtype", "f32", "--prompt-tokens", "3000"]);
    arguments.extend(["--output-tokens", "3", "--repeats", "3"]);
    Ended::of(inside(&hosts.prefill, place, &arguments)).exits(0);
    node.stop();
    let record = place.record(out);
    assert_eq!(record.outputs(), Some(Agreement::Identical));
    let case = place.summary(out).cases.remove(0);
    (record, case)
}

fn arm(case: &SummaryCase, transfer: Transfer) -> &SummaryArm {
    let mut arms = case.arms.iter();
    arms.find(|a| a.transfer == Some(transfer)).unwrap()
}

#[test]
fn a_shaped_link_is_seen_as_it_is_and_never_faster() {
    let place = long_context();
    for gbps in [0.1, 0.25, 1.0, 10.0, 25.0] {
        let hosts = match TwoHosts::join_at("s", gbps) {
            Ok(hosts) => hosts,
            Err(why) => return skipped("a shaped link", &why),
        };
        let (record, case) = split_in_every_mode(&hosts, &place, &format!("at-{gbps}"));
        let shaped_ms = |bytes: u64| bytes as f64 * 8.0 / gbps / 1e6;
        let bulk = arm(&case, Transfer::Bulk);
        let at_least_ms = shaped_ms(bulk.wire_bytes - BURST_BYTES);
        let exposed_ms = bulk.exposed_transfer_ms.unwrap();
        assert!(
            exposed_ms.min >= 0.98 * at_least_ms,
            "{gbps} Gbit/s: {exposed_ms:?} against {at_least_ms}"
        );
        let fit = record.link.unwrap().fit.unwrap();
        // The burst flatters a fit over small payloads a little.
        let beta_gbps = fit.beta_gbps.unwrap_or(f64::INFINITY);
        if gbps <= 1.0 {
            assert!(
                (0.8..1.2).contains(&(beta_gbps / gbps)),
                "{gbps} Gbit/s: {fit:?}"
            );
            // A busy machine slows compute, not such a link: what is waited for is the link.
            let predicted = arm(&case, Transfer::Auto)
                .auto
                .unwrap()
                .bulk_exposed_ms
                .unwrap();
            let ratio = predicted.median / exposed_ms.median;
            assert!(
                (0.7..1.4).contains(&ratio),
                "{gbps} Gbit/s: predicted {ratio} of it"
            );
        }
        if gbps <= 0.25 {
            let auto = arm(&case, Transfer::Auto).auto.unwrap();
            assert_eq!((auto.bulk, auto.layered), (0, 3), "{gbps} Gbit/s");
        }
    }
}

#[test]
fn a_path_that_loses_full_segments_is_named_not_waited_for() {
    // The handshake's messages are smaller, a segment at this MTU is 8,948 bytes.
    let hosts = match TwoHosts::join_dropping_above(7_000) {
        Ok(hosts) => hosts,
        Err(why) => return skipped("a path that loses full segments", &why),
    };
    let place = Workplace::new();
    let listen = format!("{DECODE_ADDRESS}:5557");
    let serve = [
        "serve-decode",
        "--link-only",
        "--insecure",
        "--listen",
        &listen,
    ];
    let node = DecodeNode::start(moved_inside(&hosts.decode, place.command(&serve)));
    let link = ["link", "--insecure", "--peer", &listen, "--sizes", "1MiB"];
    let ended = Ended::of(moved_inside(&hosts.prefill, place.command(&link)));
    ended.fails(4, &["the handshake got through", "8948 bytes", "MTU"]);
    node.stop();
}

#[test]
fn a_delayed_link_has_its_round_trip_in_every_figure_that_waits_for_it() {
    let hosts = match TwoHosts::apart() {
        Ok(hosts) => hosts,
        Err(why) => return skipped("a delayed link", &why),
    };
    let bridge = match Bridge::between(&hosts, 1.0, 5.0) {
        Ok(bridge) => bridge,
        Err(why) => return skipped("a delayed link", &why),
    };
    let (record, case) = split_in_every_mode(&hosts, &long_context(), "delayed");
    drop(bridge);
    let round_trip_ns = record.link.unwrap().min_round_trip_ns().unwrap();
    assert!(round_trip_ns >= 10_000_000, "{round_trip_ns}");
    for transfer in [Transfer::Bulk, Transfer::Layered, Transfer::Auto] {
        let arm = arm(&case, transfer);
        // The last piece's way there, of which in layered mode the last layer's own compute hides
        // a part; its acknowledgement's way back is not counted.
        if transfer == Transfer::Bulk {
            assert!(arm.exposed_transfer_ms.unwrap().min >= 5.0);
        }
        // There and, with the second token, back.
        let gap_ms = arm.ttst_ms.unwrap().median - arm.ttft_ms.unwrap().median;
        assert!(gap_ms >= 10.0, "{transfer}: {gap_ms}");
    }
}
