//! Every cause on counters that were made up to show it.

use super::*;
use crate::link::sentence;

/// Nothing stands out: 10 Gbps of one connection over 1 ms, without queue, loss or waiting.
fn info() -> TcpInfo {
    TcpInfo {
        rtt_us: 1_000,
        rtt_var_us: 10,
        min_rtt_us: 990,
        retransmits: 0,
        total_retrans: 0,
        bytes_retrans: 0,
        bytes_sent: 0,
        bytes_acked: 0,
        bytes_received: 0,
        notsent_bytes: 0,
        busy_time_us: 0,
        rwnd_limited_us: 0,
        sndbuf_limited_us: 0,
        delivery_rate_bytes_per_s: 0,
        pacing_rate_bytes_per_s: u64::MAX,
        snd_cwnd_segments: 10_000,
        snd_mss_bytes: 1_448,
        pmtu_bytes: 1_500,
        peer_window_bytes: Some(12_000_000),
    }
}

struct Scene {
    gbps: f64,
    seen: Observed,
    socket: SocketFacts,
    interface: Option<NetworkInterface>,
    interfaces: Vec<NetworkInterface>,
}

impl Scene {
    fn new() -> Self {
        Self {
            gbps: 10.0,
            seen: Observed {
                streams: 1,
                cpu_share: 0.5,
                peer_cpu_share: Some(0.5),
                same_core_share: None,
                core: Some(3),
                send_buffer_bytes: Some(8_000_000),
                totals: Some(Totals {
                    busy_time_us: 1_000_000,
                    bytes_sent: 1_000_000,
                    ..Totals::default()
                }),
                before: Some(info()),
                after: Some(info()),
            },
            socket: SocketFacts {
                local: ([10, 0, 0, 1], 40_000).into(),
                peer: ([10, 0, 0, 2], 5556).into(),
                loopback: false,
                congestion_control: Some("cubic".into()),
                nodelay: true,
                send_buffer_bytes: 87_380,
                recv_buffer_bytes: 131_072,
                mss_bytes: Some(1_448),
            },
            interface: None,
            interfaces: Vec::new(),
        }
    }

    /// What the causes are called, and the sentence.
    fn judged(&self) -> (Vec<String>, String) {
        let causes = causes(&Evidence {
            gbps: self.gbps,
            seen: &self.seen,
            socket: &self.socket,
            interface: self.interface.as_ref(),
            interfaces: &self.interfaces,
        });
        let name = |cause| match serde_json::to_value(cause).unwrap()["cause"].as_str() {
            Some(name) => name.to_owned(),
            None => panic!("a cause without a name"),
        };
        let text = sentence(&causes);
        (causes.into_iter().map(name).collect(), text)
    }

