//! Two network namespaces with addresses of their own and a cable between them: two hosts, as far
//! as the network can tell. Needs the right to make namespaces; without it, it says so.

mod tiny_model;

use std::process::Command;

use disagg_bench::metrics::{Agreement, Status};
use tiny_model::{DecodeNode, Ended, Workplace, skipped};

const PREFILL_ADDRESS: &str = "10.99.0.1";
const DECODE_ADDRESS: &str = "10.99.0.2";

/// Two namespaces joined by a veth pair, deleted when dropped. Names are this process's own, and
/// addresses are seen only inside, so several of these can be up at once.
struct TwoHosts {
    prefill: String,
    decode: String,
}

impl TwoHosts {
    /// None, with the reason, where namespaces cannot be made.
    fn join() -> Result<Self, String> {
        let id = std::process::id();
        let hosts = Self {
            prefill: format!("disagg-p{id}"),
            decode: format!("disagg-d{id}"),
        };
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
    let outside = place.on_model(arguments);
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
    let hosts = match TwoHosts::join() {
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
