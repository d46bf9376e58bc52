//! A made-up sweep for tests.

use super::{LeftOut, Observed, Row, Sweep, Times, ceiling_gbps};
use crate::wire::socket::SocketFacts;

/// A sweep of one small row and the widest that there can be.
pub fn sweep() -> Sweep {
    let times = |ns: u64| Times {
        cold_ns: 2 * ns,
        warm_ns: vec![ns; 20],
        after_idle_ns: Some(4 * ns),
        more_after_idle_ns: Vec::new(),
    };
    let rows = vec![
        Row::of(69_120, 1, 30, times(230_000)).unwrap(),
        Row::of(1 << 30, 64, 16_800, times(8_589_934_592)).unwrap(),
    ];
    Sweep {
        schema_version: 1,
        argv: Vec::new(),
        git_revision: String::new(),
        measured_at: String::new(),
        shape: "SmolLM2-135M".into(),
        kv_bytes_per_token: 23_040,
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
        transport: "tcp".into(),
        min_round_trip_us: 40.0,
        idle_gap_ms: Some(1000),
        ceiling_gbps: ceiling_gbps(&rows),
        rows,
        left_out: [1, 1, 2]
            .map(|streams| LeftOut {
                bytes: 4 << 30,
                streams,
                pieces: 30,
                reason: "it would take too long".into(),
            })
            .to_vec(),
        fits: Vec::new(),
        observed: Observed {
            streams: 1,
            cpu_share: 0.5,
            peer_cpu_share: None,
            same_core_share: None,
            core: None,
            send_buffer_bytes: None,
            totals: None,
            before: None,
            after: None,
        },
        causes: Vec::new(),
        limit: "network".into(),
    }
}