    #[track_caller]
    fn is(&self, name: &str, parts: &[&str]) {
        let (names, text) = self.judged();
        assert_eq!(names, [name], "{text}");
        for part in parts {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }

    fn totals(&mut self) -> &mut Totals {
        self.seen.totals.as_mut().unwrap()
    }

    fn after(&mut self) -> &mut TcpInfo {
        self.seen.after.as_mut().unwrap()
    }
}

fn card(name: &str, speed_mbps: u64) -> NetworkInterface {
    NetworkInterface {
        name: name.into(),
        speed_mbps: Some(speed_mbps),
        mtu_bytes: Some(1500),
        is_up: true,
        driver: Some("mlx5_core".into()),
        is_loopback: false,
    }
}

#[test]
fn nothing_in_sight_is_the_network() {
    Scene::new().is("network", &["neither end was busy"]);
    let mut blind = Scene::new();
    (blind.seen.totals, blind.seen.after) = (None, None);
    blind.is("network", &[]);
}

#[test]
fn loopback_tells_how_busy_both_ends_were() {
    let mut scene = Scene::new();
    scene.socket.loopback = true;
    scene.is("loopback", &["sender 50% of a core, receiver 50%"]);
    scene.seen.peer_cpu_share = None;
    scene.is("loopback", &["(sender 50% of a core)"]);
}

#[test]
fn both_ends_on_one_core_are_told_first() {
    let mut scene = Scene::new();
    scene.seen.same_core_share = Some(0.9);
    scene.is("one-core", &["core 3", "taskset"]);
    scene.socket.loopback = true;
    assert_eq!(scene.judged().0, ["one-core", "loopback"]);
    scene.seen.same_core_share = Some(0.5);
    assert_eq!(scene.judged().0, ["loopback"]);
    // A slow link leaves room on one core for both.
    scene.seen = Observed {
        same_core_share: Some(1.0),
        cpu_share: 0.2,
        ..scene.seen
    };
    assert_eq!(scene.judged().0, ["loopback"]);
}

#[test]
fn a_saturated_thread_is_named() {
    let mut scene = Scene::new();
    scene.seen.cpu_share = 0.97;
    scene.is("sender", &["97% of a core"]);
    scene.seen.peer_cpu_share = Some(0.99);
    scene.is("receiver", &["decode node's network thread used 99%"]);
    scene.seen.peer_cpu_share = None;
    scene.is("sender", &[]);
}

#[test]
fn waiting_for_the_receiver_is_its_window_its_thread_or_its_other_work() {
    let mut scene = Scene::new();
    scene.totals().rwnd_limited_us = 600_000;
    // 12 MB over 1 ms allow 96 Gbps, so the window is not what keeps the rate at 10.
    scene.is(
        "slow-reader",
        &["60% of the busy time", "decode node to read"],
    );
    scene.after().min_rtt_us = 10_000;
    let parts = ["12.0 MB", "10.0 ms", "9.60 Gbps a connection", "tcp_rmem"];
    scene.is("receive-window", &parts);
    scene.seen.streams = 4;
    scene.is("slow-reader", &[]);
    scene.seen.peer_cpu_share = Some(0.95);
    scene.is("receiver", &["95%"]);
}

#[test]
fn a_send_buffer_below_the_bandwidth_delay_product_is_shown_by_arithmetic() {
    let mut scene = Scene::new();
    scene.totals().sndbuf_limited_us = 700_000;
    scene.after().min_rtt_us = 10_000;
    scene.gbps = 6.0;
    let parts = [
        "70% of the busy time",
        "8.0 MB",
        "10.0 ms",
        "6.40 Gbps",
        "tcp_wmem",
    ];
    scene.is("send-buffer", &parts);
    // A full link lengthens the round trip: then the buffer only fills up behind the queue.
    scene.gbps = 1.0;
    scene.after().rtt_us = 25_000;
    scene.is("queue", &["from 10.00 to 25.00 ms"]);
}

#[test]
fn lost_packets_are_the_network() {
    let mut scene = Scene::new();
    scene.totals().bytes_retrans = 5_200;
    scene.is("loss", &["0.52% of the bytes were sent again"]);
    scene.totals().bytes_retrans = 500;
    scene.is("network", &[]);
}

#[test]
fn an_interface_that_is_full_is_the_limit_unless_a_faster_one_is_up() {
    let mut scene = Scene::new();
    scene.interface = Some(card("eth0", 10_000));
    scene.interfaces = vec![card("eth0", 10_000)];
    scene.is("interface-full", &["10 Gbit/s of eth0"]);
    scene.interfaces.push(card("ib0", 100_000));
    scene.is(
        "wrong-interface",
        &["eth0 (10 Gbit/s)", "ib0 (100 Gbit/s)", "--bind ib0"],
    );
    // Not full, so that is no limit and still worth knowing.
    scene.gbps = 2.0;
    scene.seen.cpu_share = 0.95;
    assert_eq!(scene.judged().0, ["sender", "wrong-interface"]);
    assert!(scene.judged().1.contains("; also wrong interface"));
    scene.interfaces[1].is_up = false;
    scene.is("sender", &[]);
}

#[test]
fn speeds_of_virtual_interfaces_and_impossible_ones_are_not_believed() {
    let mut scene = Scene::new();
    scene.interface = Some(NetworkInterface {
        driver: None,
        ..card("veth0", 10_000)
    });
    scene.interfaces = vec![card("ib0", 100_000)];
    scene.is("network", &[]);
    scene.interface = Some(card("eth0", 1_000));
    scene.is("network", &[]);
}

#[test]
fn congestion_control_paces_or_has_a_small_window() {
    let mut scene = Scene::new();
    scene.socket.congestion_control = Some("bbr".into());
    scene.after().pacing_rate_bytes_per_s = 1_400_000_000;
    scene.is("paced", &["bbr sends at 11.20 Gbps"]);
    scene.after().pacing_rate_bytes_per_s = 14_000_000_000;
    scene.is("network", &[]);
    scene.socket.congestion_control = Some("reno".into());
    scene.after().snd_cwnd_segments = 1_000;
    let parts = ["reno's window of 1.45 MB", "1.0 ms", "11.70 Gbps"];
    scene.is("congestion-window", &parts);
}

#[test]
fn a_queue_on_the_way_shows_in_the_round_trip() {
    let mut scene = Scene::new();
    scene.after().min_rtt_us = 300;
    scene.is("queue", &["from 0.30 to 1.00 ms"]);
    // A short one is only the machine's own jitter.
    scene.after().rtt_us = 120;
    scene.after().min_rtt_us = 40;
    scene.is("network", &[]);
}

#[test]
fn totals_are_growth_over_all_connections() {
    let grown = |sent, retrans| TcpInfo {
        bytes_sent: sent,
        bytes_retrans: retrans,
        ..info()
    };
    let totals = Totals::between(&[grown(10, 0), grown(20, 5)], &[grown(15, 1), grown(40, 5)]);
    let totals = totals.unwrap();
    assert_eq!((totals.bytes_sent, totals.bytes_retrans), (25, 1));
    assert_eq!(Totals::between(&[], &[]), None);
    assert_eq!(Totals::between(&[info()], &[]), None);
}
